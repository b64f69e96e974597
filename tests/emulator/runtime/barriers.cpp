// Block barriers, named barriers and warp collectives.
#include "scheduler.h"

#include <bit>

namespace emulator {
namespace {
bool same(const Where& a, const Where& b) {
  return a.line() == b.line() && (a.file_name() == b.file_name() || !std::strcmp(a.file_name(), b.file_name()));
}

// Makes the waiting threads ready to run and returns the clock that they acquire.
SharedClock complete(Barrier& barrier, Predicates& predicates) {
  predicates = {int(barrier.predicates), barrier.predicates == barrier.arrived, barrier.predicates != 0};
  barrier.arrived = barrier.predicates = barrier.expected = 0;
  const SharedClock clock = join(barrier.arrivals);
  barrier.arrivals.clear();
  std::vector<Thread*> waiting;
  waiting.swap(barrier.waiting);
  for (Thread* thread : waiting) {
    thread->predicates = predicates;
    acquire(*thread, clock);
    scheduler().make_ready(*thread);
  }
  waiting.clear();
  barrier.waiting.swap(waiting);  // so that the barrier keeps the vector's capacity
  return clock;
}

// Makes the accesses of these lanes before a __syncwarp happen before their accesses after it.
void order(Block& block, unsigned warp_index, uint32_t lanes) {
  std::vector<Moment> moments;
  for (uint32_t left = lanes; left; left &= left - 1)
    moments.push_back(release(block.threads[warp_index * 32 + unsigned(std::countr_zero(left))]));
  const SharedClock clock = join(moments);
  for (uint32_t left = lanes; left; left &= left - 1)
    acquire(block.threads[warp_index * 32 + unsigned(std::countr_zero(left))], clock);
}

// Runs the collective if all lanes of its mask that have not exited have arrived. Returns whether it did.
bool complete(Block& block, unsigned warp_index, Collective& collective) {
  Warp& warp = block.warps[warp_index];
  if ((collective.mask & warp.alive) & ~collective.arrived) return false;
  const Collective done = collective;
  collective = warp.pending.back();
  warp.pending.pop_back();
  done.combine(done.operand, done.arrived);
  if (kRace && done.orders_memory) order(block, warp_index, done.arrived);
  for (uint32_t lanes = done.arrived; lanes; lanes &= lanes - 1) {
    Thread& thread = block.threads[warp_index * 32 + unsigned(std::countr_zero(lanes))];
    if (&thread != &scheduler().current()) scheduler().make_ready(thread);
  }
  return true;
}
}  // namespace

Predicates block_barrier(bool predicate, const Where& where) {
  Thread& self = scheduler().current();
  Block& block = *self.block;
  Barrier& barrier = block.barriers[0];
  if (barrier.arrived && !same(barrier.where, where))
    fail("threads of one block are at different barriers: lines %u and %u of %s", unsigned(barrier.where.line()),
         unsigned(where.line()), base_name(where.file_name()));
  barrier.where = where;
  barrier.predicates += predicate;
  if constexpr (kRace) barrier.arrivals.push_back(release(self));
  if (++barrier.arrived == block.alive) {
    acquire(self, complete(barrier, self.predicates));
  } else {
    barrier.waiting.push_back(&self);
    scheduler().wait("__syncthreads", where);
  }
  return self.predicates;
}

void named_barrier(unsigned id, unsigned count, const Where& where) {
  if (id >= 16 || count == 0 || count % 32) fail("barrier %u for %u threads: ids are 0...15, counts multiples of 32", id, count);
  Thread& self = scheduler().current();
  Barrier& barrier = self.block->barriers[id];
  if (barrier.arrived && barrier.expected != count)
    fail("barrier %u is used for %u threads and for %u threads at once (%s:%u)", id, barrier.expected, count, where.file_name(),
         unsigned(where.line()));
  barrier.expected = count;
  if constexpr (kRace) barrier.arrivals.push_back(release(self));
  if (++barrier.arrived == count) {
    acquire(self, complete(barrier, self.predicates));
    return;
  }
  barrier.waiting.push_back(&self);
  scheduler().wait("a named barrier", where);
}

void warp_collective(uint32_t mask, const char* what, void* operand, Combine* combine, const Where& where) {
  Thread& self = scheduler().current();
  const unsigned lane = self.linear % 32, warp_index = self.linear / 32;
  Block& block = *self.block;
  Warp& warp = block.warps[warp_index];
  if (!(mask >> lane & 1)) fail("%s with mask %08x, which leaves out the calling lane %u", what, mask, lane);
  Collective* mine = nullptr;
  for (Collective& pending : warp.pending) {
    if (!(pending.mask & mask)) continue;
    if (pending.mask != mask)
      fail("%s with mask %08x while other lanes wait in %s with mask %08x", what, mask, pending.what, pending.mask);
    if (std::strcmp(pending.what, what)) fail("lanes of one warp meet in different collectives: %s and %s", pending.what, what);
    mine = &pending;
  }
  if (!mine) {
    warp.pending.push_back({mask, 0, what, combine, !std::strcmp(what, "__syncwarp"), {}});
    mine = &warp.pending.back();
  }
  mine->arrived |= 1u << lane;
  mine->operand[lane] = operand;
  if (!complete(block, warp_index, *mine)) scheduler().wait(what, where);
}

void thread_exited(Thread& thread) {
  Block& block = *thread.block;
  cluster_barrier_check(*block.cluster);
  Barrier& barrier = block.barriers[0];
  if constexpr (kRace) barrier.arrivals.push_back(release(thread));  // its accesses happen before the end of the next barrier
  if (barrier.arrived && barrier.expected == 0 && barrier.arrived == block.alive) complete(barrier, thread.predicates);
  std::vector<Collective>& pending = block.warps[thread.linear / 32].pending;
  for (size_t i = 0; i < pending.size();)
    if (!complete(block, thread.linear / 32, pending[i])) ++i;
}

unsigned lane() { return scheduler().current().linear % 32; }
}  // namespace emulator
