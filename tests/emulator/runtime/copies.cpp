// cp.async. A copy may land at any moment between its issue and the wait for its group, so it lands at a random one; until
// then its destination holds NaN. Copies of one thread may overtake each other.
#include "platform/memory.h"
#include "scheduler.h"

#include <algorithm>

namespace emulator {
namespace {
void land(const Copy& copy) {
  std::memcpy(copy.to, copy.from, size_t(copy.source_bytes));
  std::memset(copy.to + copy.source_bytes, 0, size_t(copy.bytes - copy.source_bytes));
}

// By the wait of its own thread, which is when the race checker hears of it: heard of earlier, a copy that nobody waited for
// could seem to be over at a barrier.
void land_at_wait(const Copy& copy) {
  see(copy.to, size_t(copy.bytes), Access::write, copy.where);
  land(copy);
}

void arrive_where_all_landed(Thread& thread) {
  auto landed = [&](const CopyArrival& arrival) {
    return std::none_of(thread.copies.begin(), thread.copies.end(),
                        [&](const Copy& copy) { return copy.serial <= arrival.serial; });
  };
  std::vector<CopyArrival> due;
  std::copy_if(thread.copy_arrivals.begin(), thread.copy_arrivals.end(), std::back_inserter(due), landed);
  std::erase_if(thread.copy_arrivals, landed);
  for (const CopyArrival& arrival : due) mbarrier_arrive_late(arrival.barrier, arrival.moment, arrival.where);
}

// One in four times one of them, whichever.
void land_some(std::vector<Copy>& copies) {
  if (kRace || copies.empty() || scheduler().random().below(4)) return;
  const auto chosen = copies.begin() + scheduler().random().below(unsigned(copies.size()));
  land(*chosen);
  copies.erase(chosen);
}
}  // namespace

void copy_async(void* shared, const void* global, int bytes, int source_bytes, const Where& where) {
  check_aligned(shared, size_t(bytes), "copy_async, to", where);
  if (!is_shared(shared, size_t(bytes)))
    fail("copy_async at %s:%u: the destination is not in shared memory", base_name(where.file_name()), unsigned(where.line()));
  if (source_bytes < 0 || source_bytes > bytes)
    fail("copy_async at %s:%u: %d of %d bytes", base_name(where.file_name()), unsigned(where.line()), source_bytes, bytes);
  if (source_bytes) {
    check_aligned(global, size_t(bytes), "copy_async, from", where);
    see(global, size_t(source_bytes), Access::read, where);
  }
  Thread& self = scheduler().current();
  see(shared, size_t(bytes), Access::write, where);
  std::memset(shared, 0xff, size_t(bytes));
  self.copies.push_back({static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, source_bytes,
                         self.copy_group, ++scheduler().copy_serial, where});
  land_some(self.copies);
}

void copy_async_commit() {
  Thread& self = scheduler().current();
  ++self.copy_group;
  land_some(self.copies);
}

void copy_async_wait(int pending) {
  Thread& self = scheduler().current();
  auto must_land = [&](const Copy& copy) { return int(self.copy_group - copy.group) > pending; };
  for (const Copy& copy : self.copies)
    if (must_land(copy)) land_at_wait(copy);
  std::erase_if(self.copies, must_land);
  arrive_where_all_landed(self);
}

void land_copies(Thread& thread, uint64_t up_to_serial) {
  auto must_land = [&](const Copy& copy) { return copy.serial <= up_to_serial; };
  for (const Copy& copy : thread.copies)
    if (must_land(copy)) land(copy);
  std::erase_if(thread.copies, must_land);
  arrive_where_all_landed(thread);
}

void finish_copies(Thread& thread) {
  for (const Copy& copy : thread.copies) land_at_wait(copy);
  thread.copies.clear();
  arrive_where_all_landed(thread);
}
}  // namespace emulator
