// The parameters of the convolution kernels; mirrored in parameters.py. Shapes and strides of tensors list dimensions in torch's
// order; shapes of sums, columns and packed copies list them in the order in memory. Strides of tensors count elements.
#pragma once
#include "conv2d/epilogue.cuh"
#include "platform/tensor_map.h"
#include "shapes.h"

// The index of a matrix, row or column, that consecutive threads advance, by one element or by one piece. A piece is an aligned
// vector of elements that are contiguous in memory; either all of them exist or none.
enum class Walk : int32_t { rows, row_pieces, columns, column_pieces };

struct Walks {
  Walk a, b, c;            // over the left operand, the right operand, the result
  int32_t channels_inner;  // whether channels are innermost in the order of the taps (Taps in matrices.cuh)
};

// The splits of the depth in fprop and dgrad. Several are used if the result has too few tiles for all multiprocessors; each of
// them then writes sums of its own, which split_k.cuh adds.
template <class T>
struct Splits {
  Accumulator<T>* sums;  // (splits, N, height, width, channels of all groups) contiguous, overwritten; unused for one split
  int32_t count, step;   // how many splits; the depth of the kernel's step, at multiples of which splits begin
};

// ---- simt and mma ------------------------------------------------------------------------------------------------------

template <class T, class Epilogue>
struct Conv2dFpropParameters {
  const T* x;  // (N, C, H, W)
  const T* w;  // (K, C/groups, R, S)
  T* y;        // (N, K, P, Q), overwritten if there is one split, not touched if there are more
  Conv2dShape shape;
  Walks walks;
  Splits<T> splits;
  Epilogue epilogue;
};

template <class T, class Epilogue>
struct Conv2dDgradParameters {
  const T* dy;  // (N, K, P, Q)
  const T* w;   // (K, C/groups, R, S)
  T* dx;        // (N, C, H, W), overwritten if there is one split, not touched if there are more
  Conv2dShape shape;
  Walks walks;
  Splits<T> splits;
  Epilogue epilogue;
};

// The gradients of filter and bias. The blocks of wgrad write them if the depth has one split and the batch one chunk, so that
// there is nothing to add; otherwise the pointers are null, and split_k.cuh writes the gradients.
template <class T>
struct FilterGradient {
  T* dw;                      // (K, C/groups, R, S), overwritten
  T* db;                      // (K) contiguous, overwritten if there are blocks for it
  int64_t stride[4];          // of dw
  int32_t channels, outputs;  // of a group of dw; either may be padded in the operands and in the sums
};

template <class T>
struct Conv2dWgradParameters {
  const T* dy;                // (N, K, P, Q)
  const T* x;                 // (N, C, H, W)
  Accumulator<T>* sums;       // (splits, K, taps), overwritten or, if `accumulate`, added to; unused if dw is written
  Accumulator<T>* bias_sums;  // (splits, K), like `sums`
  FilterGradient<T> gradient;
  Conv2dShape shape;
  Walks walks;
  int32_t splits, pixels_per_split, accumulate;
  int32_t product_blocks;  // the blocks beyond them sum the bias gradient
};

// ---- wgmma -------------------------------------------------------------------------------------------------------------

// One dimension of an image that is gathered from: for tap t, pixel i of the result reads position start + i * up + t * step.
struct Im2colAxis {
  int32_t pixels, start, up;
  int32_t taps, step;
  int32_t first, every;  // tap t is filter position first + t * every
  int32_t residue;       // dgrad: pixel i is at position i * stride + residue of dx
};

struct Im2colImage {
  TensorMap map;  // zeros if nothing is fetched
  Im2colAxis vertical, horizontal;
  __device__ bool fetched() const { return vertical.pixels && horizontal.pixels && vertical.taps && horizontal.taps; }
};

// dgrad's operands, from which sums that came out as NaN are computed again; unused in fprop.
template <class T>
struct OperandsInMemory {
  const T* dy;      // the tensor that the maps of the images describe
  const T* filter;  // the tensor that the map of the filter describes
  int64_t dy_stride[4], filter_stride[4];
  int32_t P, Q;
};

