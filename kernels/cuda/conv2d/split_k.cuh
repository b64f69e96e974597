// The second step of a product whose depth is split over blocks: adds the sums of the splits in the order of the splits, so that
// the result does not depend on which block finished first, and rounds once.
//
//   conv2d_sum_splits         dw of wgrad, and db if there are blocks for it. A thread owns one element.
//   conv2d_sum_image_splits   y of fprop and dx of dgrad. A thread owns four neighbouring channels of one pixel, a block
//                             32 pixels by 32 channels.
#pragma once
#include "conv2d/matrices.cuh"
#include "conv2d/parameters.cuh"
#include "platform/shared_memory.h"
#include "platform/vector.h"

constexpr int kSumSplitsThreads = 256;

template <class Sum>
__device__ inline Sum sum_of_splits(const Sum* from, int64_t plane, int32_t splits) {
  Sum sum = 0;
  for (int32_t split = 0; split < splits; ++split) sum += from[split * plane];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kSumSplitsThreads)
    conv2d_sum_splits_kernel(const __grid_constant__ Conv2dSumSplitsParameters<T> parameters) {
  const Conv2dShape& shape = parameters.shape;
  const int32_t filter = shape.R * shape.S, taps = parameters.channels * filter;
  const int32_t blocks = (taps + kSumSplitsThreads - 1) / kSumSplitsThreads;  // for one output channel
  const int32_t group_outputs = shape.K / shape.groups, outputs = shape.groups * parameters.outputs;
  const auto row = [&](int32_t k) { return k / group_outputs * parameters.outputs + k % group_outputs; };
  int32_t k = int32_t(blockIdx.x) / blocks;
  if (k >= shape.K) {
    k = (int32_t(blockIdx.x) - shape.K * blocks) * kSumSplitsThreads + int32_t(threadIdx.x);
    if (k < shape.K) parameters.db[k] = narrow<T>(sum_of_splits(parameters.bias_sums + row(k), outputs, parameters.splits));
    return;
  }
  const int32_t tap = int32_t(blockIdx.x) % blocks * kSumSplitsThreads + int32_t(threadIdx.x);
  if (tap >= taps) return;
  const int32_t c = parameters.channels_inner ? tap % parameters.channels : tap / filter;
  const int32_t cell = parameters.channels_inner ? tap / parameters.channels : tap % filter;
  if (c >= shape.C / shape.groups) return;  // a padded channel

  const Accumulator<T> sum =
      sum_of_splits(parameters.sums + int64_t(row(k)) * taps + tap, int64_t(outputs) * taps, parameters.splits);
  parameters.dw[k * shape.w_stride[0] + c * shape.w_stride[1] + cell / shape.S * shape.w_stride[2] +
                cell % shape.S * shape.w_stride[3]] = narrow<T>(sum);
}

// A warp reads four lines of 32 sums (128 bytes each in fp32), 16 bytes at a time if the number of channels is a multiple of 4.
constexpr int kSumTile = 32, kSumQuad = 4, kSumImageSplitsThreads = kSumTile * kSumTile / kSumQuad;

template <class T, int kPiece>
__device__ inline void add_splits(Accumulator<T> (&sum)[kSumQuad], const Accumulator<T>* from, int64_t plane, int32_t splits,
                                  int32_t channels) {
#pragma unroll 4  // loads of several splits are in flight at once; sums are still added in the order of the splits
  for (int32_t split = 0; split < splits; ++split, from += plane) {
#pragma unroll
    for (int i = 0; i < kSumQuad; i += kPiece) {
      if (i >= channels) break;
      const auto piece = load_vector<kPiece>(from + i);
#pragma unroll
      for (int e = 0; e < kPiece; ++e) sum[i + e] += piece.element[e];
    }
  }
}

// Results whose pixels lie closer than their channels (NCHW) are transposed in shared memory, so that neighbouring threads write
// neighbouring pixels.
template <class T, class Epilogue>
__global__ void __launch_bounds__(kSumImageSplitsThreads)
    conv2d_sum_image_splits_kernel(const __grid_constant__ Conv2dSumImageSplitsParameters<T, Epilogue> parameters) {
  constexpr int kPitch = kSumTile + 1;  // puts the elements of a column in different banks
  T* tile = shared_memory<T>();         // (channel, pixel)
  const int64_t (&stride)[4] = parameters.stride;
  const int32_t channels = parameters.channels, pixels = parameters.N * parameters.H * parameters.W;
  const int32_t across = (channels + kSumTile - 1) / kSumTile;
  const int32_t first_channel = int32_t(blockIdx.x) % across * kSumTile, first_pixel = int32_t(blockIdx.x) / across * kSumTile;
  const Divisor plane(parameters.H * parameters.W), line(parameters.W);
  const auto offset = [&](int32_t pixel) {
    int32_t n, h, w, rest;
    plane.split(pixel, n, rest);
    line.split(rest, h, w);
    return n * stride[0] + h * stride[2] + w * stride[3];
  };

  const int row = int(threadIdx.x) / (kSumTile / kSumQuad), quad = int(threadIdx.x) % (kSumTile / kSumQuad) * kSumQuad;
  const int32_t pixel = first_pixel + row, channel = first_channel + quad;
  const bool in_result = pixel < pixels && channel < channels;
  T value[kSumQuad];
  if (in_result) {
    Accumulator<T> sum[kSumQuad] = {};
    const Accumulator<T>* from = parameters.sums + int64_t(pixel) * channels + channel;
    const int64_t split = int64_t(pixels) * channels;
    if (channels % kSumQuad == 0)
      add_splits<T, 16 / sizeof(Accumulator<T>)>(sum, from, split, parameters.splits, kSumQuad);
    else
      add_splits<T, 1>(sum, from, split, parameters.splits, channels - channel);
#pragma unroll
    for (int i = 0; i < kSumQuad; ++i)
      if (channel + i < channels) value[i] = parameters.epilogue(sum[i], channel + i);
  }

  const int64_t step = parameters.W > 1 ? stride[3] : parameters.H > 1 ? stride[2] : stride[0];  // to the next pixel
  if (step >= stride[1]) {
    if (!in_result) return;
    constexpr int kPiece = sizeof(T) * kSumQuad > 16 ? 16 / int(sizeof(T)) : kSumQuad;
    T* to = parameters.result + offset(pixel) + channel * stride[1];
    if (channels % kSumQuad == 0 && stride[1] == 1 && reinterpret_cast<uint64_t>(to) % (sizeof(T) * kPiece) == 0) {
#pragma unroll
      for (int i = 0; i < kSumQuad; i += kPiece) {
        Vector<T, kPiece> piece;
#pragma unroll
        for (int e = 0; e < kPiece; ++e) piece.element[e] = value[i + e];
        store_vector<kPiece>(to + i, piece);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kSumQuad; ++i)
        if (channel + i < channels) to[i * stride[1]] = value[i];
    }
    return;
  }

  if (in_result) {
#pragma unroll
    for (int i = 0; i < kSumQuad; ++i) tile[(quad + i) * kPitch + row] = value[i];
  }
  __syncthreads();  // the tile is transposed: threads write what others have summed
  const int along = int(threadIdx.x) % kSumTile;
  if (first_pixel + along >= pixels) return;
  T* to = parameters.result + offset(first_pixel + along);
#pragma unroll
  for (int i = 0; i < kSumQuad; ++i) {
    const int down = int(threadIdx.x) / kSumTile + i * (kSumImageSplitsThreads / kSumTile);
    if (first_channel + down < channels) to[(first_channel + down) * stride[1]] = tile[down * kPitch + along];
  }
}
