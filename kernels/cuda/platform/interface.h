// The structs of the C interface (launch.cu), without a header of the toolkit: the emulator has the same.
#pragma once
#include <cstdint>

// Mirrored by kernels/table.py.
struct LaunchConfig {
  uint32_t grid[3], block[3], cluster[3], shared_bytes, cooperative;
};

// Mirrored by kernels/tensor_map.py. Arrays begin with the dimension that is contiguous in memory.
struct TensorMapSpec {
  const void* address;                 // of element 0, on 16 bytes
  uint64_t extent[4], stride[3];       // elements; bytes from one to the next in dimensions 1, 2, 3
  uint32_t box[4], element_stride[4];  // tiled: the box. Both: which coordinates of it are copied
  int32_t lower[2], upper[2];          // im2col: the corners that pixels stay within, W and H, from the plane's first and last
  uint32_t channels, pixels;           // im2col: the box
  int32_t type, swizzle, im2col;       // 0 float16, 1 bfloat16, 2 float32 as TF32; bytes
};
