// Sums that padding has spoilt. dgrad gathers from dy, and beyond dy there is nothing to multiply; but a tile of the column
// matrix holds zeros there, and zero times an infinite weight is NaN. (fprop and wgrad gather from x, whose padding is zeros by
// definition: a NaN of theirs is right.)
//
// A sum that is not NaN owes nothing to padding. So only what came out as NaN is summed again, element by element, over the taps
// that exist. Such a sum ends at its first NaN: where a training step has diverged, that is soon.
//
// The ladder
//   again      this file, once a tile is stored. Predicted: without NaN, a comparison for each sum and at most one barrier more,
//              below 1% of a tile of 64 channels of 3x3; with NaN everywhere, a few loads for each element. Measured: not yet.
//   not taken  Masks over the operands: tensor cores cannot leave a product out. Finite weights in place of infinite ones: the
//              sums inside the plane need these.
#pragma once
#include "conv2d/directions.cuh"

template <class T>
__device__ inline bool is_nan(T value) {
  const Accumulator<T> wide = widen(value);
  return wide != wide;
}

// The block's tile, of which `rows` and `columns` are the coordinates, in memory that every thread sees.
template <int kM, int kN, int kThreads, class Problem, class Result>
__device__ inline void sum_nan_again(const Problem& problem, const Result& result, const Coordinate* rows,
                                     const Coordinate* columns) {
#pragma unroll 1
  for (int index = int(threadIdx.x); index < kM * kN; index += kThreads) {
    const Coordinate row = rows[index / kN], column = columns[index % kN];
    const int32_t m = problem.tile.row + index / kN, n = problem.tile.column + index % kN;
    if (m >= result.rows || n >= result.columns) continue;
    typename Result::Stored* const stored = result.data + result.row(m) + result.column(n);
    if (!is_nan(*stored)) continue;
    Accumulator<typename Problem::Type> sum = 0;
#pragma unroll 1
    for (int32_t depth = problem.depth_begin; depth < problem.depth_end && sum == sum; ++depth) {
      const Coordinate a = problem.a.column(depth), b = problem.b.column(depth);
      if (exists(problem.a, row, a))
        sum += widen(problem.a.data[row.offset + a.offset]) * widen(problem.b.data[column.offset + b.offset]);
    }
    *stored = result.narrowed(sum, n);
  }
}
