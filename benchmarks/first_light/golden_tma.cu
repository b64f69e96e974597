// Golden data for the emulator: what TMA writes and where, and how it converts fp32 to TF32. In measurements `im2col`
// and `tiled`, the element of linear index i of the tensor is i + 1, so a dump shows the source of each element, and 0 where TMA
// filled in an element outside of the tensor. The destination of a box is filled with 0xFFFF beforehand, so that the dump also
// shows what was not written.
#include <cuda.h>
#include <cudaTypedefs.h>

#include "common.cuh"
#include "hopper.cuh"

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));

template <class Function>
Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  CHECK(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &result));
  if (result != cudaDriverEntryPointSuccess) std::fprintf(stderr, "the driver has no %s\n", name), std::exit(1);
  return reinterpret_cast<Function>(function);
}

// ---- boxes of a tensor of four dimensions
constexpr CUtensorMapSwizzle SWIZZLES[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B, CU_TENSOR_MAP_SWIZZLE_64B,
                                           CU_TENSOR_MAP_SWIZZLE_128B};
constexpr int MOST_ROWS = 256, MOST_BASE = 7 * 128;  // the most rows of a box, of up to 128 bytes each, and the largest Box::base

struct Box {
  int C, W, H, N;
  int channels, rows;  // extents of one copy
  CUtensorMapSwizzle swizzle;
  int start[4];  // c, w, h, n
  int base;      // offset of the destination from a multiple of 1024 bytes

  // The enumerators of 32, 64 and 128 bytes are 1, 2 and 3.
  int swizzle_bytes() const { return swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 0 : 16 << int(swizzle); }
  int pitch() const { return swizzle_bytes() ? swizzle_bytes() : channels * 2; }
  int widest() const { return (swizzle_bytes() ? swizzle_bytes() : 128) / 2; }
  bool fits() const { return C * W * H * N < 0xFFFF; }
};

struct Im2col : Box {
  int lower[2], upper[2];  // corners of the pixel box, width first
  int stride[2];
  int offset[2];  // w, h
};

struct Tiled : Box {
  int box[3], stride[3];  // w, h, n: extents of the box, of which every `stride`-th position is copied
};

__device__ void start_copy(const Im2col& what, uint32_t to, const TensorMap* map, uint32_t barrier) {
  copy_im2col(to, map, barrier, int4{what.start[0], what.start[1], what.start[2], what.start[3]}, uint16_t(what.offset[0]),
              uint16_t(what.offset[1]));
}
__device__ void start_copy(const Tiled& what, uint32_t to, const TensorMap* map, uint32_t barrier) {
  copy_tiled(to, map, barrier, int4{what.start[0], what.start[1], what.start[2], what.start[3]});
}

template <class What>
__global__ void load_box(const __grid_constant__ TensorMap map, What what, int pitch, uint16_t* dump, int* arrived_in_time) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ uint64_t arrived;
  uint16_t* to = reinterpret_cast<uint16_t*>(shared + what.base);
  const int count = what.rows * pitch / 2;
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) to[i] = 0xFFFF;
  if (threadIdx.x == 0) barrier_init(&arrived, 1);
  barrier_init_visible();
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(&arrived, what.rows * what.channels * 2);
    start_copy(what, shared_address(to), &map, shared_address(&arrived));
  }
  const bool fine = barrier_wait(&arrived, 0);
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) dump[i] = to[i];
  if (threadIdx.x == 0) *arrived_in_time = fine;
}

struct Outcome {
  int encoded;
  bool arrived;
  std::string shared;
};

