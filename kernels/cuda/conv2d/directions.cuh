// The three directions as the products that simt and mma compute: which matrices a block multiplies, and where its result goes.
//
// All blocks lie along dimension x of the grid, because y and z are limited to 65,535. Column tiles advance fastest, so that
// blocks that run at the same time share rows of the left operand in L2. Row tiles advance next, then groups, residues and, last,
// splits.
#pragma once
#include "conv2d/results.cuh"

// Where tile `number` lies, in the order described above. `part` numbers the pairs of a residue and a split. Residues advance
// fastest in simt and mma, splits in wgmma.
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

__device__ inline int32_t ceil_divide(int32_t a, int32_t b) { return (a + b - 1) / b; }

__device__ inline Axis fprop_vertical(const Conv2dShape& shape) {
  return fprop_axis(shape.H, shape.P, shape.R, shape.stride_h, shape.pad_h, shape.dilation_h);
}
__device__ inline Axis fprop_horizontal(const Conv2dShape& shape) {
  return fprop_axis(shape.W, shape.Q, shape.S, shape.stride_w, shape.pad_w, shape.dilation_w);
}
__device__ inline Axis dgrad_vertical(const Conv2dShape& shape, int32_t residue) {
  return dgrad_axis(shape.P, shape.H, shape.R, shape.stride_h, shape.pad_h, shape.dilation_h, residue);
}
__device__ inline Axis dgrad_horizontal(const Conv2dShape& shape, int32_t residue) {
  return dgrad_axis(shape.Q, shape.W, shape.S, shape.stride_w, shape.pad_w, shape.dilation_w, residue);
}

// How many residues modulo the stride occur among the lines of x, and how many among the pixels of a line.
__device__ inline int32_t vertical_residues(const Conv2dShape& shape) {
  return shape.stride_h < shape.H ? shape.stride_h : shape.H;
}
__device__ inline int32_t horizontal_residues(const Conv2dShape& shape) {
  return shape.stride_w < shape.W ? shape.stride_w : shape.W;
}

// Where a split of the depth begins. All splits have the same number of whole steps, but the last ones may have fewer or none.
__device__ inline int32_t split_begin(int32_t depth, int32_t split, int32_t splits, int32_t step) {
  const int32_t begin = split * ceil_divide(ceil_divide(depth, step), splits) * step;
  return begin < depth ? begin : depth;
}

template <class T>
using SplitResult = ImageResult<Accumulator<T>, NoEpilogue<Accumulator<T>>>;

template <class T, class Epilogue, int kTileRows, int kTileColumns>
struct Conv2dFprop {
  using Type = T;
  using Parameters = Conv2dFpropParameters<T, Epilogue>;
  static constexpr bool kImage = true, kGathersFromDy = false;
  int32_t C, K;  // of a group
  BlockTile tile;
  ColumnMatrix<T> a;
  FilterMatrix<T> b;
  int32_t rows, depth_begin, depth_end;

  __device__ explicit Conv2dFprop(const Parameters& parameters)
      : Conv2dFprop(parameters, parameters.shape, parameters.walks.channels_inner) {}

  __device__ ImageResult<T, Epilogue> result(const Parameters& parameters) const {
    return {parameters.y, parameters.shape.y_stride, pixels(parameters.shape), K, tile.group, parameters.epilogue};
  }
  __device__ SplitResult<T> split_result(const Parameters& parameters) const {
    const Conv2dShape& shape = parameters.shape;
    return ::split_result<Accumulator<T>, NoEpilogue<Accumulator<T>>>(parameters.splits.sums, tile.part, shape.P, shape.Q,
                                                                      pixels(shape), shape.groups, K, tile.group);
  }

 private:
  __device__ static ResultPixels pixels(const Conv2dShape& shape) { return ResultPixels::all(shape.N, shape.P, shape.Q); }

