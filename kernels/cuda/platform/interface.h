// The structs of the C interface in launch.cu. They need no header of the CUDA toolkit, so the emulator shares this file.
#pragma once
#include <cstdint>

// Mirrored by kernels/table.py.
struct LaunchConfig {
  uint32_t grid[3], block[3], cluster[3], shared_bytes, cooperative;
};

// Mirrored by kernels/tensor_map.py. Arrays begin with the dimension that is contiguous in memory.
struct TensorMapSpec {
  const void* address;            // of element 0, a multiple of 16
  uint64_t extent[4], stride[3];  // extent in elements; stride in bytes, of dimensions 1, 2 and 3
  uint32_t box[4];                // the extents of a tiled box
  uint32_t element_stride[4];     // only every element_stride-th coordinate of the box is copied
  int32_t lower[2], upper[2];     // im2col, (W, H): lower is the first position; upper is the last one minus the plane's last
  uint32_t channels, pixels;      // im2col: the extents of the box
  int32_t type, swizzle, im2col;  // type: 0 float16, 1 bfloat16, 2 float32 copied as TF32; swizzle in bytes; im2col: 0 or 1
};
