// The structs of the C interface in launch.cu. They need no header of the CUDA toolkit, so the emulator shares this file.
#pragma once
#include <cstdint>

// Mirrored, like all structs here, by kernels/interface.py.
struct LaunchConfig {
  uint32_t grid[3], block[3], cluster[3], shared_bytes, cooperative;
};

// Arrays begin with the dimension that is contiguous in memory.
struct TensorMapSpec {
  const void* address;            // of element 0, a multiple of 16
  uint64_t extent[4], stride[3];  // extent in elements; stride in bytes, of dimensions 1, 2 and 3
  uint32_t box[4];                // the extents of a tiled box
  uint32_t element_stride[4];     // only every element_stride-th coordinate of the box is copied
  int32_t lower[2], upper[2];     // im2col, (W, H): lower is the first position; upper is the last one minus the plane's last
  uint32_t channels, pixels;      // im2col: the extents of the box
  int32_t type, swizzle, im2col;  // type: 0 float16, 1 bfloat16, 2 float32 copied as TF32; swizzle in bytes; im2col: 0 or 1
};

// One launch of a recorded sequence. The pointers of a call, numbered from 0, are those of its
// inputs, of its results and of its workspace; the parameters of all launches lie in one block of memory.
struct SequenceLaunch {
  LaunchConfig config;
  int32_t kernel;
  uint32_t parameters;  // where the launch's parameters begin in the block, in bytes
};
// Where one pointer of the call, plus an offset in bytes, is written before the launches.
struct SequencePatch {
  int64_t offset;
  uint32_t at;       // in the block, in bytes
  uint16_t pointer;  // its number
  int16_t map;       // the number of the tensor map that is encoded with this address; -1 for a plain pointer
};
struct LaunchSequence {
  const SequenceLaunch* launches;
  const SequencePatch* patches;
  const TensorMapSpec* maps;
  const void* parameters;
  uint32_t launch_count, patch_count, parameter_bytes;
  uint32_t aligned_count;  // the first so many pointers of a call have to be multiples of 16
};
