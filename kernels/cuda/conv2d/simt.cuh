// Implicit im2col on CUDA cores: every dtype, layout and geometry; sums in fp32, in fp64 for fp64.
//
// The ladder
//   explicit   im2col.cuh writes the column matrix to memory, and this kernel multiplies it as a 1x1 convolution. R*S times
//              the bytes of x written and read again. Right everywhere, fast nowhere.
//   implicit   this file: the tiles of the column matrix are formed in shared memory. IEEE fp32 and fp64, and whatever the
//              tensor cores' variant declines. Predicted: within 1.3x of the FMA limit where all of a tile is used.
//              Measured: not yet.
//   tensor     mma.cuh: the same tiles through cp.async and mma.sync; fp16, bf16, TF32.
//   again      sum_again.cuh: dgrad's sums that are NaN, perhaps by the padding of dy alone, over the taps that exist.
// R = S = 1 is the plain product, for which the positions are all inside and the pieces of 16 bytes always whole.
//
// A block owns one tile of the result, a thread ThreadM x ThreadN of it, in quads of four neighbours so that fragments are
// read 16 bytes at a time. Of a depth that is split it owns one split, whose sums split_k.cuh adds. Results and these sums are
// overwritten; wgrad's sums are overwritten or added to, as its parameters say.
//
// The tile. One step of a 128x128 tile reads 8 + 8 values per thread and depth for 64 FMAs: 64 bytes for 64 FMAs, 16 lanes
// sharing each, which the 128 bytes per cycle of shared memory feed while 128 FMA lanes are busy. 64x64 serves what has few
// tiles, and fp64, whose sums take twice the registers. A step's depth is what lets each thread move one piece of 16 bytes of
// each operand: 8 for 128 rows of fp32, 16 for 64, 8 of fp64.
#pragma once
#include "conv2d/sum_again.cuh"
#include "platform/shared_memory.h"
#include "platform/vector.h"

__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <int kM_, int kN_, int kDepth_, int kThreadM_, int kThreadN_>
struct SimtTile {
  static constexpr int kM = kM_, kN = kN_, kDepth = kDepth_, kThreadM = kThreadM_, kThreadN = kThreadN_;
  static constexpr int kThreadRows = kM / kThreadM, kThreadColumns = kN / kThreadN, kThreads = kThreadRows * kThreadColumns;
  // Per multiprocessor, of whose 65,536 registers two blocks leave 128 to each thread: enough around 16 sums, not around 64.
  static constexpr int kBlocks = kThreadM * kThreadN <= 16 ? 2 : 1;
  static_assert(kThreads <= 256);
  static_assert(kThreadM % 4 == 0 && kThreadN % 4 == 0, "a thread owns quads");
};

// Moves tiles of one operand, (kRows, kDepth), from memory through registers to shared memory, (kDepth, kPitch) in the
// accumulator's type.
template <class T, int kRows, int kDepth, int kThreads>
struct TileLoader {
  static constexpr int kElements = kRows * kDepth / kThreads;
  static constexpr int kPiece = kElements < int(16 / sizeof(T)) ? kElements : int(16 / sizeof(T));
  static constexpr int kPitch =
      kRows + 16 / sizeof(Accumulator<T>);  // rows of a quad stay 16-byte aligned, depths spread over banks
  static_assert(kRows * kDepth % kThreads == 0 && kElements % kPiece == 0 && kRows % kPiece == 0 && kDepth % kPiece == 0);

  T staged[kElements];

  template <bool kColumns, int kSize>
  __device__ static void place(int i, int& row, int& depth) {
    const int piece = int(threadIdx.x) + i * kThreads;
    if constexpr (kColumns) {
      row = piece / (kDepth / kSize);
      depth = piece % (kDepth / kSize) * kSize;
    } else {
      row = piece % (kRows / kSize) * kSize;
      depth = piece / (kRows / kSize);
    }
  }

  template <bool kColumns, int kSize, class Matrix>
  __device__ void load(const Matrix& matrix, const Coordinate* rows, int32_t first) {
#pragma unroll
    for (int i = 0; i < kElements / kSize; ++i) {
      int row, depth;
      place<kColumns, kSize>(i, row, depth);
      const Coordinate across = rows[row], down = matrix.column(first + depth);
      Vector<T, kSize> piece{};
      if (exists(matrix, across, down)) piece = load_vector<kSize>(matrix.data + across.offset + down.offset);
#pragma unroll
      for (int j = 0; j < kSize; ++j) staged[i * kSize + j] = piece.element[j];
    }
  }

  template <bool kColumns, int kSize>
  __device__ void store(Accumulator<T>* tile) const {
#pragma unroll
    for (int i = 0; i < kElements / kSize; ++i) {
      int row, depth;
      place<kColumns, kSize>(i, row, depth);
#pragma unroll
      for (int j = 0; j < kSize; ++j)
        tile[(depth + (kColumns ? j : 0)) * kPitch + row + (kColumns ? 0 : j)] = widen(staged[i * kSize + j]);
    }
  }

