// Pooling windows, independent of memory layout: which cell a window chooses, and the sum of the gradients that a pixel receives.
//
// The chosen cell is kept as an offset, its number r * S + s in its own window. Cells in the padding are numbered too. One byte
// suffices for the offsets of windows of up to 255 cells, two bytes for up to 32767 cells, four bytes for more. The value -1 (255
// in the one-byte type, which is unsigned) says that no cell of the window lies in the plane.
//
// The walk_ functions are passed two functions: load(...) reads V neighbouring elements, or V gradients with their offsets, and
// store(...) writes V results. Either V is 1, or the V elements lie side by side in memory and belong to V windows that differ in
// the channel only.
#pragma once
#include "platform/types.h"
#include "platform/vector.h"
#include "shapes.h"

// Windows whose extents and stride are compiled in, with dilation 1. A thread walks down a strip of such windows and keeps in
// registers what they share.
template <int Rows, int Columns, int Stride>
struct FixedWindow {
  static constexpr int R = Rows, S = Columns, stride = Stride;
  static constexpr int strip = 4;        // forward: windows that a thread walks down; backward: pixel blocks
  static constexpr int pixels = Stride;  // backward: rows and columns of a pixel block, which starts where a window does
  static_assert(Stride <= Rows && Stride <= Columns,
                "a window covers its pixel block, so every pixel of a strip lies in a window");
};

// Windows whose extents, stride and dilation are known only at run time.
struct AnyWindow {
  static constexpr int strip = 1, pixels = 1;
};

// The pixel row or column at which the first pixel block starts.
template <int R, int S, int Stride>
__device__ inline int32_t block_origin(FixedWindow<R, S, Stride>, int32_t pad) {
  return -pad;
}
__device__ inline int32_t block_origin(AnyWindow, int32_t) { return 0; }

// How many pixel blocks cover `extent` pixels.
template <class Window>
__device__ inline int32_t pixel_blocks(int32_t extent, int32_t pad) {
  return (extent - block_origin(Window{}, pad) + Window::pixels - 1) / Window::pixels;
}

template <class A>
__device__ inline A negative_infinity() {
  return A(__uint_as_float(0xff800000u));
}

// torch's rule: a later cell of a window wins if it is larger or NaN. So the first of equal values is chosen, or the last NaN if
// the window has any.
template <class A>
__device__ inline bool wins(A later, A best) {
  return later > best || later != later;
}

