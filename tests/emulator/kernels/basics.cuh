// Kernels for the emulator's own tests: each does one thing.
#pragma once
#include "platform/shared_memory.h"
#include "platform/types.h"

template <class T>
struct BasicParameters {
  const T* x;
  T* y;
  int32_t count;
};

// y = 2 x, a grid-stride loop.
template <class T>
__global__ void double_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < parameters.count; i += int(gridDim.x * blockDim.x))
    parameters.y[i] = 2 * parameters.x[i];
}

// Reverses each block's part through shared memory.
template <class T, bool Synchronise>
__global__ void reverse_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  T* shared = shared_memory<T>();
  const int thread = int(threadIdx.x), block = int(blockDim.x), first = int(blockIdx.x) * block;
  shared[thread] = parameters.x[first + thread];
  if constexpr (Synchronise) __syncthreads();
  parameters.y[first + thread] = shared[block - 1 - thread];
}

// y[warp] = sum of the warp's x.
template <class T>
__global__ void warp_sum_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  T sum = parameters.x[i];
  for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(0xffffffff, sum, lanes);
  if (threadIdx.x % 32 == 0) parameters.y[i / 32] = sum;
}

// Thread 0 never comes to the second barrier.
template <class T>
__global__ void deadlock_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  __syncthreads();
  if (threadIdx.x == 0) __shfl_sync(3u, 0, 0);
  else __syncthreads();
}
