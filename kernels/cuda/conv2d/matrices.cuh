// Where the elements of convolution's matrices lie in memory.
//
// For each group, a direction is a matrix product; dgrad is one for each residue of the input positions modulo the stride (see
// dgrad_axis). Only the variant im2col stores the column matrix in memory.
//   fprop   y(pixel, K)   = columns of x(pixel, tap)  . filter(K, tap)         one row per output pixel n p q
//   dgrad   dx(pixel, C)  = columns of dy(pixel, tap) . filter(C, tap)         one row per input pixel n h w of a residue
//   wgrad   dw(K, tap)    = dy(K, pixel)              . columns of x(tap, pixel)
// A tap is a filter position together with one of its channels: r s c. All extents here are those of one group.
//
// The address of an element is the sum of a contribution of its row and one of its column. So is its position in the plane, which
// decides whether the element is padding. A Coordinate is one such contribution to both. The coordinates of a tile's rows and
// columns are computed once for all steps of the depth.
#pragma once
#include "shapes.h"

struct Coordinate {
  int64_t offset;
  int32_t h, w;
};

// The position that rows and columns beyond the matrix get. Its sum with any position lies outside the plane. The host refuses
// every geometry for which this would not hold (beyond_positions in problem.py).
constexpr int32_t kOutside = -(1 << 30);

// Quotient and remainder by multiplication, for 0 <= n < 2^31.
struct Divisor {
  uint32_t divisor, reciprocal;

  __device__ explicit Divisor(int32_t by) : divisor(by > 0 ? by : 1), reciprocal(0xffffffffu / divisor) {}

  // n * reciprocal / 2^32 is short of n / divisor by less than one, so the quotient is at most one too small.
  __device__ void split(int32_t n, int32_t& quotient, int32_t& remainder) const {
    uint32_t q = uint32_t((uint64_t(uint32_t(n)) * reciprocal) >> 32);
    uint32_t r = uint32_t(n) - q * divisor;
    if (r >= divisor) {
      ++q;
      r -= divisor;
    }
    quotient = int32_t(q);
    remainder = int32_t(r);
  }
};

// One dimension of the plane that is gathered from, the source: for tap t, pixel i of the result reads source position
// i * up + start + t * step. The taps are the filter positions first, first + every, ...
struct Axis {
  int32_t extent;  // of the source
  int32_t pixels;  // of the result
  int32_t up, start, step;
  int32_t taps, first, every;
};

__device__ inline Axis fprop_axis(int32_t source, int32_t result, int32_t filter, int32_t stride, int32_t pad, int32_t dilation) {
  return {
      .extent = source, .pixels = result, .up = stride, .start = -pad, .step = dilation, .taps = filter, .first = 0, .every = 1};
}

// Describes the input positions h = i * stride + residue of one residue modulo the stride as a convolution of their own over dy.
// The gradient at h has a contribution from output position (h + pad - r * dilation) / stride for each r for which this division
// has no remainder. That is every (stride / gcd(stride, dilation))-th r; for some residues it is no r at all, and their dx is
// zero. `residue` must be less than `result`. The only product formed here, first * dilation, is at most
// (filter - 1) * dilation, which the host requires to fit into 32 bits (beyond_positions in problem.py).
__device__ inline Axis dgrad_axis(int32_t source, int32_t result, int32_t filter, int32_t stride, int32_t pad, int32_t dilation,
                                  int32_t residue) {
  int32_t divisor = stride, remainder = dilation;
  while (remainder) {
    const int32_t next = divisor % remainder;
    divisor = remainder;
    remainder = next;
  }
  const int32_t every = stride / divisor, candidates = every < filter ? every : filter;
  int32_t first = 0;
  while (first < candidates && (residue + pad - first * dilation) % stride) ++first;
  const bool any = first < candidates;
  return {.extent = source,
          .pixels = (result - 1 - residue) / stride + 1,
          .up = 1,
          .start = any ? (residue + pad - first * dilation) / stride : 0,
          .step = -(dilation / divisor),
          .taps = any ? (filter - first + every - 1) / every : 0,
          .first = first,
          .every = every};
}

// The order of the taps: channels innermost, or C R S as in a contiguous filter. The host chooses it (access.py).
struct Taps {
  int32_t count;
  bool channels_inner;
  Divisor inner, width;

  __device__ Taps(int32_t R, int32_t S, int32_t channels, bool channels_inner)
      : count(R * S * channels), channels_inner(channels_inner), inner(channels_inner ? channels : R * S), width(S) {}
  __device__ Taps(const Axis& vertical, const Axis& horizontal, int32_t channels, bool channels_inner)
      : Taps(vertical.taps, horizontal.taps, channels, channels_inner) {}

  __device__ void split(int32_t tap, int32_t& r, int32_t& s, int32_t& c) const {
    int32_t outer, rest;
    inner.split(tap, outer, rest);
    c = channels_inner ? rest : outer;
    width.split(channels_inner ? outer : rest, r, s);
  }
};

// ---- matrices: each has data, the plane in which positions lie, and the coordinates of row(i) and column(j) -------------

