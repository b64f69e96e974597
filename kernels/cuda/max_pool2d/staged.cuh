// max_pool2d, variant staged: a block computes on stretches of memory that it copies through shared memory.
//
// A block computes whole planes where they are small, else a band of rows of one plane (`BlockWork`). It copies the input that it
// needs, which for a band includes the halo, into shared memory in 16-byte pieces. There it computes the same strips as variant
// channels, except that its strips are one element wide. It collects the results in shared memory and copies them out in 16-byte
// pieces. So only the ends of a stretch are moved one element at a time, whatever the extents of rows and channels.
//
// Contract: every tensor is dense, contiguous or channels_last; `lengths` is null. Every element of the outputs is written once;
// nothing is accumulated in global memory, and no output overlaps an input.
#pragma once
#include "max_pool2d/parameters.cuh"
#include "max_pool2d/staging.cuh"
#include "max_pool2d/windows.cuh"
#include "platform/shared_memory.h"
#include "platform/types.h"
#include "platform/vector.h"

// Shared memory: the input rows of the block's work, then its y, then its offsets, in regions that `region_behind` lays out.
template <class T, class Offset, class Window>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_forward_staged_kernel(const __grid_constant__ MaxPool2dForwardParameters<T, Offset> parameters) {
  const MaxPool2dShape& shape = parameters.shape;
  const BlockWork work = work_of_block(parameters.dense, shape.P);
  const int32_t inner = parameters.dense.inner, x_row = shape.W * inner, y_row = shape.Q * inner;
  const int64_t last = int64_t(work.end - 1) * shape.stride_h - shape.pad_h + int64_t(shape.R - 1) * shape.dilation_h;
  const int32_t h_begin = work.planes > 1 ? 0 : minimum(maximum(0, work.begin * shape.stride_h - shape.pad_h), shape.H);
  const int32_t h_end = work.planes > 1 ? shape.H : maximum(h_begin, int32_t(minimum(last + 1, int64_t(shape.H))));
  const int32_t x_count = ((work.planes - 1) * shape.H + h_end - h_begin) * x_row;
  const int32_t y_count = ((work.planes - 1) * shape.P + work.end - work.begin) * y_row;
  const T* x_global = parameters.x + (work.plane * shape.H + h_begin) * x_row;
  const int64_t y_begin = (work.plane * shape.P + work.begin) * y_row;

  unsigned char* region = shared_memory<unsigned char>();
  T* x_staged = staged_at(region, x_global);
  region = region_behind<T>(region, x_count);
  T* y_staged = staged_at(region, parameters.y + y_begin);
  region = region_behind<T>(region, y_count);
  Offset* offsets_staged = staged_at(region, parameters.offsets + y_begin);

  fetch_stretch(x_staged, x_global, x_count);
  finish_fetches();

  const int32_t strips = (work.end - work.begin + Window::strip - 1) / Window::strip;
  for (int32_t item = threadIdx.x; item < work.planes * strips * y_row; item += blockDim.x) {
    const int32_t strip = item / y_row, column = item % y_row;
    const int32_t plane = strip / strips, q = column / inner, i = column % inner;
    const T* x = x_staged + plane * shape.H * x_row + i;
    const int32_t y = plane * shape.P * y_row + column;
    const auto load = [&](int32_t h, int32_t w) { return load_vector<1>(x + (h - h_begin) * x_row + w * inner); };
    const auto store = [&](int32_t p, const ChosenCells<Accumulator<T>, 1>& chosen) {
      const int32_t index = y + (p - work.begin) * y_row;
      y_staged[index] = narrow<T>(chosen.value[0]);
      if (parameters.offsets) offsets_staged[index] = Offset(chosen.offset[0]);
    };
    walk_windows<T, 1>(Window{}, shape, shape.H, work.begin + strip % strips * Window::strip, q, load, store);
  }
  __syncthreads();

  write_stretch(parameters.y + y_begin, y_staged, y_count);
  if (parameters.offsets) write_stretch(parameters.offsets + y_begin, offsets_staged, y_count);
}

// Shared memory: the dy of the windows that cover the pixels of the block's work, then their offsets, then dx, in regions that
// `region_behind` lays out.
template <class T, class Offset, class Window>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_backward_staged_kernel(const __grid_constant__ MaxPool2dBackwardParameters<T, Offset> parameters) {
  const MaxPool2dShape& shape = parameters.shape;
  const BlockWork work = work_of_block(parameters.dense, pixel_blocks<Window>(shape.H, shape.pad_h));
  const int32_t origin = block_origin(Window{}, shape.pad_h);
  const int32_t h_begin = maximum(0, work.begin * Window::pixels + origin),
                h_end = minimum(shape.H, work.end * Window::pixels + origin);
  const int64_t reach = int64_t(shape.R - 1) * shape.dilation_h;  // rows from a window's first cell to its last
  const int64_t first = maximum(int64_t(0), ceil_divide(int64_t(h_begin) + shape.pad_h - reach, shape.stride_h));
  const int32_t p_end = int32_t(minimum(int64_t(shape.P), (int64_t(h_end) - 1 + shape.pad_h) / shape.stride_h + 1));
  const int32_t p_begin = work.planes > 1 ? 0 : int32_t(minimum(first, int64_t(p_end)));
  const int32_t inner = parameters.dense.inner, x_row = shape.W * inner, y_row = shape.Q * inner;
  const int32_t y_rows = work.planes > 1 ? work.planes * shape.P : p_end - p_begin;
  const int32_t y_count = y_rows * y_row, x_count = ((work.planes - 1) * shape.H + h_end - h_begin) * x_row;
  const int64_t y_begin = (work.plane * shape.P + p_begin) * y_row;
  T* dx_global = parameters.dx + (work.plane * shape.H + h_begin) * x_row;

  unsigned char* region = shared_memory<unsigned char>();
  T* dy_staged = staged_at(region, parameters.dy + y_begin);
  region = region_behind<T>(region, y_count);
  Offset* offsets_staged = staged_at(region, parameters.offsets + y_begin);
  region = region_behind<Offset>(region, y_count);
  T* dx_staged = staged_at(region, dx_global);

  fetch_stretch(dy_staged, parameters.dy + y_begin, y_count);
  fetch_stretch(offsets_staged, parameters.offsets + y_begin, y_count);
  finish_fetches();

  const int32_t strips = (work.end - work.begin + Window::strip - 1) / Window::strip;
  const int32_t columns = pixel_blocks<Window>(shape.W, shape.pad_w) * inner;
  for (int32_t item = threadIdx.x; item < work.planes * strips * columns; item += blockDim.x) {
    const int32_t strip = item / columns, column = item % columns;
    const int32_t plane = strip / strips, b = column / inner, i = column % inner;
    const int32_t y = plane * shape.P * y_row + i;
    T* dx = dx_staged + plane * shape.H * x_row + i;
    const auto load = [&](int32_t p, int32_t q) {
      const int32_t index = y + (p - p_begin) * y_row + q * inner;
      return WindowGradient<T, Offset, 1>{load_vector<1>(dy_staged + index), load_vector<1>(offsets_staged + index)};
    };
    const auto store = [&](int32_t h, int32_t w, const Vector<T, 1>& sum) {
      store_vector(dx + (h - h_begin) * x_row + w * inner, sum);
    };
    walk_pixels<T, Offset, 1>(Window{}, shape, work.begin + strip % strips * Window::strip, b, load, store);
  }
  __syncthreads();

  write_stretch(dx_global, dx_staged, x_count);
}
