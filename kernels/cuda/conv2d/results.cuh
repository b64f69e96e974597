// Results of products: where element (row, column) is stored, what its sum is rounded to, and whether the value in memory is
// added.
#pragma once
#include "conv2d/matrices.cuh"
#include "conv2d/parameters.cuh"

// The pixels of an image that belong to one residue modulo the stride: pixel (i, j) of the residue is pixel
// (i * step_h + residue_h, j * step_w + residue_w) of the image.
struct ResultPixels {
  int32_t N, height, width;  // of the residue
  int32_t step_h, step_w, residue_h, residue_w;

  __device__ static ResultPixels all(int32_t N, int32_t height, int32_t width) {
    return {.N = N, .height = height, .width = width, .step_h = 1, .step_w = 1, .residue_h = 0, .residue_w = 0};
  }
};

// A result that is an image: rows are pixels, columns are the channels of one group.
template <class T, class Epilogue>
struct ImageResult {
  using Stored = T;
  using Policy = Epilogue;
  T* data;
  int64_t stride_n, stride_c, stride_h, stride_w;
  int32_t rows, columns, first_channel;
  int32_t step_h, step_w, residue_h, residue_w;
  Divisor plane, line;
  bool evenly;  // whether consecutive pixels are stride_w apart, also across the ends of lines and images
  Epilogue epilogue;

  __device__ ImageResult(T* image, const int64_t (&stride)[4], const ResultPixels& pixels, int32_t channels, int32_t group,
                         const Epilogue& epilogue)
      : data(image + int64_t(group) * channels * stride[1]),
        stride_n(stride[0]),
        stride_c(stride[1]),
        stride_h(stride[2]),
        stride_w(stride[3]),
        rows(pixels.N * pixels.height * pixels.width),
        columns(channels),
        first_channel(group * channels),
        step_h(pixels.step_h),
        step_w(pixels.step_w),
        residue_h(pixels.residue_h),
        residue_w(pixels.residue_w),
        plane(pixels.height * pixels.width),
        line(pixels.width),
        evenly(step_h == 1 && step_w == 1 && stride_h == pixels.width * stride_w && stride_n == pixels.height * stride_h),
        epilogue(epilogue) {}

  __device__ int64_t row(int32_t pixel) const {
    if (evenly) return pixel * stride_w;
    int32_t n, i, j, rest;
    plane.split(pixel, n, rest);
    line.split(rest, i, j);
    return n * stride_n + (i * step_h + residue_h) * stride_h + (j * step_w + residue_w) * stride_w;
  }
  __device__ int64_t column(int32_t channel) const { return channel * stride_c; }
  __device__ bool has_column(int32_t channel) const { return channel < columns; }
  __device__ T narrowed(Accumulator<T> sum, int32_t column) const { return epilogue(sum, first_channel + column); }
  __device__ T finished(T value, int64_t) const { return value; }
};

// The place of the sums that one split contributes to an image (N, groups * channels, H, W): dense, with channels innermost.
template <class Sum, class Epilogue>
__device__ inline ImageResult<Sum, Epilogue> split_result(Sum* sums, int32_t split, int32_t H, int32_t W,
                                                          const ResultPixels& pixels, int32_t groups, int32_t channels,
                                                          int32_t group) {
  const int64_t all_channels = int64_t(groups) * channels, line = W * all_channels, image = H * line;
  const int64_t stride[4] = {image, 1, line, all_channels};
  return {sums + split * (pixels.N * image), stride, pixels, channels, group, Epilogue{}};
}

// The sums that one split contributes to the gradient of one group's filter: (K, taps), dense.
template <class T>
struct SumResult {
  using Stored = T;
  T* data;
  int32_t rows, columns;
  bool accumulate;

  __device__ int64_t row(int32_t index) const { return int64_t(index) * columns; }
  __device__ int64_t column(int32_t index) const { return index; }
  __device__ bool has_column(int32_t index) const { return index < columns; }
  __device__ T narrowed(T sum, int32_t) const { return sum; }
  __device__ T finished(T sum, int64_t offset) const { return accumulate ? data[offset] + sum : sum; }
};

// The gradient of one group's filter: rows are output channels, columns are taps, of which those of padded channels do not exist.
template <class T>
struct FilterResult {
  using Stored = T;
  T* data;
  int64_t stride_k, stride_c, stride_r, stride_s;
  int32_t rows, columns, channels;
  Taps taps;

  __device__ FilterResult(const FilterGradient<T>& gradient, int32_t group, const Taps& taps)
      : data(gradient.dw + int64_t(group) * gradient.outputs * gradient.stride[0]),
        stride_k(gradient.stride[0]),
        stride_c(gradient.stride[1]),
        stride_r(gradient.stride[2]),
        stride_s(gradient.stride[3]),
        rows(gradient.outputs),
        columns(taps.count),
        channels(gradient.channels),
        taps(taps) {}

  __device__ int64_t row(int32_t k) const { return k * stride_k; }
  __device__ int64_t column(int32_t tap) const {
    int32_t r, s, c;
    taps.split(tap, r, s, c);
    return c * stride_c + r * stride_r + s * stride_s;
  }
  __device__ bool has_column(int32_t tap) const {
    int32_t r, s, c;
    taps.split(tap, r, s, c);
    return tap < columns && c < channels;
  }
  __device__ T narrowed(Accumulator<T> sum, int32_t) const { return narrow<T>(sum); }
  __device__ T finished(T value, int64_t) const { return value; }
};
