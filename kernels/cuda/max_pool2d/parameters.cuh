// The parameter structs of the max pooling kernels. parameters.py mirrors them.
#pragma once
#include "shapes.h"

// A dense tensor of planes x rows x columns x inner elements, of which the last dimension is contiguous. A contiguous tensor has
// N * C planes and inner = 1; a channels_last tensor has N planes and inner = C.
struct MaxPool2dDense {
  int64_t planes;
  int32_t inner;
  int32_t planes_per_block, rows_per_block;  // for staged: a block computes whole planes, or a band of one plane's rows
};

template <class T, class Offset>
struct MaxPool2dForwardParameters {
  const T* x;              // [N, C, H, W]; the contract of each variant says which strides it accepts
  T* y;                    // [N, C, P, Q], dense
  Offset* offsets;         // laid out like y; null if they are not wanted
  const int64_t* lengths;  // [N]: how many rows of each image are pooled, clamped to [0, H]; null: all. staged ignores it
  MaxPool2dShape shape;
  MaxPool2dDense dense;  // describes y; rows_per_block counts output rows
};

template <class T, class Offset>
struct MaxPool2dBackwardParameters {
  const T* dy;            // [N, C, P, Q], dense
  const Offset* offsets;  // laid out like dy
  T* dx;                  // [N, C, H, W], dense, in the memory format of dy
  MaxPool2dShape shape;
  MaxPool2dDense dense;  // describes dx; rows_per_block counts rows of pixel blocks
};

template <class T, class Offset>
struct MaxPool2dGatherParameters {
  const T* ddx;           // [N, C, H, W], dense
  const Offset* offsets;  // [N, C, P, Q], dense, in the memory format of ddx, at a multiple of 16 bytes
  T* ddy;                 // laid out like offsets, at a multiple of 16 bytes
  MaxPool2dShape shape;
  MaxPool2dDense dense;  // describes ddy
};

template <class Offset>
struct MaxPool2dIndicesParameters {
  const Offset* offsets;  // [N, C, P, Q], dense
  int64_t* indices;       // laid out like offsets, at a multiple of 16 bytes
  MaxPool2dShape shape;
  MaxPool2dDense dense;  // describes indices
};
