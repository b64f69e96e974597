// Adds the sums of a block's warps, which split K among them, through shared memory and in the order of the warps.
#pragma once
#include "rnn/tile.cuh"

// kWarps tiles of kRows x kColumns, stored column by column. Columns are padded by 4 rows, so that a warp's 4 x 8 stores of
// 32-bit sums go to 32 different banks.
template <class A, int kWarps, int kRows, int kColumns>
struct WarpSums {
  static constexpr int pitch = kRows + 4, size = kWarps * kColumns * pitch;
  A* sums;

  // Stores all row tiles of the calling warp for the column tile that starts at `column`.
  template <class Math, int kRowTiles>
  __device__ void put(const WarpTile<Math, kRowTiles>& tile, int column) const {
    A* start = sums + (int(threadIdx.x) / 32 * kColumns + column + 2 * lane_in_group()) * pitch + lane_group();
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i) start[(i & 1) * pitch + r * kTileRows + (i >> 1) * 8] = tile.sum[r][i];
  }
  // Returns one element, summed over all warps. A barrier must come between the warps' calls of `put` and this call.
  __device__ A total(int row, int column) const {
    A total = sums[column * pitch + row];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) total += sums[(warp * kColumns + column) * pitch + row];
    return total;
  }
};
