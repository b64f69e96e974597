// Implicit im2col on tensor cores (mma.sync, sm_80 and later): fp16, bf16, and fp32 as TF32; sums in fp32.
//
// The ladder
//   implicit   simt.cuh: the same product on CUDA cores.
//   tensor     this file. Tiles of the column matrix are formed in shared memory by cp.async, several stages ahead of mma.sync.
//              Predicted on an H200: half of the dense rate that wgmma reaches, and memory-bound below 150 products a byte.
//              Measured: not yet.
//   splits     of the depth, a block for each: for images of few tiles, and always in wgrad. The sums go to memory;
//              split_k.cuh adds them, and has the prediction. Measured: not yet.
//   hopper     wgmma.cuh: the copy engine forms the columns and wgmma multiplies them; compute capability 9.0.
//   again      sum_again.cuh: dgrad's sums that are NaN, perhaps by the padding of dy alone, over the taps that exist.
//
// Operands come in whole pieces of 16 bytes: channels are contiguous and a multiple of 8 (4 of fp32) in each group. What is laid
// out otherwise (NCHW, odd channels) is packed beforehand, once, by pack_channels.cuh; the result goes out in any layout.
//
// A block owns one tile of the result and one split of its depth, a warp a part of it: kM / kWarpsM x kN / kWarpsN, in fragments
// of 16x8. Results, and the sums of splits, are overwritten; wgrad's sums are overwritten or added to.
//
// The tile. Both operands bring 64 bytes a line and step, two mma deep: 16 KiB for the 2^20 FLOP of 128x128x32 in 16 bits,
// 64 FLOP a byte from L2. Three of four stages, 48 KiB, are in flight while one is read.
// 64 sums and 24 words of fragments leave a thread of 128 registers enough for two blocks, which fill each other's waits.
// 64x64 serves what has few tiles or narrow ones.
#pragma once
#include "conv2d/store_tile.cuh"
#include "conv2d/sum_again.cuh"
#include "platform/memory.h"
#include "platform/mma.h"
#include "platform/shared_memory.h"

template <int kM_, int kN_, int kWarpsM_, int kWarpsN_>
struct MmaTile {
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kStages = 4, kChunks = 4;  // pieces of 16 bytes of a line and step: two mma deep
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN, kBlocks = 512 / kThreads;
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0, "fragments of A have 16 rows; those of B, 8 wide, are read in twos");
};

// One operand's tile in a stage. The index that is contiguous in memory is so here as well, in lines of whole pieces, whose
// order is permuted so that the eight pieces that ldmatrix reads at once lie in different banks:
//   depth-major (kDepthLines false)   a line is a row of the matrix, its pieces go along the depth; two lines span the banks
//   row-major   (kDepthLines true)    a line is one depth, its pieces go along the rows of the matrix
template <class T, int kRows, int kChunks, bool kDepthLines>
struct OperandTile {
  static constexpr int kPiece = 16 / sizeof(T), kDepth = kChunks * kPiece;
  static constexpr int kLines = kDepthLines ? kDepth : kRows, kLinePieces = kDepthLines ? kRows / kPiece : kChunks;
  static constexpr int kPieces = kLines * kLinePieces, kBytes = kPieces * 16;
  static_assert(kLinePieces % (kDepthLines ? 8 : 4) == 0);

  // Where a piece is, in elements.
  __device__ static int at(int line, int piece) {
    // fp32 is read word by word when depths are lines: 4 depths of 8 rows, two pieces, at once.
    const int permuted = !kDepthLines ? piece ^ (line / 2 % 4) : sizeof(T) == 4 ? piece ^ (line % 4 * 2) : piece ^ line % 8;
    return (line * kLinePieces + permuted) * kPiece;
  }

  // Starts copying the tile that begins at `depth`; what does not exist becomes zero.
  template <int kThreads, class Matrix>
  __device__ static void copy(T* tile, const Matrix& matrix, const Coordinate* rows, int32_t depth) {
    static_assert(kPieces % kThreads == 0);
#pragma unroll
    for (int i = 0; i < kPieces / kThreads; ++i) {
      const int index = int(threadIdx.x) + i * kThreads, line = index / kLinePieces, piece = index % kLinePieces;
      const Coordinate row = rows[kDepthLines ? piece * kPiece : line];
      const Coordinate column = matrix.column(depth + (kDepthLines ? line : piece * kPiece));
      const bool there = exists(matrix, row, column);
      copy_async<16>(tile + at(line, piece), matrix.data + (there ? row.offset + column.offset : 0), there ? 16 : 0);
    }
  }

