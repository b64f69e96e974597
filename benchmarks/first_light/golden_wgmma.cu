// Golden data for the emulator: the element of shared memory that a wgmma descriptor selects for (mn, k), where mn is a row of A
// or a column of B. The operand under test lies in a region whose elements are their own indices. The other operand is the
// identity, so D is the operand as the hardware read it. bf16 does not represent all indices exactly, so one product reads the
// low bytes of the indices, and another one the high bytes.
#include "common.cuh"
#include "hopper.cuh"

constexpr int REGION_BYTES = 32 << 10, IDENTITY_BYTES = 64 / 8 * 256;

struct Case {
  bool tf32;
  char operand;  // 'A' or 'B'
  bool mn_major;
  Swizzle swizzle;
  uint32_t start, leading, stride;  // bytes
};

template <class Element>
__device__ Element element(float value) {
  if constexpr (sizeof(Element) == 2)
    return narrow<bfloat16>(value);
  else
    return value;
}

// The result is D as [m][n], 64 x 64. With `Transposed`, the operand under test is MN-major.
template <class Element, bool TestA, int Transposed>
__global__ void product(Case what, int shift, float* result) {
  extern __shared__ __align__(1024) unsigned char shared[];
  Element* region = reinterpret_cast<Element*>(shared);
  Element* identity = reinterpret_cast<Element*>(shared + REGION_BYTES);
  constexpr int SIZE = sizeof(Element), PIECE = 16 / SIZE, K = 2 * PIECE;
  for (int i = int(threadIdx.x); i < REGION_BYTES / SIZE; i += int(blockDim.x))
    region[i] = element<Element>(float(i >> shift & 255));
  for (int i = int(threadIdx.x); i < 64 * K; i += int(blockDim.x)) {  // K-major without swizzle: matrices of 8 rows of 16 bytes
    const int row = i / K, k = i % K;
    identity[(row / 8 * 256 + row % 8 * 16 + k / PIECE * 128) / SIZE + k % PIECE] = element<Element>(row == k ? 1.f : 0.f);
  }
  fence_proxy_async();
  __syncthreads();
  const uint64_t tested = matrix_descriptor(shared_address(region) + what.start, what.leading, what.stride, what.swizzle);
  const uint64_t other = matrix_descriptor(shared_address(identity), 128, 256, NO_SWIZZLE);
  const uint64_t a = TestA ? tested : other, b = TestA ? other : tested;
  float d[32];
  for (float& sum : d) sum = 0;
  wgmma_fence();
  if constexpr (SIZE == 4)
    wgmma_tf32(d, a, b, 0);
  else
    wgmma<TestA ? Transposed : 0, TestA ? 0 : Transposed>(d, a, b, 0);
  wgmma_commit();
  wgmma_wait();
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  for (int i = 0; i < 32; ++i)
    result[(16 * warp + lane / 4 + 8 * (i >> 1 & 1)) * 64 + 8 * (i >> 2) + 2 * (lane % 4) + (i & 1)] = d[i];
}

using Kernel = void (*)(Case, int, float*);
Kernel kernel_of(const Case& what) {
  const bool a = what.operand == 'A';
  if (what.tf32) return a ? product<float, true, 0> : product<float, false, 0>;
  if (what.mn_major) return a ? product<bfloat16, true, 1> : product<bfloat16, false, 1>;
  return a ? product<bfloat16, true, 0> : product<bfloat16, false, 0>;
}

void run(const Case& what) {
  DeviceArray<float> result(64 * 64);
  std::vector<float> byte[2];
  for (int pass = 0; pass < 2; ++pass) {
    launch({.block = 128, .shared_bytes = REGION_BYTES + IDENTITY_BYTES}, kernel_of(what), what, 8 * pass, result.data);
    CHECK(cudaDeviceSynchronize());
    byte[pass] = result.get();
  }
  const int K = what.tf32 ? 8 : 16;
  std::vector<uint16_t> indices;
  for (int mn = 0; mn < 64; ++mn)
    for (int k = 0; k < K; ++k) {
      const int at = what.operand == 'A' ? mn * 64 + k : k * 64 + mn;
      indices.push_back(uint16_t(int(byte[0][at]) + 256 * int(byte[1][at])));
    }
  const int span[] = {0, 128, 64, 32};
  emit("golden_wgmma_descriptor",
       "\"type\": \"%s\", \"operand\": \"%c\", \"major\": \"%s\", \"swizzle\": %d, \"start\": %u, \"leading\": %u, \"stride\": "
       "%u, "
       "\"element\": \"%s\"",
       what.tf32 ? "tf32" : "bf16", what.operand, what.mn_major ? "MN" : "K", span[what.swizzle], what.start, what.leading,
       what.stride, hex(indices).c_str());
}

void descriptors() {
  for (const char operand : {'A', 'B'}) {
    for (const bool tf32 : {false, true}) {
      for (const auto& [leading, stride] : {std::pair{128u, 256u}, {1024u, 128u}, {256u, 512u}})
        run({tf32, operand, false, NO_SWIZZLE, 0, leading, stride});
      for (const auto& [swizzle, span] : {std::pair{SWIZZLE_32, 32u}, {SWIZZLE_64, 64u}, {SWIZZLE_128, 128u}})
        for (uint32_t start = 0; start < span; start += 32)  // the k tiles within a row
          for (uint32_t apart : {1u, 2u})
            for (uint32_t leading : {16u, 512u}) run({tf32, operand, false, swizzle, start, leading, 8 * span * apart});
    }
    for (const auto& [leading, stride] : {std::pair{1024u, 128u}, {128u, 256u}, {2048u, 256u}})
      run({false, operand, true, NO_SWIZZLE, 0, leading, stride});
    for (const auto& [swizzle, span] : {std::pair{SWIZZLE_32, 32u}, {SWIZZLE_64, 64u}, {SWIZZLE_128, 128u}})
      for (uint32_t start : {0u, 16 * span})  // the first k tile and, if `apart` is 1, the next one
        for (uint32_t apart : {1u, 2u})
          for (uint32_t leading : {2048u, 8192u}) run({false, operand, true, swizzle, start, leading, 8 * span * apart});
  }
}

int main(int argc, char** argv) { return run_measurements(argc, argv, {{"descriptors", descriptors}}); }
