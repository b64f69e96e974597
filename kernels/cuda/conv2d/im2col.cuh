// The kernels of unfold, fold and the variant im2col of convolution. They write the column matrix to memory (im2col) and, as the
// adjoint, sum its elements that belong to the same pixel (col2im).
//
//   im2col_kernel   A thread owns one (n, c, p, q) at a time and copies the R*S pixels under the filter; neighbouring threads
//                   write neighbouring elements of a row (c, r, s) of the matrix.
//   col2im_kernel   A thread owns one pixel of x at a time and sums its elements of the matrix, in the order of the filter. A
//                   scatter would need atomics, whose order, and so whose rounding, changes from run to run.
//
// Index is int32_t if all counts and positions fit 32 bits, because 64-bit divisions would limit the speed of these kernels.
#pragma once
#include "conv2d/parameters.cuh"

constexpr int kIm2colThreads = 256;

template <class Index>
__device__ inline Index first_index() {
  return Index(blockIdx.x) * kIm2colThreads + Index(threadIdx.x);
}
template <class Index>
__device__ inline Index index_stride() {
  return Index(gridDim.x) * kIm2colThreads;
}

template <class T, class Index>
__global__ void __launch_bounds__(kIm2colThreads) im2col_kernel(const __grid_constant__ Im2colParameters<T> parameters) {
  const Conv2dShape& shape = parameters.shape;
  const Index pixels = Index(shape.P) * shape.Q;
  const Index count = Index(shape.N * pixels * shape.C);
  for (Index index = first_index<Index>(); index < count; index += index_stride<Index>()) {
    const int32_t q = int32_t(index % shape.Q), p = int32_t(index / shape.Q % shape.P);
    const int32_t c = int32_t(index / pixels % shape.C), n = int32_t(index / pixels / shape.C);
    const T* x = parameters.x + n * shape.x_stride[0] + c * shape.x_stride[1];
    T* column = parameters.columns + (int64_t(n) * shape.C + c) * shape.R * shape.S * int64_t(pixels) + int64_t(p) * shape.Q + q;
    for (int32_t r = 0; r < shape.R; ++r) {
      const Index h = Index(p) * shape.stride_h - shape.pad_h + Index(r) * shape.dilation_h;
      for (int32_t s = 0; s < shape.S; ++s, column += pixels) {
        const Index w = Index(q) * shape.stride_w - shape.pad_w + Index(s) * shape.dilation_w;
        const bool inside = 0 <= h && h < shape.H && 0 <= w && w < shape.W;
        *column = inside ? x[h * shape.x_stride[2] + w * shape.x_stride[3]] : T{};
      }
    }
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kIm2colThreads) col2im_kernel(const __grid_constant__ Col2imParameters<T> parameters) {
  const Conv2dShape& shape = parameters.shape;
  const Index pixels = Index(shape.P) * shape.Q, plane = Index(shape.H) * shape.W;
  const Index count = Index(shape.N * plane * shape.C);
  for (Index index = first_index<Index>(); index < count; index += index_stride<Index>()) {
    const int32_t w = int32_t(index % shape.W), h = int32_t(index / shape.W % shape.H);
    const int32_t c = int32_t(index / plane % shape.C), n = int32_t(index / plane / shape.C);
    const T* columns = parameters.columns + (int64_t(n) * shape.C + c) * shape.R * shape.S * int64_t(pixels);
    Accumulator<T> sum = 0;
    for (int32_t r = 0; r < shape.R; ++r) {
      const Index down = Index(h) + shape.pad_h - Index(r) * shape.dilation_h, p = down / shape.stride_h;
      if (down < 0 || down % shape.stride_h || p >= shape.P) continue;
      for (int32_t s = 0; s < shape.S; ++s) {
        const Index across = Index(w) + shape.pad_w - Index(s) * shape.dilation_w, q = across / shape.stride_w;
        if (across < 0 || across % shape.stride_w || q >= shape.Q) continue;
        sum += widen(columns[(int64_t(r) * shape.S + s) * pixels + int64_t(p) * shape.Q + q]);
      }
    }
    parameters.x[n * shape.x_stride[0] + c * shape.x_stride[1] + h * shape.x_stride[2] + w * shape.x_stride[3]] = narrow<T>(sum);
  }
}
