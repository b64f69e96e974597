// The three directions of convolution for wgmma.cuh: for each tile what the copy engine fetches, and where the sums
// go. The host describes the images and the filter as tensor maps and computes every position (im2col_maps.py).
//
// The depth of fprop and dgrad is a sequence of blocks, a filter position and as many channels of it as a span holds, of which a
// step takes as many as make 128 bytes. Channels beyond the last arrive as zeros on both sides. Blocks beyond the last do as
// well: the copies are made all the same, so that every step has its bytes, of channels beyond the tensor's last one. An image
// beyond the last one would not do: what comes of an im2col copy that starts in it no manual says.
#pragma once
#include "conv2d/wgmma.cuh"
#include "conv2d/sum_again.cuh"

// One dimension of an image that is gathered from: pixel i of the result and tap t meet at start + i * up + t * step.
struct Im2colAxis {
  int32_t pixels, start, up;
  int32_t taps, step;
  int32_t first, every;  // tap t is filter position first + t * every
  int32_t residue;       // of the result: its pixel i is line i * (the gradient's stride) + residue
};

struct Im2colImage {
  TensorMap map;  // none where nothing is fetched
  Im2colAxis vertical, horizontal;
  __device__ bool fetched() const { return vertical.pixels && horizontal.pixels && vertical.taps && horizontal.taps; }
};

// A divisor, of what there may be none of: then the quotient is not used.
__device__ inline int32_t at_least_one(int32_t count) { return count > 0 ? count : 1; }

// A split may have no steps: the other residues, or images, have more.
__device__ inline int32_t end_of_split(int32_t begin, int32_t steps, int32_t all) {
  return begin + steps < all ? begin + steps : begin < all ? all : begin;
}

// A pixel as the copy engine names it.
struct Pixel {
  int32_t n, h, w;

  // The pixels of each image come one after the other, line by line.
  __device__ Pixel(const Im2colImage& image, int32_t index) {
    const int32_t line = at_least_one(image.horizontal.pixels), plane = line * at_least_one(image.vertical.pixels);
    const int32_t rest = index % plane;
    n = index / plane;
    h = image.vertical.start + rest / line * image.vertical.up;
    w = image.horizontal.start + rest % line * image.horizontal.up;
  }
};

// Walks over blocks: channels first, then filter positions along a line, then lines.
struct BlockWalk {
  int32_t channel, s, r;

  __device__ BlockWalk(int32_t block, int32_t channel_blocks, int32_t channels, int32_t taps_w)
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

// dgrad's operands as they lie in memory, for the sums that came out as NaN; unused in fprop.
template <class T>
struct OperandsInMemory {
  const T* dy;      // packed
  const T* filter;  // as its map has it
  int64_t dy_stride[4], filter_stride[4];
  int32_t P, Q;
};

template <class T, class Epilogue, int kImages>
struct Conv2dWgmmaParameters {
  Im2colImage images[kImages];  // x; or dy, once for each residue of the pixels of dx modulo the stride
  TensorMap filter;
  T* result;          // (N, groups * channels, height, width), overwritten, unless there are splits
  float* sums;        // (splits, N, height, width, groups * channels), overwritten if there are
  int64_t stride[4];  // of the result
  int32_t N, height, width, groups;
  int32_t channels, depth_channels;  // of a group: the result's, and those summed over
  int32_t stride_h, stride_w;        // whose residues there are, at most height and width; 1 in fprop
  int32_t span, splits, steps_per_split, tiles;
  Walk walk;  // over the result, or over the sums
  OperandsInMemory<T> operands;
  Epilogue epilogue;
};

// What sums of splits are stored by: nothing is done to them yet. Of TF32 they are of the result's type, and by an epilogue of
// its type, which without a bias does nothing, the same code stores both.
template <class T, class Epilogue>
struct EpilogueOfSums {
  using type = NoEpilogue<float>;
};
template <class Epilogue>
struct EpilogueOfSums<float, Epilogue> {
  using type = Epilogue;
};

// fprop and dgrad: rows are pixels of the result, columns its channels. kMajor: of the filter in memory, which is Major::depth
// where the channels summed over are contiguous.
template <class T, class Epilogue, int kImages, class Tile, Major kMajor>
struct Conv2dImageProduct {
  using Type = T;
  using Parameters = Conv2dWgmmaParameters<T, Epilogue, kImages>;
  static constexpr Major kMajorA = Major::depth, kMajorB = kMajor;
  static constexpr bool kGathersFromDy = kImages > 1;
  const Parameters& of;
  BlockTile tile;
  const Im2colImage& image;
  int32_t channels, channel_blocks, rows, begin, end;  // channels: of a block
  Pixel pixel;
  BlockWalk block;

