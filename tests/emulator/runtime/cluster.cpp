// The cluster's barrier, access to other blocks' shared memory, and asynchronous stores.
#include "platform/cluster.h"

#include "platform/mbarrier.h"
#include "scheduler.h"

namespace {
constexpr uint32_t kWindow = 0x400;  // the address of a block's first shared byte; a GPU reserves the addresses below it
}

uint32_t cluster_rank() { return emulator::scheduler().current().block->rank; }
uint32_t cluster_size() { return uint32_t(emulator::scheduler().current().block->cluster->blocks.size()); }
uint32_t cluster_address(const void* shared, uint32_t rank) {
  using namespace emulator;
  if (!is_shared(shared, 1)) fail("cluster_address: %p is not in this block's shared memory", shared);
  if (rank >= cluster_size()) fail("cluster_address: rank %u in a cluster of %u blocks", rank, cluster_size());
  return rank << 24 | uint32_t(kWindow + (static_cast<const unsigned char*>(shared) - shared_memory()));
}

namespace emulator {
void cluster_arrive(const Where& where) {
  Thread& self = scheduler().current();
  Cluster& cluster = *self.block->cluster;
  if (self.at_cluster_barrier)
    fail("cluster_arrive at %s:%u, twice without cluster_wait", base_name(where.file_name()), unsigned(where.line()));
  self.at_cluster_barrier = true;
  self.cluster_phase = cluster.phase;
  if (kRace) cluster.arrivals.push_back(release(self));
  ++cluster.arrived;
  cluster_barrier_check(cluster);
}

void cluster_barrier_check(Cluster& cluster) {
  unsigned alive = 0;
  for (const Block* block : cluster.blocks) alive += block->alive;
  if (!cluster.arrived || cluster.arrived < alive) return;
  cluster.arrived = 0;
  ++cluster.phase;
  cluster.known = join(cluster.arrivals);
  cluster.arrivals.clear();
  for (Thread* thread : cluster.waiting) scheduler().make_ready(*thread);
  cluster.waiting.clear();
}

void cluster_wait(const Where& where) {
  Thread& self = scheduler().current();
  Cluster& cluster = *self.block->cluster;
  if (!self.at_cluster_barrier)
    fail("cluster_wait at %s:%u without cluster_arrive", base_name(where.file_name()), unsigned(where.line()));
  if (cluster.phase == self.cluster_phase) {
    cluster.waiting.push_back(&self);
    scheduler().wait("the cluster's barrier", where);
  }
  self.at_cluster_barrier = false;
  acquire(self, cluster.known);
}

unsigned char* cluster_pointer(uint32_t address, size_t bytes, const char* what, const Where& where) {
  const char* file = base_name(where.file_name());
  const unsigned line = unsigned(where.line());
  const Cluster& cluster = *scheduler().current().block->cluster;
  const uint32_t rank = address >> 24, offset = (address & 0xffffff) - kWindow;
  if (rank >= cluster.blocks.size() || offset + bytes > scheduler().request().shared_bytes)
    fail("%s at %s:%u: address %08x is in no shared memory of the cluster", what, file, line, address);
  if (offset % bytes) fail("%s at %s:%u: address %08x is not a multiple of %zu", what, file, line, address, bytes);
  const Block& block = *cluster.blocks[rank];
  if (!block.started)
    fail("%s at %s:%u: block %u of the cluster has not started: a cluster barrier is missing", what, file, line, rank);
  if (!block.alive) fail("%s at %s:%u: block %u of the cluster has ended: a cluster barrier is missing", what, file, line, rank);
  return block.shared + offset;
}

void store_async(uint32_t address, const void* value, size_t bytes, uint32_t mbarrier, const Where& where) {
  unsigned char* to = cluster_pointer(address, bytes, "store_async", where);
  auto* barrier = reinterpret_cast<uint64_t*>(cluster_pointer(mbarrier, 8, "store_async's mbarrier", where));
  if (address >> 24 != mbarrier >> 24)
    fail("store_async at %s:%u: the destination is in block %u and the mbarrier in block %u of the cluster",
         base_name(where.file_name()), unsigned(where.line()), address >> 24, mbarrier >> 24);
  if (cluster_size() == 1)
    fail("store_async at %s:%u in a cluster of one block", base_name(where.file_name()), unsigned(where.line()));
  see(to, bytes, Access::write, where);
  std::memset(to, 0xff, bytes);
  Block* block = scheduler().current().block->cluster->blocks[address >> 24];
  unsigned char copy[16];
  std::memcpy(copy, value, bytes);
  Moment moment = kRace ? release(scheduler().current()) : Moment{};
  scheduler().later([=, moment = std::move(moment)] {
    if (!block->alive)
      fail("store_async from %s:%u reached a block that has ended", base_name(where.file_name()), unsigned(where.line()));
    std::memcpy(to, copy, bytes);
    mbarrier_complete(barrier, int(bytes), moment, where);
  });
}
}  // namespace emulator
