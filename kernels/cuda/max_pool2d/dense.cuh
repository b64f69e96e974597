// A dense tensor as memory has it, and how a block moves a stretch of it through shared memory 16 bytes at a time.
#pragma once
#include "platform/memory.h"
#include "platform/shared_memory.h"
#include "platform/types.h"
#include "platform/vector.h"
#include "shapes.h"

// planes x rows x columns x inner, the last fastest: contiguous NCHW has N * C planes and inner 1, channels_last N planes and
// inner C. Mirrored in variants.py.
struct MaxPool2dDense {
  int64_t planes;
  int32_t inner;
  int32_t planes_per_block, rows_per_block;  // a block's share of the output: whole planes, or a band of one plane's rows
};

// Bytes between the 16-byte boundary at or below an address and the address.
template <class T>
__device__ inline int32_t misalignment(const T* address) {
  return int32_t(reinterpret_cast<uint64_t>(address) & 15);
}

// Where in a 16-byte aligned region of shared memory a stretch of global memory is kept: as far from a 16-byte boundary as the
// original, so that both sides of the copy are aligned at once. The region needs 16 bytes more than the stretch.
template <class T>
__device__ inline T* staged_at(unsigned char* region, const T* global) {
  return reinterpret_cast<T*>(region + misalignment(global));
}

// Walks a stretch with all threads of the block: move(to, from) takes 16 bytes, a head and a tail go by single elements. `to` and
// `from` lie equally far from a 16-byte boundary.
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

// Into shared memory, past the registers: as many bytes are under way as the block has asked for. Readable after finish_fetches.
template <class T>
__device__ inline void fetch_stretch(T* shared, const T* global, int32_t count) {
  move_stretch(shared, global, count, [](T* to, const T* from) { copy_async<16>(to, from); });
}
__device__ inline void finish_fetches() {
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
}

// Out of shared memory.
template <class T>
__device__ inline void write_stretch(T* global, const T* shared, int32_t count) {
  move_stretch(global, shared, count, [](T* to, const T* from) { store_vector(to, load_vector<16 / sizeof(T)>(from)); });
}

// The next 16-byte aligned region behind one that holds a stretch of `count` elements.
template <class T>
__device__ inline unsigned char* region_behind(unsigned char* region, int64_t count) {
  return region + (count * int64_t(sizeof(T)) + 16 + 15) / 16 * 16;
}

// What one block works on: several whole planes, or a band of one plane's rows. A band that does not end its plane is a whole
// number of strips, so that no thread walks out of it.
struct Share {
  int64_t plane;       // the first
  int32_t planes;      // how many
  int32_t begin, end;  // rows of each
};

__device__ inline Share share_of_block(const MaxPool2dDense& dense, int32_t rows) {
  const int64_t bands = (rows + dense.rows_per_block - 1) / dense.rows_per_block;
  const int64_t group = blockIdx.x / bands;
  const int32_t begin = int32_t(blockIdx.x % bands) * dense.rows_per_block;
  const int64_t plane = group * dense.planes_per_block, left = dense.planes - plane;
  return {plane, left < dense.planes_per_block ? int32_t(left) : dense.planes_per_block, begin,
          rows - begin < dense.rows_per_block ? rows : begin + dense.rows_per_block};
}

// The place of element `flat` of a dense tensor with the given rows and columns.
struct Place {
  int64_t plane;
  int32_t row, column, inner;
};

__device__ inline Place place_of(const MaxPool2dDense& dense, int64_t flat, int32_t rows, int32_t columns) {
  const int64_t line = flat / dense.inner, inner = flat - line * dense.inner;
  const int64_t row = line / columns, column = line - row * columns;
  const int64_t plane = row / rows;
  return {plane, int32_t(row - plane * rows), int32_t(column), int32_t(inner)};
}
