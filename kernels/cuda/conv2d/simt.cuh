// The variant simt: implicit im2col on CUDA cores, for every dtype and layout; sums are fp32, or fp64 for fp64.
//
// A block owns one tile of the result and one split of the depth. If there are several splits, split_k.cuh adds their sums. A
// thread owns kThreadM x kThreadN elements of the tile. Its rows and its columns come in quads, each of four neighbours, so that
// operands are read 16 bytes at a time.
// Results and the sums of splits are overwritten; wgrad adds to its sums if `accumulate`.
//
// For R = S = 1, stride 1 and no padding this is the plain matrix product: no position is outside the plane.
//
// The tile. In one step of a 128x128 tile, a thread reads 8 + 8 values for each depth and computes 64 FMAs: 64 bytes for 64 FMAs.
// The 128 bytes per clock of shared memory supply that to 128 FMA lanes, even if no lanes read the same values. 64x64 serves
// results of few tiles; 16-bit types, for which tensor cores are preferred; and fp64, whose sums take twice the registers. The
// depth of a step is such that each thread moves 16 bytes of each operand in fp32 and fp64: 8 for 128 rows of fp32, 16 for 64
// rows of fp32, 8 for 64 rows of fp64.
#pragma once
#include "conv2d/bias_gradient.cuh"
#include "conv2d/directions.cuh"
#include "conv2d/sum_again.cuh"
#include "platform/shared_memory.h"
#include "platform/vector.h"

__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <int kM_, int kN_, int kDepth_, int kThreadM_, int kThreadN_>
struct SimtTile {
  static constexpr int kM = kM_, kN = kN_, kDepth = kDepth_, kThreadM = kThreadM_, kThreadN = kThreadN_;
  static constexpr int kThreadRows = kM / kThreadM, kThreadColumns = kN / kThreadN, kThreads = kThreadRows * kThreadColumns;
  // Blocks of a multiprocessor. Two of them leave each thread 128 of the 65,536 registers: enough with 16 sums, too few with 64.
  static constexpr int kBlocks = kThreadM * kThreadN <= 16 ? 2 : 1;
  static_assert(kThreads <= 256);
  static_assert(kThreadM % 4 == 0 && kThreadN % 4 == 0, "a thread owns quads");
};

// Moves tiles of one operand from memory, (kRows, kDepth), through registers to shared memory, (kDepth, kPitch), where they have
// the type in which products are summed.
template <class T, int kRows, int kDepth, int kThreads>
struct TileLoader {
  static constexpr int kElements = kRows * kDepth / kThreads;
  static constexpr int kPiece = kElements < int(16 / sizeof(T)) ? kElements : int(16 / sizeof(T));
  static constexpr int kPitch =
      kRows + 16 / sizeof(Accumulator<T>);  // keeps a quad's rows aligned to 16 bytes, spreads depths over banks
  static_assert(kRows * kDepth % kThreads == 0 && kElements % kPiece == 0 && kRows % kPiece == 0 && kDepth % kPiece == 0);

  T staged[kElements];

