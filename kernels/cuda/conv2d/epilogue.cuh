// What happens to a finished sum before it is stored. A policy of the kernels: bias today; activation, residual and pooling
// join as further policies. A policy rounds to the output's type first and goes on from the rounded value, as separate
// operators would: else a ReLU mask or an argmax could differ from theirs.
#pragma once
#include "platform/types.h"

template <class T>
struct NoEpilogue {
  __device__ T operator()(Accumulator<T> sum, int32_t) const { return narrow<T>(sum); }
};

template <class T>
struct BiasEpilogue {
  const T* bias;  // (K) contiguous; null: none
  __device__ T operator()(Accumulator<T> sum, int32_t channel) const {
    return narrow<T>(bias ? sum + widen(bias[channel]) : sum);
  }
};
