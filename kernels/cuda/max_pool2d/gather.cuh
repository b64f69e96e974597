// What else offsets are good for: the derivative of the backward (and the forward-mode derivative), and torch's indices.
//
// Both walk the outputs in the order of their memory, Width outputs a thread, loaded and stored in pieces of up to 16 bytes;
// where in the plane an output's window lies is found by division once a thread and carried along from then on. One variant:
//   flat   bytes an output in bf16: gather 1 of offset + 2 of ddy + the cell, of whose 32-byte sector (or row) the neighbours
//          use the rest: at stride 2 about 11; indices 1 + 8. (predicted; measured: not yet)
// Outputs are overwritten, every element once.
#pragma once
#include "max_pool2d/dense.cuh"
#include "max_pool2d/window.cuh"

template <class T, class Offset>
struct MaxPool2dGatherParameters {
  const T* ddx;           // [N, C, H, W], dense
  const Offset* offsets;  // [N, C, P, Q], dense, the same memory format
  T* ddy;                 // like offsets
  MaxPool2dShape shape;
  MaxPool2dDense dense;
};

template <class Offset>
struct MaxPool2dIndicesParameters {
  const Offset* offsets;  // [N, C, P, Q], dense
  int64_t* indices;       // like offsets
  MaxPool2dShape shape;
  MaxPool2dDense dense;
};

__device__ inline void advance(Place& place, const MaxPool2dDense& dense, int32_t rows, int32_t columns) {
  if (++place.inner < dense.inner) return;
  place.inner = 0;
  if (++place.column < columns) return;
  place.column = 0;
  if (++place.row < rows) return;
  place.row = 0;
  ++place.plane;
}

// The pixel that a window chose, as row * W + column of the plane; -1 where it chose none, or where the offset is no cell of the
// window, or none of the plane: what a caller passes as offsets must not read beyond the plane.
__device__ inline int64_t chosen_pixel(const MaxPool2dShape& shape, int32_t p, int32_t q, int64_t offset) {
  if (offset < 0 || offset >= int64_t(shape.R) * shape.S) return -1;
  const int64_t h = int64_t(p) * shape.stride_h - shape.pad_h + offset / shape.S * shape.dilation_h;
  const int64_t w = int64_t(q) * shape.stride_w - shape.pad_w + offset % shape.S * shape.dilation_w;
  return 0 <= h && h < shape.H && 0 <= w && w < shape.W ? h * shape.W + w : -1;
}

// The cell that a window chose, as row * W + column of the plane. For a window without a cell, what torch reports: its first
// place that lies neither above nor left of the plane, though it may lie below or right of it.
__device__ inline int64_t chosen_cell(const MaxPool2dShape& shape, int32_t p, int32_t q, int64_t offset) {
  const int64_t h_first = int64_t(p) * shape.stride_h - shape.pad_h, w_first = int64_t(q) * shape.stride_w - shape.pad_w;
  int64_t r = 0, s = 0;
  if (offset >= 0) {
    r = offset / shape.S;
    s = offset % shape.S;
  } else {
    if (h_first < 0) r = ceil_divide(-h_first, shape.dilation_h);
    if (w_first < 0) s = ceil_divide(-w_first, shape.dilation_w);
  }
  return (h_first + r * shape.dilation_h) * shape.W + w_first + s * shape.dilation_w;
}

// An offset as a number, -1 for "none".
__device__ inline int64_t signed_offset(uint8_t offset) { return offset == 255 ? -1 : offset; }
__device__ inline int64_t signed_offset(int16_t offset) { return offset; }
__device__ inline int64_t signed_offset(int32_t offset) { return offset; }

template <class T, class Offset>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_gather_kernel(const __grid_constant__ MaxPool2dGatherParameters<T, Offset> parameters) {
  constexpr int Width = 16 / (sizeof(T) > sizeof(Offset) ? sizeof(T) : sizeof(Offset));
  const MaxPool2dShape& shape = parameters.shape;
  const MaxPool2dDense& dense = parameters.dense;
  const int64_t total = dense.planes * shape.P * shape.Q * dense.inner;
  const int64_t flat = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * Width;
  if (flat >= total) return;
  Place place = place_of(dense, flat, shape.P, shape.Q);
  const auto gradient = [&](Offset offset) {
    const int64_t pixel = chosen_pixel(shape, place.row, place.column, signed_offset(offset));
    T value{};
    if (pixel >= 0) value = parameters.ddx[(place.plane * shape.H * shape.W + pixel) * dense.inner + place.inner];
    advance(place, dense, shape.P, shape.Q);
    return value;
  };
  if (flat + Width > total) {
    for (int64_t i = flat; i < total; ++i) parameters.ddy[i] = gradient(parameters.offsets[i]);
    return;
  }
  const Vector<Offset, Width> offsets = load_vector<Width>(parameters.offsets + flat);
  Vector<T, Width> values;
#pragma unroll
  for (int v = 0; v < Width; ++v) values.element[v] = gradient(offsets.element[v]);
  store_vector(parameters.ddy + flat, values);
}

template <class Offset>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_indices_kernel(const __grid_constant__ MaxPool2dIndicesParameters<Offset> parameters) {
  constexpr int Width = 2;
  const MaxPool2dShape& shape = parameters.shape;
  const MaxPool2dDense& dense = parameters.dense;
  const int64_t total = dense.planes * shape.P * shape.Q * dense.inner;
  const int64_t flat = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * Width;
  if (flat >= total) return;
  Place place = place_of(dense, flat, shape.P, shape.Q);
  Vector<int64_t, Width> indices;
  indices.element[0] = chosen_cell(shape, place.row, place.column, signed_offset(parameters.offsets[flat]));
  if (flat + 1 == total) {
    parameters.indices[flat] = indices.element[0];
    return;
  }
  advance(place, dense, shape.P, shape.Q);
  indices.element[1] = chosen_cell(shape, place.row, place.column, signed_offset(parameters.offsets[flat + 1]));
  store_vector(parameters.indices + flat, indices);
}
