// Barriers in shared memory that count arrivals and the bytes of asynchronous copies (sm_90 and later).
//
// A phase ends when all its arrivals and all the bytes that it expects have come; the next phase begins at once. Phases have
// alternating parities, 0 first. A wait names the parity of the phase whose end it waits for; on a new barrier a wait for parity
// 1 succeeds at once. As parities repeat, a thread must not fall two phases behind: it waits for each phase, or for a later event
// that implies its end.
#pragma once
#include "platform/types.h"

__device__ inline uint32_t mbarrier_address(const uint64_t* barrier) { return uint32_t(__cvta_generic_to_shared(barrier)); }

// One thread calls this once for each mbarrier, then mbarrier_init_fence. The block or cluster then synchronises, before other
// threads use the mbarrier.
__device__ inline void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier_address(barrier)), "r"(arrivals) : "memory");
}
__device__ inline void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(mbarrier_address(barrier)) : "memory");
}
// Arrives, and adds to the bytes that the phase expects.
__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier_address(barrier)), "r"(bytes) : "memory");
}
// Arrives at a barrier in any block of the cluster; `address` comes from cluster_address. Earlier writes of this thread are
// visible to threads that wait for the phase with mbarrier_wait_cluster.
__device__ inline void mbarrier_arrive_cluster(uint32_t address) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}

// Returns whether the phase of this parity has ended, but may also return false if it has.
__device__ inline bool mbarrier_try_wait(const uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile("{ .reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
               : "=r"(done)
               : "r"(mbarrier_address(barrier)), "r"(parity)
               : "memory");
  return done != 0;
}
__device__ inline void mbarrier_wait(const uint64_t* barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}
// Like mbarrier_wait, but also makes visible what threads in other blocks of the cluster stored before mbarrier_arrive_cluster.
__device__ inline void mbarrier_wait_cluster(const uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{ .reg .pred done; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
        : "=r"(done)
        : "r"(mbarrier_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
}
