// A warp's tile of a matrix product, in one form for every dtype: 16 rows (units) x 8 columns (samples), summed over K in chunks
// of 64 bytes per row.
//
// With g = lane / 4 and t = lane % 4, a lane holds bytes 16 t .. 16 t + 15 of a chunk: of rows g and g + 8 of A, and of column g
// of B. Both operands are read along K by the widest load, without ldmatrix. The mma instructions assign other values of k to
// that lane, which is allowed: a sum over K may be taken in any order, as long as A and B use the same order. A chunk of a row
// tile takes two instructions in 16 bits (32 elements of K) and in TF32 (16 elements), four in fp64 (8 elements), and fused
// multiply-adds in IEEE fp32.
//
// In the finished tile, value i of a lane is row g + 8 (i >> 1), column 2 t + (i & 1).
#pragma once
#include "platform/mma.h"
#include "platform/vector.h"

struct tfloat32 {
};  // the arithmetic of fp32 values that are multiplied as TF32; the other arithmetics are named after their type

__device__ inline void mma(half, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_m16n8k16<half>(d, a, b); }
__device__ inline void mma(bfloat16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_m16n8k16<bfloat16>(d, a, b);
}
__device__ inline void mma(tfloat32, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_m16n8k8_tf32(d, a, b); }

template <class Math>
struct StorageOf {
  using type = Math;
};
template <>
struct StorageOf<tfloat32> {
  using type = float;
};
template <class Math>
using Storage = typename StorageOf<Math>::type;

constexpr int kTileRows = 16, kTileColumns = 8, kChunkBytes = 64, kLaneBytes = 16;
static_assert(kTileRows * kTileColumns == 32 * 4, "four results per lane");

template <class Math>
constexpr int kChunk = kChunkBytes / int(sizeof(Storage<Math>));  // elements of K

__device__ inline int lane_group() { return int(threadIdx.x) % 32 / 4; }  // g
__device__ inline int lane_in_group() { return int(threadIdx.x) % 4; }    // t

// One lane's part of a chunk: 16 bytes of a row.
template <class Math>
struct Fragment {
  static constexpr int size = kLaneBytes / int(sizeof(Storage<Math>));
  union {
    uint32_t word[4];
    Storage<Math> element[size];
    uint4 bits;
  };
};

// Elements k .. k + size - 1 of a row of K elements; zeros past its end. The row starts at a multiple of 16 bytes, and it is
// padded with zeros to a multiple of `size` elements.
template <class Math>
__device__ inline Fragment<Math> load_fragment(const Storage<Math>* row, int k, int K) {
  Fragment<Math> fragment;
  fragment.bits = k < K ? *reinterpret_cast<const uint4*>(row + k) : uint4{0, 0, 0, 0};
  return fragment;
}
// Like load_fragment, but for a row of any alignment, stride and length, one element at a time.
template <class Math>
__device__ inline Fragment<Math> gather_fragment(const Storage<Math>* row, int k, int K, int64_t stride = 1) {
  Fragment<Math> fragment;
  fragment.bits = uint4{0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < Fragment<Math>::size; ++i)
    if (k + i < K) fragment.element[i] = row[(k + i) * stride];
  return fragment;
}

// Converts an operand before it is first multiplied. Only TF32 needs this: its values are rounded.
template <class Math>
__device__ inline void prepare(Fragment<Math>&) {}
template <>
__device__ inline void prepare<tfloat32>(Fragment<tfloat32>& fragment) {
#pragma unroll
  for (int i = 0; i < 4; ++i) fragment.word[i] = round_tf32(fragment.element[i]);
}

// Adds the product of one chunk to the sums of one row tile: low and high are rows g and g + 8 of A, b is column g of B.
template <class Math>
__device__ inline void multiply_chunk(float (&sum)[4], const Fragment<Math>& low, const Fragment<Math>& high,
                                      const Fragment<Math>& b) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t a[4] = {low.word[i], high.word[i], low.word[i + 1], high.word[i + 1]};
    const uint32_t column[2] = {b.word[i], b.word[i + 1]};
    mma(Math{}, sum, a, column);
  }
}
__device__ inline void multiply_chunk(double (&sum)[4], const Fragment<double>& low, const Fragment<double>& high,
                                      const Fragment<double>& b) {
  double upper[2] = {sum[0], sum[1]}, lower[2] = {sum[2], sum[3]};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    mma_m8n8k4_f64(upper, low.element[i], b.element[i]);
    mma_m8n8k4_f64(lower, high.element[i], b.element[i]);
  }
  sum[0] = upper[0], sum[1] = upper[1], sum[2] = lower[0], sum[3] = lower[1];
}

// kRowTiles tiles, one below the other, with the same columns.
template <class Math, int kRowTiles>
struct WarpTile {
  Accumulator<Storage<Math>> sum[kRowTiles][4] = {};

  __device__ void multiply(const Fragment<Math> (&a)[kRowTiles][2], const Fragment<Math>& b) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) multiply_chunk(sum[r], a[r][0], a[r][1], b);
  }
  // Must be called after the last chunk, before `sum` is read.
  __device__ void finish() {}
};

// IEEE fp32 has no mma instruction. A lane sums over its own values of k for all eight columns, whose elements it fetches from
// the lanes that hold them, and the four lanes of a group add their sums in `finish`. A chunk costs 32 shuffles, and 64
// multiply-adds for each row tile.
template <int kRowTiles>
struct WarpTile<float, kRowTiles> {
  float sum[kRowTiles][4];
  float partial[kRowTiles][2][kTileColumns] = {};

  __device__ void multiply(const Fragment<float> (&a)[kRowTiles][2], const Fragment<float>& b) {
#pragma unroll
    for (int column = 0; column < kTileColumns; ++column)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float value = __shfl_sync(~0u, b.element[i], 4 * column + lane_in_group());
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            partial[r][half][column] = fmaf(a[r][half].element[i], value, partial[r][half][column]);
      }
  }

  // Each exchange halves the number of columns of a lane, until lane t has columns 2 t and 2 t + 1.
  __device__ void finish() {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float four[4], two[2];
        halve(partial[r][half], four, 2);
        halve(four, two, 1);
        sum[r][2 * half] = two[0], sum[r][2 * half + 1] = two[1];
      }
  }

 private:
  // Keeps this lane's half of `from` and adds the same half of the lane whose index differs in `bit`.
  template <int kCount>
  static __device__ void halve(const float (&from)[2 * kCount], float (&to)[kCount], int bit) {
    const bool upper = lane_in_group() & bit;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float kept = upper ? from[kCount + i] : from[i], sent = upper ? from[i] : from[kCount + i];
      to[i] = kept + __shfl_xor_sync(~0u, sent, bit);
    }
  }
};
