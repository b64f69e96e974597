// max_pool2d, gather and indices: the uses of offsets besides the backward pass. gather computes the derivative of the backward
// pass, which is also the forward-mode derivative of the forward pass; indices computes torch's indices.
//
// A thread computes Width outputs that are neighbours in memory, with loads and stores of up to 16 bytes. It finds the position
// of the first output by division and advances that position for each of the others.
//
// Contract: every tensor is dense, all in the same memory format. In gather, offsets and ddy start at multiples of 16 bytes; in
// indices, the tensor of indices does. Every element of the outputs is written once; no output overlaps an input.
#pragma once
#include "max_pool2d/dense.cuh"
#include "max_pool2d/parameters.cuh"
#include "max_pool2d/windows.cuh"
#include "platform/types.h"
#include "platform/vector.h"

// The pixel that a window chose, as row * W + column of the plane. It is -1 if the window chose none, or if the offset names no
// cell of the window or no pixel of the plane: whatever a caller passes as offsets, nothing is read beyond the plane.
__device__ inline int64_t chosen_pixel(const MaxPool2dShape& shape, int32_t p, int32_t q, int64_t offset) {
  if (offset < 0 || offset >= int64_t(shape.R) * shape.S) return -1;
  const int64_t h = int64_t(p) * shape.stride_h - shape.pad_h + offset / shape.S * shape.dilation_h;
  const int64_t w = int64_t(q) * shape.stride_w - shape.pad_w + offset % shape.S * shape.dilation_w;
  return 0 <= h && h < shape.H && 0 <= w && w < shape.W ? h * shape.W + w : -1;
}

// The cell that a window chose, as row * W + column of the plane. If no cell of the window lies in the plane, it is what torch
// reports: the window's first cell that is neither above nor left of the plane, even if it is below or right of it.
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

// An offset as a number; -1 if the window chose no cell.
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
  const int64_t index = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * Width;
  if (index >= total) return;
  DensePosition position = position_of(dense, index, shape.P, shape.Q);
  const auto gradient = [&](Offset offset) {
    const int64_t pixel = chosen_pixel(shape, position.row, position.column, signed_offset(offset));
    T value{};
    if (pixel >= 0) value = parameters.ddx[(position.plane * shape.H * shape.W + pixel) * dense.inner + position.inner];
    advance(position, dense, shape.P, shape.Q);
    return value;
  };
  if (index + Width > total) {
    for (int64_t i = index; i < total; ++i) parameters.ddy[i] = gradient(parameters.offsets[i]);
    return;
  }
  const Vector<Offset, Width> offsets = load_vector<Width>(parameters.offsets + index);
  Vector<T, Width> values;
#pragma unroll
  for (int v = 0; v < Width; ++v) values.element[v] = gradient(offsets.element[v]);
  store_vector(parameters.ddy + index, values);
}

template <class Offset>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_indices_kernel(const __grid_constant__ MaxPool2dIndicesParameters<Offset> parameters) {
  constexpr int Width = 2;
  const MaxPool2dShape& shape = parameters.shape;
  const MaxPool2dDense& dense = parameters.dense;
  const int64_t total = dense.planes * shape.P * shape.Q * dense.inner;
  const int64_t index = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * Width;
  if (index >= total) return;
  DensePosition position = position_of(dense, index, shape.P, shape.Q);
  Vector<int64_t, Width> indices;
  indices.element[0] = chosen_cell(shape, position.row, position.column, signed_offset(parameters.offsets[index]));
  if (index + 1 == total) {
    parameters.indices[index] = indices.element[0];
    return;
  }
  advance(position, dense, shape.P, shape.Q);
  indices.element[1] = chosen_cell(shape, position.row, position.column, signed_offset(parameters.offsets[index + 1]));
  store_vector(parameters.indices + index, indices);
}
