// The bias gradient: db is the sum of dy over all pixels. A launch of wgrad computes it by blocks beyond those of its product;
// the product reads dy, too, so most of it comes from L2.
//
// A block owns one split of the pixels, which is as long as the splits of the product, and kBiasChannels channels. So it reads
// fewer bytes than a block of the product. Its threads share the pixels; their sums are added in the order of the threads. dy is
// read along whichever of channels and pixels lies closer together, and a thread has several accesses in flight.
// db and the sums of splits are overwritten; sums are added to if `accumulate`.
#pragma once
#include "conv2d/matrices.cuh"
#include "conv2d/parameters.cuh"
#include "platform/shared_memory.h"
#include "platform/vector.h"

constexpr int kBiasChannels = 32;  // 64 bytes in 16 bits, two sectors of a cache line

// The dy that a product reads, as an image.
template <class T>
struct OutputGradient {
  const T* data;
  const int64_t (&stride)[4];
  int32_t N, height, width, groups, channels;  // channels of a group
};

// Computes the block's part of the bias gradient. A thread reads kPiece channels at once.
template <int kThreads, int kPiece, class T, class Parameters>
__device__ inline void sum_pixels(const Parameters& parameters, const OutputGradient<T>& dy, int32_t pixels_per_split,
                                  bool pixels_first) {
  using Sum = Accumulator<T>;
  constexpr int kAcross = kBiasChannels / kPiece, kDown = kThreads / kAcross, kInFlight = 4;
  static_assert(kThreads % kAcross == 0 && kThreads >= kBiasChannels);
  const int32_t channels = dy.groups * dy.channels, slices = (channels + kBiasChannels - 1) / kBiasChannels;
  const int32_t block = int32_t(blockIdx.x) - parameters.product_blocks;
  const int32_t split = block / slices, first_channel = block % slices * kBiasChannels;
  const int32_t pixels = dy.N * dy.height * dy.width, begin = split * pixels_per_split,
                end = pixels - begin < pixels_per_split ? pixels : begin + pixels_per_split;
  const ImageMatrix<T> matrix(dy.data, dy.stride, end, channels, dy.height, dy.width);

  const int thread = int(threadIdx.x);
  const int across = pixels_first ? thread / kDown : thread % kAcross, down = pixels_first ? thread % kDown : thread / kAcross;
  const Coordinate column = matrix.column(first_channel + across * kPiece);
  Sum sums[kPiece] = {};
  for (int32_t first = begin + down; first < end; first += kInFlight * kDown) {
    Vector<T, kPiece> pieces[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const Coordinate row = matrix.row(first + i * kDown);
      pieces[i] = {};
      if (exists(matrix, row, column)) pieces[i] = load_vector<kPiece>(matrix.data + row.offset + column.offset);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i)
#pragma unroll
      for (int e = 0; e < kPiece; ++e) sums[e] += widen(pieces[i].element[e]);
  }
  Sum* memory = shared_memory<Sum>();  // (kDown, kBiasChannels)
#pragma unroll
  for (int e = 0; e < kPiece; ++e) memory[down * kBiasChannels + across * kPiece + e] = sums[e];
  __syncthreads();  // a thread adds what others have summed

  const int32_t channel = first_channel + thread;
  if (thread >= kBiasChannels || channel >= channels) return;
  Sum sum = 0;
#pragma unroll 4
  for (int i = 0; i < kDown; ++i) sum += memory[i * kBiasChannels + thread];
  if (parameters.gradient.db) {
    const int32_t k = channel % dy.channels;
    if (k < parameters.gradient.outputs)
      parameters.gradient.db[channel / dy.channels * parameters.gradient.outputs + k] = narrow<T>(sum);
  } else {
    Sum* const to = parameters.bias_sums + int64_t(split) * channels + channel;
    *to = parameters.accumulate ? *to + sum : sum;
  }
}

// The same for the parameters of simt and mma.
template <int kThreads, int kPiece, class T>
__device__ inline void sum_bias_gradient(const Conv2dWgradParameters<T>& parameters) {
  const Conv2dShape& shape = parameters.shape;
  const OutputGradient<T> dy{.data = parameters.dy,
                             .stride = shape.y_stride,
                             .N = shape.N,
                             .height = shape.P,
                             .width = shape.Q,
                             .groups = shape.groups,
                             .channels = shape.K / shape.groups};
  const Walk walk = parameters.walks.a;  // over channels and pixels, the rows and columns of the product's operand
  sum_pixels<kThreads, kPiece>(parameters, dy, parameters.pixels_per_split, walk == Walk::columns || walk == Walk::column_pieces);
}
