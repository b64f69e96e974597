// Barriers in shared memory that count arrivals and the bytes of asynchronous copies (sm_90 and later).
//
// A phase ends when all its arrivals have come and as many bytes as were expected; the next one, of the other parity, begins at
// once. A wait names the parity of the phase it waits for: 0 first. On a fresh barrier a wait for parity 1 succeeds at once.
// A thread waits for each phase, or for a later event that implies it: a barrier tells only the last two apart.
#pragma once
#include "platform/types.h"

__device__ inline uint32_t mbarrier_address(const uint64_t* barrier) { return uint32_t(__cvta_generic_to_shared(barrier)); }

// One thread, once; then mbarrier_init_fence, and a barrier of the block or cluster before anybody else uses it.
__device__ inline void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier_address(barrier)), "r"(arrivals) : "memory");
}
__device__ inline void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Before its memory is used for something else.
__device__ inline void mbarrier_invalidate(uint64_t* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(mbarrier_address(barrier)) : "memory");
}

__device__ inline void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(mbarrier_address(barrier)) : "memory");
}
// Arrives, and tells the phase to wait for that many more bytes.
__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier_address(barrier)), "r"(bytes) : "memory");
}
// At a barrier of any block of the cluster, by cluster_address. What was written before is seen by who waits there by
// mbarrier_wait_cluster.
__device__ inline void mbarrier_arrive_cluster(uint32_t address) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}

// False if the phase has not ended yet; may be false early.
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
// The same, for what other blocks of the cluster have written by ordinary stores.
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

// Arrives, in the count of the barrier, when all copies (platform/memory.h) that this thread has started so far are complete.
__device__ inline void copy_async_arrive(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(mbarrier_address(barrier)) : "memory");
}
