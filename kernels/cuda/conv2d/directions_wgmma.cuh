// The three directions of convolution for wgmma.cuh: which copies TMA makes for each tile, and where the sums go. The
// host describes the images and the filter as tensor maps, and positions as axes (wgmma_maps.py).
//
// The depth of fprop and dgrad is a sequence of blocks. A block is one filter position and as many of its channels as a span
// holds; a step is as many blocks as make 128 bytes. Channels beyond the last one arrive as zeros in both operands. A stage's
// barrier waits for the bytes of a whole step. So if the last step has too few blocks, the missing ones are copied, too, from
// channels beyond the tensor's last one, which arrive as zeros. (They are not copied from an image beyond the last one,
// because it is not documented what an im2col copy that starts there brings.)
#pragma once
#include "conv2d/bias_gradient.cuh"
#include "conv2d/directions.cuh"
#include "conv2d/sum_again.cuh"
#include "conv2d/wgmma.cuh"

// A divisor for indices. If the count is zero, the quotient is not used, but the division must be defined.
__device__ inline int32_t at_least_one(int32_t count) { return count > 0 ? count : 1; }

// Returns the end of a split that begins at step `begin` and has up to `steps` of the depth's `all` steps. The split has no
// steps if `begin` lies beyond the depth, which happens in residues with fewer steps than others.
__device__ inline int32_t end_of_split(int32_t begin, int32_t steps, int32_t all) {
  return begin + steps < all ? begin + steps : begin < all ? all : begin;
}

// A pixel of the result as TMA addresses it: by the position of its first tap in the image.
struct Pixel {
  int32_t n, h, w;

  __device__ Pixel(const Im2colImage& image, int32_t index) {
    const int32_t line = at_least_one(image.horizontal.pixels), plane = line * at_least_one(image.vertical.pixels);
    const int32_t rest = index % plane;
    n = index / plane;
    h = image.vertical.start + rest / line * image.vertical.up;
    w = image.horizontal.start + rest % line * image.horizontal.up;
  }
};

// A position in the sequence of the depth's blocks. Channels advance first, then filter positions along a line, then lines.
struct DepthBlock {
  int32_t channel, s, r;

  __device__ DepthBlock(int32_t block, int32_t channel_blocks, int32_t channels, int32_t taps_w)
      : channel(block % channel_blocks * channels), s(block / channel_blocks % taps_w), r(block / channel_blocks / taps_w) {}

  __device__ void next(int32_t channels, int32_t channel_end, int32_t taps_w) {
    channel += channels;
    if (channel < channel_end) return;
    channel = 0;
    if (++s < taps_w) return;
    s = 0;
    ++r;
  }
};

// The epilogue of the sums of a split, which changes nothing. For TF32, whose sums have the type of the result, it is the
// result's epilogue without a bias, so that sums and results are stored by the same code.
template <class T, class Epilogue>
struct EpilogueOfSums {
  using type = NoEpilogue<float>;
};
template <class Epilogue>
struct EpilogueOfSums<float, Epilogue> {
  using type = Epilogue;
};

// fprop and dgrad: rows are pixels of the result, columns its channels. kMajor describes the filter in memory; it is Major::depth
// where the channels that are summed over are contiguous.
template <class T, class Epilogue, int kImages, class Tile, Major kMajor>
struct Conv2dImageProduct {
  using Type = T;
  using Parameters = Conv2dWgmmaParameters<T, Epilogue, kImages>;
  static constexpr Major kMajorA = Major::depth, kMajorB = kMajor;
  static constexpr bool kGathersFromDy = kImages > 1;
  const Parameters& parameters;
  BlockTile tile;
  const Im2colImage& image;
  // Channels of a block of the depth; blocks of a filter position; rows of the product; where the split's steps begin and end.
  int32_t channels, channel_blocks, rows, begin, end;
  Pixel pixel;
  DepthBlock block;

