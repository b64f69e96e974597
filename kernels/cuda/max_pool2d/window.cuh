// One pooling window, without a word about memory layout: which cell it chooses, and which pixels get its gradient.
//
// A choice is kept as an offset: the cell's place r * S + s in its own window, counted over the whole window, padding included.
// One byte holds it up to 255 cells, two up to 32767, four beyond; the type's value of -1 (255 in a byte) says that the window
// holds no cell of the plane at all.
//
// The walkers take functions: load(...) reads V neighbouring elements, store(...) writes them. V elements lie side by side in
// memory and belong to V different windows of the same geometry (channels of one pixel) or V is 1.
#pragma once
#include "platform/types.h"
#include "platform/vector.h"
#include "shapes.h"

// Windows with compiled extents and dilation 1. A thread walks down a strip of them and keeps in registers what the windows of a
// strip share.
template <int Rows, int Columns, int Stride>
struct FixedWindow {
  static constexpr int R = Rows, S = Columns, stride = Stride;
  static constexpr int strip = 4;        // windows a thread walks down, or blocks of stride x stride pixels in the backward
  static constexpr int pixels = Stride;  // a backward thread owns blocks of this many pixels a side, aligned to the windows
  static_assert(Stride <= Rows && Stride <= Columns, "every pixel a strip passes lies in a window");
};

// Windows whose extents, stride and dilation are known at run time only.
struct AnyWindow {
  static constexpr int strip = 1, pixels = 1;
};

template <class A>
__device__ inline A negative_infinity() {
  return A(__uint_as_float(0xff800000u));
}

// torch's rule for a later cell of a window: it wins if it is larger, or NaN. So the first of equals wins, and the last NaN.
template <class A>
__device__ inline bool wins(A later, A best) {
  return later > best || later != later;
}

__device__ inline int32_t minimum(int32_t a, int32_t b) { return a < b ? a : b; }
__device__ inline int32_t maximum(int32_t a, int32_t b) { return a > b ? a : b; }
__device__ inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }
// Divisor > 0.
__device__ inline int64_t ceil_divide(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

template <class A, int V>
struct Choice {
  A value[V];
  int32_t offset[V];
};

template <class T, int V>
__device__ inline Vector<T, V> values_of(const Choice<Accumulator<T>, V>& choice) {
  Vector<T, V> values;
#pragma unroll
  for (int v = 0; v < V; ++v) values.element[v] = narrow<T>(choice.value[v]);
  return values;
}

template <class Offset, class A, int V>
__device__ inline Vector<Offset, V> offsets_of(const Choice<A, V>& choice) {
  Vector<Offset, V> offsets;
#pragma unroll
  for (int v = 0; v < V; ++v) offsets.element[v] = Offset(choice.offset[v]);
  return offsets;
}

// The best cell of one window row: columns w_first ... w_first + S - 1 of row h of an H x W plane. Its offset is the column in
// the window. A cell outside the plane counts as -inf and is never chosen while the row holds one inside.
template <class Window, class T, int V, class Load>
__device__ inline Choice<Accumulator<T>, V> choose_in_row(int32_t H, int32_t W, int32_t h, int32_t w_first, Load load) {
  using A = Accumulator<T>;
  Choice<A, V> best;
#pragma unroll
  for (int s = 0; s < Window::S; ++s) {
    const int32_t w = w_first + s;
    const bool inside = uint32_t(h) < uint32_t(H) && uint32_t(w) < uint32_t(W);
    Vector<T, V> cells{};
    if (inside) cells = load(h, w);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A value = inside ? widen(cells.element[v]) : negative_infinity<A>();
      if (s == 0) {
        best.value[v] = value;
        best.offset[v] = maximum(0, -w_first);
      } else if (wins(value, best.value[v])) {
        best.value[v] = value;
        best.offset[v] = s;
      }
    }
  }
  return best;
}

