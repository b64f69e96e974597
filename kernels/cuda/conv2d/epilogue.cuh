// An epilogue turns a finished sum into an element of the result: it adds the biases, if any, in the type of the sum and rounds
// once. An epilogue that does more, such as a ReLU, has to start from the rounded value, as a separate operator would; otherwise
// its mask of positive elements could differ from that of a separate ReLU.
#pragma once
#include "platform/types.h"

template <class T>
struct NoEpilogue {
  __device__ T operator()(Accumulator<T> sum, int32_t) const { return narrow<T>(sum); }
};

template <class T>
struct BiasEpilogue {
  const T* bias;   // (K) contiguous; null if there is none
  const T* bias2;  // likewise; a recurrence has two biases
  __device__ T operator()(Accumulator<T> sum, int32_t channel) const {
    if (bias) sum += widen(bias[channel]);
    if (bias2) sum += widen(bias2[channel]);
    return narrow<T>(sum);
  }
};
