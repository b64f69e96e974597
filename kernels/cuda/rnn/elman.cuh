// The Elman cell: h = f(z + W_hh h'), z = W_ih x + b_ih + b_hh, h' the previous step's.
//
// A cell is the policy of every kernel in this folder. It says how many rows W_hh has per hidden unit (`gates`), what a unit
// carries from step to step besides h (`State`), and what one unit does with its pre-activations, forward and backward.
// Kernels that compute one row per unit assert `gates == 1`; an LSTM (4, State = c) or GRU (3) enters through these four names.
#pragma once
#include "platform/types.h"

enum Nonlinearity : int32_t { kTanh, kRelu, kSigmoid, kIdentity };

struct ElmanCell {
  static constexpr int gates = 1;
  struct State {};

  // Read at run time: a uniform branch per step costs a few clocks, an instantiation per nonlinearity four times the object.
  Nonlinearity nonlinearity;

  // h from the two halves of the pre-activation: z, and the product with the previous h.
  template <class A>
  __device__ A forward(const A (&z)[gates], const A (&product)[gates], State&) const {
    const A sum = z[0] + product[0];
    switch (nonlinearity) {
      case kTanh:
        return tangent(sum);
      case kRelu:
        return sum < 0 ? A(0) : sum;  // a NaN stays one
      case kSigmoid:
        return 1 / (1 + exponential(-sum));
      default:
        return sum;
    }
  }

  // dz from dh; the derivative is a function of h alone, so that h is all a forward pass leaves behind.
  template <class A>
  __device__ void backward(A dh, A h, A (&dz)[gates], State&) const {
    switch (nonlinearity) {
      case kTanh:
        dz[0] = dh * (1 - h * h);
        break;
      case kRelu:
        dz[0] = h <= 0 ? A(0) : dh;
        break;
      case kSigmoid:
        dz[0] = dh * (h * (1 - h));
        break;
      default:
        dz[0] = dh;
    }
  }

 private:
  static __device__ float tangent(float value) { return tanhf(value); }
  static __device__ double tangent(double value) { return tanh(value); }
  static __device__ float exponential(float value) { return expf(value); }
  static __device__ double exponential(double value) { return exp(value); }
};