// The choices of `strip` windows below each other, from row p_first of the output on: load(h, w), store(p, choice). Rows are
// reduced first, so a row that two windows share is read and reduced once; comparing row winners in order of r keeps the
// row-major order of ties, and the last NaN.
template <class T, int V, int R, int S, int Stride, class Load, class Store>
__device__ inline void walk_windows(FixedWindow<R, S, Stride>, const MaxPool2dShape& shape, int32_t H, int32_t p_first, int32_t q,
                                    Load load, Store store) {
  using Window = FixedWindow<R, S, Stride>;
  const int32_t h_first = p_first * Stride - shape.pad_h, w_first = q * Stride - shape.pad_w;
  Choice<Accumulator<T>, V> row[R];
#pragma unroll
  for (int k = 0; k < Window::strip; ++k) {
    if (p_first + k >= shape.P) return;
#pragma unroll
    for (int i = k == 0 ? 0 : (k - 1) * Stride + R; i < k * Stride + R; ++i)
      row[i % R] = choose_in_row<Window, T, V>(H, shape.W, h_first + i, w_first, load);
    Choice<Accumulator<T>, V> best = row[k * Stride % R];
    const int32_t r_first = maximum(0, -(h_first + k * Stride));
#pragma unroll
    for (int v = 0; v < V; ++v) {
      best.offset[v] += r_first * S;
#pragma unroll
      for (int r = 1; r < R; ++r) {
        const Choice<Accumulator<T>, V>& next = row[(k * Stride + r) % R];
        if (!wins(next.value[v], best.value[v])) continue;
        best.value[v] = next.value[v];
        best.offset[v] = r * S + next.offset[v];
      }
    }
    store(p_first + k, best);
  }
}

// The choice among rows r_begin ... r_end - 1 of one window of any geometry in a plane of H rows: choose the whole window with 0
// and R. Cell positions are int64: a dilation may reach far beyond the plane.
template <class T, int V, class Load>
__device__ inline Choice<Accumulator<T>, V> choose_in_rows(const MaxPool2dShape& shape, int32_t H, int32_t p, int32_t q,
                                                           int64_t r_begin, int64_t r_end, Load load) {
  using A = Accumulator<T>;
  const int64_t h_first = int64_t(p) * shape.stride_h - shape.pad_h, w_first = int64_t(q) * shape.stride_w - shape.pad_w;
  const int64_t r_first = maximum(r_begin, ceil_divide(-h_first, shape.dilation_h));
  const int64_t s_first = maximum(int64_t(0), ceil_divide(-w_first, shape.dilation_w));
  const int64_t h_inside = h_first + r_first * shape.dilation_h, w_inside = w_first + s_first * shape.dilation_w;
  const bool empty = r_first >= r_end || s_first >= shape.S || h_inside >= H || w_inside >= shape.W;
  Choice<A, V> best;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    best.value[v] = negative_infinity<A>();
    best.offset[v] = empty ? -1 : int32_t(r_first * shape.S + s_first);
  }
  int64_t h = h_inside;
  for (int64_t r = r_first; r < r_end && h < H; ++r, h += shape.dilation_h) {
    int64_t w = w_inside;
    for (int64_t s = s_first; s < shape.S && w < shape.W; ++s, w += shape.dilation_w) {
      const Vector<T, V> cells = load(int32_t(h), int32_t(w));
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A value = widen(cells.element[v]);
        if (!wins(value, best.value[v])) continue;
        best.value[v] = value;
        best.offset[v] = int32_t(r * shape.S + s);
      }
    }
  }
  return best;
}

template <class T, int V, class Load, class Store>
__device__ inline void walk_windows(AnyWindow, const MaxPool2dShape& shape, int32_t H, int32_t p, int32_t q, Load load,
                                    Store store) {
  store(p, choose_in_rows<T, V>(shape, H, p, q, 0, shape.R, load));
}

template <class T, class Offset, int V>
struct WindowGradient {
  Vector<T, V> dy;
  Vector<Offset, V> offset;
};

