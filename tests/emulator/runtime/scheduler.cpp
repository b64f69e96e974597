// The scheduler of threads and blocks, and the end of a launch by failure.
#include "scheduler.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {
namespace {
constexpr unsigned kRedZone = 1024;  // bytes after a block's shared memory; a write there fails the launch
constexpr size_t kSharedBytes = (Limits::kSharedPerBlock + kRedZone + 4095) & ~size_t(4095);
// On average once in this many calls, next() gives up a preferred block that has ready threads.
constexpr unsigned kLeaveOneIn = 32;
// A launch is in a deadlock after 100,000 polls without progress, and this many more for each thread of the resident blocks.
constexpr uint64_t kIdlePollsPerThread = 400;

unsigned threads_of(const dim3& size) { return size.x * size.y * size.z; }
// Maps the largest shared memory of a block, the red zone, and a page without access.
unsigned char* map_shared_memory() {
  void* memory = mmap(nullptr, kSharedBytes + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("the emulator cannot map shared memory");
    std::abort();
  }
  mprotect(static_cast<unsigned char*>(memory) + kSharedBytes, 4096, PROT_NONE);
  return static_cast<unsigned char*>(memory);
}

// Returns an unused object, or a new one.
template <class T>
T* take(std::vector<std::unique_ptr<T>>& all, std::vector<T*>& unused) {
  if (unused.empty()) {
    all.push_back(std::make_unique<T>());
    return all.back().get();
  }
  T* object = unused.back();
  unused.pop_back();
  return object;
}
}  // namespace

Scheduler& scheduler() {
  static Scheduler* instance = new Scheduler;  // never destroyed, because threads of the process may outlive main
  return *instance;
}

Scheduler::Scheduler() : fibers_(fiber_body) {}

bool Scheduler::launch(const LaunchRequest& request, uint64_t seed) {
  request_ = request;
  random_.state = seed | 1;
  failure_.clear();
  idle_polls_ = 0;
  gridDim = request.grid, blockDim = request.block;
  race_launch_started(request.parameters, request.parameter_bytes);
  order_.resize(threads_of(request.grid) / threads_of(request.cluster));
  std::iota(order_.begin(), order_.end(), 0u);
  for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random_.below(unsigned(i))]);
  while (active_.size() + threads_of(request.cluster) <= request.resident && start_cluster()) {
  }
  if (Thread* first = next()) {
    running_ = fibers_.take();
    enter(*first);
    switch_fiber(main_, *running_);
  }
  current_ = nullptr;
  preferred_ = nullptr;
  operations_.clear();  // a launch that has failed may leave some, which must not run in the next one
  if (failure_.empty()) return true;
  fibers_.abandon_all();
  active_.clear();
  unused_.clear();
  blocks_.clear();
  clusters_.clear();
  unused_clusters_.clear();
  mbarriers_.clear();
  asynchronous_ = false;
  return false;
}

bool Scheduler::start_cluster() {
  if (order_.empty()) return false;
  const unsigned linear = order_.back();
  order_.pop_back();
  Cluster& cluster = *take(clusters_, unused_clusters_);
  const dim3 grid = request_.grid, size = request_.cluster;
  const unsigned across = grid.x / size.x, down = grid.y / size.y;
  const uint3 first{linear % across * size.x, linear / across % down * size.y, linear / across / down * size.z};
  cluster.blocks.clear();
  cluster.unfinished = threads_of(size);
  cluster.arrived = 0;
  for (unsigned rank = 0; rank < threads_of(size); ++rank) {
    Block& block = *take(blocks_, unused_);
    block.index = {first.x + rank % size.x, first.y + rank / size.x % size.y, first.z + rank / size.x / size.y};
    block.cluster = &cluster, block.rank = rank;
    cluster.blocks.push_back(&block);
    start_block(block, block.index.x + grid.x * (block.index.y + grid.y * block.index.z));
  }
  return true;
}

