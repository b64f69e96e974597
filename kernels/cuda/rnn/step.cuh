// One step of a layer per launch: the product with W and the pointwise part together, for any H and strides, and any N that fits
// into a grid.
//
// A block owns 16 units and 8 kColumnTiles samples of one direction. Its 8 warps split K, so that a block reads its rows of W
// once per step, from L2 or DRAM. Each element of an output is written once. A backward pass has one more launch after its last
// step if dh0 is wanted, which writes it.
#pragma once
#include "rnn/block_product.cuh"
#include "rnn/sequence.cuh"

template <class Math, class Pass, int kColumnTiles>
__global__ void __launch_bounds__(kProductWarps * 32, 1) rnn_step_kernel(const __grid_constant__ RnnParameters<Storage<Math>> p) {
  using T = Storage<Math>;
  const int H = p.shape.H, N = p.shape.N, direction = int(blockIdx.z);
  const int first_unit = int(blockIdx.x) * kTileRows, first_n = int(blockIdx.y) * kTileColumns * kColumnTiles;
  const TimeOrder order = time_order<Pass>(p, direction);
  const int t = order.time(p.step);
  const bool after_last = p.step == order.steps;  // only in a backward pass: the product alone is dh0

  // The state of this lane's sample in each column tile; null: zeros.
  const T* state[kColumnTiles];
#pragma unroll
  for (int i = 0; i < kColumnTiles; ++i) {
    bool written;
    state[i] = previous_state<Pass>(p, order, p.step, first_n + i * kTileColumns + lane_group(), direction, written);
  }

  const int64_t w_stride = p.w[direction].row;
  const T* w = p.w[direction].data + first_unit * w_stride;
  WarpTile<Math, 1> tile[kColumnTiles];
  accumulate<Math>(
      tile, H,
      [&](int half, int k) {
        const int row = lane_group() + 8 * half;
        return load_fragment<Math>(w + row * w_stride, k, first_unit + row < H ? H : 0);
      },
      [&](int i, int k) {
        const int K = state[i] ? H : 0;
        return p.aligned_state ? load_fragment<Math>(state[i], k, K) : gather_fragment<Math>(state[i], k, K);
      });

  add_warps<Math>(tile, [&](int row, int column, Accumulator<T> product) {
    const int unit = first_unit + row, n = first_n + column;
    if (unit >= H || n >= N) return;
    const int length = length_of(p, n);
    const Result result{length, element_offset(p, direction, n, unit)};
    const Accumulator<T> received = Pass::received(p, order, p.step, result, product);
    if (after_last) {
      p.dh0[result.element] = narrow<T>(received);
      return;
    }
    T value{};
    if (t < length) value = Pass::evaluate(p, typename Pass::template Row<T>(p, t, n, direction * H + unit).at(0), received);
    if (t < length || !p.step_offsets) Pass::state_row(p, t, n)[direction * H + unit] = value;
    Pass::keep_last(p, order, p.step, result, value);
  });
}
