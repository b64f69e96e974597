// Defines for g++ what device code uses without including anything: CUDA's qualifiers, built-in variables and functions. The
// build includes this file at the start of every source, as nvcc includes its own file of this name.
#pragma once
#include "emulator/runtime.h"
#include "emulator/vector_types.h"
#include "emulator/math.h"
#include "emulator/thread.h"
#include "emulator/warp.h"
#include "emulator/atomics.h"

// The macros come after the standard headers, which use some of their names as attributes. __shared__ is missing, so that a
// kernel with static shared memory does not compile: shared memory is dynamic (platform/shared_memory.h).
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