// The im2col of an image (N, C, H, W): rows are pixels of the result, columns are taps. Only tiles of it are formed.
template <class T>
struct ColumnMatrix {
  const T* data;
  int64_t stride_n, stride_c, stride_h, stride_w;
  Axis vertical, horizontal;
  int32_t rows;
  Taps taps;
  Divisor plane, line;

  __device__ ColumnMatrix(const T* image, const int64_t (&stride)[4], int32_t N, const Axis& vertical, const Axis& horizontal,
                          int32_t channels, bool channels_inner)
      : data(image),
        stride_n(stride[0]),
        stride_c(stride[1]),
        stride_h(stride[2]),
        stride_w(stride[3]),
        vertical(vertical),
        horizontal(horizontal),
        rows(N * vertical.pixels * horizontal.pixels),
        taps(vertical, horizontal, channels, channels_inner),
        plane(vertical.pixels * horizontal.pixels),
        line(horizontal.pixels) {}

  __device__ int32_t height() const { return vertical.extent; }
  __device__ int32_t width() const { return horizontal.extent; }

  __device__ Coordinate row(int32_t pixel) const {
    if (pixel >= rows) return {0, kOutside, kOutside};
    int32_t n, p, q, rest;
    plane.split(pixel, n, rest);
    line.split(rest, p, q);
    const int32_t h = p * vertical.up + vertical.start, w = q * horizontal.up + horizontal.start;
    return {n * stride_n + h * stride_h + w * stride_w, h, w};
  }

  __device__ Coordinate column(int32_t tap) const {
    if (tap >= taps.count) return {0, kOutside, kOutside};
    int32_t r, s, c;
    taps.split(tap, r, s, c);
    const int32_t h = r * vertical.step, w = s * horizontal.step;
    return {c * stride_c + h * stride_h + w * stride_w, h, w};
  }
};

// The filter (K, C, R, S) as a matrix: rows are the channels that the product yields (K in fprop, C in dgrad), columns are taps.
template <class T>
struct FilterMatrix {
  const T* data;
  int64_t stride_row, stride_channel, stride_r, stride_s;
  int32_t rows, first_r, every_r, first_s, every_s;
  Taps taps;

  __device__ FilterMatrix(const T* filter, int64_t stride_row, int64_t stride_channel, int64_t stride_r, int64_t stride_s,
                          int32_t rows, const Axis& vertical, const Axis& horizontal, int32_t channels, bool channels_inner)
      : data(filter),
        stride_row(stride_row),
        stride_channel(stride_channel),
        stride_r(stride_r),
        stride_s(stride_s),
        rows(rows),
        first_r(vertical.first),
        every_r(vertical.every),
        first_s(horizontal.first),
        every_s(horizontal.every),
        taps(vertical, horizontal, channels, channels_inner) {}

  __device__ int32_t height() const { return 1; }
  __device__ int32_t width() const { return 1; }

  __device__ Coordinate row(int32_t channel) const {
    if (channel >= rows) return {0, kOutside, kOutside};
    return {channel * stride_row, 0, 0};
  }

  __device__ Coordinate column(int32_t tap) const {
    if (tap >= taps.count) return {0, kOutside, kOutside};
    int32_t r, s, c;
    taps.split(tap, r, s, c);
    return {c * stride_channel + (first_r + r * every_r) * stride_r + (first_s + s * every_s) * stride_s, 0, 0};
  }
};

// An image (N, K, P, Q) as a matrix: rows are its first `pixels` pixels in the order n p q, columns are channels.
template <class T>
struct ImageMatrix {
  const T* data;
  int64_t stride_n, stride_c, stride_h, stride_w;
  int32_t rows, columns;
  Divisor plane, line;

  __device__ ImageMatrix(const T* image, const int64_t (&stride)[4], int32_t pixels, int32_t channels, int32_t height,
                         int32_t width)
      : data(image),
        stride_n(stride[0]),
        stride_c(stride[1]),
        stride_h(stride[2]),
        stride_w(stride[3]),
        rows(pixels),
        columns(channels),
        plane(height * width),
        line(width) {}

  __device__ int32_t height() const { return 1; }
  __device__ int32_t width() const { return 1; }

  __device__ Coordinate row(int32_t pixel) const {
    if (pixel >= rows) return {0, kOutside, kOutside};
    int32_t n, h, w, rest;
    plane.split(pixel, n, rest);
    line.split(rest, h, w);
    return {n * stride_n + h * stride_h + w * stride_w, 0, 0};
  }

  __device__ Coordinate column(int32_t channel) const {
    if (channel >= columns) return {0, kOutside, kOutside};
    return {channel * stride_c, 0, 0};
  }
};

template <class Matrix>
struct Transposed : Matrix {
  __device__ explicit Transposed(const Matrix& matrix) : Matrix(matrix) {}
  __device__ Coordinate row(int32_t index) const { return Matrix::column(index); }
  __device__ Coordinate column(int32_t index) const { return Matrix::row(index); }
};

// Whether an element exists. One that does not exist counts as zero: it is padding or lies beyond the matrix.
template <class Matrix>
__device__ inline bool exists(const Matrix& matrix, const Coordinate& row, const Coordinate& column) {
  return uint32_t(row.h + column.h) < uint32_t(matrix.height()) && uint32_t(row.w + column.w) < uint32_t(matrix.width());
}