  __device__ Conv2dImageProduct(const Parameters& parameters, int32_t number)
      : parameters(parameters),
        tile(parameters.N * ceil_divide(parameters.height, parameters.stride_h) *
                 ceil_divide(parameters.width, parameters.stride_w),
             parameters.channels, parameters.groups, Tile::kM, Tile::kN, number),
        image(parameters.images[tile.part / parameters.splits]),
        channels(parameters.span / int32_t(sizeof(T))),
        channel_blocks(ceil_divide(parameters.depth_channels, channels)),
        rows(parameters.N * image.vertical.pixels * image.horizontal.pixels),
        begin(tile.part % parameters.splits * parameters.steps_per_split),
        end(tile.row < rows ? end_of_split(begin, parameters.steps_per_split, all_steps()) : begin),
        pixel(image, tile.row),
        block(begin * blocks_per_step(), channel_blocks, channels, at_least_one(image.horizontal.taps)) {}

  __device__ static int32_t blocks(const Parameters&) { return int32_t(gridDim.x); }  // that share the tiles
  __device__ int32_t blocks_per_step() const { return kStepBytes / parameters.span; }
  __device__ int32_t all_steps() const {
    return ceil_divide(image.vertical.taps * image.horizontal.taps * channel_blocks, blocks_per_step());
  }

  __device__ static OperandLayout layout_a(uint32_t span) { return OperandLayout::depth_major(span, Tile::kM); }
  __device__ static OperandLayout layout_b(uint32_t span) {
    return kMajor == Major::depth ? OperandLayout::depth_major(span, Tile::kN) : OperandLayout::row_major(kStepBytes);
  }

  __device__ static void prefetch(const Parameters& parameters) {
    for (int i = 0; i < parameters.stride_h * parameters.stride_w; ++i)
      if (parameters.images[i].fetched()) prefetch_tensor_map(parameters.images[i].map);
    prefetch_tensor_map(parameters.filter);
  }

  // Starts the copies of the next step's blocks.
  __device__ void fetch(unsigned char* a, unsigned char* b, uint64_t* barrier) {
    const int32_t first_depth = tile.group * parameters.depth_channels;
    for (int i = 0; i < blocks_per_step(); ++i) {
      // A block beyond the last one is copied, too, because the stage's barrier waits for its bytes: from channels beyond the
      // last one, which arrive as zeros, and at offset 0, because no offset may lie beyond the filter.
      const bool block_exists = block.r < image.vertical.taps;
      const int32_t channel = block_exists ? first_depth + block.channel : parameters.groups * parameters.depth_channels;
      copy_im2col(a + i * Tile::kM * parameters.span, image.map, channel, pixel.w, pixel.h, pixel.n,
                  block_exists ? block.s * image.horizontal.step : 0, block_exists ? block.r * image.vertical.step : 0, barrier);
      const int32_t s = image.horizontal.first + block.s * image.horizontal.every,
                    r = image.vertical.first + (block_exists ? block.r : 0) * image.vertical.every;
      if constexpr (kMajor == Major::depth) {
        copy_tiled(b + i * Tile::kN * parameters.span, parameters.filter,
                   block_exists ? block.channel : parameters.depth_channels, s, r, tile.group * parameters.channels + tile.column,
                   barrier);
      } else {
        for (int column = 0; column < Tile::kN; column += kStepBytes / int(sizeof(T)))
          copy_tiled(b + column * kStepBytes + i * channels * kStepBytes, parameters.filter, tile.column + column, s, r, channel,
                     barrier);
      }
      block.next(channels, parameters.depth_channels, image.horizontal.taps);
    }
  }

  __device__ ResultPixels pixels() const {
    return {.N = parameters.N,
            .height = image.vertical.pixels,
            .width = image.horizontal.pixels,
            .step_h = parameters.stride_h,
            .step_w = parameters.stride_w,
            .residue_h = image.vertical.residue,
            .residue_w = image.horizontal.residue};
  }

  using Whole = ImageResult<T, Epilogue>;
  using Sums = ImageResult<float, typename EpilogueOfSums<T, Epilogue>::type>;

