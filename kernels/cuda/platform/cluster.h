// Thread block clusters (sm_90 and later). The blocks of a cluster run at the same time and can access each other's shared
// memory. A block must have started before another one accesses its memory, so a kernel that uses these functions has a cluster
// barrier at its start. A block must not end while others still access its memory; either another cluster barrier or the
// order in which the blocks exchange data ensures this.
#pragma once
#include "platform/vector.h"

// The index of this block in its cluster, x fastest, and the number of blocks in the cluster.
__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline uint32_t cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// The two halves of a barrier for all threads of the cluster: writes before the arrival are visible after the wait. All threads
// of a warp execute each half together.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The address in the shared memory of block `rank` that corresponds to `shared` in this block's own. Only the functions below and
// mbarrier_arrive_cluster accept it.
__device__ inline uint32_t cluster_address(const void* shared, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(uint32_t(__cvta_generic_to_shared(shared))), "r"(rank));
  return address;
}

// Accesses to the shared memory of any block of the cluster. A value has 4, 8 or 16 bytes, and its address is a multiple
// of this size.
template <class T>
__device__ inline T load_cluster(uint32_t address) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  union {
    uint32_t word[sizeof(T) / 4];
    T value;
  } result;
  if constexpr (sizeof(T) == 4)
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(result.word[0]) : "r"(address) : "memory");
  else if constexpr (sizeof(T) == 8)
    asm volatile("ld.shared::cluster.v2.u32 {%0,%1}, [%2];"
                 : "=r"(result.word[0]), "=r"(result.word[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ld.shared::cluster.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(result.word[0]), "=r"(result.word[1]), "=r"(result.word[2]), "=r"(result.word[3])
                 : "r"(address)
                 : "memory");
  return result.value;
}
template <class T>
__device__ inline void store_cluster(uint32_t address, const T& value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  union {
    T value;
    uint32_t word[sizeof(T) / 4];
  } source{value};
  if constexpr (sizeof(T) == 4)
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(source.word[0]) : "memory");
  else if constexpr (sizeof(T) == 8)
    asm volatile("st.shared::cluster.v2.u32 [%0], {%1,%2};" ::"r"(address), "r"(source.word[0]), "r"(source.word[1]) : "memory");
  else
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(source.word[0]), "r"(source.word[1]),
                 "r"(source.word[2]), "r"(source.word[3])
                 : "memory");
}

// Stores the value asynchronously, then reports sizeof(T) bytes to the mbarrier, which must be in the same block as the
// destination. A thread that has waited for the mbarrier sees the value, but not necessarily other writes of the storing thread.
template <class T>
__device__ inline void store_async(uint32_t address, const T& value, uint32_t mbarrier) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  union {
    T value;
    uint32_t word[sizeof(T) / 4];
  } source{value};
  if constexpr (sizeof(T) == 4)
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(address), "r"(source.word[0]),
                 "r"(mbarrier)
                 : "memory");
  else if constexpr (sizeof(T) == 8)
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];" ::"r"(address),
                 "r"(source.word[0]), "r"(source.word[1]), "r"(mbarrier)
                 : "memory");
  else
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(address),
                 "r"(source.word[0]), "r"(source.word[1]), "r"(source.word[2]), "r"(source.word[3]), "r"(mbarrier)
                 : "memory");
}
