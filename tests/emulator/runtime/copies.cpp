// cp.async. A copy completes at a random moment between its issue and the wait for its group or the end of its thread; in race
// mode, only at that wait or end. The copies of a thread may complete in any order. Until a copy completes, its destination is
// NaN.
#include "platform/memory.h"
#include "scheduler.h"

#include <algorithm>

namespace emulator {
namespace {
void land(const Copy& copy) {
  std::memcpy(copy.to, copy.from, size_t(copy.source_bytes));
  std::memset(copy.to + copy.source_bytes, 0, size_t(copy.bytes - copy.source_bytes));
}

// Completes a copy when its thread waits for it or ends. The write was reported to the race checker at the issue and is reported
// again here. Otherwise a barrier between the issue and the wait would seem to order the write before accesses after the barrier.
void land_at_wait(const Copy& copy) {
  see(copy.to, size_t(copy.bytes), Access::write, copy.where);
  land(copy);
}

// Sometimes completes one of the copies. Does nothing in race mode, in which copies complete when their thread waits or ends.
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
  self.copies.push_back({.to = static_cast<unsigned char*>(shared),
                         .from = static_cast<const unsigned char*>(global),
                         .bytes = bytes,
                         .source_bytes = source_bytes,
                         .group = self.copy_group,
                         .where = where});
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
}

void finish_copies(Thread& thread) {
  for (const Copy& copy : thread.copies) land_at_wait(copy);
  thread.copies.clear();
}
}  // namespace emulator
