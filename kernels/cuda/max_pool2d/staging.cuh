// How a block of the staged variant divides the work and moves stretches of global memory through shared memory, 16 bytes at a
// time.
#pragma once
#include "max_pool2d/parameters.cuh"
#include "platform/memory.h"
#include "platform/shared_memory.h"
#include "platform/types.h"
#include "platform/vector.h"

// What one block computes: one or more whole planes, or a band of one plane's rows. A band that does not end its plane is a whole
// number of strips, so that no thread computes rows of the next band.
struct BlockWork {
  int64_t plane;       // the first plane
  int32_t planes;      // how many planes
  int32_t begin, end;  // rows begin ... end - 1 of each plane: output rows, or in the backward pass rows of pixel blocks
};

__device__ inline BlockWork work_of_block(const MaxPool2dDense& dense, int32_t rows) {
  const int64_t bands = (rows + dense.rows_per_block - 1) / dense.rows_per_block;
  const int64_t group = blockIdx.x / bands;
  const int32_t begin = int32_t(blockIdx.x % bands) * dense.rows_per_block;
  const int64_t plane = group * dense.planes_per_block, left = dense.planes - plane;
  return {plane, left < dense.planes_per_block ? int32_t(left) : dense.planes_per_block, begin,
          rows - begin < dense.rows_per_block ? rows : begin + dense.rows_per_block};
}

// How many bytes an address lies past a 16-byte boundary.
template <class T>
__device__ inline int32_t misalignment(const T* address) {
  return int32_t(reinterpret_cast<uint64_t>(address) & 15);
}

// Where a stretch of global memory is kept in a 16-byte aligned region of shared memory: as many bytes past a 16-byte boundary as
// the original, so that the same elements are aligned on both sides of the copy. The region needs up to 15 bytes more than the
// stretch.
template <class T>
__device__ inline T* staged_at(unsigned char* region, const T* global) {
  return reinterpret_cast<T*>(region + misalignment(global));
}

// Where the next 16-byte aligned region starts, after one that holds a stretch of `count` elements.
template <class T>
__device__ inline unsigned char* region_behind(unsigned char* region, int64_t count) {
  return region + (count * int64_t(sizeof(T)) + 16 + 15) / 16 * 16;
}

// Moves a stretch with all threads of the block. move(to, from) moves 16 bytes; the elements before the first 16-byte boundary
// and after the last one are copied one by one. `to` and `from` have the same misalignment.
template <class T, class Move>
__device__ inline void move_stretch(T* to, const T* from, int32_t count, Move move) {
  constexpr int V = 16 / sizeof(T);
  const int32_t to_boundary = (16 - misalignment(from)) % 16 / int32_t(sizeof(T));
  const int32_t head = to_boundary < count ? to_boundary : count;
  const int32_t body = (count - head) / V * V;
  for (int32_t i = threadIdx.x; i < head; i += blockDim.x) to[i] = from[i];
#pragma unroll 4
  for (int32_t i = head + threadIdx.x * V; i < head + body; i += blockDim.x * V) move(to + i, from + i);
  for (int32_t i = head + body + threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
}

// Starts a copy into shared memory. Its 16-byte pieces do not pass through registers, so the loads of all pieces can be under way
// at once. The result is readable after finish_fetches.
template <class T>
__device__ inline void fetch_stretch(T* shared, const T* global, int32_t count) {
  move_stretch(shared, global, count, [](T* to, const T* from) { copy_async<16>(to, from); });
}
__device__ inline void finish_fetches() {
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
}

// Copies out of shared memory. The caller puts a barrier before the call, so that the block sees what all of its threads wrote.
template <class T>
__device__ inline void write_stretch(T* global, const T* shared, int32_t count) {
  move_stretch(global, shared, count, [](T* to, const T* from) { store_vector(to, load_vector<16 / sizeof(T)>(from)); });
}
