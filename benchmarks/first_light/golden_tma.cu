// Golden data for the emulator: what the copy engine writes where. The tensor's element of linear index i is i + 1, so that a
// dump names its source and 0 is a fill; shared memory is 0xFFFF before, so that what was not written shows.
#include <cuda.h>
#include <cudaTypedefs.h>

#include "common.cuh"
#include "hopper.cuh"

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));

template <class Function>
Function driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  CHECK(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result));
  if (result != cudaDriverEntryPointSuccess) std::fprintf(stderr, "the driver has no %s\n", name), std::exit(1);
  return reinterpret_cast<Function>(found);
}

// ---- im2col
struct Im2col {
  int C, W, H, N;
  int lower[2], upper[2];  // pixel box corners, width first
  int channels, pixels;    // of one copy
  int stride[2];
  CUtensorMapSwizzle swizzle;
  int start[4];   // c, w, h, n
  int offset[2];  // w, h
  int base;       // of the destination, past a multiple of 1024 bytes

  int pitch() const {
    return swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? channels * 2
                                                 : 16 << int(swizzle);  // the enumeration counts 32, 64, 128 as 1, 2, 3
  }
};

__global__ void load_im2col(const __grid_constant__ TensorMap map, Im2col what, int pitch, uint16_t* dump, int* arrived_in_time) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ uint64_t arrived;
  uint16_t* to = reinterpret_cast<uint16_t*>(shared + what.base);
  const int count = what.pixels * pitch / 2;
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) to[i] = 0xFFFF;
  if (threadIdx.x == 0) barrier_init(&arrived, 1);
  barrier_init_visible();
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(&arrived, what.pixels * what.channels * 2);
    copy_im2col(shared_address(to), &map, shared_address(&arrived),
                int4{what.start[0], what.start[1], what.start[2], what.start[3]}, uint16_t(what.offset[0]),
                uint16_t(what.offset[1]));
  }
  const bool fine = barrier_wait(&arrived, 0);
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) dump[i] = to[i];
  if (threadIdx.x == 0) *arrived_in_time = fine;
}

// A convolution's copy, drawn at random: any padding, stride and dilation; starts and offsets as a kernel would use them.
Im2col draw(Sequence& random) {
  for (;;) {
    Im2col what{};
    what.C = 8 * (1 + random.below(9));
    what.W = 4 + random.below(9);
    what.H = 4 + random.below(9);
    what.N = 1 + random.below(4);
    const CUtensorMapSwizzle swizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B, CU_TENSOR_MAP_SWIZZLE_64B,
                                           CU_TENSOR_MAP_SWIZZLE_128B};
    what.swizzle = swizzles[random.below(4)];
    const int widest = what.swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 64 : what.pitch() / 2;
    what.channels = 8 * (1 + random.below(widest / 8));
    what.pixels = 8 << random.below(4);
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
    what.start[3] = random.below(what.N);
    what.base = random.below(4) ? 0 : 128 * (1 + random.below(7));
    if (outputs[0] && outputs[1] && what.C * what.W * what.H * what.N < 0xFFFF) return what;
  }
}

void im2col() {
  constexpr int CASES = 200;
  const auto encode = driver_function<PFN_cuTensorMapEncodeIm2col_v12000>("cuTensorMapEncodeIm2col");
  Sequence random(1);
  DeviceArray<uint16_t> tensor(0x10000), dump(64 * 64);
  DeviceArray<int> in_time(1);
  std::vector<uint16_t> values(0x10000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = uint16_t(i + 1);
  tensor.set(values);
  for (int index = 0; index < CASES; ++index) {
    const Im2col what = draw(random);
    alignas(128) CUtensorMap map;
    const cuuint64_t extents[] = {cuuint64_t(what.C), cuuint64_t(what.W), cuuint64_t(what.H), cuuint64_t(what.N)};
    const cuuint64_t strides[] = {cuuint64_t(what.C) * 2, cuuint64_t(what.C * what.W) * 2,
                                  cuuint64_t(what.C * what.W * what.H) * 2};
    const cuuint32_t steps[] = {1, cuuint32_t(what.stride[0]), cuuint32_t(what.stride[1]), 1};
    const CUresult encoded =
        encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, tensor.data, extents, strides, what.lower, what.upper,
               cuuint32_t(what.channels), cuuint32_t(what.pixels), steps, CU_TENSOR_MAP_INTERLEAVE_NONE, what.swizzle,
               CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    const size_t written = size_t(what.pixels) * size_t(what.pitch()) / 2;
    if (encoded == CUDA_SUCCESS) {
      TensorMap parameter;
      std::memcpy(&parameter, &map, sizeof map);
      launch({.block = 128, .shared_bytes = 16 << 10}, load_im2col, parameter, what, what.pitch(), dump.data, in_time.data);
      CHECK(cudaDeviceSynchronize());
    }
    auto dumped = dump.get();
    dumped.resize(encoded == CUDA_SUCCESS ? written : 0);
    emit("golden_im2col",
         "\"tensor\": [%d, %d, %d, %d], \"lower\": [%d, %d], \"upper\": [%d, %d], \"channels\": %d, \"pixels\": %d, "
         "\"stride\": [%d, %d], \"swizzle\": %d, \"start\": [%d, %d, %d, %d], \"offset\": [%d, %d], \"base\": %d, \"pitch\": %d, "
         "\"encoded\": %d, \"arrived\": %s, \"shared\": \"%s\"",
         what.C, what.W, what.H, what.N, what.lower[0], what.lower[1], what.upper[0], what.upper[1], what.channels, what.pixels,
         what.stride[0], what.stride[1], what.swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 0 : what.pitch(), what.start[0],
         what.start[1], what.start[2], what.start[3], what.offset[0], what.offset[1], what.base, what.pitch(), int(encoded),
         in_time.get()[0] ? "true" : "false", hex(dumped).c_str());
  }
}

// ---- what the copy engine makes of fp32 values when the map says TF32
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

int main(int argc, char** argv) { return run_measurements(argc, argv, {{"im2col", im2col}, {"tf32", tf32}}); }
