// Runs the threads of a launch as fibers, in a random order that follows from a seed. Only resident blocks have threads.
#pragma once
#include "emulator/runtime.h"
#include "emulator/vector_types.h"
#include "fiber.h"
#include "race.h"

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace emulator {
struct Block;

struct Copy {  // an incomplete cp.async
  unsigned char* to;
  const unsigned char* from;
  int bytes, source_bytes;
  unsigned group;
  Where where;
};

struct Thread {
  Block* block = nullptr;
  uint3 index{};
  unsigned linear = 0;
  Fiber* fiber = nullptr;           // the fiber on which the thread is suspended, or null
  const char* waits_for = nullptr;  // null if the thread neither waits nor polls
  Where where;                      // of the wait
  Predicates predicates{};          // the result of the last barrier
  std::vector<Copy> copies;
  unsigned copy_group = 0;          // the group of the next copy
  bool at_cluster_barrier = false;  // has arrived and not yet waited
  uint64_t cluster_phase = 0;       // the phase of that arrival
  Knowledge knowledge;              // of other threads' accesses
};

struct Barrier {
  unsigned arrived = 0, expected = 0;
  unsigned predicates = 0;
  Where where;
  std::vector<Thread*> waiting;
  std::vector<Moment> arrivals;
};

struct Collective {
  uint32_t mask, arrived;
  const char* what;
  Combine* combine;
  bool orders_memory;  // only __syncwarp does
  void* operand[32];
};
struct Warp {
  uint32_t alive = 0;
  std::vector<Collective> pending;              // with disjoint masks
  std::shared_ptr<struct WgmmaQueue> products;  // null until the warp first calls a wgmma function
};

struct Block {
  uint3 index{};
  unsigned linear = 0;  // in the grid
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Thread*> ready;  // includes those that have not started
  unsigned alive = 0;
  Barrier barriers[16];
  unsigned char* shared = nullptr;
  struct Cluster* cluster = nullptr;
  uint32_t rank = 0;  // in the cluster
  bool started = false;
  unsigned pending_copies = 0;  // by TMA, into this block's shared memory
  Actors actors;
};

// A cluster's blocks become resident together, and make room when all of them have ended. Without clusters, each block is a
// cluster of its own.
struct Cluster {
  std::vector<Block*> blocks;  // by rank
  unsigned unfinished = 0;
  unsigned arrived = 0;
  uint64_t phase = 0;
  std::vector<Thread*> waiting;
  std::vector<Moment> arrivals;
  SharedClock known;
};

struct MBarrier {
  uint64_t phase = 0;
  uint32_t expected = 0, pending = 0;
  int bytes = 0;
  Block* owner = nullptr;
  std::vector<Thread*> waiting;
  std::vector<Moment> arrivals;
  SharedClock known;
};

// The generator xorshift64*.
struct Random {
  uint64_t state = 1;
  uint64_t next() {
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 0x2545f4914f6cdd1d;
  }
  unsigned below(unsigned bound) { return unsigned((next() >> 32) * bound >> 32); }
};

// The emulated GPU has the limits of an H200 and fewer multiprocessors.
struct Limits {
  unsigned multiprocessors = 16;
  static constexpr unsigned kThreadsPerBlock = 1024, kThreadsPerMultiprocessor = 2048, kBlocksPerMultiprocessor = 32;
  static constexpr unsigned kSharedPerBlock = 232448, kSharedPerMultiprocessor = 233472, kSharedReserved = 1024;
};

struct LaunchRequest {
  const char* name;
  void (*run)(const void* parameters);
  const void* parameters;
  size_t parameter_bytes;
  dim3 grid, block, cluster;
  unsigned shared_bytes;
  unsigned resident;  // how many blocks may run at the same time
};

class Scheduler {
 public:
  Scheduler();
  // Runs every thread of every block. Returns false if the launch fails; failure() then says why.
  bool launch(const LaunchRequest& request, uint64_t seed);
  const std::string& failure() const { return failure_; }

  Thread& current() { return *current_; }
  bool running() const { return current_ != nullptr; }
  Random& random() { return random_; }
  const LaunchRequest& request() const { return request_; }
  const FiberPool& fibers() const { return fibers_; }
  void unmap_stacks() { fibers_.unmap(), running_ = nullptr; }  // only between launches
  const std::vector<Block*>& active() const { return active_; }
  const std::vector<std::unique_ptr<Block>>& blocks() const { return blocks_; }
  std::unordered_map<const uint64_t*, MBarrier>& mbarriers() { return mbarriers_; }
  bool in_asynchronous_operation() const { return asynchronous_; }

  void wait(const char* what, const Where& where);  // suspends the current thread until make_ready
  void make_ready(Thread& thread);
  void yield();  // lets another thread run; the current one stays ready
  void poll(const Where& where);
  void progress() { idle_polls_ = 0; }
  void later(std::function<void()> operation);  // runs it at a random moment, at the latest when no thread is ready
  [[noreturn]] void stop(std::string message);  // fails the launch

  uint64_t switches = 0, threads = 0;

 private:
  static void fiber_body();
  void run_threads();
  void finish(Thread& thread);
  Thread* next();  // the thread to run next; null if none is ready
  void resume(Thread& thread);
  void enter(Thread& thread);
  bool start_cluster();
  void start_block(Block& block, unsigned linear);
  void retire(Block& block);
  void run_one_operation();
  std::string whereabouts() const;

  FiberPool fibers_;
  Fiber main_;
  Fiber* running_ = nullptr;
  Thread* current_ = nullptr;
  Block* preferred_ = nullptr;  // the block from which next() usually takes a thread
  LaunchRequest request_{};
  Random random_;
  std::vector<unsigned> order_;  // the clusters that have not started; the last one starts next
  std::vector<Block*> active_;
  std::vector<std::unique_ptr<Block>> blocks_;  // all blocks, active or not
  std::vector<Block*> unused_;
  std::vector<std::unique_ptr<Cluster>> clusters_;
  std::vector<Cluster*> unused_clusters_;
  std::unordered_map<const uint64_t*, MBarrier> mbarriers_;
  std::vector<std::function<void()>> operations_;
  bool asynchronous_ = false;
  uint64_t idle_polls_ = 0;
  std::string failure_;
};
Scheduler& scheduler();

bool owns_shared_memory_at(const void* address);  // in or within 4096 bytes of any block's shared memory
void thread_exited(Thread& thread);               // completes barriers and collectives that waited for this thread
void finish_copies(Thread& thread);               // completes the thread's asynchronous copies
void cluster_barrier_check(Cluster& cluster);     // completes the cluster's barrier if no thread is left to arrive
void mbarrier_complete(uint64_t* barrier, int bytes, const Moment& moment, const Where& where);
void mbarrier_require(const uint64_t* barrier, const Where& where);  // fails the launch unless the barrier is initialised
void finish_products(const Warp& warp);  // fails the launch unless the warp has waited for all of its products
std::string describe(const Thread& thread);
}  // namespace emulator
