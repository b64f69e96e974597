// The variant wgmma: implicit im2col on compute capability 9.0 (sm_90a), for fp16, bf16 and, except in wgrad, fp32 as TF32; sums
// are fp32. TMA forms the columns while it loads them into shared memory, from where wgmma multiplies them.
// This file has what the three directions share; directions_wgmma.cuh has the directions.
//
// Two warpgroups multiply, and one thread of a ninth warp starts the copies. An im2col copy brings 32, 64 or 128 bytes of
// channels of each of its pixels, at one filter position; TMA itself handles padding, strides and the ends of lines and images.
// Each stage has two mbarriers: `full` completes when the stage's bytes have arrived, `empty` when every multiplying warp has
// waited for its products of that stage. Blocks are persistent: the tiles of a block are as far apart as there are blocks, and
// while one tile is stored, the stages of the next one fill.
//
// The tile. A step is 128 bytes of depth, which is four wgmma deep. 128x256 keeps 128 sums in a thread and uses nearly all of the
// shared memory. 128x128 and 128x64 leave room for two blocks, of which one multiplies while the other stores.
//
// Results and the sums of splits are overwritten; wgrad adds to its sums if `accumulate`.
#pragma once
#include "conv2d/store_tile.cuh"
#include "platform/memory.h"
#include "platform/shared_memory.h"
#include "platform/tensor_map.h"
#include "platform/wgmma.h"

constexpr int kStepBytes = 128;  // of depth in each row of both operands; the widest swizzle

// kDown x kAcross warpgroups share a tile of kM x kN.
template <int kM_, int kN_, int kDown_, int kAcross_>
struct WgmmaTile {
  static constexpr int kM = kM_, kN = kN_, kDown = kDown_, kAcross = kAcross_;
  static constexpr int kGroups = kDown * kAcross, kGroupM = kM / kDown, kGroupN = kN / kAcross;
  static constexpr int kWarps = 4 * kGroups, kThreads = 32 * kWarps + 32;  // the last warp fetches
  static constexpr int kBlocks = kM + kN <= 256 ? 2 : 1;                   // resident on a multiprocessor
  static constexpr int kStageBytes = (kM + kN) * kStepBytes;
  static constexpr int kStages = (kBlocks == 2 ? 100 << 10 : 200 << 10) / kStageBytes;
  static constexpr int kChunkBytes = kBlocks == 2 ? 64 : 128;  // of a row of results that a warpgroup stages at once
  static_assert(kGroupM % 64 == 0 && kGroupN % 64 == 0 && kStages >= 3);
};

// How an operand lies in a stage, in the terms of wgmma's descriptors (platform/wgmma.h): as spans, which are 32, 64 or 128 bytes
// wide, one after the other. All fields count bytes.
struct OperandLayout {
  uint32_t leading, stride, span;
  uint32_t odd, two;  // from the operand of a step's first wgmma to the one of its second (odd), of its third (two)
  uint32_t per_64;    // from 64 rows of the operand to the next 64

  // Spans lie along the depth: each holds all `rows` for a part of the step's depth.
  __device__ static OperandLayout depth_major(uint32_t span, uint32_t rows) {
    return {.leading = 16,
            .stride = 8 * span,
            .span = span,
            .odd = span == 32 ? rows * span : 32,
            .two = span == 128 ? 64 : rows * 64,
            .per_64 = 64 * span};
  }
  // Spans lie along the rows: each holds a step of 64 depths (16-bit elements) of as many rows as it has room for.
  __device__ static OperandLayout row_major(uint32_t span) {
    return {
        .leading = 64 * span, .stride = 8 * span, .span = span, .odd = 16 * span, .two = 32 * span, .per_64 = 64 * kStepBytes};
  }

  __device__ uint64_t descriptor(const unsigned char* operand) const { return matrix_descriptor(operand, leading, stride, span); }
  // The offset from the operand of a step's first wgmma to the one of wgmma `multiplication`, 0 to 3.
  __device__ uint32_t at(int multiplication) const { return multiplication % 2 * odd + multiplication / 2 * two; }
};

// A buffer in shared memory through which a warpgroup stores 64 rows by kColumns columns of results of type T. A line of the
// buffer is a row or a column, whichever the walk over the result follows. Lines are padded so that what a warp writes at once,
// pairs along a row or single results down a column, spreads over the banks.
template <class Tile, class T>
struct Staging {
  static constexpr int kColumns = Tile::kChunkBytes / int(sizeof(T));
  static constexpr int kRowPitch = kColumns + 8, kColumnPitch = sizeof(T) == 4 ? 64 + 4 : 64 + 8;
  static constexpr int kCount = 64 * kRowPitch > kColumns* kColumnPitch ? 64 * kRowPitch : kColumns * kColumnPitch;
  static constexpr int kBytes = kCount * int(sizeof(T));
};

