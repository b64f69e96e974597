// The copy engine (TMA, sm_90 and later): one thread's instruction copies a box of a tensor into shared memory, by coordinates.
//
// A TensorMap describes the tensor and the box. The host makes it (kernels/tensor_map.py, platform/encode.h); a kernel takes it
// inside its parameters and passes on a reference to it there: a copy elsewhere is not one the engine can read.
//
// Tiled: the box is a block of consecutive coordinates. Im2col, of images N H W C: a row of the box is one pixel's channels, its
// rows are the pixels that a filter position meets one after the other, across the ends of lines and images; the offsets name
// the position. Coordinates go innermost first. What lies outside of the tensor arrives as zeros.
//
// In shared memory each row of the box takes `swizzle` bytes, and piece p (16 bytes) of row i lies where piece
// p ^ (i / (128 / swizzle) mod swizzle / 16) would, rows counted from a multiple of 1024 bytes: the layout that wgmma's
// descriptors name (platform/wgmma.h). The destination is on 1024 bytes, or a multiple of 8 rows from there.
//
// The mbarrier's phase counts the bytes of whole boxes, zeros included; waiting for it makes them visible, to wgmma too.
#pragma once
#include "platform/mbarrier.h"

struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

__device__ inline void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Coordinates x0 (contiguous in memory) to x3.
__device__ inline void copy_tiled(void* shared, const TensorMap& map, int32_t x0, int32_t x1, int32_t x2, int32_t x3,
                                  uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3,%4,%5}], [%6];" ::"r"(
          uint32_t(__cvta_generic_to_shared(shared))),
      "l"(&map), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(mbarrier_address(barrier))
      : "memory");
}

// The first pixel is (n, h, w) plus the offset, and lies, without the offset, inside of the map's corners.
__device__ inline void copy_im2col(void* shared, const TensorMap& map, int32_t c, int32_t w, int32_t h, int32_t n,
                                   int32_t offset_w, int32_t offset_h, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3,%4,%5}], [%6], "
      "{%7,%8};" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
      "l"(&map), "r"(c), "r"(w), "r"(h), "r"(n), "r"(mbarrier_address(barrier)), "h"(uint16_t(offset_w)), "h"(uint16_t(offset_h))
      : "memory");
}

// What this thread has written to shared memory by ordinary stores, an asynchronous copy or product that reads it sees after this
// and a barrier. Needed by every thread that wrote.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
