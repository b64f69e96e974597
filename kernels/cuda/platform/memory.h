// Memory operations with more to them than a load or a store: asynchronous copies, and loads and stores through which the
// blocks of a grid talk to each other (scope .gpu).
#pragma once
#include "platform/types.h"

// Starts copying Bytes (4, 8 or 16; both addresses multiples of it) into shared memory: the first source_bytes from global
// memory, zeros for the rest. With source_bytes 0 the source is not touched. Readable after copy_async_wait by the threads that
// copied, and a barrier.
template <int Bytes>
__device__ inline void copy_async(void* shared, const void* global, int source_bytes = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  const uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16)  // past L1: what goes to shared memory is read once
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(source_bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(Bytes), "r"(source_bytes)
                 : "memory");
}
// Closes a group of this thread's copies.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the last Pending of this thread's groups are under way.
template <int Pending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Single accesses that no other thread sees torn: uint32_t, uint64_t and, as a 16-byte scalar, uint4. Both sides of an exchange
// use the same width. Relaxed ones order nothing around them.
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

// What a thread wrote before a release, a thread sees that reads the released value by an acquire, or by a relaxed load with
// fence_acquire_release after it. For a whole block: __syncthreads before the one, after the other.
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
// Returns what was there.
__device__ inline uint32_t add_acquire_release(uint32_t* to, uint32_t value) {
  uint32_t old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(to), "r"(value) : "memory");
  return old;
}
__device__ inline void fence_acquire_release() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Stands in every polling loop. Free on a GPU; the emulator lets other threads run.
__device__ inline void spin_wait() {}

// Barriers 1 to 15 of the block, for part of its warps: `threads` arrive in all, a multiple of 32, of which those that only
// arrive do not wait.
__device__ inline void barrier_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
__device__ inline void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