void Scheduler::start_block(Block& block, unsigned linear) {
  if (!block.shared) block.shared = map_shared_memory();
  block.linear = linear;
  block.started = false;
  block.pending_copies = 0;
  const dim3 size = request_.block;
  const unsigned count = threads_of(size);
  block.alive = count;
  block.threads.resize(count);
  block.warps.assign((count + 31) / 32, {});
  block.ready.resize(count);
  uint3 index{};
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    thread.block = &block, thread.linear = i, thread.index = index;
    if (++index.x == size.x) index.x = 0, ++index.y;
    if (index.y == size.y) index.y = 0, ++index.z;
    block.ready[i] = &thread;
    block.warps[i / 32].alive |= 1u << i % 32;
  }
  std::memset(block.shared, 0xff, request_.shared_bytes + kRedZone);
  if constexpr (kRace) race_block_started(block);
  active_.push_back(&block);
  idle_polls_ = 0;
}

bool owns_shared_memory_at(const void* address) {
  const auto* byte = static_cast<const unsigned char*>(address);
  for (const auto& block : scheduler().blocks())
    if (byte >= block->shared - 4096 && byte < block->shared + kSharedBytes + 4096) return true;
  return false;
}

void Scheduler::retire(Block& block) {
  const unsigned char* zone = block.shared + request_.shared_bytes;
  for (unsigned i = 0; i < kRedZone; ++i)
    if (zone[i] != 0xff)
      fail("block (%u,%u,%u) wrote past its shared memory, at byte %u of %u", block.index.x, block.index.y, block.index.z,
           request_.shared_bytes + i, request_.shared_bytes);
  for (const Barrier& barrier : block.barriers)
    if (barrier.arrived)
      fail("block (%u,%u,%u) ended while barrier %d had %u of %u arrivals", block.index.x, block.index.y, block.index.z,
           int(&barrier - block.barriers), barrier.arrived, barrier.expected);
  if (block.pending_copies)
    fail("block (%u,%u,%u) ended while %u copies into its shared memory were incomplete: no thread waited for them",
         block.index.x, block.index.y, block.index.z, block.pending_copies);
  active_.erase(std::find(active_.begin(), active_.end(), &block));
  if (preferred_ == &block) preferred_ = nullptr;
  Cluster& cluster = *block.cluster;
  if (--cluster.unfinished) return;
  while (cluster.blocks.size() > 1 && !operations_.empty()) run_one_operation();  // reports stores to blocks that have ended
  std::erase_if(mbarriers_, [&](const auto& entry) { return entry.second.owner->cluster == &cluster; });
  unused_.insert(unused_.end(), cluster.blocks.begin(), cluster.blocks.end());
  unused_clusters_.push_back(&cluster);
  start_cluster();
}

void Scheduler::later(std::function<void()> operation) { operations_.push_back(std::move(operation)); }

void Scheduler::run_one_operation() {
  std::swap(operations_[random_.below(unsigned(operations_.size()))], operations_.back());
  const std::function<void()> operation = std::move(operations_.back());
  operations_.pop_back();
  asynchronous_ = true;
  operation();
  asynchronous_ = false;
}

void Scheduler::enter(Thread& thread) {
  current_ = &thread;
  thread.waits_for = nullptr;
  thread.block->started = true;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
}

Thread* Scheduler::next() {
  if (!operations_.empty() && random_.below(8) == 0) run_one_operation();
  if (!preferred_ || preferred_->ready.empty() || random_.below(kLeaveOneIn) == 0) {
    preferred_ = nullptr;
    const unsigned count = unsigned(active_.size()), first = count ? random_.below(count) : 0;
    for (unsigned i = 0; i < count && !preferred_; ++i) {
      Block* block = active_[(first + i) % count];
      if (!block->ready.empty()) preferred_ = block;
    }
    if (!preferred_ && !operations_.empty()) {
      run_one_operation();
      return next();
    }
    if (!preferred_) return nullptr;
  }
  std::vector<Thread*>& ready = preferred_->ready;
  const unsigned pick = random_.below(unsigned(ready.size()));
  Thread* thread = ready[pick];
  ready[pick] = ready.back();
  ready.pop_back();
  return thread;
}

void Scheduler::fiber_body() { scheduler().run_threads(); }

