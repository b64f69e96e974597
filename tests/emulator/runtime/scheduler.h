// Which thread runs next: threads are fibers, resumed in a seeded random order; blocks live while they are resident.
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

struct Copy {  // a cp.async that is under way
  unsigned char* to;
  const unsigned char* from;
  int bytes, source_bytes;
  unsigned group;
  uint64_t serial;  // over the launch
  Where where;
};
struct CopyArrival {  // at an mbarrier, when all copies up to a serial have landed
  uint64_t serial;
  uint64_t* barrier;
  Moment moment;
  Where where;
};

struct Thread {
  Block* block = nullptr;
  uint3 index{};
  unsigned linear = 0;
  Fiber* fiber = nullptr;           // null before its first instruction and after its last
  const char* waits_for = nullptr;  // null if it could run
  Where where;
  Predicates predicates{};  // the answer of the barrier it waited at
  std::vector<Copy> copies;
  std::vector<CopyArrival> copy_arrivals;
  unsigned copy_group = 0;  // the one that is open
  bool at_cluster_barrier = false;
  uint64_t cluster_phase = 0;  // the one it arrived for
  Knowledge knowledge;         // of other threads' accesses
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
  std::vector<Collective> pending;              // more than one if parts of the warp meet apart
  std::shared_ptr<struct WgmmaQueue> products;  // null until the first
};

struct Block {
  uint3 index{};
  unsigned linear = 0;  // in the grid
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Thread*> ready;  // not yet begun ones included
  unsigned alive = 0;
  Barrier barriers[16];
  unsigned char* shared = nullptr;
  struct Cluster* cluster = nullptr;
  uint32_t rank = 0;  // in the cluster
  bool started = false;
  unsigned copies_under_way = 0;  // of the copy engine, into its shared memory
  Actors actors;
};

// Blocks that start and end together; one block, where the launch has no clusters.
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

// xorshift64*: one launch's choices follow from its seed.
struct Random {
  uint64_t state = 1;
  uint64_t next() {
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 0x2545f4914f6cdd1d;
  }
  unsigned below(unsigned bound) { return unsigned((next() >> 32) * bound >> 32); }
};

// The virtual GPU: an H200's limits on few multiprocessors.
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
  unsigned resident;  // blocks at once
};

class Scheduler {
 public:
  Scheduler();
  // Runs every thread of every block; false, and what happened in failure(), if that could not be.
  bool launch(const LaunchRequest& request, uint64_t seed);
  const std::string& failure() const { return failure_; }

  Thread& current() { return *current_; }
  bool running() const { return current_ != nullptr; }
  Random& random() { return random_; }
  const LaunchRequest& request() const { return request_; }
  const FiberPool& fibers() const { return fibers_; }
  const std::vector<Block*>& active() const { return active_; }
  const std::vector<std::unique_ptr<Block>>& blocks() const { return blocks_; }
  std::unordered_map<const uint64_t*, MBarrier>& mbarriers() { return mbarriers_; }
  bool in_asynchronous_operation() const { return asynchronous_; }

  void wait(const char* what, const Where& where);  // until somebody says make_ready
  void make_ready(Thread& thread);
  void yield();  // stays ready
  void poll(const Where& where);
  void progress() { idle_polls_ = 0; }
  void later(std::function<void()> operation);  // at a random moment, at the latest when nothing else can happen
  [[noreturn]] void stop(std::string message);

  uint64_t switches = 0, threads = 0, copy_serial = 0;

 private:
  static void fiber_body();
  void run_threads();
  void finish(Thread& thread);
  Thread* next();  // null when all is done; ends the launch when nothing can run
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
  Block* here_ = nullptr;  // the block that threads are preferably taken from
  LaunchRequest request_{};
  Random random_;
  std::vector<unsigned> order_;  // of clusters yet to start, last first
  std::vector<Block*> active_;
  std::vector<std::unique_ptr<Block>> blocks_;  // all there are, and the unused ones
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

bool owns_shared_memory_at(const void* address);  // any block's, and what lies around it
void thread_exited(Thread& thread);               // barriers.cpp: whoever waits for it need not
void finish_copies(Thread& thread);               // copies.cpp
void land_copies(Thread& thread, uint64_t up_to_serial);
void cluster_barrier_check(Cluster& cluster);  // cluster.cpp: whether all threads left have arrived
void mbarrier_complete(uint64_t* barrier, int bytes, const Moment& moment, const Where& where);
void mbarrier_require(const uint64_t* barrier, const Where& where);  // that it is initialised
void mbarrier_arrive_late(uint64_t* barrier, const Moment& moment, const Where& where);
void finish_products(const Warp& warp);  // wgmma.cpp: whether each has been waited for
std::string describe(const Thread& thread);
}  // namespace emulator
