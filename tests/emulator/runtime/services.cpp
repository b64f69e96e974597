// The functions of emulator/runtime.h that no other file of the runtime defines, and clock64.
#include "emulator/runtime.h"
#include "emulator/thread.h"
#include "scheduler.h"

#include <chrono>

long long clock64() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

namespace emulator {
void preempt() {
  if (scheduler().random().below(8) == 0) scheduler().yield();
}
void poll(const Where& where) { scheduler().poll(where); }
void progress() { scheduler().progress(); }

unsigned char* shared_memory() {
  if (!scheduler().request().shared_bytes) fail("the kernel uses shared memory and was launched with none");
  return scheduler().current().block->shared;
}

bool is_shared(const void* address, size_t bytes) {
  const unsigned char* shared = scheduler().current().block->shared;
  const auto* byte = static_cast<const unsigned char*>(address);
  return byte >= shared && byte + bytes <= shared + scheduler().request().shared_bytes;
}

void check_aligned(const void* address, size_t alignment, const char* what, const Where& where) {
  if (reinterpret_cast<uintptr_t>(address) % alignment)
    fail("%s at %s:%u: address %p is not a multiple of %zu", what, base_name(where.file_name()), unsigned(where.line()), address,
         alignment);
}

#ifndef EMULATOR_RACE
void see(const void*, size_t, Access, const Where&) {}
void synchronise(const void*, size_t, bool, Order, const Where&) {}
void fence() {}
#endif
}  // namespace emulator
