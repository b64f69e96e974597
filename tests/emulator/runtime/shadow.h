// Shadow memory: the last accesses of each byte.
#pragma once
#ifdef EMULATOR_RACE
#include "scheduler.h"

namespace emulator {
constexpr uint32_t kMaxActor = 2047;  // the largest index of a thread or actor (race.h) in its block

// Checks an access against earlier ones and records it. `code` is the return address of the call that reports it.
void check_access(const void* address, size_t bytes, Access access, const void* code);
void forget_shadow(const void* address, size_t bytes);
void forget_locations();
// Adds to the memory that kernels may access. As long as nothing has been added, they may access all memory.
void allow_memory(const void* address, size_t bytes);
void forget_memory();
}  // namespace emulator
#endif