// Copies one box; `encode` fills the tensor map for the address, extents and strides of the tensor.
template <class What, class Encode>
Outcome copy(const What& what, Encode encode) {
  static DeviceArray<uint16_t> tensor(0x10000), dump(MOST_ROWS * 64);
  static DeviceArray<int> in_time(1);
  std::vector<uint16_t> values(0x10000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = uint16_t(i + 1);
  tensor.set(values);
  alignas(128) CUtensorMap map;
  const cuuint64_t extents[] = {cuuint64_t(what.C), cuuint64_t(what.W), cuuint64_t(what.H), cuuint64_t(what.N)};
  const cuuint64_t strides[] = {cuuint64_t(what.C) * 2, cuuint64_t(what.C * what.W) * 2,
                                cuuint64_t(what.C * what.W * what.H) * 2};
  const CUresult encoded = encode(&map, tensor.data, extents, strides);
  if (encoded != CUDA_SUCCESS) return {int(encoded), false, ""};
  TensorMap parameter;
  std::memcpy(&parameter, &map, sizeof map);
  launch({.block = 128, .shared_bytes = MOST_ROWS * 128 + MOST_BASE}, load_box<What>, parameter, what, what.pitch(), dump.data,
         in_time.data);
  CHECK(cudaDeviceSynchronize());
  auto dumped = dump.get();
  dumped.resize(size_t(what.rows * what.pitch() / 2));
  return {0, in_time.get()[0] != 0, hex(dumped)};
}

// ---- im2col
// A random copy like those of a convolution, with various paddings, strides, dilations, and offsets and sizes of the box. About
// one copy in four starts in an image beyond the last one, and at least as many reach beyond the last channel.
Im2col draw_im2col(Sequence& random) {
  for (;;) {
    Im2col what{};
    what.C = 8 * (1 + random.below(9));
    what.W = 4 + random.below(9);
    what.H = 4 + random.below(9);
    what.N = 1 + random.below(4);
    what.swizzle = SWIZZLES[random.below(4)];
    what.channels = 8 * (1 + random.below(what.widest() / 8));
    what.rows = 8 << random.below(6);
    int outputs[2];
    for (int i = 0; i < 2; ++i) {
      const int extent = i ? what.H : what.W, taps = 1 + random.below(5), dilation = 1 + random.below(2);
      what.stride[i] = 1 + random.below(3);
      what.lower[i] = -random.below(4);
      what.upper[i] = random.below(4) - (taps - 1) * dilation;
      what.offset[i] = random.below(taps) * dilation;
      const int reach = extent - 1 + what.upper[i] - what.lower[i];
      outputs[i] = reach < 0 ? 0 : reach / what.stride[i] + 1;
      if (outputs[i]) what.start[1 + i] = random.below(outputs[i]) * what.stride[i] + what.lower[i];
    }
    what.start[0] = what.channels * random.below((what.C + what.channels - 1) / what.channels);
    if (random.below(4) == 0) what.start[0] = what.C - random.below(what.channels);
    what.start[3] = random.below(4) ? random.below(what.N) : what.N + random.below(2);
    what.base = random.below(4) ? 0 : 128 * (1 + random.below(MOST_BASE / 128));
    if (outputs[0] && outputs[1] && what.fits()) return what;
  }
}

void im2col() {
  constexpr int CASES = 300;
  const auto encode = driver_function<PFN_cuTensorMapEncodeIm2col_v12000>("cuTensorMapEncodeIm2col");
  Sequence random(1);
  for (int index = 0; index < CASES; ++index) {
    const Im2col what = draw_im2col(random);
    const cuuint32_t steps[] = {1, cuuint32_t(what.stride[0]), cuuint32_t(what.stride[1]), 1};
    const Outcome outcome = copy(what, [&](CUtensorMap* map, void* tensor, const cuuint64_t* extents, const cuuint64_t* strides) {
      return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, tensor, extents, strides, what.lower, what.upper,
                    cuuint32_t(what.channels), cuuint32_t(what.rows), steps, CU_TENSOR_MAP_INTERLEAVE_NONE, what.swizzle,
                    CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    });
    emit("golden_im2col",
         "\"tensor\": [%d, %d, %d, %d], \"lower\": [%d, %d], \"upper\": [%d, %d], \"channels\": %d, \"pixels\": %d, "
         "\"stride\": [%d, %d], \"swizzle\": %d, \"start\": [%d, %d, %d, %d], \"offset\": [%d, %d], \"base\": %d, \"pitch\": %d, "
         "\"encoded\": %d, \"arrived\": %s, \"shared\": \"%s\"",
         what.C, what.W, what.H, what.N, what.lower[0], what.lower[1], what.upper[0], what.upper[1], what.channels, what.rows,
         what.stride[0], what.stride[1], what.swizzle_bytes(), what.start[0], what.start[1], what.start[2], what.start[3],
         what.offset[0], what.offset[1], what.base, what.pitch(), outcome.encoded, outcome.arrived ? "true" : "false",
         outcome.shared.c_str());
  }
}

// ---- tiled boxes
// A random copy. About half of the copies load a filter as a kernel does, at one position (w, h) and for 64, 128 or 256 n; the
// others have boxes of any form. Along any dimension a box may begin before the tensor, reach beyond its end, or lie outside of
// it.
Tiled draw_tiled(Sequence& random) {
  for (;;) {
    Tiled what{};
    const bool filter = random.below(2);
    what.C = 8 * (1 + random.below(9));
    what.W = 1 + random.below(5);
    what.H = 1 + random.below(5);
    what.N = filter ? 8 + random.below(100) : 1 + random.below(9);
    what.swizzle = SWIZZLES[random.below(4)];
    what.channels = 8 * (1 + random.below(what.widest() / 8));
    what.rows = 1;
    const int extent[] = {what.C, what.W, what.H, what.N};
    for (int i = 0; i < 3; ++i) {
      what.box[i] = filter ? (i == 2 ? 64 << random.below(3) : 1) : 1 + random.below(6);
      what.stride[i] = filter ? 1 : 1 + random.below(3);
      what.rows *= (what.box[i] + what.stride[i] - 1) / what.stride[i];
    }
    for (int i = 0; i < 4; ++i) {
      const int length = i ? what.box[i - 1] : what.channels;
      const int starts[] = {0,         random.below(extent[i]), extent[i] - 1 - random.below(length),
                            extent[i], extent[i] + length,      -random.below(length + 1)};
      what.start[i] = starts[random.below(3) ? random.below(3) : random.below(6)];
    }
    what.base = random.below(4) ? 0 : 128 * (1 + random.below(MOST_BASE / 128));
    if (what.rows <= MOST_ROWS && what.fits()) return what;
  }
}

void tiled() {
  constexpr int CASES = 300;
  const auto encode = driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled");
  Sequence random(6);
  for (int index = 0; index < CASES; ++index) {
    const Tiled what = draw_tiled(random);
    const cuuint32_t box[] = {cuuint32_t(what.channels), cuuint32_t(what.box[0]), cuuint32_t(what.box[1]),
                              cuuint32_t(what.box[2])};
    const cuuint32_t steps[] = {1, cuuint32_t(what.stride[0]), cuuint32_t(what.stride[1]), cuuint32_t(what.stride[2])};
    const Outcome outcome = copy(what, [&](CUtensorMap* map, void* tensor, const cuuint64_t* extents, const cuuint64_t* strides) {
      return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, tensor, extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                    what.swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    });
    emit("golden_tiled",
         "\"tensor\": [%d, %d, %d, %d], \"box\": [%d, %d, %d, %d], \"stride\": [%d, %d, %d], \"swizzle\": %d, "
         "\"start\": [%d, %d, %d, %d], \"base\": %d, \"pitch\": %d, \"encoded\": %d, \"arrived\": %s, \"shared\": \"%s\"",
         what.C, what.W, what.H, what.N, what.channels, what.box[0], what.box[1], what.box[2], what.stride[0], what.stride[1],
         what.stride[2], what.swizzle_bytes(), what.start[0], what.start[1], what.start[2], what.start[3], what.base,
         what.pitch(), outcome.encoded, outcome.arrived ? "true" : "false", outcome.shared.c_str());
  }
}

// ---- how TMA converts fp32 values if the map has type TFLOAT32, and, for comparison, FLOAT32
__global__ void load_tiled(const __grid_constant__ TensorMap map, uint32_t* dump, int* arrived_in_time) {
  __shared__ alignas(1024) uint32_t to[256];
  __shared__ uint64_t arrived;
  if (threadIdx.x == 0) barrier_init(&arrived, 1);
  barrier_init_visible();
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(&arrived, sizeof to);
    copy_tiled(shared_address(to), &map, shared_address(&arrived), 0, 0);
  }
  const bool fine = barrier_wait(&arrived, 0);
  dump[threadIdx.x] = to[threadIdx.x];
  if (threadIdx.x == 0) *arrived_in_time = fine;
}

