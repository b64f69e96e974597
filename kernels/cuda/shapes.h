// Structs for the geometry of the ops, which the parameters of many kernels contain. kernels/shapes.py mirrors them.
//
// The project uses these letters for extents:
//   convolution, pooling   N batch, C input channels, H W input, K output channels, R S filter, P Q output
//   recurrence             T steps, N batch, I input size, H hidden size
// Gradients are dx, dw, dh, ... In these structs, extents and the stride, padding and dilation of a window are int32; the strides
// of tensors are int64 and count elements.
#pragma once
#include <platform/types.h>  // not in quotes, which would find the file next to this one before the emulator's

struct Conv2dShape {
  int32_t N, C, H, W, K, R, S, P, Q;                                         // C and K count the channels of all groups
  int32_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;  // pad_h above, pad_w on the left
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
