// A block's tile of a product whose matrix is read once and not kept: 16 rows x 8 kColumnTiles columns. The warps split K chunk
// by chunk, and their sums are added in the order of the warps.
#pragma once
#include "platform/shared_memory.h"
#include "rnn/warp_sums.cuh"

constexpr int kProductWarps = 8;

// Adds to this warp's tiles the product A B over the warp's chunks of K. a(half, k) returns this lane's fragment of row
// lane_group() + 8 half of A, and b(i, k) its fragment of column lane_group() of column tile i of B, both from element k on.
template <class Math, int kColumnTiles, class A, class B>
__device__ inline void accumulate(WarpTile<Math, 1> (&tile)[kColumnTiles], int K, A a, B b) {
  const int warp = int(threadIdx.x) / 32;
#pragma unroll 2
  for (int start = warp * kChunk<Math>; start < K; start += kProductWarps * kChunk<Math>) {
    const int k = start + lane_in_group() * Fragment<Math>::size;
    Fragment<Math> rows[1][2] = {{a(0, k), a(1, k)}};
    prepare(rows[0][0]);
    prepare(rows[0][1]);
#pragma unroll
    for (int i = 0; i < kColumnTiles; ++i) {
      Fragment<Math> column = b(i, k);
      prepare(column);
      tile[i].multiply(rows, column);
    }
  }
}

template <class Math, int kColumnTiles>
using ProductSums = WarpSums<Accumulator<Storage<Math>>, kProductWarps, kTileRows, kTileColumns * kColumnTiles>;

// Adds the warps' tiles and calls result(row, column, sum) once for each element. Needs ProductSums::size accumulators of shared
// memory.
template <class Math, int kColumnTiles, class Result>
__device__ inline void add_warps(WarpTile<Math, 1> (&tile)[kColumnTiles], Result result) {
  const ProductSums<Math, kColumnTiles> sums{shared_memory<Accumulator<Storage<Math>>>()};
#pragma unroll
  for (int i = 0; i < kColumnTiles; ++i) {
    tile[i].finish();
    sums.put(tile[i], i * kTileColumns);
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < kTileRows * kTileColumns * kColumnTiles; i += kProductWarps * 32)
    result(i % kTileRows, i / kTileRows, sums.total(i % kTileRows, i / kTileRows));
}