constexpr int kMostResidues = 16;  // as many as stride 4 x 4 has; their images fit into the 4 KiB of a kernel's parameters

template <class T, class Epilogue, int kImages>
struct Conv2dWgmmaParameters {
  Im2colImage images[kImages];  // fprop: x; dgrad: dy, once for each residue of the pixels of dx modulo the stride
  TensorMap filter;
  T* result;          // (N, groups * channels, height, width), overwritten if there is one split
  float* sums;        // (splits, N, height, width, groups * channels), overwritten if there are several splits
  int64_t stride[4];  // of the result
  int32_t N, height, width, groups;
  int32_t channels, depth_channels;  // of a group: those of the result, and those that are summed over
  int32_t stride_h, stride_w;        // dgrad: how many residues there are, at most height and width; fprop: 1
  int32_t span, splits, steps_per_split, tiles;
  Walk walk;  // over the result, or over the sums of several splits
  OperandsInMemory<T> operands;
  Epilogue epilogue;
};

template <class T>
struct Conv2dWgradWgmmaParameters {
  Im2colImage x;
  TensorMap dy;      // an im2col map as well, for a 1x1 filter: a box has consecutive pixels, across the ends of lines and images
  const T* dy_data;  // the tensor that this map describes, (N, groups * K, P, Q)
  int64_t dy_stride[4];
  float* sums;       // (splits, groups * K, R, S, C padded to whole spans), overwritten or, if `accumulate`, added to
  float* bias_sums;  // (splits, groups * K), like `sums`
  FilterGradient<T> gradient;
  int32_t N, groups;
  int32_t C, K;  // of a group
  int32_t span, splits, steps_per_split, tiles;
  int32_t accumulate;
  int32_t product_blocks;  // the blocks beyond them sum the bias gradient
  Walk walk;               // over dw; unused if sums are written
};

// ---- what runs before and after products -------------------------------------------------------------------------------

template <class T>
struct PackChannelsParameters {
  const T* from;             // (N, groups * channels, H, W)
  T* to;                     // (N', H, W, groups, padded) contiguous, overwritten
  int64_t stride[4];         // of `from`: N C H W
  int32_t channels, padded;  // of a group
  // Dimension N consists of runs of `images`, such as the outputs of each group of a filter; in N', a run has `padded_images`.
  int32_t images, padded_images;
  int32_t H, W, groups, pixels_first;  // pixels_first: whether pixels lie closer together in `from` than channels
};

template <class T>
struct Conv2dSumSplitsParameters {
  const Accumulator<T>* sums;       // (splits, groups * outputs, taps), taps in the order of `channels_inner`
  const Accumulator<T>* bias_sums;  // (splits, groups * outputs); unused if there are no blocks for db
  T* dw;                            // (K, C/groups, R, S), overwritten
  T* db;                            // (K) contiguous, overwritten by the blocks beyond those of dw
  Conv2dShape shape;
  int32_t splits, channels_inner;
  int32_t channels, outputs;  // of a group in `sums`; either may be padded
};

template <class T, class Epilogue>
struct Conv2dSumImageSplitsParameters {
  const Accumulator<T>* sums;  // (splits, N, H, W, channels) contiguous, aligned to 16 bytes
  T* result;                   // (N, channels, H, W), overwritten
  int64_t stride[4];           // of `result`: N C H W
  int32_t N, channels, H, W, splits;
  Epilogue epilogue;
};

// Here and in Col2imParameters, P and Q of the shape count window positions along H and W. Its w_stride, y_stride, K and groups
// are unused.
template <class T>
struct Im2colParameters {
  const T* x;  // (N, C, H, W)
  T* columns;  // (N, C*R*S, P*Q) contiguous, overwritten
  Conv2dShape shape;
};

template <class T>
struct Col2imParameters {
  const T* columns;  // (N, C*R*S, P*Q) contiguous
  T* x;              // (N, C, H, W), overwritten
  Conv2dShape shape;
};
