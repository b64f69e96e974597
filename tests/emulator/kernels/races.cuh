// Kernels with one mistake each, which the template argument kCorrect removes. outside_kernel has no correct version.
#pragma once
#include "platform/memory.h"
#include "platform/shared_memory.h"
#include "platform/vector.h"

struct RaceParameters {
  const float* x;
  float* y;
  uint32_t* flag;
  int32_t count;
};

// A tree of sums in shared memory, which needs a barrier between its levels.
template <bool kCorrect>
__global__ void block_sum_kernel(const __grid_constant__ RaceParameters p) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = p.x[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    if constexpr (kCorrect) __syncthreads();
  }
  if (threadIdx.x == 0) p.y[blockIdx.x] = shared[0];
}

// A write after a read: every thread reads its neighbour's value, then writes its own.
template <bool kCorrect>
__global__ void rotate_kernel(const __grid_constant__ RaceParameters p) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = p.x[threadIdx.x];
  __syncthreads();
  for (int turn = 0; turn < 3; ++turn) {
    const float value = shared[(threadIdx.x + 1) % blockDim.x];
    if constexpr (kCorrect) __syncthreads();
    shared[threadIdx.x] = value;
    __syncthreads();
  }
  p.y[threadIdx.x] = shared[threadIdx.x];
}

// The lanes of a warp exchange values through shared memory. A shuffle does not order these accesses; __syncwarp does.
template <bool kCorrect>
__global__ void warp_exchange_kernel(const __grid_constant__ RaceParameters p) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = p.x[threadIdx.x];
  if constexpr (kCorrect)
    __syncwarp();
  else
    __shfl_sync(0xffffffff, 0, 0);
  p.y[threadIdx.x] = shared[threadIdx.x ^ 1];
}

// Two blocks write the same byte; in the correct kernel, adjacent bytes.
template <bool kCorrect>
__global__ void overlap_kernel(const __grid_constant__ RaceParameters p) {
  auto* bytes = reinterpret_cast<uint8_t*>(p.y);
  if (threadIdx.x == 0) bytes[kCorrect ? blockIdx.x : 0] = 1;
}

// The second block waits for a flag of the first one and reads its data.
template <bool kCorrect>
__global__ void hand_over_kernel(const __grid_constant__ RaceParameters p) {
  if (blockIdx.x == 0) {
    p.y[threadIdx.x] = p.x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
      if constexpr (kCorrect)
        store_release(p.flag, 1);
      else
        store_relaxed(p.flag, 1);
    }
  } else {
    if (threadIdx.x == 0) {
      while (load_acquire(p.flag) == 0) spin_wait();
    }
    __syncthreads();
    p.y[blockDim.x + threadIdx.x] = p.y[threadIdx.x];
  }
}

// The last block to finish sums the results of all. __threadfence and an atomic counter order its reads after their writes.
template <bool kCorrect>
__global__ void last_block_kernel(const __grid_constant__ RaceParameters p) {
  if (threadIdx.x) return;
  p.y[1 + blockIdx.x] = float(blockIdx.x);
  if constexpr (kCorrect) __threadfence();
  const bool last = atomicAdd(p.flag, 1) == gridDim.x - 1;
  __threadfence();
  if (!last) return;
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += p.y[1 + i];
  p.y[0] = sum;
}

// Every thread copies a value and reads one that another thread copied. In the incorrect kernel no thread waits for its copy.
template <bool kCorrect>
__global__ void copied_kernel(const __grid_constant__ RaceParameters p) {
  float* shared = shared_memory<float>();
  copy_async<4>(shared + threadIdx.x, p.x + threadIdx.x);
  copy_async_commit();
  if constexpr (kCorrect) copy_async_wait<0>();
  __syncthreads();
  p.y[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// kWhere 0 reads an element past the end of x, 1 reads a vector there, 2 reads an element past the end of shared memory, and 3
// writes an element past the end of y.
template <int kWhere>
__global__ void outside_kernel(const __grid_constant__ RaceParameters p) {
  if constexpr (kWhere == 0) p.y[0] = p.x[p.count];
  if constexpr (kWhere == 1) p.y[0] = load_vector<2>(p.x + p.count).element[0];
  if constexpr (kWhere == 2) p.y[0] = shared_memory<float>()[p.count];
  if constexpr (kWhere == 3) p.y[p.count] = 0;
}
