// max_pool2d, backward: dx = the sum of dy over the windows that chose a pixel. A gather: every pixel asks the at most
// ceil(R / stride) * ceil(S / stride) windows that cover it, is written once, and needs no zeroing before and no atomics. A
// window without a choice gives its gradient to nobody.
//
// Bytes an output must move at stride 2 in bf16: 2 of dy, 1 of offset, 4 pixels * 2 of dx: 11; torch's own kernel moves 26, as it
// zeroes dx first and reads an int64 index. At stride 1: 5 against 14.
//
// Variants (bytes predicted from the shapes; speed measured: not yet)
//   channels   channels_last in whole 16-byte pieces of channels, as in the forward. A thread owns 16 bytes of channels of a
//              column of pixel blocks, stride x stride pixels each, aligned to the windows; it walks down FixedWindow::strip
//              blocks and reads each window row once: what later pixel rows still need waits in registers. Windows that two
//              neighbouring columns share come from L1. 11 an output.
//   staged     every other dense layout. A block copies the dy and offsets its band of pixel rows can see (or those of several
//              tiny planes) into shared memory in 16-byte pieces, walks the same blocks there an element a thread, and copies
//              dx out in 16-byte pieces. 11 an output, and (R - 1) / stride halo rows of dy a band.
//   flat       windows above 32767 cells and rows longer than shared memory: a thread owns one pixel.
// Each of them with compiled windows 2 x 2 / 2, 3 x 3 / 1 and 3 x 3 / 2 (except flat), and one for any geometry.
//
// dx is overwritten, every element once, so the same input gives the same bits. Sums are kept in fp32 (fp64 for fp64).
#pragma once
#include "max_pool2d/dense.cuh"
#include "max_pool2d/window.cuh"

template <class T, class Offset>
struct MaxPool2dBackwardParameters {
  const T* dy;            // [N, C, P, Q], dense
  const Offset* offsets;  // like dy
  T* dx;                  // [N, C, H, W], dense, the same memory format
  MaxPool2dShape shape;
  MaxPool2dDense dense;  // of dx; rows_per_block counts rows of pixel blocks
};

// Pixel rows or columns above and left of which there is no block: compiled windows' blocks start where the first window does.
template <int R, int S, int Stride>
__device__ inline int32_t block_origin(FixedWindow<R, S, Stride>, int32_t pad) {
  return -pad;
}
__device__ inline int32_t block_origin(AnyWindow, int32_t) { return 0; }

// Blocks that it takes to cover `extent` pixels.
template <class Window>
__device__ inline int32_t pixel_blocks(int32_t extent, int32_t pad) {
  return (extent - block_origin(Window{}, pad) + Window::pixels - 1) / Window::pixels;
}

// Block and grid: x over columns of pixel blocks times pieces of channels, y over strips, z over images.
template <class T, class Offset, class Window>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_backward_channels_kernel(const __grid_constant__ MaxPool2dBackwardParameters<T, Offset> parameters) {
  constexpr int V = 16 / sizeof(T);
  const MaxPool2dShape& shape = parameters.shape;
  const int32_t pieces = shape.C / V;
  const int32_t rows = pixel_blocks<Window>(shape.H, shape.pad_h), columns = pixel_blocks<Window>(shape.W, shape.pad_w);
  const int32_t item = blockIdx.x * blockDim.x + threadIdx.x;
  if (item >= columns * pieces) return;
  const int32_t b = item / pieces, c = item % pieces * V;
  for (int32_t n = blockIdx.z * blockDim.z + threadIdx.z; n < shape.N; n += gridDim.z * blockDim.z) {
    T* dx = parameters.dx + n * shape.x_stride[0] + c;
    const int64_t y_place = n * shape.y_stride[0] + c;
    const auto load = [&](int32_t p, int32_t q) {
      const int64_t place = y_place + p * shape.y_stride[2] + q * shape.y_stride[3];
      return WindowGradient<T, Offset, V>{load_vector<V>(parameters.dy + place), load_vector<V>(parameters.offsets + place)};
    };
    const auto store = [&](int32_t h, int32_t w, const Vector<T, V>& sums) {
      store_vector(dx + h * shape.x_stride[2] + w * shape.x_stride[3], sums);
    };
    for (int32_t a = (blockIdx.y * blockDim.y + threadIdx.y) * Window::strip; a < rows;
         a += gridDim.y * blockDim.y * Window::strip)
      walk_pixels<T, Offset, V>(Window{}, shape, a, b, load, store);
  }
}

