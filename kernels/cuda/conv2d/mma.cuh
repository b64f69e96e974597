// The variant mma: implicit im2col on tensor cores by mma.sync, for fp16, bf16, and fp32 as TF32; sums in fp32.
//
// Operands come in whole pieces of 16 bytes: the channels of each group are contiguous and a multiple of 8 (4 in fp32). Tensors
// of any other layout (such as NCHW) are packed beforehand by pack_channels.cuh; the result may have any layout.
//
// A block owns one tile of the result and one split of its depth. It forms tiles of the column matrix in shared memory by
// cp.async, several stages ahead of the products. A warp owns kM / kWarpsM x kN / kWarpsN of the tile, in fragments of 16x8.
// Results and the sums of splits are overwritten; wgrad adds to its sums if `accumulate`.
//
// The tile. A step has 64 bytes of depth for each row and column of the tile, which is two mma deep. For 128x128x32 in 16 bits,
// that is 16 KiB from L2 for 2^20 FLOP, or 64 FLOP for each byte. Three of the four stages, 48 KiB, are in flight while one is
// read. 64 sums and 24 words of fragments fit the 128 registers that a thread has if two blocks are resident, each of which
// computes while the other waits. 64x64 serves results that have few tiles or are narrow.
#pragma once
#include "conv2d/bias_gradient.cuh"
#include "conv2d/directions.cuh"
#include "conv2d/store_tile.cuh"
#include "conv2d/sum_again.cuh"
#include "platform/memory.h"
#include "platform/mma.h"
#include "platform/shared_memory.h"

template <int kM_, int kN_, int kWarpsM_, int kWarpsN_>
struct MmaTile {
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kStages = 4, kChunks = 4;  // the depth of a step is four pieces of 16 bytes, or two mma
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN, kBlocks = 512 / kThreads;
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0, "fragments of A have 16 rows; those of B have 8 and are read in pairs");
};

// One operand's tile in a stage. The index that is contiguous in memory is contiguous here as well, in lines of whole pieces.
// The pieces of a line are permuted so that the eight pieces that ldmatrix reads at once lie in different banks:
//   depth-major (kDepthLines false)   a line is a row of the matrix, its pieces lie along the depth; two lines cover all banks
//   row-major   (kDepthLines true)    a line is one depth, its pieces lie along the rows of the matrix
template <class T, int kRows, int kChunks, bool kDepthLines>
struct OperandTile {
  static constexpr int kPiece = 16 / sizeof(T), kDepth = kChunks * kPiece;
  static constexpr int kLines = kDepthLines ? kDepth : kRows, kLinePieces = kDepthLines ? kRows / kPiece : kChunks;
  static constexpr int kPieces = kLines * kLinePieces, kBytes = kPieces * 16;
  static_assert(kLinePieces % (kDepthLines ? 8 : 4) == 0);

