// The memory's shadow: who touched each byte last.
#pragma once
#ifdef EMULATOR_RACE
#include "scheduler.h"

namespace emulator {
constexpr uint32_t kMaxActor = 2047;  // threads of a block and other actors (race.h) that an access remembers

// Checks an access against earlier ones, and remembers it. `code` is an address in the kernel.
void check_access(const void* address, size_t bytes, Access access, const void* code);
void forget_shadow(const void* address, size_t bytes);
void forget_locations();
// Memory that kernels may touch, told by the tests; while there is none, any may be.
void allow_memory(const void* address, size_t bytes);
void forget_memory();
}  // namespace emulator
#endif
