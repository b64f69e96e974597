// One step on its own (nn.RNNCell), each way in one launch.
//
// Ladder
//   this file   one block per 16 units and 8 kColumnTiles samples, its 8 warps split K: both weights are read once per
//               8 kColumnTiles samples, so that N <= 8 is bound by their bytes. Predicted at I = H = 1024, N = 1, 16 bits: 4 MiB
//               from DRAM at 4.2 TB/s 1.0 us, from L2 0.8 us, and ~2 us of launch. Measured: not yet.
//
// Forward: h_next = f(x W_ih^T + b_ih + h W_hh^T + b_hh). Backward: dz = dh_next f'(h_next), then dx = dz W_ih and dh = dz W_hh;
// every block forms the dz it multiplies by itself, rounded as it is stored, which spares a grid-wide barrier; the first column
// of blocks stores it. Its weights are read down their columns: 16 of them, 32 bytes in 16 bits, a whole sector. Outputs are
// overwritten.
#pragma once
#include "rnn/block_product.cuh"
#include "rnn/parameters.h"

template <class Math, int kColumnTiles>
__global__ void __launch_bounds__(kProductWarps * 32, 1)
    rnn_cell_forward_kernel(const __grid_constant__ RnnCellParameters<Storage<Math>> p) {
  using T = Storage<Math>;
  const int H = p.shape.H, N = p.shape.N;
  const int first_unit = int(blockIdx.x) * kTileRows, first = int(blockIdx.y) * kTileColumns * kColumnTiles;
  WarpTile<Math, 1> tile[kColumnTiles];
  auto add = [&](const T* w, int64_t w_stride, const T* rows, int64_t row_stride, int K) {
    auto load = [&](const T* row, int k, bool inside) {
      return p.aligned ? load_fragment<Math>(row, k, inside ? K : 0) : gather_fragment<Math>(row, k, inside ? K : 0);
    };
    accumulate<Math>(
        tile, K,
        [&](int half, int k) {
          const int unit = first_unit + lane_group() + 8 * half;
          return load(w + unit * w_stride, k, unit < H);
        },
        [&](int i, int k) {
          const int n = first + i * kTileColumns + lane_group();
          return load(rows + n * row_stride, k, n < N);
        });
  };
  add(p.w_ih, p.w_ih_stride, p.x, p.x_stride, p.shape.I);
  add(p.w_hh, p.w_hh_stride, p.h, p.h_stride, H);

  add_warps<Math>(tile, [&](int row, int column, Accumulator<T> product) {
    const int unit = first_unit + row, n = first + column;
    if (unit >= H || n >= N) return;
    Accumulator<T> bias = 0;
    if (p.b_ih) bias += widen(p.b_ih[unit]);
    if (p.b_hh) bias += widen(p.b_hh[unit]);
    const Accumulator<T> z[1] = {bias}, products[1] = {product};
    ElmanCell::State state;
    p.h_next[n * p.h_next_stride + unit] = narrow<T>(p.cell.forward(z, products, state));
  });
}

template <class Math, int kColumnTiles>
__global__ void __launch_bounds__(kProductWarps * 32, 1)
    rnn_cell_backward_kernel(const __grid_constant__ RnnCellParameters<Storage<Math>> p) {
  using T = Storage<Math>;
  const int H = p.shape.H, N = p.shape.N, I = p.shape.I;
  const int x_blocks = (I + kTileRows - 1) / kTileRows, first = int(blockIdx.y) * kTileColumns * kColumnTiles;
  const bool of_x = int(blockIdx.x) < x_blocks;
  const int first_unit = (int(blockIdx.x) - (of_x ? 0 : x_blocks)) * kTileRows, units = of_x ? I : H;
  const T* w = of_x ? p.w_ih : p.w_hh;
  const int64_t w_stride = of_x ? p.w_ih_stride : p.w_hh_stride;

  WarpTile<Math, 1> tile[kColumnTiles];
  accumulate<Math>(
      tile, H,
      [&](int half, int k) {
        const int unit = first_unit + lane_group() + 8 * half;
        return gather_fragment<Math>(w + unit, k, unit < units ? H : 0, w_stride);
      },
      [&](int i, int k) {
        const int n = first + i * kTileColumns + lane_group();
        const T *dh_row = p.dh_next + n * p.dh_next_stride, *h_row = p.h_next + n * p.h_next_stride;
        const int K = n < N ? H : 0;
        const Fragment<Math> dh = p.aligned ? load_fragment<Math>(dh_row, k, K) : gather_fragment<Math>(dh_row, k, K);
        const Fragment<Math> h = p.aligned ? load_fragment<Math>(h_row, k, K) : gather_fragment<Math>(h_row, k, K);
        Fragment<Math> dz;
#pragma unroll
        for (int j = 0; j < Fragment<Math>::size; ++j) {
          Accumulator<T> value[1];
          ElmanCell::State state;
          p.cell.backward(widen(dh.element[j]), widen(h.element[j]), value, state);
          dz.element[j] = narrow<T>(value[0]);
          if (blockIdx.x == 0 && k + j < K) p.dz[int64_t(n) * H + k + j] = dz.element[j];
        }
        return dz;
      });

  add_warps<Math>(tile, [&](int row, int column, Accumulator<T> product) {
    const int unit = first_unit + row, n = first + column;
    if (unit < units && n < N) (of_x ? p.dx : p.dh)[int64_t(n) * units + unit] = narrow<T>(product);
  });
}
