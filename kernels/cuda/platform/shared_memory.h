// Kernels use dynamic shared memory only, so the launch plan sets its size, and the emulator can allocate it for each block.
#pragma once
#include "platform/types.h"

// The start of the block's shared memory, aligned to the 1024 bytes that TMA's widest swizzle needs.
template <class T>
__device__ inline T* shared_memory() {
  extern __shared__ __align__(1024) unsigned char shared_memory_bytes[];
  return reinterpret_cast<T*>(shared_memory_bytes);
}
