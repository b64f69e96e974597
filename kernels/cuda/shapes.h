// The geometry of each op, passed by value inside a kernel's parameter struct and mirrored in kernels/shapes.py.
//
// Letters, everywhere in this project:
//   convolution, pooling   N batch, C input channels, H W input, K output channels, R S filter, P Q output
//   recurrence             T steps, N batch, I input size, H hidden size
// Gradients are dx, dw, dh, ... Extents are int32; strides, products and offsets are int64, in elements.
#pragma once
#include <platform/types.h>  // not by quotes: they would find the file beside this one before a stand-in for it

struct Conv2dShape {
  int32_t N, C, H, W, K, R, S, P, Q;                                         // C and K of all groups together
  int32_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;  // pad: above and to the left
  int64_t x_stride[4];                                                       // N C H W
  int64_t w_stride[4];                                                       // K C/groups R S
  int64_t y_stride[4];                                                       // N K P Q
};

struct MaxPool2dShape {
  int32_t N, C, H, W, R, S, P, Q;
  int32_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t x_stride[4];  // N C H W
  int64_t y_stride[4];  // N C P Q
};

struct RnnShape {
  int32_t T, N, I, H;
};
