// Time, samples and addresses of one pass over a layer, as every recurrent kernel walks it.
#pragma once
#include "rnn/parameters.h"

// Where step t of sample n stands in a (T, N, D*H) tensor.
template <class T>
__device__ inline int64_t row_start(const RnnParameters<T>& p, StepStride stride, int t, int n) {
  return (p.step_offsets ? p.step_offsets[t] : t) * stride.t + n * stride.n;
}

// How many steps sample n has; 0 for one that does not exist.
template <class T>
__device__ inline int length_of(const RnnParameters<T>& p, int n) {
  if (n >= p.shape.N) return 0;
  if (!p.lengths) return p.shape.T;
  const int64_t length = p.lengths[n];
  return int(length < 0 ? 0 : length > p.shape.T ? p.shape.T : length);
}

// The forward pass of direction 0 and the backward pass of direction 1 walk up in time, the other two down. Walking down, a
// sample joins at its own last step; until then its state stays what it was at the start.
struct Walk {
  int steps;
  bool down;
  __device__ int time(int s) const { return down ? steps - 1 - s : s; }
  // The step before t, given that the sample is active at t: its time, or -1 where the sample starts.
  __device__ int previous(int t, int length) const { return down ? (t + 1 < length ? t + 1 : -1) : t - 1; }
};

// A pass is what a kernel does with the product of its step: which tensor carries the state, and what a unit makes of it.
template <class Cell>
struct ForwardPass {
  static_assert(Cell::gates == 1, "one product per unit");
  static constexpr bool backward = false;
  using State = typename Cell::State;

  // What a unit reads at a step besides the product: fetched early, since it does not depend on the step before.
  template <class T>
  struct Inputs {
    T z;
  };
  // Where sample n's inputs of step t stand, from a column of D*H on.
  template <class T>
  struct Row {
    const T* z;
    __device__ Row(const RnnParameters<T>& p, int t, int n, int column) : z(p.z + row_start(p, p.z_stride, t, n) + column) {}
    __device__ Inputs<T> at(int unit) const { return {z[unit]}; }
  };
  template <class T>
  static __device__ T evaluate(const RnnParameters<T>& p, const Inputs<T>& in, Accumulator<T> product, State& state) {
    const Accumulator<T> z[1] = {widen(in.z)}, products[1] = {product};
    return narrow<T>(p.cell.forward(z, products, state));
  }
  template <class T>
  static __device__ T* carried_row(const RnnParameters<T>& p, int t, int n) {
    return p.h + row_start(p, p.h_stride, t, n);
  }
  // The state before the first step, (D, N, H); null: 0.
  template <class T>
  static __device__ const T* initial(const RnnParameters<T>& p) {
    return p.h0;
  }
};

template <class Cell>
struct BackwardPass {
  static_assert(Cell::gates == 1, "one product per unit");
  static constexpr bool backward = true;
  using State = typename Cell::State;

  template <class T>
  struct Inputs {
    T dh, h;
  };
  template <class T>
  struct Row {
    const T *dh, *h;
    __device__ Row(const RnnParameters<T>& p, int t, int n, int column)
        : dh(p.dh + row_start(p, p.dh_stride, t, n) + column), h(p.h + row_start(p, p.h_stride, t, n) + column) {}
    __device__ Inputs<T> at(int unit) const { return {dh[unit], h[unit]}; }
  };
  template <class T>
  static __device__ T evaluate(const RnnParameters<T>& p, const Inputs<T>& in, Accumulator<T> product, State& state) {
    Accumulator<T> dz[1];
    p.cell.backward(widen(in.dh) + product, widen(in.h), dz, state);
    return narrow<T>(dz[0]);
  }
  template <class T>
  static __device__ T* carried_row(const RnnParameters<T>& p, int t, int n) {
    return p.dz + row_start(p, p.dz_stride, t, n);
  }
  template <class T>
  static __device__ const T* initial(const RnnParameters<T>&) {
    return nullptr;
  }
};

template <class Pass, class T>
__device__ inline Walk walk_of(const RnnParameters<T>& p, int direction) {
  return {p.shape.T, (direction == 1) != Pass::backward};
}
