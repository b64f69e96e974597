// Kernels for the tests of threads, blocks, warps, atomics and conversions.
#pragma once
#include "platform/memory.h"
#include "platform/shared_memory.h"
#include "platform/types.h"
#include "platform/vector.h"

template <class T>
struct BasicParameters {
  const T* x;
  T* y;
  int32_t count;
};

// y = 2 x, by a grid-stride loop.
template <class T>
__global__ void double_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < parameters.count; i += int(gridDim.x * blockDim.x))
    parameters.y[i] = 2 * parameters.x[i];
}

// Each block reverses its part of x through shared memory. Without Synchronise, a barrier is missing.
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

// Thread 0 waits in a shuffle for thread 1, which waits for thread 0 at the second barrier.
template <class T>
__global__ void deadlock_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  __syncthreads();
  if (threadIdx.x == 0)
    __shfl_sync(3u, 0, 0);
  else
    __syncthreads();
}

// The warps of a block wait at different barriers.
template <class T>
__global__ void divergent_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

// Writes one element past the shared memory.
template <class T>
__global__ void overrun_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  shared_memory<T>()[threadIdx.x + 1] = 0;
}

// y[0] is how many threads of the block have an x below parameters.count; y[1] and y[2] say whether all and whether any have.
template <class T>
__global__ void predicate_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  const bool predicate = parameters.x[threadIdx.x] < parameters.count;
  const int count = __syncthreads_count(predicate), all = __syncthreads_and(predicate), any = __syncthreads_or(predicate);
  if (threadIdx.x == 7) parameters.y[0] = count, parameters.y[1] = all, parameters.y[2] = any;
}

template <class T>
__global__ void vote_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  const T x = parameters.x[threadIdx.x];
  const unsigned ballot = __ballot_sync(0xffffffff, x), any = __any_sync(0xffffffff, x), all = __all_sync(0xffffffff, x);
  if (threadIdx.x == 31) parameters.y[0] = T(ballot), parameters.y[1] = T(any), parameters.y[2] = T(all);
}

// Adds 1 to y for each thread whose indices are within their bounds, and 2^20 for any other.
template <class T>
__global__ void atomic_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  const bool in_block = threadIdx.x < blockDim.x && threadIdx.y < blockDim.y && threadIdx.z < blockDim.z;
  const bool in_grid = blockIdx.x < gridDim.x && blockIdx.y < gridDim.y && blockIdx.z < gridDim.z;
  atomicAdd(parameters.y, in_block && in_grid ? 1 : 1 << 20);
}

template <class T>
struct ConvertParameters {
  const float* x;
  T* y;
  float* back;
  int32_t count;
};
template <class T>
__global__ void convert_kernel(const __grid_constant__ ConvertParameters<T> parameters) {
  for (int i = 0; i < parameters.count; ++i) {
    parameters.y[i] = narrow<T>(parameters.x[i]);
    parameters.back[i] = widen(parameters.y[i]);
  }
}

template <class T>
__global__ void poll_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  while (load_relaxed(reinterpret_cast<const uint32_t*>(parameters.x)) == 0) spin_wait();
}

template <class T>
__global__ void misaligned_kernel(const __grid_constant__ BasicParameters<T> parameters) {
  store_vector(shared_memory<T>() + 1, Vector<T, 4>{});
}