  // Four fragments of 8 rows and one piece of depth, as mma wants them: a square of 16 rows and two pieces, down the rows first
  // for the left operand, along the depth first for the right one.
  template <bool kLeft>
  __device__ static void fragments(uint32_t (&fragment)[4], const T* tile, int row, int piece) {
    const int lane = int(threadIdx.x) % 32, named = lane / 8;  // the fragment whose lines this lane names to ldmatrix
    const int named_row = row + 8 * (kLeft ? named % 2 : named / 2), named_piece = piece + (kLeft ? named / 2 : named % 2);
    if constexpr (!kDepthLines) {
      ldmatrix(fragment, tile + at(named_row + lane % 8, named_piece));
    } else if constexpr (sizeof(T) == 2) {
      ldmatrix_transposed(fragment, tile + at(named_piece * kPiece + lane % 8, named_row / kPiece));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int of_row = row + 8 * (kLeft ? j % 2 : j / 2) + lane / 4,
                  depth = (piece + (kLeft ? j / 2 : j % 2)) * kPiece + lane % 4;
        fragment[j] = __float_as_uint(tile[at(depth, of_row / kPiece) + of_row % kPiece]);
      }
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int j = 0; j < 4; ++j) fragment[j] = round_tf32(__uint_as_float(fragment[j]));
    }
  }
};

template <class T>
__device__ inline void mma(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_m16n8k16<T>(sums, a, b);
}
template <>
__device__ inline void mma<float>(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_m16n8k8_tf32(sums, a, b);
}

// Shared memory: what the block multiplies, the coordinates of its rows and columns, then the stages, which the sums take over
// when the products are done.
template <class Tile, class Problem, bool kDepthLinesA, bool kDepthLinesB>
struct MmaMemory {
  using T = typename Problem::Type;
  using A = OperandTile<T, Tile::kM, Tile::kChunks, kDepthLinesA>;
  using B = OperandTile<T, Tile::kN, Tile::kChunks, kDepthLinesB>;
  struct Stage {
    alignas(128) T a[A::kBytes / sizeof(T)];
    alignas(128) T b[B::kBytes / sizeof(T)];
  };
  // Padded so that a warp's fragments, pairs along a row or words down a column, lie in different banks.
  static constexpr int kRowPitch = Tile::kN + 8, kColumnPitch = Tile::kM + 4;
  static constexpr int kSums = Tile::kM * kRowPitch > Tile::kN* kColumnPitch ? Tile::kM * kRowPitch : Tile::kN * kColumnPitch;
  alignas(kProblemBytes) Problem problem;
  static_assert(sizeof(Problem) <= kProblemBytes);
  alignas(kProblemBytes) Coordinate rows[Tile::kM], columns[Tile::kN];
  union {
    Stage stages[Tile::kStages];
    float sums[kSums];
  };
};