  __device__ Conv2dImageProduct(const Parameters& of, int32_t number)
      : of(of),
        tile(of.N * ceil_divide(of.height, of.stride_h) * ceil_divide(of.width, of.stride_w), of.channels, of.groups, Tile::kM,
             Tile::kN, number),
        image(of.images[tile.part / of.splits]),
        channels(of.span / int32_t(sizeof(T))),
        channel_blocks(ceil_divide(of.depth_channels, channels)),
        rows(of.N * image.vertical.pixels * image.horizontal.pixels),
        begin(tile.part % of.splits * of.steps_per_split),
        end(tile.row < rows ? end_of_split(begin, of.steps_per_split, all_steps()) : begin),
        pixel(image, tile.row),
        block(begin * blocks_per_step(), channel_blocks, channels, at_least_one(image.horizontal.taps)) {}

  __device__ int32_t blocks_per_step() const { return kStepBytes / of.span; }
  __device__ int32_t all_steps() const {
    return ceil_divide(image.vertical.taps * image.horizontal.taps * channel_blocks, blocks_per_step());
  }

  __device__ static OperandLayout layout_a(uint32_t span) { return OperandLayout::depth_major(span, Tile::kM); }
  __device__ static OperandLayout layout_b(uint32_t span) {
    return kMajor == Major::depth ? OperandLayout::depth_major(span, Tile::kN) : OperandLayout::row_major(kStepBytes);
  }

  __device__ static void prefetch(const Parameters& of) {
    for (int i = 0; i < of.stride_h * of.stride_w; ++i)
      if (of.images[i].fetched()) prefetch_tensor_map(of.images[i].map);
    prefetch_tensor_map(of.filter);
  }

  // The next step's blocks.
  __device__ void fetch(unsigned char* a, unsigned char* b, uint64_t* barrier) {
    const int32_t depth_begin = tile.group * of.depth_channels;
    for (int i = 0; i < blocks_per_step(); ++i) {
      const bool there = block.r < image.vertical.taps;
      const int32_t channel = there ? depth_begin + block.channel : of.groups * of.depth_channels;
      copy_im2col(a + i * Tile::kM * of.span, image.map, channel, pixel.w, pixel.h, pixel.n,
                  there ? block.s * image.horizontal.step : 0, there ? block.r * image.vertical.step : 0, barrier);
      const int32_t s = image.horizontal.first + block.s * image.horizontal.every,
                    r = image.vertical.first + (there ? block.r : 0) * image.vertical.every;
      if constexpr (kMajor == Major::depth) {
        copy_tiled(b + i * Tile::kN * of.span, of.filter, there ? block.channel : of.depth_channels, s, r,
                   tile.group * of.channels + tile.column, barrier);
      } else {
        for (int column = 0; column < Tile::kN; column += kStepBytes / int(sizeof(T)))
          copy_tiled(b + column * kStepBytes + i * channels * kStepBytes, of.filter, tile.column + column, s, r, channel,
                     barrier);
      }
      block.next(channels, of.depth_channels, image.horizontal.taps);
    }
  }

  template <class Stored, class Each>
  __device__ ImageResult<Stored, Each> result(Stored* data, const int64_t (&stride)[4], const Each& epilogue) const {
    return {data,
            stride,
            of.N,
            of.channels,
            tile.group,
            image.vertical.pixels,
            image.horizontal.pixels,
            of.stride_h,
            of.stride_w,
            image.vertical.residue,
            image.horizontal.residue,
            epilogue};
  }

  using Whole = ImageResult<T, Epilogue>;
  using Sums = ImageResult<float, typename EpilogueOfSums<T, Epilogue>::type>;

  __device__ Whole whole() const { return result(of.result, of.stride, of.epilogue); }
  // This tile's split, an image of floats.
  __device__ Sums split_sums() const {
    const int64_t all = int64_t(of.groups) * of.channels, line = of.width * all, plane = of.height * line;
    const int64_t stride[4] = {plane, 1, line, all};
    return result(of.sums + tile.part % of.splits * of.N * plane, stride, typename Sums::Policy{});
  }

  // Where this tile is in the result, or in its split's sums.
  __device__ void describe(WgmmaMemory<Tile>& memory, int group_row, int group_column) const {
    if (of.splits == 1)
      place_of<Whole>(memory) = Place<Whole>{whole(), tile.row + group_row, tile.column + group_column};
    else
      place_of<Sums>(memory) = Place<Sums>{split_sums(), tile.row + group_row, tile.column + group_column};
  }