  template <class Matrix>
  __device__ void load(Walk walk, const Matrix& matrix, const Coordinate* rows, int32_t first) {
    switch (walk) {
      case Walk::rows:
        return load<false, 1>(matrix, rows, first);
      case Walk::row_pieces:
        return load<false, kPiece>(matrix, rows, first);
      case Walk::columns:
        return load<true, 1>(matrix, rows, first);
      case Walk::column_pieces:
        return load<true, kPiece>(matrix, rows, first);
    }
  }

  __device__ void store(Walk walk, Accumulator<T>* tile) const {
    switch (walk) {
      case Walk::rows:
        return store<false, 1>(tile);
      case Walk::row_pieces:
        return store<false, kPiece>(tile);
      case Walk::columns:
        return store<true, 1>(tile);
      case Walk::column_pieces:
        return store<true, kPiece>(tile);
    }
  }
};

// Stores a thread's part of a tile. Along the index that is contiguous in memory a quad goes out in pieces.
template <Walk kWalk, class Tile, class Result, class Sum>
__device__ inline void store_sums(const Result& result, const Sum (&sums)[Tile::kThreadM][Tile::kThreadN], int32_t row,
                                  int32_t column) {
  using Stored = typename Result::Stored;
  constexpr int kPiece = sizeof(Stored) * 4 > 16 ? 16 / sizeof(Stored) : 4;
  constexpr int kRowPiece = kWalk == Walk::row_pieces ? kPiece : 1, kColumnPiece = kWalk == Walk::column_pieces ? kPiece : 1;
#pragma unroll
  for (int i = 0; i < Tile::kThreadM; i += kRowPiece) {
    const int32_t m = row + i / 4 * (Tile::kThreadRows * 4) + i % 4;
    if (m >= result.rows) continue;
    const int64_t row_offset = result.row(m);
#pragma unroll
    for (int j = 0; j < Tile::kThreadN; j += kColumnPiece) {
      const int32_t n = column + j / 4 * (Tile::kThreadColumns * 4) + j % 4;
      if (n >= result.columns) continue;
      const int64_t offset = row_offset + result.column(n);
      Vector<Stored, kRowPiece * kColumnPiece> piece;
#pragma unroll
      for (int e = 0; e < kRowPiece * kColumnPiece; ++e)
        piece.element[e] = result.finished(
            result.narrowed(sums[kRowPiece > 1 ? i + e : i][kColumnPiece > 1 ? j + e : j], kColumnPiece > 1 ? n + e : n),
            offset + e);
      store_vector<kRowPiece * kColumnPiece>(result.data + offset, piece);
    }
  }
}

// Shared memory: what the block multiplies, the coordinates of the tile's rows and columns, then two stages of both operands'
// tiles.
template <class Tile, class Problem>
struct SimtMemory {
  using T = typename Problem::Type;
  static constexpr int kPitchA = TileLoader<T, Tile::kM, Tile::kDepth, Tile::kThreads>::kPitch;
  static constexpr int kPitchB = TileLoader<T, Tile::kN, Tile::kDepth, Tile::kThreads>::kPitch;
  alignas(kProblemBytes) Problem problem;
  static_assert(sizeof(Problem) <= kProblemBytes);
  alignas(kProblemBytes) Coordinate rows[Tile::kM], columns[Tile::kN];
  alignas(16) Accumulator<T> a[2][Tile::kDepth * kPitchA];
  alignas(16) Accumulator<T> b[2][Tile::kDepth * kPitchB];
};

