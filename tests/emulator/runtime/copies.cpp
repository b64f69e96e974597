// cp.async. A copy may land at any moment between its issue and the wait for its group, so it lands at a random one; until
// then its destination holds NaN. Copies of one thread may overtake each other.
#include "platform/memory.h"
#include "scheduler.h"

#include <algorithm>

namespace emulator {
namespace {
void land(const Copy& copy) {
  see(copy.to, size_t(copy.bytes), Access::write);
  if (copy.source_bytes) see(copy.from, size_t(copy.source_bytes), Access::read);
  std::memcpy(copy.to, copy.from, size_t(copy.source_bytes));
  std::memset(copy.to + copy.source_bytes, 0, size_t(copy.bytes - copy.source_bytes));
}

// One in four times one of them, whichever.
void land_some(std::vector<Copy>& copies) {
  // The race checker hears of a copy at its last moment: earlier, chance could hide that nobody waited.
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
  if (source_bytes) check_aligned(global, size_t(bytes), "copy_async, from", where);
  Thread& self = scheduler().current();
  see(shared, size_t(bytes), Access::write);
  std::memset(shared, 0xff, size_t(bytes));
  self.copies.push_back(
      {static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, source_bytes, self.copy_group});
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
    if (must_land(copy)) land(copy);
  std::erase_if(self.copies, must_land);
}

void finish_copies(Thread& thread) {
  for (const Copy& copy : thread.copies) land(copy);
  thread.copies.clear();
}
}  // namespace emulator
