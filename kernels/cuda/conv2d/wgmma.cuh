// Implicit im2col on Hopper (sm_90a): the copy engine forms the columns while it loads them, wgmma multiplies them where they
// landed; fp16, bf16, and fp32 as TF32; sums in fp32. This file is the machinery; directions_wgmma.cuh has the three directions.
//
// The ladder
//   implicit   simt.cuh: the same product on CUDA cores.
//   tensor     mma.cuh: cp.async and mma.sync; every thread computes addresses for every piece of 16 bytes.
//   hopper     this file. One thread starts a copy for each tap and 16 to 64 channels of it; padding, strides, dilation and the
//              ends of lines and images are the engine's. Predicted on an H200, from bytes through shared memory: each 64 rows by
//              n columns of wgmma read 64 + n rows and the copies write kM + kN for every step, at 128 bytes a clock, so of the
//              dense rate 128x256 could reach all, 256x128 0.89, 128x128 0.80, 128x64 0.57. Measured: not yet.
//   packed     spans of 32 and 64 bytes: where channels are few, several taps fill one step, so that C = 16 multiplies no zeros.
//              Predicted: C = 16 four times as fast as with spans of 128. Measured: not yet.
//   staged     sums become results in registers and pass through shared memory as such, 16 bytes at a time. Predicted: 1,000
//              clocks of shared memory for 128x256 in 16 bits, beside 9,200 of products for 64 channels of 3x3; as fp32 three
//              times that. Measured: not yet.
//   again      sum_again.cuh: dgrad's sums that are NaN, perhaps by the padding of dy alone, over the taps that exist. A warp
//              does it for its own, once its warpgroup has stored them. Predicted without NaN: a comparison for each sum, 130
//              clocks for 128x256. Measured: not yet.
//   not taken  Major::rows of TF32 (wgmma has none): wgrad of TF32 stays with `tensor`, dgrad turns the filter first.
//              Stores by the copy engine: they know one rectangle, and a tile's pixels wrap over lines; to be tried for dense
//              results.
//
// Two warpgroups multiply, a ninth warp fetches; they meet at two mbarriers for each stage. `full` ends when the stage's bytes
// have come, `empty` when every multiplying warp has waited for its products of that stage. Blocks are persistent: a block's
// tiles are gridDim.x apart, and while one is stored the next one's stages fill.
//
// The tile. A step is 128 bytes of depth, four wgmma. 128x256 keeps 128 sums in a thread and uses all of the shared memory; tiles
// of 128x128 and less leave room for two blocks, of which one multiplies while the other stores.
//
// Results are overwritten; wgrad's sums are overwritten or added to.
#pragma once
#include "conv2d/store_tile.cuh"
#include "platform/memory.h"
#include "platform/shared_memory.h"
#include "platform/tensor_map.h"
#include "platform/wgmma.h"

constexpr int kStepBytes = 128;  // of depth, in each row of both operands: the widest swizzle

// kDown x kAcross warpgroups share a tile of kM x kN.
template <int kM_, int kN_, int kDown_, int kAcross_>
struct WgmmaTile {
  static constexpr int kM = kM_, kN = kN_, kDown = kDown_, kAcross = kAcross_;
  static constexpr int kGroups = kDown * kAcross, kGroupM = kM / kDown, kGroupN = kN / kAcross;
  static constexpr int kWarps = 4 * kGroups, kThreads = 32 * kWarps + 32;  // the last warp fetches
  static constexpr int kBlocks = kM + kN <= 256 ? 2 : 1;                   // of a multiprocessor
  static constexpr int kStageBytes = (kM + kN) * kStepBytes;
  static constexpr int kStages = (kBlocks == 2 ? 100 << 10 : 200 << 10) / kStageBytes;
  static constexpr int kChunkBytes = kBlocks == 2 ? 64 : 128;  // of a row, that a warpgroup stages at once to store them
  static_assert(kGroupM % 64 == 0 && kGroupN % 64 == 0 && kStages >= 3);
};

// How an operand lies in a stage, for the descriptors: spans of 32 to 128 bytes (platform/wgmma.h), one after the other.
struct OperandLayout {
  uint32_t leading, stride, span;
  uint32_t odd, two;  // from one wgmma's depth to the next one's, and to the one after: bytes
  uint32_t per_64;    // from 64 rows of the operand to the next 64

  // Spans go along the depth: each holds all `rows` for a part of the step's depth.
  __device__ static OperandLayout depth_major(uint32_t span, uint32_t rows) {
    return {16, 8 * span, span, span == 32 ? rows * span : 32, span == 128 ? 64 : rows * 64, 64 * span};
  }
  // Spans go along the rows: each holds a step of 64 depths (16-bit elements) of as many rows as it has room for.
  __device__ static OperandLayout row_major(uint32_t span) {
    return {64 * span, 8 * span, span, 16 * span, 32 * span, 64 * kStepBytes};
  }

