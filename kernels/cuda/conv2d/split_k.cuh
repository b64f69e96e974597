// The second half of a product whose depth was split over blocks: adds the splits' sums in the order of the splits, so that the
// result does not depend on which block finished first, and rounds once. Results are overwritten.
//
//   conv2d_sum_splits         dw of wgrad. A thread owns one element.
//   conv2d_sum_image_splits   y of fprop, dx of dgrad, where the result has too few tiles for all multiprocessors: planes of 7x7,
//                             one image. A thread owns four neighbouring channels of one pixel, a block 32 pixels x 32 channels.
//
// Bytes: splits * |result| sums read, |result| written; a split writes as many sums as are read here. The choice weighs them
// against the waves of blocks that splitting saves (see model.py). Predicted on an H200: a ResNet's last 3x3 layers (512
// channels, 7x7, bf16), 52 tiles of 128x128 for 132 multiprocessors at N = 32, take 28 us by 5 splits instead of 53 us by none
// and tiles of 64x64; at N = 1, 9 us instead of 33. Measured: not yet.
#pragma once
#include "conv2d/directions.cuh"
#include "platform/shared_memory.h"
#include "platform/vector.h"

template <class T>
struct Conv2dSumSplitsParameters {
  const Accumulator<T>* sums;  // (splits, groups * outputs, taps), taps in the order of `channels_inner`
  T* dw;                       // (K, C/groups, R, S)
  Conv2dShape shape;
  int32_t splits, channels_inner;
  int32_t channels, outputs;  // of a group in `sums`, where either may be padded
};

constexpr int kSumSplitsThreads = 256;

template <class T>
__global__ void __launch_bounds__(kSumSplitsThreads)
    conv2d_sum_splits_kernel(const __grid_constant__ Conv2dSumSplitsParameters<T> parameters) {
  const Conv2dShape& shape = parameters.shape;
  const int32_t filter = shape.R * shape.S, taps = parameters.channels * filter;
  const int32_t blocks = (taps + kSumSplitsThreads - 1) / kSumSplitsThreads;  // of one output channel
  const int32_t k = int32_t(blockIdx.x) / blocks, tap = int32_t(blockIdx.x) % blocks * kSumSplitsThreads + int32_t(threadIdx.x);
  if (tap >= taps) return;
  const int32_t c = parameters.channels_inner ? tap % parameters.channels : tap / filter;
  const int32_t cell = parameters.channels_inner ? tap / parameters.channels : tap % filter;
  if (c >= shape.C / shape.groups) return;  // padding

  const int32_t group_outputs = shape.K / shape.groups, row = k / group_outputs * parameters.outputs + k % group_outputs;
  const Accumulator<T>* from = parameters.sums + int64_t(row) * taps + tap;
  const int64_t plane = int64_t(shape.groups) * parameters.outputs * taps;
  Accumulator<T> sum = 0;
  for (int32_t split = 0; split < parameters.splits; ++split) sum += from[split * plane];
  parameters.dw[k * shape.w_stride[0] + c * shape.w_stride[1] + cell / shape.S * shape.w_stride[2] +
                cell % shape.S * shape.w_stride[3]] = narrow<T>(sum);
}

template <class T, class Epilogue>
struct Conv2dSumImageSplitsParameters {
  const Accumulator<T>* sums;  // (splits, N, H, W, channels) contiguous, on 16 bytes
  T* result;                   // (N, channels, H, W)
  int64_t stride[4];           // of `result`: N C H W
  int32_t N, channels, H, W, splits;
  Epilogue epilogue;
};

// A warp reads four lines of 32 sums, 128 bytes of fp32, by accesses of 16 bytes where channels come in fours.
constexpr int kSumTile = 32, kSumQuad = 4, kSumImageSplitsThreads = kSumTile * kSumTile / kSumQuad;

template <class T, int kPiece>
__device__ inline void add_splits(Accumulator<T> (&sum)[kSumQuad], const Accumulator<T>* from, int64_t plane, int32_t splits,
                                  int32_t channels) {
#pragma unroll 4  // the splits of several turns are on their way at once; they are added in their order all the same
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

// Results whose pixels lie closer than their channels (NCHW) are turned in shared memory, so that threads side by side write
// pixels side by side.
template <class T, class Epilogue>
__global__ void __launch_bounds__(kSumImageSplitsThreads)
    conv2d_sum_image_splits_kernel(const __grid_constant__ Conv2dSumImageSplitsParameters<T, Epilogue> parameters) {
  constexpr int kPitch = kSumTile + 1;  // a column's elements in different banks
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
  const bool mine = pixel < pixels && channel < channels;
  T value[kSumQuad];
  if (mine) {
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
    if (!mine) return;
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

  if (mine) {
#pragma unroll
    for (int i = 0; i < kSumQuad; ++i) tile[(quad + i) * kPitch + row] = value[i];
  }
  __syncthreads();  // the tile is turned: threads write what others summed
  const int along = int(threadIdx.x) % kSumTile;
  if (first_pixel + along >= pixels) return;
  T* to = parameters.result + offset(first_pixel + along);
#pragma unroll
  for (int i = 0; i < kSumQuad; ++i) {
    const int down = int(threadIdx.x) / kSumTile + i * (kSumImageSplitsThreads / kSumTile);
    if (first_channel + down < channels) to[(first_channel + down) * stride[1]] = tile[down * kPitch + along];
  }
}
