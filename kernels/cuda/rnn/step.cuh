// One step of a layer per launch: the product with W and the pointwise part together. Any H, any N, any strides.
//
// Ladder
//   this file         W comes from L2 (or DRAM) at every step. Chosen where W does not fit into the variants that keep it.
//                     Predicted step: the launch (~2.5 us without a graph), and W and the state for every block at 24 B per clock
//                     and SM: H 4096, N 32 in 16 bits, 256 blocks of 384 KiB: 20 us. Measured: not yet.
//   single_block.cuh  H <= 256, one launch.
//   cluster.cuh       H <= 1024, one launch.
//   grid_flags.cuh    wider, one launch.
//
// A block owns 16 units and 8 kColumnTiles samples; its 8 warps split K, so that one block reads its rows of W once. Outputs are
// written once. Step s of a backward pass after the last one writes dh0.
#pragma once
#include "rnn/block_product.cuh"
#include "rnn/sequence.cuh"

template <class Math, class Pass, int kColumnTiles>
__global__ void __launch_bounds__(kProductWarps * 32, 1) rnn_step_kernel(const __grid_constant__ RnnParameters<Storage<Math>> p) {
  using T = Storage<Math>;
  const int H = p.shape.H, N = p.shape.N, direction = int(blockIdx.z);
  const int first_unit = int(blockIdx.x) * kTileRows, first = int(blockIdx.y) * kTileColumns * kColumnTiles;
  const Walk walk = walk_of<Pass>(p, direction);
  const int t = walk.time(p.step);
  const bool last = p.step == walk.steps;  // of a backward pass: the product alone, dh0

  // Where the state of this lane's column of each tile stands; null: 0.
  const T* state[kColumnTiles];
#pragma unroll
  for (int i = 0; i < kColumnTiles; ++i) {
    const int n = first + i * kTileColumns + lane_group(), length = length_of(p, n);
    state[i] = nullptr;
    if (last ? length == 0 : t >= length) continue;
    const int previous = last ? (walk.down ? 0 : length - 1) : walk.previous(t, length);
    if (previous >= 0)
      state[i] = Pass::carried_row(p, previous, n) + direction * H;
    else if (const T* initial = Pass::initial(p))
      state[i] = initial + (int64_t(direction) * N + n) * H;
  }

  const T* w = p.w + (int64_t(direction) * H + first_unit) * p.w_stride;
  WarpTile<Math, 1> tile[kColumnTiles];
  accumulate<Math>(
      tile, H,
      [&](int half, int k) {
        const int row = lane_group() + 8 * half;
        return load_fragment<Math>(w + int64_t(row) * p.w_stride, k, first_unit + row < H ? p.w_stride : 0);
      },
      [&](int i, int k) {
        const int K = state[i] ? H : 0;
        return p.aligned_carry ? load_fragment<Math>(state[i], k, K) : gather_fragment<Math>(state[i], k, K);
      });

  add_warps<Math>(tile, [&](int row, int column, Accumulator<T> product) {
    const int unit = first_unit + row, n = first + column;
    if (unit >= H || n >= N) return;
    if (last) {
      p.dh0[(int64_t(direction) * N + n) * H + unit] = narrow<T>(product);
    } else if (t < length_of(p, n)) {
      typename Pass::State state;
      const typename Pass::template Row<T> row_inputs(p, t, n, direction * H + unit);
      Pass::carried_row(p, t, n)[direction * H + unit] = Pass::evaluate(p, row_inputs.at(0), product, state);
    } else if (!p.step_offsets) {
      Pass::carried_row(p, t, n)[direction * H + unit] = T{};
    }
  });
}