__device__ inline int32_t minimum(int32_t a, int32_t b) { return a < b ? a : b; }
__device__ inline int32_t maximum(int32_t a, int32_t b) { return a > b ? a : b; }
__device__ inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }
// Rounds up; b is positive.
__device__ inline int64_t ceil_divide(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

// The cells that V windows choose: their values, and their offsets in the windows.
template <class A, int V>
struct ChosenCells {
  A value[V];
  int32_t offset[V];
};

template <class T, int V>
__device__ inline Vector<T, V> values_of(const ChosenCells<Accumulator<T>, V>& chosen) {
  Vector<T, V> values;
#pragma unroll
  for (int v = 0; v < V; ++v) values.element[v] = narrow<T>(chosen.value[v]);
  return values;
}

template <class Offset, class A, int V>
__device__ inline Vector<Offset, V> offsets_of(const ChosenCells<A, V>& chosen) {
  Vector<Offset, V> offsets;
#pragma unroll
  for (int v = 0; v < V; ++v) offsets.element[v] = Offset(chosen.offset[v]);
  return offsets;
}

// Chooses among the cells of one window row: columns w_first ... w_first + S - 1 of row h of an H x W plane. The offset is the
// column in the window. Cells outside the plane count as -inf; such a cell is chosen only if all S of them lie outside.
template <class Window, class T, int V, class Load>
__device__ inline ChosenCells<Accumulator<T>, V> choose_in_row(int32_t H, int32_t W, int32_t h, int32_t w_first, Load load) {
  using A = Accumulator<T>;
  ChosenCells<A, V> best;
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

// Chooses the cells of `strip` windows below each other, from output row p_first on. load(h, w) reads a pixel, and
// store(p, chosen) takes the cell chosen for output row p. Each input row is reduced to its winner first, so that a row shared by
// two windows is read and reduced once. Comparing the winners in the order of r chooses the same cell as comparing all cells in
// row-major order. Every window must have a cell in the plane.
template <class T, int V, int R, int S, int Stride, class Load, class Store>
__device__ inline void walk_windows(FixedWindow<R, S, Stride>, const MaxPool2dShape& shape, int32_t H, int32_t p_first, int32_t q,
                                    Load load, Store store) {
  using Window = FixedWindow<R, S, Stride>;
  const int32_t h_first = p_first * Stride - shape.pad_h, w_first = q * Stride - shape.pad_w;
  ChosenCells<Accumulator<T>, V> row[R];
#pragma unroll
  for (int k = 0; k < Window::strip; ++k) {
    if (p_first + k >= shape.P) return;
#pragma unroll
    for (int i = k == 0 ? 0 : (k - 1) * Stride + R; i < k * Stride + R; ++i)
      row[i % R] = choose_in_row<Window, T, V>(H, shape.W, h_first + i, w_first, load);
    ChosenCells<Accumulator<T>, V> best = row[k * Stride % R];
    const int32_t r_first = maximum(0, -(h_first + k * Stride));
#pragma unroll
    for (int v = 0; v < V; ++v) {
      best.offset[v] += r_first * S;
#pragma unroll
      for (int r = 1; r < R; ++r) {
        const ChosenCells<Accumulator<T>, V>& next = row[(k * Stride + r) % R];
        if (!wins(next.value[v], best.value[v])) continue;
        best.value[v] = next.value[v];
        best.offset[v] = r * S + next.offset[v];
      }
    }
    store(p_first + k, best);
  }
}

// Chooses a cell from rows r_begin ... r_end - 1 of one window of any geometry, in a plane of H rows; the offset is -1 if no cell
// of these rows lies in the plane. Positions of cells are int64, because a large dilation may take them beyond 32 bits.
template <class T, int V, class Load>
__device__ inline ChosenCells<Accumulator<T>, V> choose_in_rows(const MaxPool2dShape& shape, int32_t H, int32_t p, int32_t q,
                                                                int64_t r_begin, int64_t r_end, Load load) {
  using A = Accumulator<T>;
  const int64_t h_first = int64_t(p) * shape.stride_h - shape.pad_h, w_first = int64_t(q) * shape.stride_w - shape.pad_w;
  const int64_t r_first = maximum(r_begin, ceil_divide(-h_first, shape.dilation_h));
  const int64_t s_first = maximum(int64_t(0), ceil_divide(-w_first, shape.dilation_w));
  const int64_t h_inside = h_first + r_first * shape.dilation_h, w_inside = w_first + s_first * shape.dilation_w;
  const bool empty = r_first >= r_end || s_first >= shape.S || h_inside >= H || w_inside >= shape.W;
  ChosenCells<A, V> best;
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

// The gradients of V windows, and the offsets of the cells that receive them.
template <class T, class Offset, int V>
struct WindowGradient {
  Vector<T, V> dy;
  Vector<Offset, V> offset;
};

// The unfinished sums of a thread that walks down a column of pixel blocks. sum[r][e] belongs to the pixel that lies in column e
// of the block and in row r of the windows whose gradients the thread is adding.
template <class T, int V, int R, int S, int Stride>
struct PixelSums {
  Accumulator<T> sum[R][Stride][V] = {};

  // Adds the gradients of V windows that start `left` strides to the left of the block. Pixel column e of the block is column
  // e + left * Stride of these windows.
  template <class Offset>
  __device__ inline void add(const WindowGradient<T, Offset, V>& window, int32_t left) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const Accumulator<T> dy = widen(window.dy.element[v]);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int e = 0; e < Stride; ++e) {
          const int s = e + left * Stride;
          if (s < S && window.offset.element[v] == Offset(r * S + s)) sum[r][e][v] += dy;
        }
    }
  }

  // The sums of pixel (d, e) of the block.
  __device__ inline Vector<T, V> pixel(int d, int e) const {
    Vector<T, V> sums;
#pragma unroll
    for (int v = 0; v < V; ++v) sums.element[v] = narrow<T>(sum[d][e][v]);
    return sums;
  }

  // Moves down to the next block, which starts Stride pixel rows further down.
  __device__ inline void next_block() {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int e = 0; e < Stride; ++e)
#pragma unroll
        for (int v = 0; v < V; ++v)
          sum[r][e][v] = r + Stride < R ? sum[r + Stride < R ? r + Stride : 0][e][v] : Accumulator<T>(0);
  }
};

