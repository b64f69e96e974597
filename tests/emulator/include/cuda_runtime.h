// What nvcc gives device code before its first line, for g++: qualifiers, built-in variables and functions. The build
// includes it ahead of every source, as nvcc does with its own file of this name.
#pragma once
#include "emulator/runtime.h"
#include "emulator/vector_types.h"
#include "emulator/math.h"
#include "emulator/thread.h"
#include "emulator/warp.h"
#include "emulator/atomics.h"

// After every standard header: they use some of these words as attributes. There is no __shared__: shared memory is
// dynamic (platform/shared_memory.h), and a kernel that writes the word does not compile.
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) alignas(bytes)
#define __constant__ static const
#define __grid_constant__
#define __launch_bounds__(...)
#define __trap() emulator::fail("__trap() was called")
