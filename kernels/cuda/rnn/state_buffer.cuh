// The state of column tiles in shared memory.
#pragma once
#include "rnn/sequence.cuh"
#include "rnn/tile.cuh"

// Buffers of 8 samples by H, one row for each sample. The 16-byte pieces of a row are permuted so that bank conflicts occur
// neither in the loads of a quarter-warp (64 bytes of each of two rows) nor, in 16 bits, in the stores of a warp (16 bytes of
// each of the rows 0 2 4 6, or 1 3 5 7).
template <class T>
struct StateBuffers {
  unsigned char* bytes;
  int pitch;  // bytes of a row, a multiple of 128

  __device__ StateBuffers(unsigned char* bytes, int H) : bytes(bytes), pitch((H * int(sizeof(T)) + 127) / 128 * 128) {}
  __device__ int buffer_bytes() const { return kTileColumns * pitch; }
  __device__ T* at(int buffer, int sample, int k) const {
    const int piece = k * int(sizeof(T)) / kLaneBytes, permuted = piece ^ ((sample & 1) << 2 | sample >> 1);
    unsigned char* row = bytes + buffer * buffer_bytes() + sample * pitch;
    return reinterpret_cast<T*>(row + permuted * kLaneBytes) + k % (kLaneBytes / int(sizeof(T)));
  }
  // This lane's 16 bytes of the product's operand B, from element k of column lane_group() on.
  template <class Math>
  __device__ Fragment<Math> fragment(int buffer, int k) const {
    Fragment<Math> fragment;
    fragment.bits = *reinterpret_cast<const uint4*>(at(buffer, lane_group(), k));
    return fragment;
  }
  // The whole block fills a buffer with the initial state of eight samples, or with zeros if `initial` is null. Elements past H
  // become 0, because the last chunk is read whole.
  __device__ void fill(int buffer, const RnnParameters<T>& p, const T* initial, int direction, int first_sample) const {
    const int width = pitch / int(sizeof(T));
    for (int i = int(threadIdx.x); i < kTileColumns * width; i += int(blockDim.x)) {
      const int sample = i / width, unit = i % width, n = first_sample + sample;
      const bool inside = initial && unit < p.shape.H && n < p.shape.N;
      *at(buffer, sample, unit) = inside ? initial[element_offset(p, direction, n, unit)] : T{};
    }
  }
};
