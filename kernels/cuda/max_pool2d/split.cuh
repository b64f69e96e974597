// max_pool2d, variant split: the threads of a block share each window, forward only.
//
// Each of the threads with the same x index chooses a cell from one slice of the window's rows; then the block compares the cells
// chosen from the slices, in order, through shared memory. So up to 32 threads read a window at once, and each load reads V
// channels. This is for few outputs with tall windows: global pooling, and the maximum over time.
//
// Contract: x has any strides; V above 1 requires channels_last with 16-byte pieces, as in variant channels. Every element of y
// and offsets is written once; no output overlaps an input.
#pragma once
#include "max_pool2d/parameters.cuh"
#include "max_pool2d/windows.cuh"
#include "platform/shared_memory.h"
#include "platform/types.h"
#include "platform/vector.h"

// An item is a piece of V channels of one output column. Block: x counts items of an output row, y slices of the window's rows.
// The x index of the grid counts stretches of blockDim.x items within an output row, then output rows, then images. Shared
// memory: the value chosen from each slice for each output of the block, then the offsets of these cells.
template <class T, class Offset, int V>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_forward_split_kernel(const __grid_constant__ MaxPool2dForwardParameters<T, Offset> parameters) {
  const MaxPool2dShape& shape = parameters.shape;
  const int32_t pieces = shape.C / V, items = shape.Q * pieces, stretches = (items + blockDim.x - 1) / blockDim.x;
  const int32_t row = blockIdx.x / stretches, n = row / shape.P, p = row % shape.P;
  const int32_t first = blockIdx.x % stretches * blockDim.x, item = first + threadIdx.x;
  const int64_t R = shape.R, slice = (R + blockDim.y - 1) / blockDim.y, r_begin = minimum(threadIdx.y * slice, R);
  const int32_t outputs = blockDim.x * V;
  auto* values = shared_memory<Accumulator<T>>();
  auto* offsets = reinterpret_cast<int32_t*>(values + outputs * blockDim.y);

  if (item < items) {
    const int32_t q = item / pieces, c = item % pieces * V;
    const T* x = parameters.x + n * shape.x_stride[0] + c * shape.x_stride[1];
    const int32_t H = rows_of_image(parameters.lengths, n, shape.H);
    const auto load = [&](int32_t h, int32_t w) { return load_vector<V>(x + h * shape.x_stride[2] + w * shape.x_stride[3]); };
    const auto chosen = choose_in_rows<T, V>(shape, H, p, q, r_begin, minimum(r_begin + slice, R), load);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      values[threadIdx.y * outputs + threadIdx.x * V + v] = chosen.value[v];
      offsets[threadIdx.y * outputs + threadIdx.x * V + v] = chosen.offset[v];
    }
  }
  __syncthreads();

  for (int32_t o = threadIdx.y * blockDim.x + threadIdx.x; o < outputs; o += blockDim.x * blockDim.y) {
    const int32_t output_item = first + o / V;
    if (output_item >= items) return;
    Accumulator<T> value = values[o];
    int32_t offset = offsets[o];
    for (int32_t i = o + outputs; i < outputs * int32_t(blockDim.y); i += outputs)
      if (wins(values[i], value) || offset < 0) {
        value = values[i];
        offset = offsets[i];
      }
    const int32_t q = output_item / pieces, c = output_item % pieces * V + o % V;
    const int64_t index = n * shape.y_stride[0] + c * shape.y_stride[1] + p * shape.y_stride[2] + q * shape.y_stride[3];
    parameters.y[index] = narrow<T>(value);
    if (parameters.offsets) parameters.offsets[index] = Offset(offset);
  }
}
