// Asynchronous copies; loads and stores by which the blocks of a grid communicate (scope .gpu); and named barriers.
#pragma once
#include "platform/types.h"

// Starts a copy of Bytes (4, 8 or 16; both addresses are multiples of it) into shared memory. The first source_bytes come from
// global memory, the rest is filled with zeros; if source_bytes is 0, the source is not accessed. Other threads may read the data
// after this thread's copy_async_wait and a barrier.
template <int Bytes>
__device__ inline void copy_async(void* shared, const void* global, int source_bytes = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  const uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16)  // .cg bypasses L1, where the data is of no use: it is read from shared memory
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(source_bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(Bytes), "r"(source_bytes)
                 : "memory");
}
// Closes the group of the copies that this thread has started since its last commit.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the last Pending of this thread's groups are incomplete.
template <int Pending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Accesses of uint32_t, uint64_t and uint4 that are single-copy atomic, i.e. never torn, if both sides of an exchange use the
// same width. Relaxed accesses order no other access.
__device__ inline uint32_t load_relaxed(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline uint64_t load_relaxed(const uint64_t* from) {
  uint64_t value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline uint4 load_relaxed(const uint4* from) {
  uint64_t low, high;
  asm volatile("{ .reg .b128 both; ld.relaxed.gpu.global.b128 both, [%2]; mov.b128 {%0,%1}, both; }"
               : "=l"(low), "=l"(high)
               : "l"(from)
               : "memory");
  return uint4{uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32)};
}
__device__ inline void store_relaxed(uint32_t* to, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ inline void store_relaxed(uint64_t* to, uint64_t value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ inline void store_relaxed(uint4* to, uint4 value) {
  const uint64_t low = uint64_t(value.y) << 32 | value.x, high = uint64_t(value.w) << 32 | value.z;
  asm volatile("{ .reg .b128 both; mov.b128 both, {%1,%2}; st.relaxed.gpu.global.b128 [%0], both; }" ::"l"(to), "l"(low),
               "l"(high)
               : "memory");
}

// A thread whose acquire reads the value of a release sees everything that the releasing thread wrote before the release. For the
// writes of a whole block, __syncthreads comes before the release and after the acquire.
__device__ inline uint32_t load_acquire(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline void store_release(uint32_t* to, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ inline void add_release(uint32_t* to, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

// A loop that polls global memory must call this. It costs nothing on a GPU; in the emulator, it lets other threads run.
__device__ inline void spin_wait() {}

// A barrier for some of the block's warps. `id` is 1 to 15; `threads`, a multiple of 32, is how many threads take part.
__device__ inline void barrier_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
