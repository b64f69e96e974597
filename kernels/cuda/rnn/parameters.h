// What the recurrent kernels take; mirrored in variants.py. Extents as in shapes.h; D directions, direction 1 walks backwards
// in time. Strides in elements; the last dimension of every tensor is contiguous.
#pragma once
#include "rnn/elman.cuh"
#include "shapes.h"

struct StepStride {  // of a (T, N, D*H) tensor; packed: step_offsets[t] stands for t, and both are the row's
  int64_t t, n;
};

// One pass over a layer. Forward reads z and h0 and writes h; backward reads dh and h and writes dz and dh0. All outputs are
// overwritten, past a sample's length with 0.
template <class T>
struct RnnParameters {
  const T* z;                   // (T, N, D*H): W_ih x + b_ih + b_hh
  const T* h0;                  // (D, N, H)
  T* h;                         // (T, N, D*H)
  const T* dh;                  // (T, N, D*H)
  T* dz;                        // (T, N, D*H)
  T* dh0;                       // (D, N, H)
  const T* w;                   // (D, H, w_stride): the product's matrix: W_hh forward, its transpose backward; rows are outputs
  const int64_t* lengths;       // (N), clamped to [0, T]; null: all T
  const int64_t* step_offsets;  // (T), packed: the first row of each step; null: padded
  StepStride z_stride, h_stride, dh_stride, dz_stride;
  int32_t w_stride;       // H, rounded up with zeros to whole 16 bytes
  int32_t aligned_carry;  // every row of the tensors that carry the state (h0 and h, or dz) starts on 16 bytes
  int32_t step;           // of a kernel that makes one step per launch
  int32_t D;
  RnnShape shape;
  ElmanCell cell;
};

template <class T>
struct RnnCellParameters {
  const T* x;                                                                           // (N, I)
  const T* h;                                                                           // (N, H)
  const T* w_ih;                                                                        // (H, I)
  const T* w_hh;                                                                        // (H, H)
  const T* b_ih;                                                                        // (H), or null
  const T* b_hh;                                                                        // (H), or null
  T* h_next;                                                                            // (N, H): written forward, read backward
  const T* dh_next;                                                                     // (N, H)
  T* dz;                                                                                // (N, H)
  T* dx;                                                                                // (N, I)
  T* dh;                                                                                // (N, H)
  int64_t x_stride, h_stride, w_ih_stride, w_hh_stride, h_next_stride, dh_next_stride;  // from row to row
  RnnShape shape;
  int32_t aligned;  // every row of x, h, w_ih, w_hh, h_next and dh_next starts on 16 bytes
  ElmanCell cell;
};