void Scheduler::run_threads() {
  for (;;) {
    request_.run(request_.parameters);
    finish(*current_);
    Thread* thread = next();
    if (thread && !thread->fiber) {  // the next thread starts on this stack
      enter(*thread);
      continue;
    }
    if (!thread && !active_.empty()) stop("deadlock: no thread can run\n" + whereabouts());
    Fiber* self = running_;
    fibers_.give(self);
    if (thread) {
      enter(*thread);
      running_ = thread->fiber;
      thread->fiber = nullptr;
      ++switches;
      switch_fiber(*self, *running_);
    } else {
      switch_fiber(*self, main_);
    }
  }
}

void Scheduler::finish(Thread& thread) {
  Block& block = *thread.block;
  ++threads;
  idle_polls_ = 0;
  if (!thread.copies.empty()) finish_copies(thread);
  if (const Warp& warp = block.warps[thread.linear / 32]; warp.products) finish_products(warp);
  --block.alive;
  block.warps[thread.linear / 32].alive &= ~(1u << thread.linear % 32);
  thread.at_cluster_barrier = false;
  thread_exited(thread);
  if (block.alive == 0) retire(block);
}

void Scheduler::resume(Thread& thread) {
  Thread& self = *current_;
  if (&thread == &self) return enter(self);
  self.fiber = running_;
  Fiber* from = running_;
  running_ = thread.fiber ? thread.fiber : fibers_.take();
  thread.fiber = nullptr;
  enter(thread);
  ++switches;
  switch_fiber(*from, *running_);
}

void Scheduler::wait(const char* what, const Where& where) {
  current_->waits_for = what, current_->where = where;
  Thread* thread = next();
  if (!thread) stop("deadlock: no thread can run\n" + whereabouts());
  resume(*thread);
}

void Scheduler::make_ready(Thread& thread) {
  thread.waits_for = nullptr;
  thread.block->ready.push_back(&thread);
  idle_polls_ = 0;
}

void Scheduler::yield() {
  current_->block->ready.push_back(current_);
  resume(*next());
}

void Scheduler::poll(const Where& where) {
  current_->waits_for = "a value it polls", current_->where = where;
  if (++idle_polls_ > 100'000 + kIdlePollsPerThread * active_.size() * threads_of(request_.block))
    stop("deadlock: threads poll for values that no thread will write\n" + whereabouts());
  if (random_.below(2)) preferred_ = nullptr;  // the value may well come from another block
  current_->block->ready.push_back(current_);
  resume(*next());
}

void Scheduler::stop(std::string message) {
  failure_ = std::move(message);
  Fiber* self = running_;
  switch_fiber(*self, main_);
  __builtin_unreachable();
}

std::string describe(const Thread& thread) {
  char text[128];
  const uint3 b = thread.block->index, t = thread.index;
  std::snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u)", t.x, t.y, t.z, b.x, b.y, b.z);
  return text;
}

// One line for each block and source line where threads of the block wait, at most twelve lines.
std::string Scheduler::whereabouts() const {
  std::string text;
  int lines = 0;
  for (const Block* block : active_) {
    std::map<std::string, std::vector<unsigned>> places;
    for (const Thread& thread : block->threads)
      if (thread.waits_for) {
        const std::string file = base_name(thread.where.file_name());
        places[std::string("for ") + thread.waits_for + " at " + file + ":" + std::to_string(thread.where.line())].push_back(
            thread.linear);
      }
    for (const auto& [place, waiting] : places) {
      if (++lines > 12) return text + "  ...\n";
      std::string list;
      for (size_t i = 0; i < waiting.size() && i < 8; ++i) list += (i ? "," : "") + std::to_string(waiting[i]);
      if (waiting.size() > 8) list += ",...";
      char line[512];
      std::snprintf(line, sizeof line, "  block (%u,%u,%u): %zu of %u threads left wait %s (threads %s)\n", block->index.x,
                    block->index.y, block->index.z, waiting.size(), block->alive, place.c_str(), list.c_str());
      text += line;
    }
  }
  return text;
}

const char* base_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  Scheduler& all = scheduler();
  if (all.in_asynchronous_operation()) all.stop(text + std::string("\n  in an asynchronous operation\n"));
  all.stop(all.running() ? std::string(text) + "\n  in " + describe(all.current()) + "\n" : text);
}
}  // namespace emulator
