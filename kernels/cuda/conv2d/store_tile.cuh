// Stores a tile of sums or of finished results, which lies in shared memory, in the layout of the result.
#pragma once
#include "conv2d/results.cuh"
#include "platform/vector.h"

// Stores a tile line by line. If kRows, a line runs along the rows, so it is one column of the tile; else it is one row. `staged`
// holds the lines, `pitch` elements apart and each aligned to 16 bytes: sums, or results if kNarrowed.
template <int kM, int kN, int kThreads, bool kNarrowed, bool kRows, int kPiece, class Result, class Staged>
__device__ inline void store_lines(const Result& result, const Staged* staged, int pitch, int32_t first_row, int32_t first_column,
                                   int thread) {
  constexpr int kLinePieces = (kRows ? kM : kN) / kPiece, kLines = kRows ? kN : kM;
  constexpr int kLoad = kPiece * int(sizeof(Staged)) > 16 ? 16 / int(sizeof(Staged)) : kPiece;
#pragma unroll 1
  for (int index = thread; index < kLines * kLinePieces; index += kThreads) {
    const int line = index / kLinePieces, along = index % kLinePieces * kPiece;
    const int32_t row = first_row + (kRows ? along : line), column = first_column + (kRows ? line : along);
    if (row >= result.rows || !result.has_column(column)) continue;
    const int64_t offset = result.row(row) + result.column(column);
    Vector<typename Result::Stored, kPiece> piece;
#pragma unroll
    for (int e = 0; e < kPiece; e += kLoad) {
      const Vector<Staged, kLoad> loaded = load_vector<kLoad>(staged + line * pitch + along + e);
#pragma unroll
      for (int i = 0; i < kLoad; ++i) {
        typename Result::Stored value;
        if constexpr (kNarrowed)
          value = loaded.element[i];
        else
          value = result.narrowed(loaded.element[i], kRows ? column : column + e + i);
        piece.element[e + i] = result.finished(value, offset + e + i);
      }
    }
    store_vector<kPiece>(result.data + offset, piece);
  }
}

// Stores a tile with kThreads threads; `thread` is the index of the calling one. The lines of `staged` are columns of the tile if
// `walk` is along rows, else its rows.
template <int kM, int kN, int kThreads, bool kNarrowed, class Result, class Staged>
__device__ inline void store_tile(const Result& result, const Staged* staged, int pitch, Walk walk, int32_t first_row,
                                  int32_t first_column, int thread) {
  constexpr int kPiece = 16 / sizeof(typename Result::Stored);
  switch (walk) {
    case Walk::rows:
      return store_lines<kM, kN, kThreads, kNarrowed, true, 1>(result, staged, pitch, first_row, first_column, thread);
    case Walk::row_pieces:
      return store_lines<kM, kN, kThreads, kNarrowed, true, kPiece>(result, staged, pitch, first_row, first_column, thread);
    case Walk::columns:
      return store_lines<kM, kN, kThreads, kNarrowed, false, 1>(result, staged, pitch, first_row, first_column, thread);
    case Walk::column_pieces:
      return store_lines<kM, kN, kThreads, kNarrowed, false, kPiece>(result, staged, pitch, first_row, first_column, thread);
  }
}