  // Whether one of a warp's sums is NaN. It waits in shared memory: no register is free for it while the sums are stored.
  template <int kFragments, int kCount>
  __device__ static void note_nan(int32_t& nan, const float (&sums)[kFragments][kCount]) {
    bool mine = false;
#pragma unroll
    for (int m = 0; m < kFragments; ++m)
#pragma unroll
      for (int i = 0; i < kCount; ++i) mine |= is_nan(sums[m][i]);
    const bool any = __any_sync(0xffffffff, mine);
    __syncwarp();                          // every lane has read what it was of the tile before
    if (threadIdx.x % 32 == 0) nan = any;  // the warp reads it behind the barriers of storing
  }

  template <int kFragments, int kCount>
  __device__ static void store(const Parameters& of, WgmmaMemory<Tile>& memory, const float (&sums)[kFragments][kCount],
                               int32_t number) {
    int32_t& nan = memory.nan[threadIdx.x / 32];
    if constexpr (kGathersFromDy) note_nan(nan, sums);
    if (sizeof(T) == 4 || of.splits == 1)
      store_sums<Whole>(memory, sums, of.walk);
    else
      store_sums<Sums>(memory, sums, of.walk);
    if constexpr (kGathersFromDy) {
      if (!nan) return;
      // Described anew: the next tile's place may stand in shared memory already.
      const Conv2dImageProduct product(of, computed_again(number));
      if (of.splits == 1)
        product.sum_nan_again(product.whole());
      else
        product.sum_nan_again(product.split_sums());
    }
  }

  // The warp's part of the tile, which sum_again.cuh explains.
  template <class Result>
  __device__ void sum_nan_again(const Result& result) const {
    const int thread = int(threadIdx.x) % 128, warp = thread / 32, group = int(threadIdx.x) / 128;
    const int group_row = group / Tile::kAcross * Tile::kGroupM, group_column = group % Tile::kAcross * Tile::kGroupN;
#pragma unroll 1
    for (int index = thread % 32; index < Tile::kGroupM / 4 * Tile::kGroupN; index += 32) {
      const int fragment_row = index / Tile::kGroupN;  // of the warp's, 16 of every 64
      const int32_t row = tile.row + group_row + fragment_row / 16 * 64 + 16 * warp + fragment_row % 16;
      const int32_t column = tile.column + group_column + index % Tile::kGroupN;
      if (row >= rows || column >= of.channels) continue;
      typename Result::Stored* const stored = result.data + result.row(row) + result.column(column);
      if (is_nan(*stored)) *stored = result.narrowed(sum_of_existing(row, column), column);
    }
  }

  // This split's part of one element: only over what of dy there is. TF32's operands count with all of their bits.
  __device__ float sum_of_existing(int32_t row, int32_t column) const {
    const OperandsInMemory<T>& operands = of.operands;
    const int64_t (&filter)[4] = operands.filter_stride;
    const int32_t first_depth = tile.group * of.depth_channels;
    const int64_t depth_step = filter[kMajor == Major::depth ? 1 : 0];
    const T* const filters = operands.filter + (kMajor == Major::depth ? (tile.group * of.channels + column) * filter[0]
                                                                       : first_depth * filter[0] + column * filter[1]);
    const Pixel at(image, row);
    BlockWalk walk = block;
    float sum = 0;
#pragma unroll 1
    for (int32_t left = (end - begin) * blocks_per_step(); left > 0 && walk.r < image.vertical.taps && sum == sum; --left) {
      const int32_t h = at.h + walk.r * image.vertical.step, w = at.w + walk.s * image.horizontal.step;
      if (uint32_t(h) < uint32_t(operands.P) && uint32_t(w) < uint32_t(operands.Q)) {
        const int32_t r = image.vertical.first + walk.r * image.vertical.every,
                      s = image.horizontal.first + walk.s * image.horizontal.every;
        const T* dy = operands.dy + at.n * operands.dy_stride[0] + first_depth + walk.channel + h * operands.dy_stride[2] +
                      w * operands.dy_stride[3];
        const T* weight = filters + walk.channel * depth_step + r * filter[2] + s * filter[3];
        const int32_t count = walk.channel + channels < of.depth_channels ? channels : of.depth_channels - walk.channel;
#pragma unroll 1
        for (int32_t c = 0; c < count && sum == sum; ++c) sum += widen(dy[c]) * widen(weight[c * depth_step]);
      }
      walk.next(channels, of.depth_channels, image.horizontal.taps);
    }
    return sum;
  }
};

template <class T>
struct Conv2dWgradWgmmaParameters {
  Im2colImage x;
  TensorMap dy;  // im2col as well, of a 1x1 filter: pixels in their order, whatever lies between lines and images
  float* sums;   // (splits, groups * K, taps), overwritten, or added to; channels of a tap are padded to whole blocks
  int32_t N, groups;
  int32_t C, K;  // of a group
  int32_t span, splits, steps_per_split, tiles;
  int32_t accumulate;
};

// wgrad: rows are output channels, columns blocks of a filter position's channels; the depth is the pixels, 64 a step.
template <class T, class Tile>
struct Conv2dWgradProduct {
  using Type = T;
  using Parameters = Conv2dWgradWgmmaParameters<T>;
  static constexpr Major kMajorA = Major::rows, kMajorB = Major::rows;
  static constexpr int kPixels = kStepBytes / sizeof(T), kSpan = kStepBytes;  // kSpan: of dy's channels
  const Parameters& of;
  int32_t channels, channel_blocks;  // channels: of a block of columns
  int32_t rows, columns;
  BlockTile tile;
  int32_t begin, end, step;

