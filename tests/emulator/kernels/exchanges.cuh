// Asynchronous copies, and blocks that talk to each other.
#pragma once
#include "platform/memory.h"
#include "platform/shared_memory.h"

struct CopyParameters {
  const uint32_t* x;
  uint32_t* y;
  int32_t source_bytes, pending;
};

// Each thread copies Bytes through shared memory.
template <int Bytes>
__global__ void copy_kernel(const __grid_constant__ CopyParameters p) {
  unsigned char* shared = shared_memory<unsigned char>();
  const int at = int(threadIdx.x) * Bytes;
  copy_async<Bytes>(shared + at, reinterpret_cast<const unsigned char*>(p.x) + at, p.source_bytes);
  copy_async_commit();
  if (p.pending == 0) copy_async_wait<0>();
  if (p.pending == 1) copy_async_wait<1>();  // a mistake: the group may still be under way
  for (int i = 0; i < Bytes / 4; ++i) p.y[at / 4 + i] = reinterpret_cast<const uint32_t*>(shared + at)[i];
}

struct ExchangeParameters {
  uint32_t* flags;  // (gridDim.x), zero
  uint32_t* data;   // (gridDim.x, blockDim.x)
  uint32_t* sum;    // (gridDim.x)
};

// Every block publishes its data behind a flag, waits for all flags, and sums everybody's data. A cooperative launch.
template <bool Release>
__global__ void exchange_kernel(const __grid_constant__ ExchangeParameters p) {
  p.data[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x + threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    if constexpr (Release)
      store_release(p.flags + blockIdx.x, 1);
    else
      store_relaxed(p.flags + blockIdx.x, 1);
    for (uint32_t block = 0; block < gridDim.x; ++block)
      while (load_relaxed(p.flags + block) == 0) spin_wait();
    fence_acquire_release();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < gridDim.x * blockDim.x; ++i) sum += p.data[i];
    p.sum[blockIdx.x] = sum;
  }
}

// A pointer in 16 bytes, handed on by one access.
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

// Half of the warps produce, half consume, by named barriers.
template <int Rounds>
__global__ void named_barrier_kernel(const __grid_constant__ ExchangeParameters p) {
  uint32_t* shared = shared_memory<uint32_t>();
  const int half = int(blockDim.x) / 2, thread = int(threadIdx.x) % half;
  const bool producer = int(threadIdx.x) < half;
  uint32_t sum = 0;
  for (int round = 0; round < Rounds; ++round) {
    if (producer) {
      if (round) barrier_sync(2, int(blockDim.x));
      shared[thread] = uint32_t(round + thread);
      barrier_arrive(1, int(blockDim.x));
    } else {
      barrier_sync(1, int(blockDim.x));
      sum += shared[half - 1 - thread];
      if (round + 1 < Rounds) barrier_arrive(2, int(blockDim.x));
    }
  }
  if (!producer) p.data[thread] = sum;
}
