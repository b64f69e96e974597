// The parameter structs of the recurrent kernels; parameters.py mirrors them. Extents are named as in shapes.h; D is the number
// of directions, and direction 1 runs backwards in time. Strides are in elements, and the last dimension of every tensor but w
// is contiguous.
#pragma once
#include "rnn/elman.cuh"
#include "shapes.h"

// Strides of a (T, N, D*H) tensor. For packed data, both are the stride between rows, and step_offsets[t] replaces the index t.
struct StepStride {
  int64_t t, n;
};

// The matrix of one direction, (H, H), with any strides.
template <class T>
struct RnnMatrix {
  const T* data;
  int64_t row, column;  // strides
};

// One pass over a layer. The forward pass reads z and h0 and writes h and h_n; the backward pass reads dh, dh_n and h and writes
// dz and dh0. Every element of an output is written; in padded data, the steps past a sample's length are 0. An input that is
// null stands for zeros, and an output that is null is not computed; z, h and dz are never null in the pass that uses them.
template <class T>
struct RnnParameters {
  const T* z;                   // (T, N, D*H): W_ih x + b_ih + b_hh
  const T* h0;                  // (D, N, H), or null
  T* h;                         // (T, N, D*H)
  T* h_n;                       // (D, N, H), or null: h of the step computed last; h0 for a sample without steps
  const T* dh;                  // (T, N, D*H), or null
  const T* dh_n;                // (D, N, H), or null: the gradient of h_n, which is not part of dh
  T* dz;                        // (T, N, D*H)
  T* dh0;                       // (D, N, H), or null
  RnnMatrix<T> w[2];            // of each direction: W_hh in the forward pass, its transpose in the backward pass
  const int64_t* lengths;       // (N), clamped to [0, T]; null: every sample has T steps
  const int64_t* step_offsets;  // (T): the first row of each step of packed data; null: padded data
  StepStride z_stride, h_stride, dh_stride, dz_stride;
  int32_t aligned_w;      // whether rows of w start at multiples of 16 bytes, have a column stride of 1 and end, or are
                          // padded with zeros to end, at multiples of 16 bytes; rnn_step_kernel requires it
  int32_t aligned_state;  // whether every row of h0 and h, or of dz, starts and ends at multiples of 16 bytes
  int32_t products;       // how often the state is multiplied by W: T times, and once more if dh0 is wanted
  int32_t step;           // which step this launch computes; only rnn_step_kernel reads it
  int32_t D;
  RnnShape shape;
  ElmanCell cell;
};

// One step on its own. Forward reads x, h, the weights and biases and writes h_next; backward reads dh_next, h_next and the
// weights and writes dz, dx and dh.
template <class T>
struct RnnCellParameters {
  const T* x;                                                                           // (N, I)
  const T* h;                                                                           // (N, H)
  const T* w_ih;                                                                        // (H, I)
  const T* w_hh;                                                                        // (H, H)
  const T* b_ih;                                                                        // (H), or null
  const T* b_hh;                                                                        // (H), or null
  T* h_next;                                                                            // (N, H)
  const T* dh_next;                                                                     // (N, H)
  T* dz;                                                                                // (N, H)
  T* dx;                                                                                // (N, I)
  T* dh;                                                                                // (N, H)
  int64_t x_stride, h_stride, w_ih_stride, w_hh_stride, h_next_stride, dh_next_stride;  // from row to row
  RnnShape shape;
  int32_t aligned;  // whether every row that the pass reads starts and ends at multiples of 16 bytes
  ElmanCell cell;
};