  __device__ uint64_t descriptor(const unsigned char* operand) const { return matrix_descriptor(operand, leading, stride, span); }
  __device__ uint32_t at(int multiplication) const { return multiplication % 2 * odd + multiplication / 2 * two; }
};

// Results of type T on their way from registers to memory: 64 rows of some columns, in lines of what is contiguous in memory,
// padded so that a warp's pairs along a row, or words down a column, lie in different banks.
template <class Tile, class T>
struct Staging {
  static constexpr int kColumns = Tile::kChunkBytes / int(sizeof(T));
  static constexpr int kRowPitch = kColumns + 8, kColumnPitch = sizeof(T) == 4 ? 64 + 4 : 64 + 8;
  static constexpr int kCount = 64 * kRowPitch > kColumns* kColumnPitch ? 64 * kRowPitch : kColumns * kColumnPitch;
  static constexpr int kBytes = kCount * int(sizeof(T));
};

// Shared memory. The place of a tile's results is described there and not in registers, which the sums need.
template <class Tile>
struct WgmmaMemory {
  static_assert(Staging<Tile, float>::kBytes >= Staging<Tile, half>::kBytes);
  alignas(1024) unsigned char stages[Tile::kStages][Tile::kStageBytes];  // the left operand's kM rows, then the right one's
  alignas(16) unsigned char staging[Tile::kGroups][Staging<Tile, float>::kBytes];
  alignas(16) unsigned char place[Tile::kGroups][176];
  int32_t nan[Tile::kWarps];  // whether one of a warp's sums is
  alignas(8) uint64_t full[Tile::kStages], empty[Tile::kStages];
};

// A place in the ring of stages, and the parity of its turn.
template <int kStages>
struct RingPlace {
  int stage;
  uint32_t turn;
  // After `steps` steps.
  __device__ explicit RingPlace(uint32_t steps = 0) : stage(int(steps % kStages)), turn(steps / kStages % 2) {}
  __device__ void next() {
    if (++stage == kStages) stage = 0, turn ^= 1;
  }
};

// A result, and which of its elements a warpgroup's first sum is.
template <class Result>
struct Place {
  Result result;
  int32_t row, column;
};
template <class Result, class Tile>
__device__ inline Place<Result>& place_of(WgmmaMemory<Tile>& memory) {
  static_assert(sizeof(Place<Result>) <= sizeof(memory.place[0]));
  return *reinterpret_cast<Place<Result>*>(memory.place[threadIdx.x / 128]);
}

// One warp's part of a chunk of its warpgroup's sums: what becomes of them, to shared memory. `column`: the chunk's first one.
template <class Staging, class Result, int kFragments, int kCount>
__device__ inline void stage_chunk(typename Result::Stored* to, const float (&sums)[kFragments][kCount], int chunk, bool down,
                                   const Result& result, int32_t column) {
  using Stored = typename Result::Stored;
  constexpr int kEach = Staging::kColumns / 2, kChunks = kCount / kEach;  // registers of a chunk; chunks of a fragment
  const int warp = int(threadIdx.x) / 32 % 4, lane = int(threadIdx.x) % 32;
  const int row = 16 * warp + lane / 4, across = lane % 4 * 2;
  const auto narrowed = [&](float sum, int32_t at) { return at < result.columns ? result.narrowed(sum, at) : Stored{}; };
#pragma unroll
  for (int each = 0; each < kFragments * kChunks; ++each)  // the registers' indices must be constants
    if (each == chunk) {
#pragma unroll
      for (int i = 0; i < kEach; i += 2) {
        const int of_row = row + i / 2 % 2 * 8, of_column = across + i / 4 * 8, at = each % kChunks * kEach + i;
        const Stored left = narrowed(sums[each / kChunks][at], column + of_column),
                     right = narrowed(sums[each / kChunks][at + 1], column + of_column + 1);
        if (down) {
          to[of_column * Staging::kColumnPitch + of_row] = left;
          to[(of_column + 1) * Staging::kColumnPitch + of_row] = right;
        } else {
          store_vector<2>(to + of_row * Staging::kRowPitch + of_column, Vector<Stored, 2>{{left, right}});
        }
      }
    }
}