// Sums the gradients of `strip` pixel blocks below each other, from block row a_first on, in block column b. load(p, q) reads a
// window's gradients and offsets, and store(h, w, sums) writes a pixel. Block (a, b) starts where window (a, b) does, so its
// pixels can only have been chosen by windows (p, q) with a - reach <= p <= a and b - reach_left <= q <= b. The thread reads each
// window once. The gradients of a pixel are added in ascending order of p, then of q.
template <class T, class Offset, int V, int R, int S, int Stride, class Load, class Store>
__device__ inline void walk_pixels(FixedWindow<R, S, Stride>, const MaxPool2dShape& shape, int32_t a_first, int32_t b, Load load,
                                   Store store) {
  using Window = FixedWindow<R, S, Stride>;
  constexpr int reach = (R - 1) / Stride, reach_left = (S - 1) / Stride;
  PixelSums<T, V, R, S, Stride> sums;
#pragma unroll
  for (int k = -reach; k < Window::strip; ++k) {
    const int32_t p = a_first + k, h_first = p * Stride - shape.pad_h;
    if (h_first >= shape.H) return;
#pragma unroll
    for (int left = reach_left; left >= 0; --left) {
      const int32_t q = b - left;
      if (uint32_t(p) < uint32_t(shape.P) && uint32_t(q) < uint32_t(shape.Q)) sums.add(load(p, q), left);
    }
#pragma unroll
    for (int d = 0; d < Stride; ++d)
#pragma unroll
      for (int e = 0; e < Stride; ++e) {
        const int32_t h = h_first + d, w = b * Stride - shape.pad_w + e;
        if (k >= 0 && uint32_t(h) < uint32_t(shape.H) && uint32_t(w) < uint32_t(shape.W)) store(h, w, sums.pixel(d, e));
      }
    sums.next_block();
  }
}

// Sums the gradients that one pixel receives from windows of any geometry. It reads the windows that span the pixel, except those
// in which the pixel lies between two cells because of the dilation.
template <class T, class Offset, int V, class Load, class Store>
__device__ inline void walk_pixels(AnyWindow, const MaxPool2dShape& shape, int32_t h, int32_t w, Load load, Store store) {
  const int64_t down = int64_t(h) + shape.pad_h, right = int64_t(w) + shape.pad_w;  // from the first cell of window (0, 0)
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
      const Offset cell = Offset(row / shape.dilation_h * shape.S + column / shape.dilation_w);
      const WindowGradient<T, Offset, V> window = load(int32_t(p), int32_t(q));
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (window.offset.element[v] == cell) sum[v] += widen(window.dy.element[v]);
    }
  }
  Vector<T, V> sums;
#pragma unroll
  for (int v = 0; v < V; ++v) sums.element[v] = narrow<T>(sum[v]);
  store(h, w, sums);
}

// How many rows of image n are pooled: lengths[n], clamped to [0, H]; all H if `lengths` is null.
__device__ inline int32_t rows_of_image(const int64_t* lengths, int64_t n, int32_t H) {
  return lengths ? int32_t(minimum(maximum(lengths[n], int64_t(0)), int64_t(H))) : H;
}
