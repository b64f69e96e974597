// How a tile of sums in shared memory becomes results in memory, whatever their layout.
#pragma once
#include "conv2d/problems.cuh"
#include "platform/vector.h"

// Line by line: a line is a row of the result or, kRows, a column, whichever is contiguous in memory.
template <int kM, int kN, int kThreads, bool kRows, int kPiece, class Result>
__device__ inline void store_lines(const Result& result, const float* sums, int pitch, int32_t first_row, int32_t first_column,
                                   int thread) {
  constexpr int kLinePieces = (kRows ? kM : kN) / kPiece, kLines = kRows ? kN : kM;
#pragma unroll 1
  for (int index = thread; index < kLines * kLinePieces; index += kThreads) {
    const int line = index / kLinePieces, along = index % kLinePieces * kPiece;
    const int32_t row = first_row + (kRows ? along : line), column = first_column + (kRows ? line : along);
    if (row >= result.rows || column >= result.columns) continue;
    const int64_t offset = result.row(row) + result.column(column);
    Vector<typename Result::Stored, kPiece> piece;
#pragma unroll
    for (int e = 0; e < kPiece; ++e)
      piece.element[e] = result.value(sums[line * pitch + along + e], kRows ? column : column + e, offset + e);
    store_vector<kPiece>(result.data + offset, piece);
  }
}

// By kThreads threads, of which `thread` is one. Lines of `sums` are what is contiguous in the result, as `walk` has it.
template <int kM, int kN, int kThreads, class Result>
__device__ inline void store_tile(const Result& result, const float* sums, int pitch, Walk walk, int32_t first_row,
                                  int32_t first_column, int thread) {
  constexpr int kPiece = 16 / sizeof(typename Result::Stored);
  switch (walk) {
    case Walk::rows:
      return store_lines<kM, kN, kThreads, true, 1>(result, sums, pitch, first_row, first_column, thread);
    case Walk::row_pieces:
      return store_lines<kM, kN, kThreads, true, kPiece>(result, sums, pitch, first_row, first_column, thread);
    case Walk::columns:
      return store_lines<kM, kN, kThreads, false, 1>(result, sums, pitch, first_row, first_column, thread);
    case Walk::column_pieces:
      return store_lines<kM, kN, kThreads, false, kPiece>(result, sums, pitch, first_row, first_column, thread);
  }
}
