// Stands in for kernels/cuda/platform/encode.h: the same struct, without a driver to ask (runtime/tensor_map.cpp).
#pragma once
#include <cstdint>

struct TensorMapSpec {
  const void* address;
  uint64_t extent[4], stride[3];
  uint32_t box[4], element_stride[4];
  int32_t lower[2], upper[2];
  uint32_t channels, pixels;
  int32_t type, swizzle, im2col;
};
