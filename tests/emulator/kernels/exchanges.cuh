// Kernels for the tests of asynchronous copies, exchanges between blocks, and named barriers.
#pragma once
#include "platform/memory.h"
#include "platform/shared_memory.h"

struct CopyParameters {
  const uint32_t* x;
  uint32_t* y;
  int32_t source_bytes, pending;
};

// Each thread copies `Bytes` bytes through shared memory.
template <int Bytes>
__global__ void copy_kernel(const __grid_constant__ CopyParameters p) {
  unsigned char* shared = shared_memory<unsigned char>();
  const int at = int(threadIdx.x) * Bytes;
  copy_async<Bytes>(shared + at, reinterpret_cast<const unsigned char*>(p.x) + at, p.source_bytes);
  copy_async_commit();
  if (p.pending == 0) copy_async_wait<0>();
  if (p.pending == 1) copy_async_wait<1>();  // a mistake: the copy may be incomplete
  for (int i = 0; i < Bytes / 4; ++i) p.y[at / 4 + i] = reinterpret_cast<const uint32_t*>(shared + at)[i];
}

// The shapes are those of exchange_kernel; the other kernels use the arrays in their own ways.
struct ExchangeParameters {
  uint32_t* flags;  // (gridDim.x), zeros before the launch
  uint32_t* data;   // (gridDim.x, blockDim.x)
  uint32_t* sum;    // (gridDim.x)
};

// Every block writes its data and sets a flag, waits for all flags, and sums the data of all blocks. Needs a cooperative launch.
template <int kFlag>
__global__ void exchange_kernel(const __grid_constant__ ExchangeParameters p) {
  p.data[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x + threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    store_release(p.flags + blockIdx.x, kFlag);
    for (uint32_t block = 0; block < gridDim.x; ++block)
      while (load_acquire(p.flags + block) != kFlag) spin_wait();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < gridDim.x * blockDim.x; ++i) sum += p.data[i];
    p.sum[blockIdx.x] = sum;
  }
}

// One block writes 16 bytes by a single store; the other block polls them by single loads.
template <int Blocks>
__global__ void wide_exchange_kernel(const __grid_constant__ ExchangeParameters p) {
  static_assert(Blocks == 2);
  auto* slot = reinterpret_cast<uint4*>(p.data);
  if (blockIdx.x == 0) {
    store_relaxed(slot, uint4{1, 2, 3, 4});
    return;
  }
  uint4 value;
  while ((value = load_relaxed(slot)).x == 0) spin_wait();
  p.sum[0] = value.x + value.y + value.z + value.w;
}

// In each round, each half of the block reverses its values, with its own named barrier. The second half runs one more round.
template <int Rounds>
__global__ void named_barrier_kernel(const __grid_constant__ ExchangeParameters p) {
  const int threads = int(blockDim.x) / 2, half = int(threadIdx.x) / threads, thread = int(threadIdx.x) % threads;
  uint32_t* shared = shared_memory<uint32_t>() + half * threads;
  uint32_t sum = 0;
  for (int round = 0; round < Rounds + half; ++round) {
    shared[thread] = uint32_t(round + thread);
    barrier_sync(1 + half, threads);
    sum += shared[threads - 1 - thread];
    barrier_sync(1 + half, threads);
  }
  p.data[threadIdx.x] = sum;
}