template <class Tile, class Problem, class Parameters>
__device__ inline void simt_gemm(const Parameters& parameters) {
  using T = typename Problem::Type;
  using Sum = Accumulator<T>;
  using Memory = SimtMemory<Tile, Problem>;
  constexpr int kRead = 16 / sizeof(Sum);
  Memory& memory = *shared_memory<Memory>();
  const Problem& problem = memory.problem;
  const Walks& walks = parameters.walks;
  if (threadIdx.x == 0) memory.problem = Problem(parameters);
  __syncthreads();                               // every thread reads it
  if (problem.tile.row >= problem.rows) return;  // a residue with fewer pixels than the first

  for (int i = int(threadIdx.x); i < Tile::kM; i += Tile::kThreads) memory.rows[i] = problem.a.row(problem.tile.row + i);
  for (int i = int(threadIdx.x); i < Tile::kN; i += Tile::kThreads) memory.columns[i] = problem.b.row(problem.tile.column + i);
  __syncthreads();  // every thread reads the coordinates of others

  // Consecutive threads take quads along the index that is contiguous in the result.
  const bool down = walks.c == Walk::rows || walks.c == Walk::row_pieces;
  const int thread = int(threadIdx.x);
  const int row = 4 * (down ? thread % Tile::kThreadRows : thread / Tile::kThreadColumns);
  const int column = 4 * (down ? thread / Tile::kThreadRows : thread % Tile::kThreadColumns);

  Sum sums[Tile::kThreadM][Tile::kThreadN] = {};
  TileLoader<T, Tile::kM, Tile::kDepth, Tile::kThreads> a;
  TileLoader<T, Tile::kN, Tile::kDepth, Tile::kThreads> b;
  int stage = 0;
  for (int32_t depth = problem.depth_begin; depth < problem.depth_end; depth += Tile::kDepth) {
    if (depth == problem.depth_begin) {
      a.load(walks.a, problem.a, memory.rows, depth);
      b.load(walks.b, problem.b, memory.columns, depth);
    }
    a.store(walks.a, memory.a[stage]);
    b.store(walks.b, memory.b[stage]);
    __syncthreads();  // the stage is full; the other one, read in the step before, may be written in the next
    if (depth + Tile::kDepth < problem.depth_end) {
      a.load(walks.a, problem.a, memory.rows, depth + Tile::kDepth);
      b.load(walks.b, problem.b, memory.columns, depth + Tile::kDepth);
    }
#pragma unroll 4
    for (int k = 0; k < Tile::kDepth; ++k) {
      Sum left[Tile::kThreadM], right[Tile::kThreadN];
#pragma unroll
      for (int i = 0; i < Tile::kThreadM; i += kRead) {
        const auto read =
            load_vector<kRead>(memory.a[stage] + k * Memory::kPitchA + row + i / 4 * (Tile::kThreadRows * 4) + i % 4);
#pragma unroll
        for (int e = 0; e < kRead; ++e) left[i + e] = read.element[e];
      }
#pragma unroll
      for (int j = 0; j < Tile::kThreadN; j += kRead) {
        const auto read =
            load_vector<kRead>(memory.b[stage] + k * Memory::kPitchB + column + j / 4 * (Tile::kThreadColumns * 4) + j % 4);
#pragma unroll
        for (int e = 0; e < kRead; ++e) right[j + e] = read.element[e];
      }
#pragma unroll
      for (int i = 0; i < Tile::kThreadM; ++i)
#pragma unroll
        for (int j = 0; j < Tile::kThreadN; ++j) sums[i][j] = multiply_add(left[i], right[j], sums[i][j]);
    }
    stage ^= 1;
  }

  const int32_t m = problem.tile.row + row, n = problem.tile.column + column;
  bool nan = false;
  if constexpr (Problem::kGathersFromDy) {
#pragma unroll
    for (int i = 0; i < Tile::kThreadM; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kThreadN; ++j) nan |= is_nan(sums[i][j]);
  }
  const auto after_storing = [&](const auto& result) {
    if constexpr (Problem::kGathersFromDy) {
      if (__syncthreads_or(nan))  // and every thread may read what others stored
        sum_nan_again<Tile::kM, Tile::kN, Tile::kThreads>(problem, result, memory.rows, memory.columns);
    }
  };
  if constexpr (Problem::kImage) {
    if (parameters.splits.count > 1) {  // whose channels are contiguous
      const auto result = problem.split_result(parameters);
      if (walks.c == Walk::column_pieces)
        store_sums<Walk::column_pieces, Tile>(result, sums, m, n);
      else
        store_sums<Walk::columns, Tile>(result, sums, m, n);
      return after_storing(result);
    }
  }
  const auto result = problem.result(parameters);
  switch (walks.c) {
    case Walk::row_pieces:
      store_sums<Walk::row_pieces, Tile>(result, sums, m, n);
      break;
    case Walk::column_pieces:
      store_sums<Walk::column_pieces, Tile>(result, sums, m, n);
      break;
    default:
      store_sums<Walk::columns, Tile>(result, sums, m, n);
  }
  after_storing(result);
}

template <class T, class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_fprop_simt_kernel(const __grid_constant__ Conv2dFpropParameters<T, Epilogue> parameters) {
  simt_gemm<Tile, Conv2dFprop<T, Epilogue, Tile::kM, Tile::kN>>(parameters);
}

template <class T, class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_dgrad_simt_kernel(const __grid_constant__ Conv2dDgradParameters<T, Epilogue> parameters) {
  simt_gemm<Tile, Conv2dDgrad<T, Epilogue, Tile::kM, Tile::kN>>(parameters);
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_wgrad_simt_kernel(const __grid_constant__ Conv2dWgradParameters<T> parameters) {
  simt_gemm<Tile, Conv2dWgrad<T, Tile::kM, Tile::kN>>(parameters);
}
