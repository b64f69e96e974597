// max_pool2d, variant strided: a thread computes one output, or in the backward pass one pixel, in the order of memory.
//
// It accepts every problem: any strides of x, any window. It is also the plainest statement of what the other variants compute.
//
// Contract: x has any strides, every other tensor is dense. Every element of the outputs is written once; nothing is accumulated
// in memory, and no output overlaps an input.
#pragma once
#include "max_pool2d/dense.cuh"
#include "max_pool2d/parameters.cuh"
#include "max_pool2d/windows.cuh"
#include "platform/types.h"
#include "platform/vector.h"

// Thread i of the grid computes output i, in the order of y's memory.
template <class T, class Offset>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_forward_strided_kernel(const __grid_constant__ MaxPool2dForwardParameters<T, Offset> parameters) {
  const MaxPool2dShape& shape = parameters.shape;
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= parameters.dense.planes * shape.P * shape.Q * parameters.dense.inner) return;
  const DensePosition position = position_of(parameters.dense, index, shape.P, shape.Q);
  const int64_t image_channel = position.plane * parameters.dense.inner + position.inner;
  const int64_t n = image_channel / shape.C, c = image_channel % shape.C;
  const T* x = parameters.x + n * shape.x_stride[0] + c * shape.x_stride[1];
  const auto load = [&](int32_t h, int32_t w) { return load_vector<1>(x + h * shape.x_stride[2] + w * shape.x_stride[3]); };
  const auto store = [&](int32_t, const ChosenCells<Accumulator<T>, 1>& chosen) {
    parameters.y[index] = narrow<T>(chosen.value[0]);
    if (parameters.offsets) parameters.offsets[index] = Offset(chosen.offset[0]);
  };
  walk_windows<T, 1>(AnyWindow{}, shape, rows_of_image(parameters.lengths, n, shape.H), position.row, position.column, load,
                     store);
}

// Thread i of the grid computes pixel i, in the order of dx's memory.
template <class T, class Offset>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_backward_strided_kernel(const __grid_constant__ MaxPool2dBackwardParameters<T, Offset> parameters) {
  const MaxPool2dShape& shape = parameters.shape;
  const int32_t inner = parameters.dense.inner;
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= parameters.dense.planes * shape.H * shape.W * inner) return;
  const DensePosition position = position_of(parameters.dense, index, shape.H, shape.W);
  const auto load = [&](int32_t p, int32_t q) {
    const int64_t y_index = ((position.plane * shape.P + p) * shape.Q + q) * inner + position.inner;
    return WindowGradient<T, Offset, 1>{load_vector<1>(parameters.dy + y_index), load_vector<1>(parameters.offsets + y_index)};
  };
  const auto store = [&](int32_t, int32_t, const Vector<T, 1>& sum) { store_vector(parameters.dx + index, sum); };
  walk_pixels<T, Offset, 1>(AnyWindow{}, shape, position.row, position.column, load, store);
}
