// A block's tile of a product whose matrix is read once and not kept: 16 rows x 8 kColumnTiles columns, K split among the warps
// chunk by chunk, their sums added in rank order.
#pragma once
#include "platform/shared_memory.h"
#include "rnn/tile.cuh"

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

// Bytes of shared memory: kProductWarps * 16 * 8 * kColumnTiles accumulators. Calls result(row, column, sum) once for each.
template <class Math, int kColumnTiles, class Result>
__device__ inline void add_warps(WarpTile<Math, 1> (&tile)[kColumnTiles], Result result) {
  using A = Accumulator<Storage<Math>>;
  constexpr int size = kTileRows * kTileColumns * kColumnTiles;
  A* partial = shared_memory<A>();
  A* mine = partial + int(threadIdx.x) / 32 * size;
#pragma unroll
  for (int i = 0; i < kColumnTiles; ++i) {
    tile[i].finish();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = lane_group() + 8 * (j >> 1), column = i * kTileColumns + 2 * lane_in_group() + (j & 1);
      mine[column * kTileRows + row] = tile[i].sum[0][j];
    }
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < size; i += kProductWarps * 32) {
    A sum = partial[i];
#pragma unroll
    for (int warp = 1; warp < kProductWarps; ++warp) sum += partial[warp * size + i];
    result(i % kTileRows, i / kTileRows, sum);
  }
}