  __device__ Conv2dWgradProduct(const Parameters& of, int32_t number)
      : of(of),
        channels(of.span / int32_t(sizeof(T))),
        channel_blocks(ceil_divide(of.C, channels)),
        rows(of.K),
        columns(of.x.vertical.taps * of.x.horizontal.taps * channel_blocks * channels),
        tile(rows, columns, of.groups, Tile::kM, Tile::kN, number),
        begin(tile.part * of.steps_per_split),
        end(end_of_split(begin, of.steps_per_split, ceil_divide(of.N * of.x.vertical.pixels * of.x.horizontal.pixels, kPixels))),
        step(begin) {}

  __device__ static OperandLayout layout_a(uint32_t) { return OperandLayout::row_major(kSpan); }
  __device__ static OperandLayout layout_b(uint32_t span) { return OperandLayout::row_major(span); }

  __device__ static void prefetch(const Parameters& of) {
    prefetch_tensor_map(of.x.map);
    prefetch_tensor_map(of.dy);
  }

  // The next step's pixels.
  __device__ void fetch(unsigned char* a, unsigned char* b, uint64_t* barrier) {
    const Pixel pixel(of.x, step * kPixels);
    const int32_t line = of.x.horizontal.pixels, plane = of.x.vertical.pixels * line, rest = step * kPixels - pixel.n * plane;
    for (int row = 0; row < Tile::kM; row += kSpan / int(sizeof(T)))
      copy_im2col(a + row * kStepBytes, of.dy, tile.group * of.K + tile.row + row, rest % line, rest / line, pixel.n, 0, 0,
                  barrier);
    BlockWalk block(tile.column / channels, channel_blocks, channels, of.x.horizontal.taps);
    for (int column = 0; column < Tile::kN; column += channels) {
      const bool there = block.r < of.x.vertical.taps;
      const int32_t channel = there ? tile.group * of.C + block.channel : of.groups * of.C;
      copy_im2col(b + column * kStepBytes, of.x.map, channel, pixel.w, pixel.h, pixel.n,
                  there ? block.s * of.x.horizontal.step : 0, there ? block.r * of.x.vertical.step : 0, barrier);
      block.next(channels, of.C, of.x.horizontal.taps);
    }
    ++step;
  }

  __device__ void describe(WgmmaMemory<Tile>& memory, int group_row, int group_column) const {
    const int64_t first = (int64_t(tile.part) * of.groups + tile.group) * of.K;
    place_of<SumResult<float>>(memory) = {
        {of.sums + first * columns, of.K, columns, of.accumulate != 0}, tile.row + group_row, tile.column + group_column};
  }

  template <int kFragments, int kCount>
  __device__ static void store(const Parameters&, WgmmaMemory<Tile>& memory, const float (&sums)[kFragments][kCount], int32_t) {
    store_sums<SumResult<float>>(memory, sums, Walk::column_pieces);
  }
};

template <class T, class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_fprop_wgmma_kernel(const __grid_constant__ Conv2dWgmmaParameters<T, Epilogue, 1> parameters) {
  wgmma_gemm<Tile, Conv2dImageProduct<T, Epilogue, 1, Tile, Major::depth>>(parameters);
}

constexpr int kMostResidues = 16;  // strides up to 4 x 4: their maps fit a kernel's 4 KiB of parameters

// The filter (K, C, R, S) as it is has C contiguous, which are columns of the product here. TF32 takes it turned, (C, K, R, S).
template <class T, class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_dgrad_wgmma_kernel(const __grid_constant__ Conv2dWgmmaParameters<T, Epilogue, kMostResidues> parameters) {
  constexpr Major kMajor = sizeof(T) == 4 ? Major::depth : Major::rows;
  wgmma_gemm<Tile, Conv2dImageProduct<T, Epilogue, kMostResidues, Tile, kMajor>>(parameters);
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_wgrad_wgmma_kernel(const __grid_constant__ Conv2dWgradWgmmaParameters<T> parameters) {
  wgmma_gemm<Tile, Conv2dWgradProduct<T, Tile>>(parameters);
}
