// The three directions as products that a tiled kernel can run: parameters as the host passes them, and for each direction
// which matrices a block multiplies and where its result goes. The kernels know nothing else of convolution.
//
// One dimension of blocks holds everything (a grid's y and z end at 65,535): column tiles run fastest, so that blocks
// running side by side share rows of the larger operand through L2; then row tiles, groups, residues, and last splits.
#pragma once
#include "conv2d/epilogue.cuh"
#include "conv2d/matrices.cuh"

// Which index of a matrix is walked first by consecutive threads, and whether element by element or in aligned pieces that
// are contiguous in memory and exist or not as a whole.
enum class Walk : int32_t { rows, row_pieces, columns, column_pieces };

struct Walks {
  Walk a, b, c;            // of the left operand, of the right one, of the result
  int32_t channels_inner;  // the order of taps, see matrices.cuh
};

// The depth of a product that yields an image, cut over blocks where the image has too few tiles for all multiprocessors. Each
// split writes sums of its own, which split_k.cuh adds.
template <class T>
struct Splits {
  Accumulator<T>* sums;  // (splits, N, height, width, channels of all groups) contiguous, overwritten; unused by one split
  int32_t count, step;   // what a split begins at is a multiple of the kernel's step
};

template <class T, class Epilogue>
struct Conv2dFpropParameters {
  const T* x;  // (N, C, H, W)
  const T* w;  // (K, C/groups, R, S)
  T* y;        // (N, K, P, Q), overwritten by one split, not touched by more
  Conv2dShape shape;
  Walks walks;
  Splits<T> splits;
  Epilogue epilogue;
};

template <class T, class Epilogue>
struct Conv2dDgradParameters {
  const T* dy;  // (N, K, P, Q)
  const T* w;   // (K, C/groups, R, S)
  T* dx;        // (N, C, H, W), overwritten by one split, not touched by more
  Conv2dShape shape;
  Walks walks;
  Splits<T> splits;
  Epilogue epilogue;
};

template <class T>
struct Conv2dWgradParameters {
  const T* dy;           // (N, K, P, Q)
  const T* x;            // (N, C, H, W)
  Accumulator<T>* sums;  // (splits, K, taps), overwritten, or added to
  Conv2dShape shape;
  Walks walks;
  int32_t splits, pixels_per_split, accumulate;
};

// Where the tile of a running number is, in the order that the head of this file tells.
struct BlockTile {
  int32_t row, column, group, part;

  __device__ BlockTile(int32_t rows, int32_t columns, int32_t groups, int32_t tile_rows, int32_t tile_columns,
                       int32_t number = int32_t(blockIdx.x)) {
    const int32_t across = (columns + tile_columns - 1) / tile_columns, down = (rows + tile_rows - 1) / tile_rows;
    int32_t rest = number;
    column = rest % across * tile_columns;
    rest /= across;
    row = rest % down * tile_rows;
    rest /= down;
    group = rest % groups;
    part = rest / groups;
  }
};

// ---- results: where element (row, column) goes, what becomes of its sum, and what of that with what memory holds ---------

template <class T, class Epilogue>
struct ImageResult {
  using Stored = T;
  using Policy = Epilogue;
  T* data;
  int64_t stride_n, stride_c, stride_h, stride_w;
  int32_t rows, columns, first_channel;
  int32_t step_h, step_w, residue_h, residue_w;  // pixel i of a residue is line i * step + residue
  Divisor plane, line;
  bool evenly;  // pixels are stride_w apart, over the ends of lines and images too
  Epilogue epilogue;

  __device__ ImageResult(T* image, const int64_t (&stride)[4], int32_t N, int32_t channels, int32_t group, int32_t height,
                         int32_t width, int32_t step_h, int32_t step_w, int32_t residue_h, int32_t residue_w,
                         const Epilogue& epilogue)
      : data(image + int64_t(group) * channels * stride[1]),
        stride_n(stride[0]),
        stride_c(stride[1]),
        stride_h(stride[2]),
        stride_w(stride[3]),
        rows(N * height * width),
        columns(channels),
        first_channel(group * channels),
        step_h(step_h),
        step_w(step_w),
        residue_h(residue_h),
        residue_w(residue_w),
        plane(height * width),
        line(width),
        evenly(step_h == 1 && step_w == 1 && stride_h == width * stride_w && stride_n == height * stride_h),
        epilogue(epilogue) {}

