// Kernels that run in clusters. Some of them make a mistake that a template argument selects.
#pragma once
#include "platform/cluster.h"
#include "platform/mbarrier.h"
#include "platform/shared_memory.h"

struct ClusterParameters {
  const uint32_t* x;
  uint32_t* y;
};

enum class Ring { correct, no_barrier_at_start, no_barrier_at_end };

// Each block reads the values of the next one in its cluster.
template <Ring kRing>
__global__ void ring_kernel(const __grid_constant__ ClusterParameters p) {
  uint32_t* shared = shared_memory<uint32_t>();
  const uint32_t next = (cluster_rank() + 1) % cluster_size();
  shared[threadIdx.x] = 100 * blockIdx.x + threadIdx.x;
  if constexpr (kRing == Ring::no_barrier_at_start)
    __syncthreads();
  else
    cluster_sync();
  p.y[blockIdx.x * blockDim.x + threadIdx.x] = load_cluster<uint32_t>(cluster_address(shared + threadIdx.x, next));
  if constexpr (kRing != Ring::no_barrier_at_end) cluster_sync();
}

// Every block writes its rank and kFactor times its rank, 8 bytes at once, into the shared memory of every block of its cluster.
template <int kFactor>
__global__ void all_gather_kernel(const __grid_constant__ ClusterParameters p) {
  auto* shared = shared_memory<Vector<uint32_t, 2>>();
  cluster_sync();
  if (threadIdx.x < cluster_size())
    store_cluster(cluster_address(shared + cluster_rank(), threadIdx.x),
                  Vector<uint32_t, 2>{{cluster_rank(), kFactor * cluster_rank()}});
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x < cluster_size()) {
    const Vector<uint32_t, 2> value = shared[threadIdx.x];
    p.y[blockIdx.x * cluster_size() + threadIdx.x] = value.element[0] + value.element[1];
  }
  cluster_sync();
}

struct Steps {
  uint64_t full[2], empty[2];
  uint32_t value[2][32];
};

// In each step, every block sends 4 bytes to every block of its cluster by store_async, into one of two slots that alternate. A
// slot is free again when all blocks have arrived at its mbarrier `empty`. A block expects kBytes bytes from each block; any
// number but 4 is a mistake.
template <int kBytes>
__global__ void steps_kernel(const __grid_constant__ ClusterParameters p) {
  Steps& steps = *shared_memory<Steps>();
  const uint32_t rank = cluster_rank(), size = cluster_size();
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < 2; ++slot) {
      mbarrier_init(&steps.full[slot], 1);
      mbarrier_init(&steps.empty[slot], size);
    }
    mbarrier_init_fence();
  }
  cluster_sync();
  uint32_t carried = p.x[rank];
  for (uint32_t step = 0; step < 6; ++step) {
    const uint32_t slot = step % 2, turn = step / 2;
    if (threadIdx.x == 0) mbarrier_arrive_expect(&steps.full[slot], kBytes * size);
    mbarrier_wait_cluster(&steps.empty[slot], (turn & 1) ^ 1);
    if (threadIdx.x < size)
      store_async(cluster_address(&steps.value[slot][rank], threadIdx.x), carried,
                  cluster_address(&steps.full[slot], threadIdx.x));
    mbarrier_wait(&steps.full[slot], turn & 1);
    uint32_t sum = 0;
    for (uint32_t peer = 0; peer < size; ++peer) sum += steps.value[slot][peer];
    __syncthreads();
    if (threadIdx.x < size) mbarrier_arrive_cluster(cluster_address(&steps.empty[slot], threadIdx.x));
    carried = sum + rank;
  }
  if (threadIdx.x == 0) p.y[blockIdx.x] = carried;
  cluster_sync();
}

enum class Misuse { not_initialised, initialised_twice, too_many_arrivals, bytes_never_come, wait_without_arrive, ended_block };

template <Misuse kMisuse>
__global__ void misuse_kernel(const __grid_constant__ ClusterParameters) {
  uint64_t* barrier = shared_memory<uint64_t>();
  if constexpr (kMisuse == Misuse::not_initialised) mbarrier_arrive(barrier);
  if constexpr (kMisuse == Misuse::initialised_twice) {
    mbarrier_init(barrier, 1);
    mbarrier_init(barrier, 1);
  }
  if constexpr (kMisuse == Misuse::too_many_arrivals) {
    mbarrier_init(barrier, 1);
    mbarrier_arrive_expect(barrier, 16);
    mbarrier_arrive(barrier);
  }
  if constexpr (kMisuse == Misuse::bytes_never_come) {
    mbarrier_init(barrier, 1);
    mbarrier_arrive_expect(barrier, 16);
    mbarrier_wait(barrier, 0);
  }
  if constexpr (kMisuse == Misuse::wait_without_arrive) cluster_wait();
  if constexpr (kMisuse == Misuse::ended_block) {
    mbarrier_init(barrier, 1);
    cluster_sync();
    const uint32_t other = 1 - cluster_rank();
    store_async(cluster_address(barrier + 1, other), 1, cluster_address(barrier, other));
  }
}