  __device__ Conv2dFprop(const Parameters& parameters, const Conv2dShape& shape, bool channels_inner)
      : C(shape.C / shape.groups),
        K(shape.K / shape.groups),
        tile(shape.N * shape.P * shape.Q, K, shape.groups, kTileRows, kTileColumns),
        a(parameters.x + int64_t(tile.group) * C * shape.x_stride[1], shape.x_stride, shape.N, fprop_vertical(shape),
          fprop_horizontal(shape), C, channels_inner),
        b(parameters.w + int64_t(tile.group) * K * shape.w_stride[0], shape.w_stride[0], shape.w_stride[1], shape.w_stride[2],
          shape.w_stride[3], K, a.vertical, a.horizontal, C, channels_inner),
        rows(a.rows),
        depth_begin(split_begin(a.taps.count, tile.part, parameters.splits.count, parameters.splits.step)),
        depth_end(split_begin(a.taps.count, tile.part + 1, parameters.splits.count, parameters.splits.step)) {}
};

// The input positions of one residue modulo the stride form a convolution over dy (see dgrad_axis); all residues together cover
// dx. The first residue has the most pixels, and the grid has as many row tiles for each residue as for the first. So blocks of
// other residues may have no rows. The taps of each residue are split separately.
template <class T, class Epilogue, int kTileRows, int kTileColumns>
struct Conv2dDgrad {
  using Type = T;
  using Parameters = Conv2dDgradParameters<T, Epilogue>;
  static constexpr bool kImage = true, kGathersFromDy = true;
  int32_t C, K;  // of a group
  BlockTile tile;
  int32_t split, residue_h, residue_w;
  ColumnMatrix<T> a;
  FilterMatrix<T> b;
  int32_t rows, depth_begin, depth_end;

  __device__ explicit Conv2dDgrad(const Parameters& parameters)
      : Conv2dDgrad(parameters, parameters.shape, vertical_residues(parameters.shape), horizontal_residues(parameters.shape)) {}

  __device__ ImageResult<T, Epilogue> result(const Parameters& parameters) const {
    return {parameters.dx, parameters.shape.x_stride, pixels(parameters.shape), C, tile.group, parameters.epilogue};
  }
  __device__ SplitResult<T> split_result(const Parameters& parameters) const {
    const Conv2dShape& shape = parameters.shape;
    return ::split_result<Accumulator<T>, NoEpilogue<Accumulator<T>>>(parameters.splits.sums, split, shape.H, shape.W,
                                                                      pixels(shape), shape.groups, C, tile.group);
  }

 private:
  __device__ ResultPixels pixels(const Conv2dShape& shape) const {
    return {.N = shape.N,
            .height = a.vertical.pixels,
            .width = a.horizontal.pixels,
            .step_h = shape.stride_h,
            .step_w = shape.stride_w,
            .residue_h = residue_h,
            .residue_w = residue_w};
  }

  __device__ Conv2dDgrad(const Parameters& parameters, const Conv2dShape& shape, int32_t residues_h, int32_t residues_w)
      : C(shape.C / shape.groups),
        K(shape.K / shape.groups),
        tile(shape.N * ceil_divide(shape.H, residues_h) * ceil_divide(shape.W, residues_w), C, shape.groups, kTileRows,
             kTileColumns),
        split(tile.part / (residues_h * residues_w)),
        residue_h(tile.part % (residues_h * residues_w) / residues_w),
        residue_w(tile.part % (residues_h * residues_w) % residues_w),
        a(parameters.dy + int64_t(tile.group) * K * shape.y_stride[1], shape.y_stride, shape.N, dgrad_vertical(shape, residue_h),
          dgrad_horizontal(shape, residue_w), K, parameters.walks.channels_inner),
        b(parameters.w + int64_t(tile.group) * K * shape.w_stride[0], shape.w_stride[1], shape.w_stride[0], shape.w_stride[2],
          shape.w_stride[3], C, a.vertical, a.horizontal, K, parameters.walks.channels_inner),
        rows(a.rows),
        depth_begin(split_begin(a.taps.count, split, parameters.splits.count, parameters.splits.step)),
        depth_end(split_begin(a.taps.count, split + 1, parameters.splits.count, parameters.splits.step)) {}
};

