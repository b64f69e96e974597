// TMA, the Tensor Memory Accelerator (sm_90 and later): one thread's instruction copies a box of a tensor into shared memory.
//
// A TensorMap describes the tensor and the box. The host encodes it (kernels/tensor_map.py, platform/encode.h). A kernel receives
// the TensorMap in its parameters and must refer to it there, because TMA cannot read a copy in local memory.
//
// A tiled box is a range of coordinates in each dimension. In an im2col box, for images in N H W C, a row holds channels of one
// pixel. The rows are the pixels under one filter position, which the offsets select, in the order of the outputs; they continue
// across the ends of lines and images. Coordinates are passed innermost first. Positions outside of the tensor become zeros.
//
// In shared memory each row of the box occupies `swizzle` bytes. The 16 bytes with index p in row i are stored at index
// p ^ ((i / (128 / swizzle)) mod (swizzle / 16)), where i counts rows from a multiple of 1024 bytes. wgmma's descriptors describe
// this layout (platform/wgmma.h). The destination lies at a multiple of 1024 bytes, or a multiple of 8 rows after one.
//
// The mbarrier's phase counts the bytes of the whole box, zeros included. After a wait for the phase, the data is visible.
#pragma once
#include "platform/mbarrier.h"

struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

__device__ inline void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// x0 is the coordinate of the contiguous dimension.
__device__ inline void copy_tiled(void* shared, const TensorMap& map, int32_t x0, int32_t x1, int32_t x2, int32_t x3,
                                  uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3,%4,%5}], [%6];" ::"r"(
          uint32_t(__cvta_generic_to_shared(shared))),
      "l"(&map), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(mbarrier_address(barrier))
      : "memory");
}

// The first pixel is (n, h, w) plus the offset; (h, w) itself lies in the range that `lower` and `upper` of the map bound.
__device__ inline void copy_im2col(void* shared, const TensorMap& map, int32_t c, int32_t w, int32_t h, int32_t n,
                                   int32_t offset_w, int32_t offset_h, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3,%4,%5}], [%6], "
      "{%7,%8};" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
      "l"(&map), "r"(c), "r"(w), "r"(h), "r"(n), "r"(mbarrier_address(barrier)), "h"(uint16_t(offset_w)), "h"(uint16_t(offset_h))
      : "memory");
}

// Orders this thread's ordinary writes to shared memory before the asynchronous copies and products that follow a barrier. Every
// thread that has written memory which those copies and products access executes the fence before that barrier.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