  __device__ Whole whole() const {
    return {parameters.result, parameters.stride, pixels(), parameters.channels, tile.group, parameters.epilogue};
  }
  __device__ Sums split_sums() const {
    return split_result<float, typename Sums::Policy>(parameters.sums, tile.part % parameters.splits, parameters.height,
                                                      parameters.width, pixels(), parameters.groups, parameters.channels,
                                                      tile.group);
  }

  // Describes where a warpgroup's part of the tile goes: to the result, or to the sums of its split.
  __device__ void describe(WgmmaMemory<Tile>& memory, int group_row, int group_column) const {
    if (parameters.splits == 1)
      destination_of<Whole>(memory) = {.result = whole(), .row = tile.row + group_row, .column = tile.column + group_column};
    else
      destination_of<Sums>(memory) = {.result = split_sums(), .row = tile.row + group_row, .column = tile.column + group_column};
  }

  // Records in shared memory whether one of a warp's sums is NaN: no register is free for that while the sums are stored.
  template <int kFragments, int kCount>
  __device__ static void note_nan(int32_t& nan, const float (&sums)[kFragments][kCount]) {
    bool any_of_lane = false;
#pragma unroll
    for (int m = 0; m < kFragments; ++m)
#pragma unroll
      for (int i = 0; i < kCount; ++i) any_of_lane |= is_nan(sums[m][i]);
    const bool any = __any_sync(0xffffffff, any_of_lane);
    __syncwarp();                          // every lane has read the previous tile's value
    if (threadIdx.x % 32 == 0) nan = any;  // the warp reads it after the barriers in store_sums
  }

  template <int kFragments, int kCount>
  __device__ static void store(const Parameters& parameters, WgmmaMemory<Tile>& memory, const float (&sums)[kFragments][kCount],
                               int32_t number) {
    int32_t& nan = memory.nan[threadIdx.x / 32];
    if constexpr (kGathersFromDy) note_nan(nan, sums);
    if (sizeof(T) == 4 || parameters.splits == 1)
      store_sums<Whole>(memory, sums, parameters.walk);
    else
      store_sums<Sums>(memory, sums, parameters.walk);
    if constexpr (kGathersFromDy) {
      if (!nan) return;
      // The product is constructed again, because shared memory may already hold the next tile's description.
      const Conv2dImageProduct product(parameters, computed_again(number));
      if (parameters.splits == 1)
        product.sum_nan_again(product.whole());
      else
        product.sum_nan_again(product.split_sums());
    }
  }

  // Computes again the elements of the warp's part of the tile that are NaN; sum_again.cuh says why.
  template <class Result>
  __device__ void sum_nan_again(const Result& result) const {
    const int thread = int(threadIdx.x) % 128, warp = thread / 32, group = int(threadIdx.x) / 128;
    const int group_row = group / Tile::kAcross * Tile::kGroupM, group_column = group % Tile::kAcross * Tile::kGroupN;
#pragma unroll 1
    for (int index = thread % 32; index < Tile::kGroupM / 4 * Tile::kGroupN; index += 32) {
      const int fragment_row = index / Tile::kGroupN;  // among the warp's rows, 16 of every 64
      const int32_t row = tile.row + group_row + fragment_row / 16 * 64 + 16 * warp + fragment_row % 16;
      const int32_t column = tile.column + group_column + index % Tile::kGroupN;
      if (row >= rows || column >= parameters.channels) continue;
      typename Result::Stored* const stored = result.data + result.row(row) + result.column(column);
      if (is_nan(*stored)) *stored = result.narrowed(sum_of_existing(row, column), column);
    }
  }