  __device__ int64_t row(int32_t pixel) const {
    if (evenly) return pixel * stride_w;
    int32_t n, i, j, rest;
    plane.split(pixel, n, rest);
    line.split(rest, i, j);
    return n * stride_n + (i * step_h + residue_h) * stride_h + (j * step_w + residue_w) * stride_w;
  }
  __device__ int64_t column(int32_t channel) const { return channel * stride_c; }
  __device__ T narrowed(Accumulator<T> sum, int32_t column) const { return epilogue(sum, first_channel + column); }
  __device__ T finished(T value, int64_t) const { return value; }
};

// The sums of one split of an image, as they are: channels innermost, dense.
template <class T>
struct SplitResult : ImageResult<Accumulator<T>, NoEpilogue<Accumulator<T>>> {
  using Sum = Accumulator<T>;

  // `height` and `width` are those of a residue, `H` and `W` those of the image.
  __device__ SplitResult(const Splits<T>& of, int32_t split, int32_t N, int32_t groups, int32_t channels, int32_t group,
                         int32_t H, int32_t W, int32_t height, int32_t width, int32_t step_h, int32_t step_w, int32_t residue_h,
                         int32_t residue_w)
      : SplitResult(of.sums + split * (int64_t(N) * H * W * groups * channels), Strides(H, W, groups * channels), N, channels,
                    group, height, width, step_h, step_w, residue_h, residue_w) {}

 private:
  struct Strides {
    int64_t stride[4];
    __device__ Strides(int32_t H, int32_t W, int64_t channels) : stride{H * W * channels, 1, W * channels, channels} {}
  };
  __device__ SplitResult(Sum* sums, const Strides& strides, int32_t N, int32_t channels, int32_t group, int32_t height,
                         int32_t width, int32_t step_h, int32_t step_w, int32_t residue_h, int32_t residue_w)
      : ImageResult<Sum, NoEpilogue<Sum>>(sums, strides.stride, N, channels, group, height, width, step_h, step_w, residue_h,
                                          residue_w, NoEpilogue<Sum>()) {}
};

template <class T>
struct SumResult {
  using Stored = T;
  T* data;
  int32_t rows, columns;
  bool accumulate;

  __device__ int64_t row(int32_t index) const { return int64_t(index) * columns; }
  __device__ int64_t column(int32_t index) const { return index; }
  __device__ T narrowed(T sum, int32_t) const { return sum; }
  __device__ T finished(T sum, int64_t offset) const { return accumulate ? data[offset] + sum : sum; }
};

// ---- directions: what a block multiplies. One thread computes it and it stays in shared memory: in registers, where every
// thread would compute it, it costs more of them than the sums do. ------------------------------------------------------

constexpr int kProblemBytes = 512;  // what a plan reserves for any direction

__device__ inline int32_t ceil_divide(int32_t a, int32_t b) { return (a + b - 1) / b; }

__device__ inline Axis fprop_vertical(const Conv2dShape& of) {
  return fprop_axis(of.H, of.P, of.R, of.stride_h, of.pad_h, of.dilation_h);
}
__device__ inline Axis fprop_horizontal(const Conv2dShape& of) {
  return fprop_axis(of.W, of.Q, of.S, of.stride_w, of.pad_w, of.dilation_w);
}

// How many residues modulo the stride the lines of x have, and how many the pixels of a line.
__device__ inline int32_t vertical_residues(const Conv2dShape& of) { return of.stride_h < of.H ? of.stride_h : of.H; }
__device__ inline int32_t horizontal_residues(const Conv2dShape& of) { return of.stride_w < of.W ? of.stride_w : of.W; }

// Where a split of the depth begins: whole steps, as even as they go; the last splits may have none.
__device__ inline int32_t split_begin(int32_t depth, int32_t split, int32_t splits, int32_t step) {
  const int32_t begin = split * ceil_divide(ceil_divide(depth, step), splits) * step;
  return begin < depth ? begin : depth;
}

