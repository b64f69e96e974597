// The second half of wgrad: adds the splits' sums in the order of the splits, so that the result does not depend on which
// block finished first, and rounds once. A thread owns one element of dw, which is overwritten.
//
// Bytes: splits * |dw| sums read, |dw| written; the plan keeps that small beside the products (see variants.py).
#pragma once
#include "conv2d/problems.cuh"

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