// Shared memory. The destination of a tile's results is described here, because the sums need the registers.
template <class Tile>
struct WgmmaMemory {
  static_assert(Staging<Tile, float>::kBytes >= Staging<Tile, half>::kBytes);
  alignas(1024) unsigned char stages[Tile::kStages][Tile::kStageBytes];  // the left operand's kM rows, then the right one's
  alignas(16) unsigned char staging[Tile::kGroups][Staging<Tile, float>::kBytes];
  alignas(16) unsigned char destination[Tile::kGroups][176];
  int32_t nan[Tile::kWarps];  // whether one of a warp's sums is NaN
  alignas(8) uint64_t full[Tile::kStages], empty[Tile::kStages];
};

// A position in the ring of stages: a stage, and the parity of the number of turns around the ring.
template <int kStages>
struct RingPosition {
  int stage;
  uint32_t turn;
  // The position after `steps` steps.
  __device__ explicit RingPosition(uint32_t steps = 0) : stage(int(steps % kStages)), turn(steps / kStages % 2) {}
  __device__ void next() {
    if (++stage == kStages) stage = 0, turn ^= 1;
  }
};

// Where a warpgroup's sums go: a result, and the element of it that the first sum belongs to.
template <class Result>
struct Destination {
  Result result;
  int32_t row, column;
};
template <class Result, class Tile>
__device__ inline Destination<Result>& destination_of(WgmmaMemory<Tile>& memory) {
  static_assert(sizeof(Destination<Result>) <= sizeof(memory.destination[0]));
  return *reinterpret_cast<Destination<Result>*>(memory.destination[threadIdx.x / 128]);
}

// Writes a chunk of a warpgroup's results to the staging buffer, column by column if `down`, else row by row. Each warp writes
// its own 16 rows. The epilogue is applied to the sums, and they are rounded to the stored type. `column` is the chunk's first
// column.
template <class Staging, class Result, int kFragments, int kCount>
__device__ inline void stage_chunk(typename Result::Stored* to, const float (&sums)[kFragments][kCount], int chunk, bool down,
                                   const Result& result, int32_t column) {
  using Stored = typename Result::Stored;
  constexpr int kRegisters = Staging::kColumns / 2, kChunks = kCount / kRegisters;  // registers of a chunk; chunks of a fragment
  const int warp = int(threadIdx.x) / 32 % 4, lane = int(threadIdx.x) % 32;
  const int lane_row = 16 * warp + lane / 4, lane_column = lane % 4 * 2;
  const auto narrowed = [&](float sum, int32_t n) { return n < result.columns ? result.narrowed(sum, n) : Stored{}; };
  // Registers can be indexed by constants only, so an unrolled loop over all chunks finds this one.
#pragma unroll
  for (int candidate = 0; candidate < kFragments * kChunks; ++candidate)
    if (candidate == chunk) {
#pragma unroll
      for (int i = 0; i < kRegisters; i += 2) {
        const int row = lane_row + i / 2 % 2 * 8, chunk_column = lane_column + i / 4 * 8;
        const int index = candidate % kChunks * kRegisters + i;
        const Stored left = narrowed(sums[candidate / kChunks][index], column + chunk_column),
                     right = narrowed(sums[candidate / kChunks][index + 1], column + chunk_column + 1);
        if (down) {
          to[chunk_column * Staging::kColumnPitch + row] = left;
          to[(chunk_column + 1) * Staging::kColumnPitch + row] = right;
        } else {
          store_vector<2>(to + row * Staging::kRowPitch + chunk_column, Vector<Stored, 2>{{left, right}});
        }
      }
    }
}

// Stores a warpgroup's sums, chunk by chunk, to their destination.
template <class Result, class Tile, int kFragments, int kCount>
__device__ inline void store_sums(WgmmaMemory<Tile>& memory, const float (&sums)[kFragments][kCount], Walk walk) {
  using Stored = typename Result::Stored;
  using Staged = Staging<Tile, Stored>;
  const int group = int(threadIdx.x) / 128, thread = int(threadIdx.x) % 128;
  const bool down = walk == Walk::rows || walk == Walk::row_pieces;
  constexpr int kChunks = 2 * kCount / Staged::kColumns;
  Stored* const staging = reinterpret_cast<Stored*>(memory.staging[group]);
  const Destination<Result>& destination = destination_of<Result>(memory);
  barrier_sync(1 + group, 128);  // one thread has described the destination
#pragma unroll 1
  for (int chunk = 0; chunk < kFragments * kChunks; ++chunk) {
    const int32_t column = destination.column + chunk % kChunks * Staged::kColumns;
    stage_chunk<Staged>(staging, sums, chunk, down, destination.result, column);
    barrier_sync(1 + group, 128);  // every thread stores what others have summed
    store_tile<64, Staged::kColumns, 128, true>(destination.result, staging, down ? Staged::kColumnPitch : Staged::kRowPitch,
                                                walk, destination.row + chunk / kChunks * 64, column, thread);
    barrier_sync(1 + group, 128);  // the staging memory and, after the last chunk, the description may be overwritten
  }
}