// One block a share; shared memory: the dy that the share's pixels can see, its offsets, the share's dx, each 16 bytes above
// its size.
template <class T, class Offset, class Window>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_backward_staged_kernel(const __grid_constant__ MaxPool2dBackwardParameters<T, Offset> parameters) {
  const MaxPool2dShape& shape = parameters.shape;
  const Share share = share_of_block(parameters.dense, pixel_blocks<Window>(shape.H, shape.pad_h));
  const int32_t origin = block_origin(Window{}, shape.pad_h);
  const int32_t h_begin = maximum(0, share.begin * Window::pixels + origin),
                h_end = minimum(shape.H, share.end * Window::pixels + origin);
  const int64_t reach = int64_t(shape.R - 1) * shape.dilation_h;  // rows from a window's first cell to its last
  const int64_t first = maximum(int64_t(0), ceil_divide(int64_t(h_begin) + shape.pad_h - reach, shape.stride_h));
  const int32_t p_end = int32_t(minimum(int64_t(shape.P), (int64_t(h_end) - 1 + shape.pad_h) / shape.stride_h + 1));
  const int32_t p_begin = share.planes > 1 ? 0 : int32_t(minimum(first, int64_t(p_end)));
  const int32_t inner = parameters.dense.inner, x_row = shape.W * inner, y_row = shape.Q * inner;
  const int32_t y_rows = share.planes > 1 ? share.planes * shape.P : p_end - p_begin;
  const int32_t y_count = y_rows * y_row, x_count = ((share.planes - 1) * shape.H + h_end - h_begin) * x_row;
  const int64_t y_place = (share.plane * shape.P + p_begin) * y_row;
  T* dx_global = parameters.dx + (share.plane * shape.H + h_begin) * x_row;

  unsigned char* region = shared_memory<unsigned char>();
  T* dy_staged = staged_at(region, parameters.dy + y_place);
  region = region_behind<T>(region, y_count);
  Offset* offsets_staged = staged_at(region, parameters.offsets + y_place);
  region = region_behind<Offset>(region, y_count);
  T* dx_staged = staged_at(region, dx_global);

  fetch_stretch(dy_staged, parameters.dy + y_place, y_count);
  fetch_stretch(offsets_staged, parameters.offsets + y_place, y_count);
  finish_fetches();

  const int32_t strips = (share.end - share.begin + Window::strip - 1) / Window::strip;
  const int32_t columns = pixel_blocks<Window>(shape.W, shape.pad_w) * inner;
  for (int32_t item = threadIdx.x; item < share.planes * strips * columns; item += blockDim.x) {
    const int32_t strip = item / columns, column = item % columns;
    const int32_t plane = strip / strips, b = column / inner, i = column % inner;
    const int32_t y = plane * shape.P * y_row + i;
    T* dx = dx_staged + plane * shape.H * x_row + i;
    const auto load = [&](int32_t p, int32_t q) {
      const int32_t place = y + (p - p_begin) * y_row + q * inner;
      return WindowGradient<T, Offset, 1>{load_vector<1>(dy_staged + place), load_vector<1>(offsets_staged + place)};
    };
    const auto store = [&](int32_t h, int32_t w, const Vector<T, 1>& sum) {
      store_vector(dx + (h - h_begin) * x_row + w * inner, sum);
    };
    walk_pixels<T, Offset, 1>(Window{}, shape, share.begin + strip % strips * Window::strip, b, load, store);
  }
  __syncthreads();

  write_stretch(dx_global, dx_staged, x_count);
}

// One thread a pixel, in the order of dx's memory.
template <class T, class Offset>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_backward_flat_kernel(const __grid_constant__ MaxPool2dBackwardParameters<T, Offset> parameters) {
  const MaxPool2dShape& shape = parameters.shape;
  const int32_t inner = parameters.dense.inner;
  const int64_t flat = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (flat >= parameters.dense.planes * shape.H * shape.W * inner) return;
  const Place place = place_of(parameters.dense, flat, shape.H, shape.W);
  const auto load = [&](int32_t p, int32_t q) {
    const int64_t from = ((place.plane * shape.P + p) * shape.Q + q) * inner + place.inner;
    return WindowGradient<T, Offset, 1>{load_vector<1>(parameters.dy + from), load_vector<1>(parameters.offsets + from)};
  };
  const auto store = [&](int32_t, int32_t, const Vector<T, 1>& sum) { store_vector(parameters.dx + flat, sum); };
  walk_pixels<T, Offset, 1>(AnyWindow{}, shape, place.row, place.column, load, store);
}