void tf32() {
  const auto encode = driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled");
  Sequence random(2);
  std::vector<uint32_t> values(256);
  for (uint32_t& value : values) value = random.next() << 1;
  const uint32_t edges[] = {0x3F801000, 0x3F801001, 0x3F803000, 0x3F800FFF, 0xBF801000,
                            0x7F800000, 0x7FC00001, 0x00000001, 0x7F7FFFFF};
  std::copy(std::begin(edges), std::end(edges), values.begin());
  DeviceArray<uint32_t> tensor(256), dump(256);
  DeviceArray<int> in_time(1);
  tensor.set(values);
  for (const CUtensorMapDataType type : {CU_TENSOR_MAP_DATA_TYPE_TFLOAT32, CU_TENSOR_MAP_DATA_TYPE_FLOAT32}) {
    alignas(128) CUtensorMap map;
    const cuuint64_t extents[] = {32, 8}, strides[] = {128};
    const cuuint32_t box[] = {32, 8}, steps[] = {1, 1};
    const CUresult encoded =
        encode(&map, type, 2, tensor.data, extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (encoded != CUDA_SUCCESS) std::fprintf(stderr, "cuTensorMapEncodeTiled: %d\n", int(encoded)), std::exit(1);
    TensorMap parameter;
    std::memcpy(&parameter, &map, sizeof map);
    launch({.block = 256}, load_tiled, parameter, dump.data, in_time.data);
    CHECK(cudaDeviceSynchronize());
    emit("golden_tma_tf32", "\"type\": \"%s\", \"arrived\": %s, \"from\": \"%s\", \"to\": \"%s\"",
         type == CU_TENSOR_MAP_DATA_TYPE_TFLOAT32 ? "TFLOAT32" : "FLOAT32", in_time.get()[0] ? "true" : "false",
         hex(values).c_str(), hex(dump.get()).c_str());
  }
}

int main(int argc, char** argv) { return run_measurements(argc, argv, {{"im2col", im2col}, {"tiled", tiled}, {"tf32", tf32}}); }