// Stores a warpgroup's sums, chunk by chunk, to their place.
template <class Result, class Tile, int kFragments, int kCount>
__device__ inline void store_sums(WgmmaMemory<Tile>& memory, const float (&sums)[kFragments][kCount], Walk walk) {
  using Stored = typename Result::Stored;
  using Staged = Staging<Tile, Stored>;
  const int group = int(threadIdx.x) / 128, thread = int(threadIdx.x) % 128;
  const bool down = walk == Walk::rows || walk == Walk::row_pieces;
  constexpr int kChunks = 2 * kCount / Staged::kColumns;
  Stored* const staging = reinterpret_cast<Stored*>(memory.staging[group]);
  const Place<Result>& place = place_of<Result>(memory);
  barrier_sync(1 + group, 128);  // one thread has described the place
#pragma unroll 1
  for (int chunk = 0; chunk < kFragments * kChunks; ++chunk) {
    const int32_t column = place.column + chunk % kChunks * Staged::kColumns;
    stage_chunk<Staged>(staging, sums, chunk, down, place.result, column);
    barrier_sync(1 + group, 128);  // every thread stores what others summed
    store_tile<64, Staged::kColumns, 128, true>(place.result, staging, down ? Staged::kColumnPitch : Staged::kRowPitch, walk,
                                                place.row + chunk / kChunks * 64, column, thread);
    barrier_sync(1 + group, 128);  // nobody reads this chunk any more, nor, after the last one, the place
  }
}

// Product: what one tile multiplies (directions_wgmma.cuh).
template <class Tile, class Product, class Parameters>
__device__ inline void wgmma_gemm(const Parameters& parameters) {
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
  __syncthreads();  // nobody uses a barrier before it is one

  if (warp == Tile::kWarps) {
    if (lane != 0) return;
    RingPlace<Tile::kStages> place;
    Product::prefetch(parameters);
    for (int32_t number = int32_t(blockIdx.x); number < parameters.tiles; number += int32_t(gridDim.x)) {
      Product product(parameters, number);
      for (int32_t step = product.begin; step < product.end; ++step, place.next()) {
        mbarrier_wait(&memory.empty[place.stage], place.turn ^ 1);  // in the first turn nobody has to have emptied it
        mbarrier_arrive_expect(&memory.full[place.stage], Tile::kStageBytes);
        unsigned char* stage = memory.stages[place.stage];
        product.fetch(stage, stage + Tile::kM * kStepBytes, &memory.full[place.stage]);
      }
    }
    return;
  }

  const int group = warp / 4, group_row = group / Tile::kAcross * Tile::kGroupM,
            group_column = group % Tile::kAcross * Tile::kGroupN;
  uint32_t steps = 0;  // of the tiles so far
  for (int32_t number = int32_t(blockIdx.x); number < parameters.tiles; number += int32_t(gridDim.x)) {
    const Product product(parameters, number);
    if (product.tile.row >= product.rows) continue;  // a residue with fewer pixels than the first; it has no steps either
    // Before the products: their sums leave no registers for it.
    if (threadIdx.x % 128 == 0) product.describe(memory, group_row, group_column);
    float sums[kFragments][Tile::kGroupN / 2] = {};
#pragma unroll
    for (int m = 0; m < kFragments; ++m) wgmma_written(sums[m]);
    // Described anew for every tile: kept while the last one was stored, it would have taken the sums' registers.
    const int32_t span = computed_again(parameters.span);
    const OperandLayout layout_a = Product::layout_a(span), layout_b = Product::layout_b(span);
    const uint64_t first_a = advance(layout_a.descriptor(memory.stages[0]), group_row / 64 * layout_a.per_64);
    const uint64_t first_b =
        advance(layout_b.descriptor(memory.stages[0] + Tile::kM * kStepBytes), group_column / 64 * layout_b.per_64);
    RingPlace<Tile::kStages> place(computed_again(steps));
    steps += product.end - product.begin;
    int before = -1;
    for (int32_t step = product.begin; step < product.end; ++step, place.next()) {
      const uint64_t a = advance(first_a, place.stage * Tile::kStageBytes), b = advance(first_b, place.stage * Tile::kStageBytes);
      mbarrier_wait(&memory.full[place.stage], place.turn);
      wgmma_fence();  // in every step: ptxas wants one on every way to a product
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int m = 0; m < kFragments; ++m)
          wgmma<T, Product::kMajorA, Product::kMajorB>(sums[m], advance(a, layout_a.at(i) + m * layout_a.per_64),
                                                       advance(b, layout_b.at(i)));
      wgmma_commit();
      wgmma_wait<1>();  // this step's products go on; those of the step before are over, and its stage is free
      if (before >= 0 && lane == 0) mbarrier_arrive(&memory.empty[before]);
      before = place.stage;
    }
#pragma unroll
    for (int m = 0; m < kFragments; ++m) wgmma_wait<0>(sums[m]);
    if (before >= 0 && lane == 0) mbarrier_arrive(&memory.empty[before]);
    Product::store(parameters, memory, sums, number);
  }
}
