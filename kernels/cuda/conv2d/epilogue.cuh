// What becomes of a finished sum before it is stored. An epilogue rounds to the result's type first and continues from the
// rounded value, as separate operators would: otherwise a ReLU mask or an argmax could differ from theirs.
#pragma once
#include "platform/types.h"

template <class T>
struct NoEpilogue {
  __device__ T operator()(Accumulator<T> sum, int32_t) const { return narrow<T>(sum); }
};

template <class T>
struct BiasEpilogue {
  const T* bias;  // (K) contiguous; null if there is none
  __device__ T operator()(Accumulator<T> sum, int32_t channel) const {
    return narrow<T>(bias ? sum + widen(bias[channel]) : sum);
  }
};
