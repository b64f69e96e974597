// Computes again the sums that padding has turned into NaN. dgrad gathers from dy, and outside of dy there is nothing to
// multiply; but tiles of the column matrix hold zeros there, and zero times a weight that is infinite or NaN is NaN. (fprop and
// wgrad gather from x, whose padding is zeros by definition, so a NaN that they compute is right.)
//
// A sum that is not NaN is unaffected by padding. So only sums that came out as NaN are computed again, element by element, over
// the taps that exist. A summation stops as soon as its sum is NaN, which is early if training has diverged.
#pragma once
#include "conv2d/matrices.cuh"

template <class T>
__device__ inline bool is_nan(T value) {
  const Accumulator<T> wide = widen(value);
  return wide != wide;
}

// Corrects the block's tile after it is stored. `rows` and `columns` are the coordinates of the tile's rows and columns.
template <int kM, int kN, int kThreads, class Direction, class Result>
__device__ inline void sum_nan_again(const Direction& direction, const Result& result, const Coordinate* rows,
                                     const Coordinate* columns) {
#pragma unroll 1
  for (int index = int(threadIdx.x); index < kM * kN; index += kThreads) {
    const Coordinate row = rows[index / kN], column = columns[index % kN];
    const int32_t m = direction.tile.row + index / kN, n = direction.tile.column + index % kN;
    if (m >= result.rows || n >= result.columns) continue;
    typename Result::Stored* const stored = result.data + result.row(m) + result.column(n);
    if (!is_nan(*stored)) continue;
    Accumulator<typename Direction::Type> sum = 0;
#pragma unroll 1
    for (int32_t depth = direction.depth_begin; depth < direction.depth_end && sum == sum; ++depth) {
      const Coordinate a = direction.a.column(depth), b = direction.b.column(depth);
      if (exists(direction.a, row, a))
        sum += widen(direction.a.data[row.offset + a.offset]) * widen(direction.b.data[column.offset + b.offset]);
    }
    *stored = result.narrowed(sum, n);
  }
}