  // Sums this split's part of one element over the elements of dy that exist, up to the first NaN. Operands of TF32 are not
  // rounded here.
  __device__ float sum_of_existing(int32_t row, int32_t column) const {
    const OperandsInMemory<T>& operands = parameters.operands;
    const int64_t (&filter)[4] = operands.filter_stride;
    const int32_t first_depth = tile.group * parameters.depth_channels;
    const int64_t depth_step = filter[kMajor == Major::depth ? 1 : 0];
    const T* const filters = operands.filter + (kMajor == Major::depth ? (tile.group * parameters.channels + column) * filter[0]
                                                                       : first_depth * filter[0] + column * filter[1]);
    const Pixel first_tap(image, row);
    DepthBlock current = block;
    float sum = 0;
#pragma unroll 1
    for (int32_t left = (end - begin) * blocks_per_step(); left > 0 && current.r < image.vertical.taps && sum == sum; --left) {
      const int32_t h = first_tap.h + current.r * image.vertical.step, w = first_tap.w + current.s * image.horizontal.step;
      if (uint32_t(h) < uint32_t(operands.P) && uint32_t(w) < uint32_t(operands.Q)) {
        const int32_t r = image.vertical.first + current.r * image.vertical.every,
                      s = image.horizontal.first + current.s * image.horizontal.every;
        const T* dy = operands.dy + first_tap.n * operands.dy_stride[0] + first_depth + current.channel +
                      h * operands.dy_stride[2] + w * operands.dy_stride[3];
        const T* weight = filters + current.channel * depth_step + r * filter[2] + s * filter[3];
        const int32_t count =
            current.channel + channels < parameters.depth_channels ? channels : parameters.depth_channels - current.channel;
#pragma unroll 1
        for (int32_t c = 0; c < count && sum == sum; ++c) sum += widen(dy[c]) * widen(weight[c * depth_step]);
      }
      current.next(channels, parameters.depth_channels, image.horizontal.taps);
    }
    return sum;
  }
};

// wgrad: rows are output channels; columns are taps, with channels padded to whole spans, in the order of DepthBlock; the depth
// is the output pixels, 64 in a step.
template <class T, class Tile>
struct Conv2dWgradProduct {
  using Type = T;
  using Parameters = Conv2dWgradWgmmaParameters<T>;
  static constexpr Major kMajorA = Major::rows, kMajorB = Major::rows;
  static constexpr int kPixels = kStepBytes / sizeof(T), kSpan = kStepBytes;  // pixels of a step; bytes of a pixel in dy's copies
  const Parameters& parameters;
  int32_t channels, channel_blocks;  // of a block of columns; of a filter position
  int32_t rows, columns;
  BlockTile tile;
  int32_t begin, end, step;

  __device__ Conv2dWgradProduct(const Parameters& parameters, int32_t number)
      : parameters(parameters),
        channels(parameters.span / int32_t(sizeof(T))),
        channel_blocks(ceil_divide(parameters.C, channels)),
        rows(parameters.K),
        columns(parameters.x.vertical.taps * parameters.x.horizontal.taps * channel_blocks * channels),
        tile(rows, columns, parameters.groups, Tile::kM, Tile::kN, number),
        begin(tile.part * parameters.steps_per_split),
        end(end_of_split(begin, parameters.steps_per_split,
                         ceil_divide(parameters.N * parameters.x.vertical.pixels * parameters.x.horizontal.pixels, kPixels))),
        step(begin) {}

  __device__ static int32_t blocks(const Parameters& parameters) { return parameters.product_blocks; }

  __device__ static OperandLayout layout_a(uint32_t) { return OperandLayout::row_major(kSpan); }
  __device__ static OperandLayout layout_b(uint32_t span) { return OperandLayout::row_major(span); }

  __device__ static void prefetch(const Parameters& parameters) {
    prefetch_tensor_map(parameters.x.map);
    prefetch_tensor_map(parameters.dy);
  }

