// mbarriers as the PTX manual's state machine: phase, expected arrivals, pending arrivals and pending bytes. A phase ends when
// both pending counts are zero. Within a phase, bytes may come before they are expected.
#include "platform/mbarrier.h"

#include "platform/cluster.h"
#include "scheduler.h"

#include <cstdlib>

uint32_t mbarrier_address(const uint64_t* barrier) { return cluster_address(barrier, cluster_rank()); }

namespace emulator {
namespace {
constexpr uint32_t kMaxArrivals = (1 << 20) - 1;
constexpr int kMaxBytes = (1 << 20) - 1;

[[noreturn]] void wrong(const char* what, const Where& where) {
  fail("mbarrier at %s:%u: %s", base_name(where.file_name()), unsigned(where.line()), what);
}

MBarrier& find(const uint64_t* barrier, const Where& where) {
  auto& all = scheduler().mbarriers();
  const auto entry = all.find(barrier);
  if (entry == all.end()) wrong("it is not initialised", where);
  return entry->second;
}

void check(MBarrier& state) {
  if (state.pending || state.bytes) return;
  ++state.phase;
  state.pending = state.expected;
  state.known = join(state.arrivals);
  state.arrivals.clear();
  for (Thread* thread : state.waiting) scheduler().make_ready(*thread);
  state.waiting.clear();
}

void arrive(MBarrier& state, int bytes, Moment moment, const Where& where) {
  if (!state.pending) wrong("more arrivals than the phase has, whose bytes have not all come", where);
  state.bytes += bytes;
  if (std::abs(state.bytes) > kMaxBytes) wrong("more than 2^20 - 1 bytes are pending", where);
  if (kRace) state.arrivals.push_back(std::move(moment));
  --state.pending;
  scheduler().progress();
  check(state);
}
Moment moment_now() { return kRace ? release(scheduler().current()) : Moment{}; }
}  // namespace

void mbarrier_init(uint64_t* barrier, uint32_t arrivals, const Where& where) {
  check_aligned(barrier, 8, "mbarrier_init", where);
  if (!is_shared(barrier, 8)) wrong("it is not in this block's shared memory", where);
  if (!arrivals || arrivals > kMaxArrivals) wrong("the number of arrivals is 1 to 2^20 - 1", where);
  see(barrier, 8, Access::write, where);
  auto [entry, is_new] = scheduler().mbarriers().try_emplace(barrier);
  if (!is_new) wrong("it is initialised twice", where);
  entry->second.expected = entry->second.pending = arrivals;
  entry->second.owner = scheduler().current().block;
}

void mbarrier_require(const uint64_t* barrier, const Where& where) { find(barrier, where); }

void mbarrier_arrive(uint64_t* barrier, uint32_t bytes, const Where& where) {
  preempt();
  see(barrier, 8, Access::atomic, where);
  arrive(find(barrier, where), int(bytes), moment_now(), where);
}

void mbarrier_arrive_cluster(uint32_t address, const Where& where) {
  preempt();
  auto* barrier = reinterpret_cast<uint64_t*>(cluster_pointer(address, 8, "mbarrier_arrive_cluster", where));
  see(barrier, 8, Access::atomic, where);
  arrive(find(barrier, where), 0, moment_now(), where);
}

void mbarrier_complete(uint64_t* barrier, int bytes, const Moment& moment, const Where& where) {
  MBarrier& state = find(barrier, where);
  state.bytes -= bytes;
  if (std::abs(state.bytes) > kMaxBytes) wrong("more than 2^20 - 1 bytes came before they were expected", where);
  if (kRace) state.arrivals.push_back(moment);
  scheduler().progress();
  check(state);
}

bool mbarrier_try_wait(const uint64_t* barrier, uint32_t parity, const Where& where) {
  see(barrier, 8, Access::atomic_read, where);
  MBarrier& state = find(barrier, where);
  if ((state.phase & 1) == parity || scheduler().random().below(8) == 0) {
    poll(where);
    return false;
  }
  acquire(scheduler().current(), state.known);
  return true;
}

void mbarrier_wait(const uint64_t* barrier, uint32_t parity, const Where& where) {
  preempt();
  see(barrier, 8, Access::atomic_read, where);
  Thread& self = scheduler().current();
  while ((find(barrier, where).phase & 1) == parity) {
    find(barrier, where).waiting.push_back(&self);
    scheduler().wait("an mbarrier", where);
  }
  acquire(self, find(barrier, where).known);
}
}  // namespace emulator
