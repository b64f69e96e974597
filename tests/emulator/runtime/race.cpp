// The happens-before relation by vector clocks. Barriers, __syncwarp, fences, releases and acquires pass the clocks of threads to
// other threads. Waits for TMA and wgmma pass the clocks of copies and products (race.h). Shuffles, votes, mma.sync, ldmatrix and
// stmatrix order no memory, so they pass none.
#ifdef EMULATOR_RACE
#include "race.h"

#include "emulator/thread.h"
#include "platform/tensor_map.h"
#include "scheduler.h"
#include "shadow.h"

#include <algorithm>
#include <unordered_map>

namespace emulator {
namespace {
std::unordered_map<uintptr_t, SharedClock>& locations() {  // address of a synchronising access -> clock released there
  static std::unordered_map<uintptr_t, SharedClock> instance;
  return instance;
}

Clock::Part join_parts(const Clock::Part& a, const Clock::Part& b) {
  if (a == b || !b) return a;
  if (!a) return b;
  auto joined = std::make_shared<std::vector<uint32_t>>(*a);
  joined->resize(std::max(a->size(), b->size()));  // new actors (race.h) make parts longer
  for (size_t i = 0; i < b->size(); ++i) (*joined)[i] = std::max((*joined)[i], (*b)[i]);
  return joined;
}

SharedClock join(const SharedClock& a, const SharedClock& b) {
  if (a == b || !b) return a;
  if (!a) return b;
  auto joined = std::make_shared<Clock>();
  auto i = a->parts.begin(), j = b->parts.begin();
  while (i != a->parts.end() || j != b->parts.end()) {
    if (j == b->parts.end() || (i != a->parts.end() && i->first < j->first))
      joined->parts.push_back(*i++);
    else if (i == a->parts.end() || j->first < i->first)
      joined->parts.push_back(*j++);
    else
      joined->parts.emplace_back(i->first, join_parts(i->second, j->second)), ++i, ++j;
  }
  return joined;
}
}  // namespace

uint32_t Clock::at(uint32_t block, uint32_t thread) const {
  const auto entry =
      std::lower_bound(parts.begin(), parts.end(), block, [](const auto& part, uint32_t b) { return part.first < b; });
  return entry != parts.end() && entry->first == block && thread < entry->second->size() ? (*entry->second)[thread] : 0;
}

Moment release(Thread& thread) {
  Knowledge& self = thread.knowledge;
  return {self.known, thread.block->linear, thread.linear, self.clock++};
}

SharedClock join(const std::vector<Moment>& moments) {
  SharedClock known;
  const Clock* last = nullptr;
  for (const Moment& moment : moments) {
    if (moment.known.get() == last) continue;  // threads that met at a barrier share a clock
    known = join(known, moment.known);
    last = moment.known.get();
  }
  auto joined = std::make_shared<Clock>(known ? *known : Clock{});
  std::shared_ptr<std::vector<uint32_t>> part;
  uint32_t block = ~0u;
  const size_t threads = size_t(blockDim.x) * blockDim.y * blockDim.z;
  for (const Moment& moment : moments) {
    if (moment.block != block) {
      block = moment.block;
      auto place = std::lower_bound(joined->parts.begin(), joined->parts.end(), block,
                                    [](const auto& known_part, uint32_t b) { return known_part.first < b; });
      if (place == joined->parts.end() || place->first != block)
        place = joined->parts.emplace(place, block, std::make_shared<std::vector<uint32_t>>(threads));
      part = std::make_shared<std::vector<uint32_t>>(*place->second);
      place->second = part;
    }
    if (moment.thread >= part->size()) part->resize(moment.thread + 1);
    uint32_t& entry = (*part)[moment.thread];
    entry = std::max(entry, moment.clock);
  }
  return joined;
}

void acquire(Thread& thread, const SharedClock& clock) { thread.knowledge.known = join(thread.knowledge.known, clock); }

namespace {
Moment next_moment(Block& block, size_t actor) {
  return {nullptr, block.linear, uint32_t(block.threads.size() + actor), ++block.actors.clocks[actor]};
}
}  // namespace

Moment products_moment(Block& block, unsigned warp) { return next_moment(block, warp); }

Moment copies_moment(Block& block, const uint64_t* barrier) {
  Actors& actors = block.actors;
  const auto known = std::find(actors.barriers.begin(), actors.barriers.end(), barrier);
  const auto actor = block.warps.size() + size_t(known - actors.barriers.begin());
  if (known == actors.barriers.end()) {
    if (block.threads.size() + actor > kMaxActor)
      fail("copies to more mbarriers of a block than the race checker can distinguish");
    actors.barriers.push_back(barrier);
    actors.clocks.push_back(0);
  }
  return next_moment(block, actor);
}

void fence_proxy_async() {
  Knowledge& mine = scheduler().current().knowledge;
  mine.proxy_fences.push_back(mine.clock++);
}

void synchronise(const void* address, size_t bytes, bool writes, Order order, const Where& where) {
  see(address, bytes, writes ? Access::atomic : Access::atomic_read, where);
  Thread& self = scheduler().current();
  Knowledge& mine = self.knowledge;
  SharedClock& location = locations()[reinterpret_cast<uintptr_t>(address)];
  if (location && order != Order::release) {
    if (order == Order::relaxed)
      mine.offered = join(mine.offered, location);
    else
      acquire(self, location);
  }
  if (!writes) return;
  // The clock released here earlier is kept, because a read-modify-write by another thread continues the release sequence.
  if (order == Order::release)
    location = join(location, join({release(self)}));
  else if (mine.fenced)
    location = join(location, mine.fenced);
}

void fence() {
  Thread& self = scheduler().current();
  acquire(self, self.knowledge.offered);
  self.knowledge.fenced = join({release(self)});
}

void forget_locations() { locations().clear(); }
}  // namespace emulator
#endif