  template <bool kColumns, int kSize>
  __device__ static void locate(int i, int& row, int& depth) {
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
      locate<kColumns, kSize>(i, row, depth);
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
      locate<kColumns, kSize>(i, row, depth);
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

// Stores a thread's part of a tile. In a walk by pieces, each quad is stored in vectors of up to 16 bytes along the index that is
// contiguous in memory; in the other walks, element by element.
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
      if (!result.has_column(n)) continue;
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

// Shared memory: the block's direction (directions.cuh), the coordinates of the tile's rows and columns, then two stages of both
// operands' tiles.
template <class Tile, class Direction>
struct SimtMemory {
  using T = typename Direction::Type;
  static constexpr int kPitchA = TileLoader<T, Tile::kM, Tile::kDepth, Tile::kThreads>::kPitch;
  static constexpr int kPitchB = TileLoader<T, Tile::kN, Tile::kDepth, Tile::kThreads>::kPitch;
  alignas(kDirectionBytes) Direction direction;
  alignas(kDirectionBytes) Coordinate rows[Tile::kM], columns[Tile::kN];
  alignas(16) Accumulator<T> a[2][Tile::kDepth * kPitchA];
  alignas(16) Accumulator<T> b[2][Tile::kDepth * kPitchB];
};

template <class Tile, class Direction>
__device__ inline void simt_gemm(const typename Direction::Parameters& parameters) {
  using T = typename Direction::Type;
  using Sum = Accumulator<T>;
  using Memory = SimtMemory<Tile, Direction>;
  constexpr int kRead = 16 / sizeof(Sum);
  Memory& memory = *shared_memory<Memory>();
  const Direction& direction = memory.direction;
  const Walks& walks = parameters.walks;
  if (!begin_tile<Tile::kThreads>(memory, parameters)) return;

  // Consecutive threads own neighbouring quads along the index that the result's walk advances.
  const bool down = walks.c == Walk::rows || walks.c == Walk::row_pieces;
  const int thread = int(threadIdx.x);
  const int row = 4 * (down ? thread % Tile::kThreadRows : thread / Tile::kThreadColumns);
  const int column = 4 * (down ? thread / Tile::kThreadRows : thread % Tile::kThreadColumns);

  Sum sums[Tile::kThreadM][Tile::kThreadN] = {};
  TileLoader<T, Tile::kM, Tile::kDepth, Tile::kThreads> a;
  TileLoader<T, Tile::kN, Tile::kDepth, Tile::kThreads> b;
  int stage = 0;
  for (int32_t depth = direction.depth_begin; depth < direction.depth_end; depth += Tile::kDepth) {
    if (depth == direction.depth_begin) {
      a.load(walks.a, direction.a, memory.rows, depth);
      b.load(walks.b, direction.b, memory.columns, depth);
    }
    a.store(walks.a, memory.a[stage]);
    b.store(walks.b, memory.b[stage]);
    __syncthreads();  // the stage is full; the other one, which the previous step read, may be written in the next step
    if (depth + Tile::kDepth < direction.depth_end) {
      a.load(walks.a, direction.a, memory.rows, depth + Tile::kDepth);
      b.load(walks.b, direction.b, memory.columns, depth + Tile::kDepth);
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

  const int32_t m = direction.tile.row + row, n = direction.tile.column + column;
  bool nan = false;
  if constexpr (Direction::kGathersFromDy) {
#pragma unroll
    for (int i = 0; i < Tile::kThreadM; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kThreadN; ++j) nan |= is_nan(sums[i][j]);
  }
  const auto after_storing = [&](const auto& result) {
    if constexpr (Direction::kGathersFromDy) {
      if (__syncthreads_or(nan))  // this is also a barrier: every thread then reads what others stored
        sum_nan_again<Tile::kM, Tile::kN, Tile::kThreads>(direction, result, memory.rows, memory.columns);
    }
  };
  if constexpr (Direction::kImage) {
    if (parameters.splits.count > 1) {  // the sums of a split have contiguous channels
      const auto result = direction.split_result(parameters);
      if (walks.c == Walk::column_pieces)
        store_sums<Walk::column_pieces, Tile>(result, sums, m, n);
      else
        store_sums<Walk::columns, Tile>(result, sums, m, n);
      return after_storing(result);
    }
  } else {
    if (parameters.gradient.dw) {
      const auto result = direction.filter_result(parameters);
      if (walks.c == Walk::column_pieces)
        store_sums<Walk::column_pieces, Tile>(result, sums, m, n);
      else
        store_sums<Walk::columns, Tile>(result, sums, m, n);
      return;
    }
  }
  const auto result = direction.result(parameters);
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
  if (int32_t(blockIdx.x) >= parameters.product_blocks) return sum_bias_gradient<Tile::kThreads, 1>(parameters);
  simt_gemm<Tile, Conv2dWgrad<T, Tile::kM, Tile::kN>>(parameters);
}