template <class T, class Epilogue, int kTileRows, int kTileColumns>
struct Conv2dFprop {
  using Type = T;
  static constexpr bool kImage = true, kGathersFromDy = false;
  int32_t C, K;  // of a group
  BlockTile tile;
  ColumnMatrix<T> a;
  FilterMatrix<T> b;
  int32_t rows, depth_begin, depth_end;

  __device__ explicit Conv2dFprop(const Conv2dFpropParameters<T, Epilogue>& of)
      : Conv2dFprop(of, of.shape, fprop_vertical(of.shape), fprop_horizontal(of.shape)) {}

  __device__ ImageResult<T, Epilogue> result(const Conv2dFpropParameters<T, Epilogue>& of) const {
    const Conv2dShape& shape = of.shape;
    return {of.y, shape.y_stride, shape.N, K, tile.group, shape.P, shape.Q, 1, 1, 0, 0, of.epilogue};
  }
  __device__ SplitResult<T> split_result(const Conv2dFpropParameters<T, Epilogue>& of) const {
    const Conv2dShape& shape = of.shape;
    return {of.splits, tile.part, shape.N, shape.groups, K, tile.group, shape.P, shape.Q, shape.P, shape.Q, 1, 1, 0, 0};
  }

 private:
  __device__ Conv2dFprop(const Conv2dFpropParameters<T, Epilogue>& of, const Conv2dShape& shape, const Axis& vertical,
                         const Axis& horizontal)
      : C(shape.C / shape.groups),
        K(shape.K / shape.groups),
        tile(shape.N * shape.P * shape.Q, K, shape.groups, kTileRows, kTileColumns),
        a(of.x + int64_t(tile.group) * C * shape.x_stride[1], shape.x_stride, shape.N, vertical, horizontal, C,
          of.walks.channels_inner),
        b(of.w + int64_t(tile.group) * K * shape.w_stride[0], shape.w_stride[0], shape.w_stride[1], shape.w_stride[2],
          shape.w_stride[3], K, vertical, horizontal, C, of.walks.channels_inner),
        rows(a.rows),
        depth_begin(split_begin(a.taps.count, tile.part, of.splits.count, of.splits.step)),
        depth_end(split_begin(a.taps.count, tile.part + 1, of.splits.count, of.splits.step)) {}
};

// One residue of input positions modulo the stride is a convolution over dy (see dgrad_axis); together they cover dx. Rows
// are laid out for the first residue, which has most; the others may leave a block without any. Each residue's taps are split
// for themselves.
template <class T, class Epilogue, int kTileRows, int kTileColumns>
struct Conv2dDgrad {
  using Type = T;
  static constexpr bool kImage = true, kGathersFromDy = true;
  int32_t C, K;  // of a group
  BlockTile tile;
  int32_t split, residue_h, residue_w;
  ColumnMatrix<T> a;
  FilterMatrix<T> b;
  int32_t rows, depth_begin, depth_end;

  __device__ explicit Conv2dDgrad(const Conv2dDgradParameters<T, Epilogue>& of)
      : Conv2dDgrad(of, of.shape, of.shape.C / of.shape.groups,
                    BlockTile(of.shape.N * ceil_divide(of.shape.H, vertical_residues(of.shape)) *
                                  ceil_divide(of.shape.W, horizontal_residues(of.shape)),
                              of.shape.C / of.shape.groups, of.shape.groups, kTileRows, kTileColumns)) {}

  __device__ ImageResult<T, Epilogue> result(const Conv2dDgradParameters<T, Epilogue>& of) const {
    const Conv2dShape& shape = of.shape;
    return {of.dx,          shape.x_stride, shape.N,   C,         tile.group, a.vertical.pixels, a.horizontal.pixels,
            shape.stride_h, shape.stride_w, residue_h, residue_w, of.epilogue};
  }
  __device__ SplitResult<T> split_result(const Conv2dDgradParameters<T, Epilogue>& of) const {
    const Conv2dShape& shape = of.shape;
    return {of.splits,      split,          shape.N,   shape.groups,      C,
            tile.group,     shape.H,        shape.W,   a.vertical.pixels, a.horizontal.pixels,
            shape.stride_h, shape.stride_w, residue_h, residue_w};
  }

