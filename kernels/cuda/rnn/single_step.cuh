// One step on its own (nn.RNNCell), forward or backward in one launch.
//
// A block owns 16 units, or for dx 16 input features, of 8 kColumnTiles samples, and its 8 warps split K. Both weights are read
// once per 8 kColumnTiles samples. Each element of an output is written once.
//
// Forward: h_next = f(x W_ih^T + b_ih + h W_hh^T + b_hh). Backward: dz = dh_next f'(h_next), then dx = dz W_ih and dh = dz W_hh.
// Every block itself computes the dz that it multiplies, which spares a barrier of the grid, and rounds it to the dtype of the
// stored dz. The blocks whose x index is 0 store dz. The backward pass reads the weights down their columns: 16 columns of 16-bit
// elements are 32 bytes, a whole sector.
#pragma once
#include "rnn/block_product.cuh"
#include "rnn/parameters.cuh"

template <class Math, int kColumnTiles>
__global__ void __launch_bounds__(kProductWarps * 32, 1)
    rnn_cell_forward_kernel(const __grid_constant__ RnnCellParameters<Storage<Math>> p) {
  using T = Storage<Math>;
  const int H = p.shape.H, N = p.shape.N;
  const int first_unit = int(blockIdx.x) * kTileRows, first_n = int(blockIdx.y) * kTileColumns * kColumnTiles;
  WarpTile<Math, 1> tile[kColumnTiles];
  auto add_product = [&](const T* w, int64_t w_stride, const T* rows, int64_t row_stride, int K) {
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
          const int n = first_n + i * kTileColumns + lane_group();
          return load(rows + n * row_stride, k, n < N);
        });
  };
  add_product(p.w_ih, p.w_ih_stride, p.x, p.x_stride, p.shape.I);
  add_product(p.w_hh, p.w_hh_stride, p.h, p.h_stride, H);

  add_warps<Math>(tile, [&](int row, int column, Accumulator<T> product) {
    const int unit = first_unit + row, n = first_n + column;
    if (unit >= H || n >= N) return;
    Accumulator<T> bias = 0;
    if (p.b_ih) bias += widen(p.b_ih[unit]);
    if (p.b_hh) bias += widen(p.b_hh[unit]);
    p.h_next[n * p.h_next_stride + unit] = narrow<T>(p.cell.forward(bias, product));
  });
}

template <class Math, int kColumnTiles>
__global__ void __launch_bounds__(kProductWarps * 32, 1)
    rnn_cell_backward_kernel(const __grid_constant__ RnnCellParameters<Storage<Math>> p) {
  using T = Storage<Math>;
  const int H = p.shape.H, N = p.shape.N, I = p.shape.I;
  const int x_blocks = (I + kTileRows - 1) / kTileRows, first_n = int(blockIdx.y) * kTileColumns * kColumnTiles;
  const bool computes_dx = int(blockIdx.x) < x_blocks;  // else dh
  const int first_unit = (int(blockIdx.x) - (computes_dx ? 0 : x_blocks)) * kTileRows, units = computes_dx ? I : H;
  const T* w = computes_dx ? p.w_ih : p.w_hh;
  const int64_t w_stride = computes_dx ? p.w_ih_stride : p.w_hh_stride;

  WarpTile<Math, 1> tile[kColumnTiles];
  accumulate<Math>(
      tile, H,
      [&](int half, int k) {
        const int unit = first_unit + lane_group() + 8 * half;
        return gather_fragment<Math>(w + unit, k, unit < units ? H : 0, w_stride);
      },
      [&](int i, int k) {
        const int n = first_n + i * kTileColumns + lane_group();
        const T *dh_row = p.dh_next + n * p.dh_next_stride, *h_row = p.h_next + n * p.h_next_stride;
        const int K = n < N ? H : 0;
        const Fragment<Math> dh = p.aligned ? load_fragment<Math>(dh_row, k, K) : gather_fragment<Math>(dh_row, k, K);
        const Fragment<Math> h = p.aligned ? load_fragment<Math>(h_row, k, K) : gather_fragment<Math>(h_row, k, K);
        Fragment<Math> dz;
#pragma unroll
        for (int j = 0; j < Fragment<Math>::size; ++j) {
          dz.element[j] = narrow<T>(p.cell.backward(widen(dh.element[j]), widen(h.element[j])));
          if (blockIdx.x == 0 && k + j < K) p.dz[int64_t(n) * H + k + j] = dz.element[j];
        }
        return dz;
      });

  add_warps<Math>(tile, [&](int row, int column, Accumulator<T> product) {
    const int unit = first_unit + row, n = first_n + column;
    if (unit < units && n < N) (computes_dx ? p.dx : p.dh)[int64_t(n) * units + unit] = narrow<T>(product);
  });
}