  // Starts the copies of the next step's pixels.
  __device__ void fetch(unsigned char* a, unsigned char* b, uint64_t* barrier) {
    const Pixel pixel(parameters.x, step * kPixels);
    const int32_t line = parameters.x.horizontal.pixels, plane = parameters.x.vertical.pixels * line,
                  rest = step * kPixels - pixel.n * plane;
    for (int row = 0; row < Tile::kM; row += kSpan / int(sizeof(T)))
      copy_im2col(a + row * kStepBytes, parameters.dy, tile.group * parameters.K + tile.row + row, rest % line, rest / line,
                  pixel.n, 0, 0, barrier);
    DepthBlock block(tile.column / channels, channel_blocks, channels, parameters.x.horizontal.taps);
    for (int column = 0; column < Tile::kN; column += channels) {
      // A block beyond the last column is copied from channels beyond the last one, which arrive as zeros.
      const bool block_exists = block.r < parameters.x.vertical.taps;
      const int32_t channel = block_exists ? tile.group * parameters.C + block.channel : parameters.groups * parameters.C;
      copy_im2col(b + column * kStepBytes, parameters.x.map, channel, pixel.w, pixel.h, pixel.n,
                  block_exists ? block.s * parameters.x.horizontal.step : 0,
                  block_exists ? block.r * parameters.x.vertical.step : 0, barrier);
      block.next(channels, parameters.C, parameters.x.horizontal.taps);
    }
    ++step;
  }

  // Describes where a warpgroup's part of the tile goes: to dw, or to the sums of its split.
  __device__ void describe(WgmmaMemory<Tile>& memory, int group_row, int group_column) const {
    if (parameters.gradient.dw) {
      const Taps taps(parameters.x.vertical.taps, parameters.x.horizontal.taps, channel_blocks * channels, true);
      destination_of<FilterResult<T>>(memory) = {.result = FilterResult<T>(parameters.gradient, tile.group, taps),
                                                 .row = tile.row + group_row,
                                                 .column = tile.column + group_column};
      return;
    }
    const int64_t first = (int64_t(tile.part) * parameters.groups + tile.group) * parameters.K;
    destination_of<SumResult<float>>(memory) = {.result = {.data = parameters.sums + first * columns,
                                                           .rows = parameters.K,
                                                           .columns = columns,
                                                           .accumulate = parameters.accumulate != 0},
                                                .row = tile.row + group_row,
                                                .column = tile.column + group_column};
  }

  template <int kFragments, int kCount>
  __device__ static void store(const Parameters& parameters, WgmmaMemory<Tile>& memory, const float (&sums)[kFragments][kCount],
                               int32_t) {
    if (parameters.gradient.dw)
      store_sums<FilterResult<T>>(memory, sums, parameters.walk);
    else
      store_sums<SumResult<float>>(memory, sums, Walk::column_pieces);
  }

  // Computes the part of the bias gradient that belongs to a block beyond those of the product.
  __device__ static void sum_bias_gradient(const Parameters& parameters) {
    const OutputGradient<T> dy{.data = parameters.dy_data,
                               .stride = parameters.dy_stride,
                               .N = parameters.N,
                               .height = parameters.x.vertical.pixels,
                               .width = parameters.x.horizontal.pixels,
                               .groups = parameters.groups,
                               .channels = parameters.K};
    sum_pixels<Tile::kThreads, 16 / int(sizeof(T))>(parameters, dy, parameters.steps_per_split * kPixels, false);
  }
};

template <class T, class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_fprop_wgmma_kernel(const __grid_constant__ Conv2dWgmmaParameters<T, Epilogue, 1> parameters) {
  wgmma_gemm<Tile, Conv2dImageProduct<T, Epilogue, 1, Tile, Major::depth>>(parameters);
}

// The packed filter lies in memory as (K, R, S, C), so the channels C, which are the columns of the product, are contiguous. For
// TF32, wgmma needs the depth K to be contiguous, so the filter is transposed and lies in memory as (C, R, S, K).
template <class T, class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_dgrad_wgmma_kernel(const __grid_constant__ Conv2dWgmmaParameters<T, Epilogue, kMostResidues> parameters) {
  constexpr Major kMajor = sizeof(T) == 4 ? Major::depth : Major::rows;
  wgmma_gemm<Tile, Conv2dImageProduct<T, Epilogue, kMostResidues, Tile, kMajor>>(parameters);
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_wgrad_wgmma_kernel(const __grid_constant__ Conv2dWgradWgmmaParameters<T> parameters) {
  using Product = Conv2dWgradProduct<T, Tile>;
  if (int32_t(blockIdx.x) >= parameters.product_blocks) return Product::sum_bias_gradient(parameters);
  wgmma_gemm<Tile, Product>(parameters);
}
