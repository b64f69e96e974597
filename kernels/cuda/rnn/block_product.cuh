// A block's tile of a product whose matrix is read once and not kept: 16 rows x 8 kColumnTiles columns, K split among the warps
// chunk by chunk, their sums added in rank order.
#pragma once
#include "platform/shared_memory.h"
#include "rnn/warp_sums.cuh"

constexpr int kProductWarps = 8;

// Adds A B over K to this warp's tiles. a(half, k) and b(tile, k) give this lane's fragments: rows g + 8 half of A, column g of
// column tile `tile` of B, from element k on.
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

// Takes ProductSums::size accumulators of shared memory. Calls result(row, column, sum) once for each.
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
