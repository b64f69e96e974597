// The Elman cell, one hidden unit at a time: h = f(z + W_hh h'), where z = W_ih x + b_ih + b_hh and h' is h of the step before.
//
// The kernels in this folder rely on its properties: a unit needs only one row of W_hh, a step hands nothing but h to the next
// step, and the backward pass needs nothing but h of the forward pass.
#pragma once
#include "platform/types.h"

// In the order of NONLINEARITIES in engines/interface.py.
enum Nonlinearity : int32_t { kTanh, kRelu, kSigmoid, kIdentity };

struct ElmanCell {
  // Read at run time: a uniform branch costs a few clocks per step; a template argument would quadruple the number of kernels.
  Nonlinearity nonlinearity;

  // Returns h of one unit, from its z and the product of its row of W_hh with h'.
  template <class A>
  __device__ A forward(A z, A product) const {
    const A sum = z + product;
    switch (nonlinearity) {
      case kTanh:
        return tangent(sum);
      case kRelu:
        return sum < 0 ? A(0) : sum;  // a NaN is returned as it is
      case kSigmoid:
        return 1 / (1 + exponential(-sum));
      default:
        return sum;
    }
  }

  // Returns dz of one unit, from its h and dh, the complete gradient of h; f' is computed from h.
  template <class A>
  __device__ A backward(A dh, A h) const {
    switch (nonlinearity) {
      case kTanh:
        return dh * (1 - h * h);
      case kRelu:
        return h <= 0 ? A(0) : dh;
      case kSigmoid:
        return dh * (h * (1 - h));
      default:
        return dh;
    }
  }

 private:
  static __device__ float tangent(float value) { return tanhf(value); }
  static __device__ double tangent(double value) { return tanh(value); }
  static __device__ float exponential(float value) { return expf(value); }
  static __device__ double exponential(double value) { return exp(value); }
};