template <class Tile, class Problem, bool kDepthLinesA, bool kDepthLinesB, class Parameters>
__device__ inline void mma_gemm(const Parameters& parameters) {
  using T = typename Problem::Type;
  using Memory = MmaMemory<Tile, Problem, kDepthLinesA, kDepthLinesB>;
  using A = typename Memory::A;
  using B = typename Memory::B;
  constexpr int kFragmentsM = Tile::kWarpM / 16, kFragmentsN = Tile::kWarpN / 8;
  [[maybe_unused]] constexpr int kUnroll =
      sizeof(T) == 4 ? 1 : 2;  // the addresses of words read one by one would not fit in registers twice
  Memory& memory = *shared_memory<Memory>();
  const Problem& problem = memory.problem;
  if (threadIdx.x == 0) memory.problem = Problem(parameters);
  __syncthreads();                               // every thread reads it
  if (problem.tile.row >= problem.rows) return;  // a residue with fewer pixels than the first

  for (int i = int(threadIdx.x); i < Tile::kM; i += Tile::kThreads) memory.rows[i] = problem.a.row(problem.tile.row + i);
  for (int i = int(threadIdx.x); i < Tile::kN; i += Tile::kThreads) memory.columns[i] = problem.b.row(problem.tile.column + i);
  __syncthreads();  // every thread reads the coordinates of others

  const int32_t steps = (problem.depth_end - problem.depth_begin + A::kDepth - 1) / A::kDepth;
  const auto fill = [&](int32_t step) {
    if (step < steps) {
      typename Memory::Stage& stage = memory.stages[step % Tile::kStages];
      A::template copy<Tile::kThreads>(stage.a, problem.a, memory.rows, problem.depth_begin + step * A::kDepth);
      B::template copy<Tile::kThreads>(stage.b, problem.b, memory.columns, problem.depth_begin + step * A::kDepth);
    }
    copy_async_commit();  // a group for every step, empty or not, so that waiting can count them
  };
#pragma unroll
  for (int32_t step = 0; step < Tile::kStages - 1; ++step) fill(step);

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int warp_row = warp / Tile::kWarpsN * Tile::kWarpM, warp_column = warp % Tile::kWarpsN * Tile::kWarpN;
  float sums[kFragmentsM][kFragmentsN][4] = {};
  for (int32_t step = 0; step < steps; ++step) {
    copy_async_wait<Tile::kStages - 2>();
    __syncthreads();  // this step's tiles are here; nobody reads the stage before it any more, which is filled next
    fill(step + Tile::kStages - 1);
    const typename Memory::Stage& stage = memory.stages[step % Tile::kStages];
#pragma unroll kUnroll
    for (int chunk = 0; chunk < Tile::kChunks; chunk += 2) {
      uint32_t a[kFragmentsM][4], b[kFragmentsN / 2][4];
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i) A::template fragments<true>(a[i], stage.a, warp_row + 16 * i, chunk);
#pragma unroll
      for (int j = 0; j < kFragmentsN / 2; ++j) B::template fragments<false>(b[j], stage.b, warp_column + 16 * j, chunk);
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i)
#pragma unroll
        for (int j = 0; j < kFragmentsN; ++j) {
          const uint32_t of_column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          mma<T>(sums[i][j], a[i], of_column);
        }
    }
  }
  __syncthreads();  // nobody reads a stage any more; what was copied last has been waited for, later groups are empty

  const bool down = parameters.walks.c == Walk::rows || parameters.walks.c == Walk::row_pieces;
  const int pitch = down ? Memory::kColumnPitch : Memory::kRowPitch;
  bool nan = false;
#pragma unroll
  for (int i = 0; i < kFragmentsM; ++i)
#pragma unroll
    for (int j = 0; j < kFragmentsN; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_row + 16 * i + lane / 4 + e / 2 * 8, column = warp_column + 8 * j + lane % 4 * 2 + e % 2;
        memory.sums[down ? column * pitch + row : row * pitch + column] = sums[i][j][e];
        if constexpr (Problem::kGathersFromDy) nan |= is_nan(sums[i][j][e]);
      }
  // Every thread stores what others summed.
  if constexpr (Problem::kGathersFromDy)
    nan = __syncthreads_or(nan);
  else
    __syncthreads();

  const auto store = [&](const auto& result) {
    store_tile<Tile::kM, Tile::kN, Tile::kThreads, false>(result, memory.sums, pitch, parameters.walks.c, problem.tile.row,
                                                          problem.tile.column, int(threadIdx.x));
    if constexpr (Problem::kGathersFromDy) {
      if (!nan) return;
      __syncthreads();  // every thread reads what others stored
      sum_nan_again<Tile::kM, Tile::kN, Tile::kThreads>(problem, result, memory.rows, memory.columns);
    }
  };
  if constexpr (Problem::kImage) {
    if (parameters.splits.count > 1) return store(problem.split_result(parameters));
  }
  store(problem.result(parameters));
}

template <class T, class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_fprop_mma_kernel(const __grid_constant__ Conv2dFpropParameters<T, Epilogue> parameters) {
  mma_gemm<Tile, Conv2dFprop<T, Epilogue, Tile::kM, Tile::kN>, false, false>(parameters);
}

// The filter (K, C, R, S) as it is has C contiguous, which are rows of the product here: lines are depths.
template <class T, class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_dgrad_mma_kernel(const __grid_constant__ Conv2dDgradParameters<T, Epilogue> parameters) {
  mma_gemm<Tile, Conv2dDgrad<T, Epilogue, Tile::kM, Tile::kN>, false, true>(parameters);
}

// The depth is the pixels; channels of dy and of x are rows of the product.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_wgrad_mma_kernel(const __grid_constant__ Conv2dWgradParameters<T> parameters) {
  mma_gemm<Tile, Conv2dWgrad<T, Tile::kM, Tile::kN>, true, true>(parameters);
}
