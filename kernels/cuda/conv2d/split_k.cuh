// The second half of wgrad: adds the splits' sums in the order of the splits, so that the result does not depend on which
// block finished first, and rounds once. A thread owns one element of dw, which is overwritten.
//
// Bytes: splits * |dw| sums read, |dw| written; the plan keeps that small beside the products (see variants.py).
#pragma once
#include "conv2d/problems.cuh"

template <class T>
struct Conv2dSumSplitsParameters {
  const Accumulator<T>* sums;  // (splits, K, taps), taps in the order of `channels_inner`
  T* dw;                       // (K, C/groups, R, S)
  Conv2dShape shape;
  int32_t splits, channels_inner;
};

constexpr int kSumSplitsThreads = 256;

template <class T>
__global__ void __launch_bounds__(kSumSplitsThreads)
    conv2d_sum_splits_kernel(const __grid_constant__ Conv2dSumSplitsParameters<T> parameters) {
  const Conv2dShape& shape = parameters.shape;
  const int32_t channels = shape.C / shape.groups, taps = channels * shape.R * shape.S;
  const int32_t blocks = (taps + kSumSplitsThreads - 1) / kSumSplitsThreads;  // of one output channel
  const int32_t k = int32_t(blockIdx.x) / blocks, tap = int32_t(blockIdx.x) % blocks * kSumSplitsThreads + int32_t(threadIdx.x);
  if (tap >= taps) return;
  const Accumulator<T>* from = parameters.sums + int64_t(k) * taps + tap;
  Accumulator<T> sum = 0;
  for (int32_t split = 0; split < parameters.splits; ++split) sum += from[int64_t(split) * shape.K * taps];
  const int32_t inner = parameters.channels_inner ? channels : shape.R * shape.S;
  const int32_t c = parameters.channels_inner ? tap % inner : tap / inner,
                filter = parameters.channels_inner ? tap / inner : tap % inner;
  parameters.dw[k * shape.w_stride[0] + c * shape.w_stride[1] + filter / shape.S * shape.w_stride[2] +
                filter % shape.S * shape.w_stride[3]] = narrow<T>(sum);
}