// The depth is the output pixels. A block sums over one split of them; its sums go to the split's own part of the workspace.
template <class T, int kTileRows, int kTileColumns>
struct Conv2dWgrad {
  using Type = T;
  using Parameters = Conv2dWgradParameters<T>;
  static constexpr bool kImage = false, kGathersFromDy = false;
  int32_t C, K;  // of a group
  BlockTile tile;
  Transposed<ImageMatrix<T>> a;
  Transposed<ColumnMatrix<T>> b;
  int32_t rows, depth_begin, depth_end;

  __device__ explicit Conv2dWgrad(const Parameters& parameters) : Conv2dWgrad(parameters, parameters.shape) {}

  __device__ SumResult<Accumulator<T>> result(const Parameters& parameters) const {
    const int32_t taps = b.taps.count;
    return {.data = parameters.sums + (int64_t(tile.part) * parameters.shape.K + tile.group * K) * taps,
            .rows = K,
            .columns = taps,
            .accumulate = parameters.accumulate != 0};
  }
  __device__ FilterResult<T> filter_result(const Parameters& parameters) const {
    return {parameters.gradient, tile.group, b.taps};
  }

 private:
  __device__ Conv2dWgrad(const Parameters& parameters, const Conv2dShape& shape)
      : C(shape.C / shape.groups),
        K(shape.K / shape.groups),
        tile(K, shape.R * shape.S * C, shape.groups, kTileRows, kTileColumns),
        a(ImageMatrix<T>(parameters.dy + int64_t(tile.group) * K * shape.y_stride[1], shape.y_stride, split_end(parameters), K,
                         shape.P, shape.Q)),
        b(ColumnMatrix<T>(parameters.x + int64_t(tile.group) * C * shape.x_stride[1], shape.x_stride, shape.N,
                          fprop_vertical(shape), fprop_horizontal(shape), C, parameters.walks.channels_inner)),
        rows(K),
        depth_begin(tile.part * parameters.pixels_per_split),
        depth_end(a.rows) {}

  __device__ int32_t split_end(const Parameters& parameters) const {
    const int32_t pixels = parameters.shape.N * parameters.shape.P * parameters.shape.Q;
    const int32_t begin = tile.part * parameters.pixels_per_split;
    return pixels - begin < parameters.pixels_per_split ? pixels : begin + parameters.pixels_per_split;
  }
};

// ---- how a block begins ------------------------------------------------------------------------------------------------

// The bytes of shared memory that a launch plan reserves for an object of one of the classes above, the block's direction. It is
// in shared memory because it would take too many registers.
constexpr int kDirectionBytes = 512;

// One thread computes the direction; then all threads compute the coordinates of the tile's rows and columns. Returns false if
// the block has no tile, which happens in residues that have fewer pixels than the first one.
template <int kThreads, class Memory, class Parameters>
__device__ inline bool begin_tile(Memory& memory, const Parameters& parameters) {
  using Direction = decltype(memory.direction);
  static_assert(sizeof(Direction) <= kDirectionBytes);
  constexpr int kRows = sizeof(memory.rows) / sizeof(Coordinate), kColumns = sizeof(memory.columns) / sizeof(Coordinate);
  const Direction& direction = memory.direction;
  if (threadIdx.x == 0) memory.direction = Direction(parameters);
  __syncthreads();  // every thread reads the direction
  if (direction.tile.row >= direction.rows) return false;

  for (int i = int(threadIdx.x); i < kRows; i += kThreads) memory.rows[i] = direction.a.row(direction.tile.row + i);
  for (int i = int(threadIdx.x); i < kColumns; i += kThreads) memory.columns[i] = direction.b.row(direction.tile.column + i);
  __syncthreads();  // every thread reads coordinates that others computed
  return true;
}