 private:
  __device__ Conv2dDgrad(const Conv2dDgradParameters<T, Epilogue>& of, const Conv2dShape& shape, int32_t C, const BlockTile& tile)
      : Conv2dDgrad(of, shape, C, tile, tile.part % (vertical_residues(shape) * horizontal_residues(shape))) {}

  __device__ Conv2dDgrad(const Conv2dDgradParameters<T, Epilogue>& of, const Conv2dShape& shape, int32_t C, const BlockTile& tile,
                         int32_t residue)
      : Conv2dDgrad(of, shape, C, tile, residue,
                    dgrad_axis(shape.P, shape.H, shape.R, shape.stride_h, shape.pad_h, shape.dilation_h,
                               residue / horizontal_residues(shape)),
                    dgrad_axis(shape.Q, shape.W, shape.S, shape.stride_w, shape.pad_w, shape.dilation_w,
                               residue % horizontal_residues(shape))) {}

  __device__ Conv2dDgrad(const Conv2dDgradParameters<T, Epilogue>& of, const Conv2dShape& shape, int32_t C, const BlockTile& tile,
                         int32_t residue, const Axis& vertical, const Axis& horizontal)
      : C(C),
        K(shape.K / shape.groups),
        tile(tile),
        split(tile.part / (vertical_residues(shape) * horizontal_residues(shape))),
        residue_h(residue / horizontal_residues(shape)),
        residue_w(residue % horizontal_residues(shape)),
        a(of.dy + int64_t(tile.group) * K * shape.y_stride[1], shape.y_stride, shape.N, vertical, horizontal, K,
          of.walks.channels_inner),
        b(of.w + int64_t(tile.group) * K * shape.w_stride[0], shape.w_stride[1], shape.w_stride[0], shape.w_stride[2],
          shape.w_stride[3], C, vertical, horizontal, K, of.walks.channels_inner),
        rows(a.rows),
        depth_begin(split_begin(a.taps.count, split, of.splits.count, of.splits.step)),
        depth_end(split_begin(a.taps.count, split + 1, of.splits.count, of.splits.step)) {}
};

// The depth is the pixels, of which a block takes one split; its sums go to the split's own plane of the workspace.
template <class T, int kTileRows, int kTileColumns>
struct Conv2dWgrad {
  using Type = T;
  static constexpr bool kImage = false, kGathersFromDy = false;
  int32_t C, K;  // of a group
  BlockTile tile;
  Transposed<ImageMatrix<T>> a;
  Transposed<ColumnMatrix<T>> b;
  int32_t rows, depth_begin, depth_end;

  __device__ explicit Conv2dWgrad(const Conv2dWgradParameters<T>& of) : Conv2dWgrad(of, of.shape) {}

  __device__ SumResult<Accumulator<T>> result(const Conv2dWgradParameters<T>& of) const {
    const int32_t taps = b.taps.count;
    return {of.sums + (int64_t(tile.part) * of.shape.K + tile.group * K) * taps, K, taps, of.accumulate != 0};
  }

 private:
  __device__ Conv2dWgrad(const Conv2dWgradParameters<T>& of, const Conv2dShape& shape)
      : C(shape.C / shape.groups),
        K(shape.K / shape.groups),
        tile(K, shape.R * shape.S * C, shape.groups, kTileRows, kTileColumns),
        a(ImageMatrix<T>(of.dy + int64_t(tile.group) * K * shape.y_stride[1], shape.y_stride, split_end(of), K, shape.P,
                         shape.Q)),
        b(ColumnMatrix<T>(of.x + int64_t(tile.group) * C * shape.x_stride[1], shape.x_stride, shape.N, fprop_vertical(shape),
                          fprop_horizontal(shape), C, of.walks.channels_inner)),
        rows(K),
        depth_begin(tile.part * of.pixels_per_split),
        depth_end(a.rows) {}

  __device__ int32_t split_end(const Conv2dWgradParameters<T>& of) const {
    const int32_t pixels = of.shape.N * of.shape.P * of.shape.Q, begin = tile.part * of.pixels_per_split;
    return pixels - begin < of.pixels_per_split ? pixels : begin + of.pixels_per_split;
  }
};