  // The offset of a piece, in elements.
  __device__ static int at(int line, int piece) {
    // Where lines are depths, fp32 is read word by word, 4 depths of 8 rows (two pieces) at once.
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
      const bool in_matrix = exists(matrix, row, column);
      copy_async<16>(tile + at(line, piece), matrix.data + (in_matrix ? row.offset + column.offset : 0), in_matrix ? 16 : 0);
    }
  }

  // Reads four fragments of 8 rows and one piece of depth, which together cover 16 rows and two pieces. mma takes them down the
  // rows first for the left operand, along the depth first for the right one.
  template <bool kLeft>
  __device__ static void fragments(uint32_t (&fragment)[4], const T* tile, int row, int piece) {
    const int lane = int(threadIdx.x) % 32, addressed = lane / 8;  // the fragment whose lines this lane addresses
    const int named_row = row + 8 * (kLeft ? addressed % 2 : addressed / 2),
              named_piece = piece + (kLeft ? addressed / 2 : addressed % 2);
    if constexpr (!kDepthLines) {
      ldmatrix(fragment, tile + at(named_row + lane % 8, named_piece));
    } else if constexpr (sizeof(T) == 2) {
      ldmatrix_transposed(fragment, tile + at(named_piece * kPiece + lane % 8, named_row / kPiece));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int word_row = row + 8 * (kLeft ? j % 2 : j / 2) + lane / 4,
                  word_depth = (piece + (kLeft ? j / 2 : j % 2)) * kPiece + lane % 4;
        fragment[j] = __float_as_uint(tile[at(word_depth, word_row / kPiece) + word_row % kPiece]);
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

// Shared memory: the block's direction (directions.cuh), the coordinates of the tile's rows and columns, then the stages, whose
// memory the sums use after the last product.
template <class Tile, class Direction, bool kDepthLinesA, bool kDepthLinesB>
struct MmaMemory {
  using T = typename Direction::Type;
  using A = OperandTile<T, Tile::kM, Tile::kChunks, kDepthLinesA>;
  using B = OperandTile<T, Tile::kN, Tile::kChunks, kDepthLinesB>;
  struct Stage {
    alignas(128) T a[A::kBytes / sizeof(T)];
    alignas(128) T b[B::kBytes / sizeof(T)];
  };
  // The pitches of `sums`, padded so that the lanes of a warp spread their stores over the banks.
  static constexpr int kRowPitch = Tile::kN + 8, kColumnPitch = Tile::kM + 4;
  static constexpr int kSums = Tile::kM * kRowPitch > Tile::kN* kColumnPitch ? Tile::kM * kRowPitch : Tile::kN * kColumnPitch;
  alignas(kDirectionBytes) Direction direction;
  alignas(kDirectionBytes) Coordinate rows[Tile::kM], columns[Tile::kN];
  union {
    Stage stages[Tile::kStages];
    float sums[kSums];
  };
};

template <class Tile, class Direction, bool kDepthLinesA, bool kDepthLinesB>
__device__ inline void mma_gemm(const typename Direction::Parameters& parameters) {
  using T = typename Direction::Type;
  using Memory = MmaMemory<Tile, Direction, kDepthLinesA, kDepthLinesB>;
  using A = typename Memory::A;
  using B = typename Memory::B;
  constexpr int kFragmentsM = Tile::kWarpM / 16, kFragmentsN = Tile::kWarpN / 8;
  // fp32 may be read word by word; the addresses of two such iterations would not fit into registers.
  [[maybe_unused]] constexpr int kUnroll = sizeof(T) == 4 ? 1 : 2;
  Memory& memory = *shared_memory<Memory>();
  const Direction& direction = memory.direction;
  if (!begin_tile<Tile::kThreads>(memory, parameters)) return;

  const int32_t steps = (direction.depth_end - direction.depth_begin + A::kDepth - 1) / A::kDepth;
  const auto fill = [&](int32_t step) {
    if (step < steps) {
      typename Memory::Stage& stage = memory.stages[step % Tile::kStages];
      A::template copy<Tile::kThreads>(stage.a, direction.a, memory.rows, direction.depth_begin + step * A::kDepth);
      B::template copy<Tile::kThreads>(stage.b, direction.b, memory.columns, direction.depth_begin + step * A::kDepth);
    }
    copy_async_commit();  // one group for every step, even an empty one, so that waiting can count groups
  };
#pragma unroll
  for (int32_t step = 0; step < Tile::kStages - 1; ++step) fill(step);

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int warp_row = warp / Tile::kWarpsN * Tile::kWarpM, warp_column = warp % Tile::kWarpsN * Tile::kWarpN;
  float sums[kFragmentsM][kFragmentsN][4] = {};
  for (int32_t step = 0; step < steps; ++step) {
    copy_async_wait<Tile::kStages - 2>();
    __syncthreads();  // this step's tiles have arrived; all reads of the previous step's stage, which is filled next, are over
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
          const uint32_t right[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          mma<T>(sums[i][j], a[i], right);
        }
    }
  }
  __syncthreads();  // all reads of the stages are over, and all copies: the commit groups after the last step are empty

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
        if constexpr (Direction::kGathersFromDy) nan |= is_nan(sums[i][j][e]);
      }
  // Every thread stores what others have summed.
  if constexpr (Direction::kGathersFromDy)
    nan = __syncthreads_or(nan);
  else
    __syncthreads();

  const auto store = [&](const auto& result) {
    store_tile<Tile::kM, Tile::kN, Tile::kThreads, false>(result, memory.sums, pitch, parameters.walks.c, direction.tile.row,
                                                          direction.tile.column, int(threadIdx.x));
    if constexpr (Direction::kGathersFromDy) {
      if (!nan) return;
      __syncthreads();  // every thread reads what others stored
      sum_nan_again<Tile::kM, Tile::kN, Tile::kThreads>(direction, result, memory.rows, memory.columns);
    }
  };
  if constexpr (Direction::kImage) {
    if (parameters.splits.count > 1) return store(direction.split_result(parameters));
  } else {
    if (parameters.gradient.dw) return store(direction.filter_result(parameters));
  }
  store(direction.result(parameters));
}

template <class T, class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_fprop_mma_kernel(const __grid_constant__ Conv2dFpropParameters<T, Epilogue> parameters) {
  mma_gemm<Tile, Conv2dFprop<T, Epilogue, Tile::kM, Tile::kN>, false, false>(parameters);
}

// The packed filter lies in memory as (K, R, S, C), so the channels C, which are the rows of the right operand, are contiguous,
// and the operand's lines are depths.
template <class T, class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_dgrad_mma_kernel(const __grid_constant__ Conv2dDgradParameters<T, Epilogue> parameters) {
  mma_gemm<Tile, Conv2dDgrad<T, Epilogue, Tile::kM, Tile::kN>, false, true>(parameters);
}

// The depth is the pixels; the channels of dy and of x, which are contiguous, are rows of the operands.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_wgrad_mma_kernel(const __grid_constant__ Conv2dWgradParameters<T> parameters) {
  if (int32_t(blockIdx.x) >= parameters.product_blocks) return sum_bias_gradient<Tile::kThreads, 16 / int(sizeof(T))>(parameters);
  mma_gemm<Tile, Conv2dWgrad<T, Tile::kM, Tile::kN>, true, true>(parameters);
}
