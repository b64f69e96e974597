// Time, samples and addresses of one pass over a layer, for the kernels that compute all or one of its steps.
#pragma once
#include "rnn/parameters.cuh"

// The offset of step t of sample n in a (T, N, D*H) tensor.
template <class T>
__device__ inline int64_t row_start(const RnnParameters<T>& p, StepStride stride, int t, int n) {
  return (p.step_offsets ? p.step_offsets[t] : t) * stride.t + n * stride.n;
}

// The number of steps of sample n; 0 for an n past the batch.
template <class T>
__device__ inline int length_of(const RnnParameters<T>& p, int n) {
  if (n >= p.shape.N) return 0;
  if (!p.lengths) return p.shape.T;
  const int64_t length = p.lengths[n];
  return int(length < 0 ? 0 : length > p.shape.T ? p.shape.T : length);
}

// The order in which a pass visits the steps. The forward pass of direction 0 and the backward pass of direction 1 ascend in
// time, the other two descend. A sample is active while t is below its length; in descending order its state keeps the initial
// value until it becomes active.
struct TimeOrder {
  int steps;
  bool descending;
  __device__ int time(int s) const { return descending ? steps - 1 - s : s; }
  // The time of the step that the pass computes before t, for a sample that is active at t; -1 if it computes t first.
  __device__ int previous(int t, int length) const { return descending ? (t + 1 < length ? t + 1 : -1) : t - 1; }
  // The time of the step that the pass computes last, for a sample with at least one step.
  __device__ int last(int length) const { return descending ? 0 : length - 1; }
  // Whether step s is the first one of the pass at which a sample is active. A sample without steps starts after the last step.
  __device__ bool starts(int s, int length) const { return s == (descending ? steps - length : length > 0 ? 0 : steps); }
};

// The offset of a unit of sample n in a (D, N, H) tensor.
template <class T>
__device__ inline int64_t element_offset(const RnnParameters<T>& p, int direction, int n, int unit = 0) {
  return (int64_t(direction) * p.shape.N + n) * p.shape.H + unit;
}

// One result of a step: a unit of a sample, which has `length` steps. `element` is its offset in a (D, N, H) tensor.
struct Result {
  int length;
  int64_t element;
};

// A pass says which tensor holds the state and what a unit computes from the product of a step. Both passes have the same
// members.
template <class Cell>
struct ForwardPass {
  static constexpr bool backward = false;

  // What a unit reads at a step besides the product. These inputs do not depend on the step before, so kernels can fetch them
  // early.
  template <class T>
  struct Inputs {
    T z;
  };
  // The inputs of sample n at step t. at(0) belongs to column `column` of the D*H, and at(unit) to the column `unit` further on.
  template <class T>
  struct Row {
    const T* z;
    __device__ Row(const RnnParameters<T>& p, int t, int n, int column) : z(p.z + row_start(p, p.z_stride, t, n) + column) {}
    __device__ Inputs<T> at(int unit) const { return {z[unit]}; }
  };
  template <class T>
  static __device__ T evaluate(const RnnParameters<T>& p, const Inputs<T>& inputs, Accumulator<T> product) {
    return narrow<T>(p.cell.forward(widen(inputs.z), product));
  }
  // The row that holds the state of sample n after step t, all directions side by side.
  template <class T>
  static __device__ T* state_row(const RnnParameters<T>& p, int t, int n) {
    return p.h + row_start(p, p.h_stride, t, n);
  }
  // The state before the first step, (D, N, H); null: zeros.
  template <class T>
  static __device__ const T* initial(const RnnParameters<T>& p) {
    return p.h0;
  }
  // Returns what a result of step s receives from the step before: the product, unless the pass starts there with something else.
  template <class T>
  static __device__ Accumulator<T> received(const RnnParameters<T>&, const TimeOrder&, int, const Result&,
                                            Accumulator<T> product) {
    return product;
  }
  // Writes an element of h_n if it is known after step s. `value` is the state after the step if the sample is active at it.
  template <class T>
  static __device__ void keep_last(const RnnParameters<T>& p, const TimeOrder& order, int s, const Result& result, T value) {
    if (!p.h_n) return;
    if (result.length > 0 && order.time(s) == order.last(result.length)) p.h_n[result.element] = value;
    if (result.length == 0 && s == 0) p.h_n[result.element] = p.h0 ? p.h0[result.element] : T{};
  }
};

template <class Cell>
struct BackwardPass {
  static constexpr bool backward = true;

  template <class T>
  struct Inputs {
    T dh, h;
  };
  template <class T>
  struct Row {
    const T *dh, *h;
    __device__ Row(const RnnParameters<T>& p, int t, int n, int column)
        : dh(p.dh ? p.dh + row_start(p, p.dh_stride, t, n) + column : nullptr),
          h(p.h + row_start(p, p.h_stride, t, n) + column) {}
    __device__ Inputs<T> at(int unit) const { return {dh ? dh[unit] : T{}, h[unit]}; }
  };
  template <class T>
  static __device__ T evaluate(const RnnParameters<T>& p, const Inputs<T>& inputs, Accumulator<T> product) {
    return narrow<T>(p.cell.backward(widen(inputs.dh) + product, widen(inputs.h)));
  }
  template <class T>
  static __device__ T* state_row(const RnnParameters<T>& p, int t, int n) {
    return p.dz + row_start(p, p.dz_stride, t, n);
  }
  template <class T>
  static __device__ const T* initial(const RnnParameters<T>&) {
    return nullptr;
  }
  // The step at which the pass starts receives dh_n.
  template <class T>
  static __device__ Accumulator<T> received(const RnnParameters<T>& p, const TimeOrder& order, int s, const Result& result,
                                            Accumulator<T> product) {
    if (!order.starts(s, result.length)) return product;
    return p.dh_n ? widen(p.dh_n[result.element]) : Accumulator<T>(0);
  }
  template <class T>
  static __device__ void keep_last(const RnnParameters<T>&, const TimeOrder&, int, const Result&, T) {}
};

template <class Pass, class T>
__device__ inline TimeOrder time_order(const RnnParameters<T>& p, int direction) {
  return {p.shape.T, (direction == 1) != Pass::backward};
}

// Returns where global memory holds the state of sample n that is multiplied by W at step s; null if that state is zero or the
// sample is not active. At step T, which only a backward pass has, it is the state after the last step. Sets `written` to
// whether this pass writes the state that is returned.
template <class Pass, class T>
__device__ inline const T* previous_state(const RnnParameters<T>& p, const TimeOrder& order, int s, int n, int direction,
                                          bool& written) {
  const int length = length_of(p, n), t = order.time(s);
  const bool after_last = s == order.steps, active = after_last ? length > 0 : t < length;
  const int previous = after_last ? order.last(length) : order.previous(t, length);
  written = active && previous >= 0;
  if (written) return Pass::state_row(p, previous, n) + direction * p.shape.H;
  const T* initial = Pass::initial(p);
  return active && initial ? initial + element_offset(p, direction, n) : nullptr;
}
