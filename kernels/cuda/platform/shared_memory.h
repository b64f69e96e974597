// Shared memory is always dynamic: its size is part of the launch plan, and an emulated block can own its own.
#pragma once
#include "platform/types.h"

// The start of the block's shared memory, 1024-byte aligned (what the widest copy-engine swizzle needs).
template <class T>
__device__ inline T* shared_memory() {
  extern __shared__ __align__(1024) unsigned char shared_memory_bytes[];
  return reinterpret_cast<T*>(shared_memory_bytes);
}
