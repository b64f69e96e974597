// max_pool2d, variant channels: a thread computes 16 bytes of channels of one column, in strips.
//
// In the forward pass, a thread chooses the cells of a strip of FixedWindow::strip outputs below each other, and reduces each
// input row of the strip once. With 3 x 3 windows, the 4 outputs of a strip take 9 rows instead of 12 at stride 2, and 6 rows
// instead of 12 at stride 1. Neighbouring columns share input columns through L1. In the backward pass, a thread sums a strip of
// pixel blocks and reads the gradient of each window once; sums of pixel rows that later windows also cover stay in registers
// (`PixelSums`). With AnyWindow, a strip is one output, or one pixel.
//
// Contract: channels_last; every pixel's channels come in whole 16-byte pieces that start at multiples of 16 bytes. Every element
// of the outputs is written once; nothing is accumulated in memory, and no output overlaps an input.
#pragma once
#include "max_pool2d/parameters.cuh"
#include "max_pool2d/windows.cuh"
#include "platform/types.h"
#include "platform/vector.h"

// Block and grid: x counts output columns times pieces of channels, y strips, z images.
template <class T, class Offset, class Window>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_forward_channels_kernel(const __grid_constant__ MaxPool2dForwardParameters<T, Offset> parameters) {
  constexpr int V = 16 / sizeof(T);
  const MaxPool2dShape& shape = parameters.shape;
  const int32_t pieces = shape.C / V;
  const int32_t item = blockIdx.x * blockDim.x + threadIdx.x;
  if (item >= shape.Q * pieces) return;
  const int32_t q = item / pieces, c = item % pieces * V;
  for (int32_t n = blockIdx.z * blockDim.z + threadIdx.z; n < shape.N; n += gridDim.z * blockDim.z) {
    const T* x = parameters.x + n * shape.x_stride[0] + c;
    const int64_t y_begin = n * shape.y_stride[0] + q * shape.y_stride[3] + c;
    const int32_t H = rows_of_image(parameters.lengths, n, shape.H);
    const auto load = [&](int32_t h, int32_t w) { return load_vector<V>(x + h * shape.x_stride[2] + w * shape.x_stride[3]); };
    const auto store = [&](int32_t p, const ChosenCells<Accumulator<T>, V>& chosen) {
      const int64_t index = y_begin + p * shape.y_stride[2];
      store_vector(parameters.y + index, values_of<T>(chosen));
      if (parameters.offsets) store_vector(parameters.offsets + index, offsets_of<Offset>(chosen));
    };
    for (int32_t p = (blockIdx.y * blockDim.y + threadIdx.y) * Window::strip; p < shape.P;
         p += gridDim.y * blockDim.y * Window::strip)
      walk_windows<T, V>(Window{}, shape, H, p, q, load, store);
  }
}

// Block and grid: x counts columns of pixel blocks times pieces of channels, y strips, z images.
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
    const int64_t y_begin = n * shape.y_stride[0] + c;
    const auto load = [&](int32_t p, int32_t q) {
      const int64_t index = y_begin + p * shape.y_stride[2] + q * shape.y_stride[3];
      return WindowGradient<T, Offset, V>{load_vector<V>(parameters.dy + index), load_vector<V>(parameters.offsets + index)};
    };
    const auto store = [&](int32_t h, int32_t w, const Vector<T, V>& sums) {
      store_vector(dx + h * shape.x_stride[2] + w * shape.x_stride[3], sums);
    };
    for (int32_t a = (blockIdx.y * blockDim.y + threadIdx.y) * Window::strip; a < rows;
         a += gridDim.y * blockDim.y * Window::strip)
      walk_pixels<T, Offset, V>(Window{}, shape, a, b, load, store);
  }
}