// The gradient of `strip` blocks of Stride x Stride pixels below each other, block row a_first and column b: load(p, q) reads a
// window's gradient and offsets, store(h, w, sums) writes a pixel. Block (a, b) starts where window (a, b) does, so only the
// windows up to `reach` rows above and columns left of it can have chosen its pixels. A window row is read once; the pixel rows
// below it that it can still reach wait in registers. Sums run over p, then q, upwards.
template <class T, class Offset, int V, int R, int S, int Stride, class Load, class Store>
__device__ inline void walk_pixels(FixedWindow<R, S, Stride>, const MaxPool2dShape& shape, int32_t a_first, int32_t b, Load load,
                                   Store store) {
  using Window = FixedWindow<R, S, Stride>;
  constexpr int reach = (R - 1) / Stride, reach_left = (S - 1) / Stride;
  Accumulator<T> sum[R][Stride][V] = {};
#pragma unroll
  for (int k = -reach; k < Window::strip; ++k) {
    const int32_t p = a_first + k, h_first = p * Stride - shape.pad_h;
    if (h_first >= shape.H) return;
#pragma unroll
    for (int j = reach_left; j >= 0; --j) {
      const int32_t q = b - j;
      if (uint32_t(p) >= uint32_t(shape.P) || uint32_t(q) >= uint32_t(shape.Q)) continue;
      const WindowGradient<T, Offset, V> window = load(p, q);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Accumulator<T> dy = widen(window.dy.element[v]);
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int e = 0; e < Stride && e + j * Stride < S; ++e)
            if (window.offset.element[v] == Offset(r * S + e + j * Stride)) sum[r][e][v] += dy;
      }
    }
#pragma unroll
    for (int d = 0; d < Stride; ++d)
#pragma unroll
      for (int e = 0; e < Stride; ++e) {
        const int32_t h = h_first + d, w = b * Stride - shape.pad_w + e;
        if (k < 0 || uint32_t(h) >= uint32_t(shape.H) || uint32_t(w) >= uint32_t(shape.W)) continue;
        Vector<T, V> sums;
#pragma unroll
        for (int v = 0; v < V; ++v) sums.element[v] = narrow<T>(sum[d][e][v]);
        store(h, w, sums);
      }
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int e = 0; e < Stride; ++e)
#pragma unroll
        for (int v = 0; v < V; ++v)
          sum[r][e][v] = r + Stride < R ? sum[r + Stride < R ? r + Stride : 0][e][v] : Accumulator<T>(0);
  }
}

// One pixel under windows of any geometry: the windows whose extent covers it, those whose dilated cells miss it passed over.
template <class T, class Offset, int V, class Load, class Store>
__device__ inline void walk_pixels(AnyWindow, const MaxPool2dShape& shape, int32_t h, int32_t w, Load load, Store store) {
  const int64_t down = int64_t(h) + shape.pad_h, right = int64_t(w) + shape.pad_w;  // from the start of window (0, 0)
  const int64_t p_begin = maximum(int64_t(0), ceil_divide(down - int64_t(shape.R - 1) * shape.dilation_h, shape.stride_h));
  const int64_t q_begin = maximum(int64_t(0), ceil_divide(right - int64_t(shape.S - 1) * shape.dilation_w, shape.stride_w));
  const int64_t p_end = minimum(int64_t(shape.P), down / shape.stride_h + 1),
                q_end = minimum(int64_t(shape.Q), right / shape.stride_w + 1);
  Accumulator<T> sum[V] = {};
  for (int64_t p = p_begin; p < p_end; ++p) {
    const int64_t row = down - p * shape.stride_h;
    if (row % shape.dilation_h != 0) continue;
    for (int64_t q = q_begin; q < q_end; ++q) {
      const int64_t column = right - q * shape.stride_w;
      if (column % shape.dilation_w != 0) continue;
      const Offset here = Offset(row / shape.dilation_h * shape.S + column / shape.dilation_w);
      const WindowGradient<T, Offset, V> window = load(int32_t(p), int32_t(q));
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (window.offset.element[v] == here) sum[v] += widen(window.dy.element[v]);
    }
  }
  Vector<T, V> sums;
#pragma unroll
  for (int v = 0; v < V; ++v) sums.element[v] = narrow<T>(sum[v]);
  store(h, w, sums);
}