// Computes a block's tiles. Product, a class of directions_wgmma.cuh, fetches the operands of a tile and stores its sums.
template <class Tile, class Product>
__device__ inline void wgmma_gemm(const typename Product::Parameters& parameters) {
  using T = typename Product::Type;
  using Memory = WgmmaMemory<Tile>;
  constexpr int kFragments = Tile::kGroupM / 64;
  Memory& memory = *shared_memory<Memory>();
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      mbarrier_init(&memory.full[stage], 1);
      mbarrier_init(&memory.empty[stage], Tile::kWarps);
    }
    mbarrier_init_fence();
  }
  __syncthreads();  // the barriers are initialised before any thread uses them

  if (warp == Tile::kWarps) {
    if (lane != 0) return;
    RingPosition<Tile::kStages> position;
    Product::prefetch(parameters);
    for (int32_t number = int32_t(blockIdx.x); number < parameters.tiles; number += Product::blocks(parameters)) {
      Product product(parameters, number);
      for (int32_t step = product.begin; step < product.end; ++step, position.next()) {
        // In the first turn every stage is empty, and this wait returns at once.
        mbarrier_wait(&memory.empty[position.stage], position.turn ^ 1);
        mbarrier_arrive_expect(&memory.full[position.stage], Tile::kStageBytes);
        unsigned char* stage = memory.stages[position.stage];
        product.fetch(stage, stage + Tile::kM * kStepBytes, &memory.full[position.stage]);
      }
    }
    return;
  }

  const int group = warp / 4, group_row = group / Tile::kAcross * Tile::kGroupM,
            group_column = group % Tile::kAcross * Tile::kGroupN;
  uint32_t steps = 0;  // of all tiles so far
  for (int32_t number = int32_t(blockIdx.x); number < parameters.tiles; number += Product::blocks(parameters)) {
    const Product product(parameters, number);
    if (product.tile.row >= product.rows) continue;  // the tile lies beyond its residue's pixels and has no steps
    // The destination is described before the products, whose sums leave no registers for it.
    if (threadIdx.x % 128 == 0) product.describe(memory, group_row, group_column);
    float sums[kFragments][Tile::kGroupN / 2] = {};
#pragma unroll
    for (int m = 0; m < kFragments; ++m) wgmma_written(sums[m]);
    // The layouts are computed again for every tile, because they would take registers that the sums need while a tile is stored.
    const int32_t span = computed_again(parameters.span);
    const OperandLayout layout_a = Product::layout_a(span), layout_b = Product::layout_b(span);
    const uint64_t first_a = advance(layout_a.descriptor(memory.stages[0]), group_row / 64 * layout_a.per_64);
    const uint64_t first_b =
        advance(layout_b.descriptor(memory.stages[0] + Tile::kM * kStepBytes), group_column / 64 * layout_b.per_64);
    RingPosition<Tile::kStages> position(computed_again(steps));
    steps += product.end - product.begin;
    int previous = -1;
    for (int32_t step = product.begin; step < product.end; ++step, position.next()) {
      const uint64_t a = advance(first_a, position.stage * Tile::kStageBytes),
                     b = advance(first_b, position.stage * Tile::kStageBytes);
      mbarrier_wait(&memory.full[position.stage], position.turn);
      wgmma_fence();  // in every step, because ptxas requires one on every path to a product
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int m = 0; m < kFragments; ++m)
          wgmma<T, Product::kMajorA, Product::kMajorB>(sums[m], advance(a, layout_a.at(i) + m * layout_a.per_64),
                                                       advance(b, layout_b.at(i)));
      wgmma_commit();
      wgmma_wait<1>();  // the products of the previous step are done and its stage is free; those of this step may still run
      if (previous >= 0 && lane == 0) mbarrier_arrive(&memory.empty[previous]);
      previous = position.stage;
    }
#pragma unroll
    for (int m = 0; m < kFragments; ++m) wgmma_wait<0>(sums[m]);
    if (previous >= 0 && lane == 0) mbarrier_arrive(&memory.empty[previous]);
    Product::store(parameters, memory, sums, number);
  }
}
