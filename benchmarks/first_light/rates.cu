// The ceilings: the bandwidth of memory and of L2, and the rates of wgmma in bf16 and TF32 with operands in shared memory and of
// fp32 multiply-adds in registers.
#include "common.cuh"
#include "hopper.cuh"

// ---- bandwidth
__global__ void copy(float4* to, const float4* from, size_t count) {
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) to[i] = from[i];
}

void copies() {
  const size_t bytes = size_t(4) << 30;  // many times the size of L2
  DeviceArray<float4> from(bytes / 16), to(bytes / 16);
  const Spread kernel = spread(10, [&] { copy<<<multiprocessors() * 16, 512>>>(to.data, from.data, bytes / 16); });
  const Spread driver = spread(10, [&] { CHECK(cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice)); });
  const Spread fill = spread(10, [&] { CHECK(cudaMemsetAsync(to.data, 0, bytes)); });
  emit("copy", "\"by\": \"kernel\", \"gigabytes_per_second\": %.1f", 2 * double(bytes) / kernel.median / 1e6);
  emit("copy", "\"by\": \"cudaMemcpy\", \"gigabytes_per_second\": %.1f", 2 * double(bytes) / driver.median / 1e6);
  emit("fill", "\"by\": \"cudaMemset\", \"gigabytes_per_second\": %.1f", double(bytes) / fill.median / 1e6);
}

// Every block repeatedly reads the same buffer, bypassing L1, which measures how fast L2 delivers the same data to all blocks.
__global__ void read_all(const uint4* from, int count, int rounds, uint32_t* sink) {
  uint32_t sum = 0;
  for (int round = 0; round < rounds; ++round)
#pragma unroll 8
    for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
      const uint4 value = __ldcg(from + i);
      sum ^= value.x ^ value.y ^ value.z ^ value.w;
    }
  if (sum == 1) *sink = sum;  // never true, because the buffer is zero
}

void l2_broadcast() {
  for (int kilobytes : {16, 64, 256, 1024, 16384}) {
    const int count = kilobytes * 1024 / 16, rounds = std::max(1, 65536 / kilobytes);
    DeviceArray<uint4> from(static_cast<size_t>(count));
    DeviceArray<uint32_t> sink(1);
    const int blocks = multiprocessors();
    const Spread time = spread(5, [&] { read_all<<<blocks, 1024>>>(from.data, count, rounds, sink.data); });
    const double bytes = double(count) * 16 * rounds * blocks;
    emit("l2_broadcast",
         "\"buffer_bytes\": %d, \"gigabytes_per_second\": %.1f, \"bytes_per_nanosecond_and_multiprocessor\": %.2f", count * 16,
         bytes / time.median / 1e6, bytes / time.median / 1e6 / blocks);
  }
}

// ---- arithmetic. In wgmma_rate, a block of two warpgroups repeats D += A B with the same tiles in shared memory: A is 128 x 64
// and B is 64 x 256 elements of bf16 (for TF32, K is 32 instead of 64), K-major in rows of 128 bytes, with a swizzle of 128
// bytes.
constexpr int A_BYTES = 128 * 128, B_BYTES = 256 * 128;

__device__ void fill_with_noise(uint32_t* words, int count, bool bf16) {
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {  // values in +-[1, 2), since zeros would take less power
    const uint32_t noise = (uint32_t(i) + 12345u) * 2654435761u;
    words[i] = bf16 ? (noise & 0x807F807Fu) | 0x3F803F80u : (noise & 0x807FFFFFu) | 0x3F800000u;
  }
}

template <bool Bf16>
__global__ void __launch_bounds__(256, 1) wgmma_rate(int rounds, float* sink) {
  extern __shared__ __align__(1024) unsigned char tiles[];
  fill_with_noise(reinterpret_cast<uint32_t*>(tiles), (A_BYTES + B_BYTES) / 4, Bf16);
  fence_proxy_async();
  __syncthreads();
  const uint32_t a_start = shared_address(tiles) + threadIdx.x / 128 * (A_BYTES / 2), b_start = shared_address(tiles) + A_BYTES;
  float d[128];
  for (float& value : d) value = 0;
  for (int round = 0; round < rounds; ++round) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {  // 32 bytes of each row at a time
      const uint64_t a = matrix_descriptor(a_start + 32 * k, 16, 1024, SWIZZLE_128);
      const uint64_t b = matrix_descriptor(b_start + 32 * k, 16, 1024, SWIZZLE_128);
      if constexpr (Bf16)
        wgmma<0, 0>(d, a, b, 1);
      else
        wgmma_tf32(d, a, b, 1);
    }
    wgmma_commit();
    wgmma_wait();
  }
  float sum = 0;
  for (float value : d) sum += value;
  if (sum == 12345.f) *sink = sum;
}

__global__ void __launch_bounds__(512) fma_rate(int rounds, float* sink) {
  float value[16];
  for (int i = 0; i < 16; ++i) value[i] = float(threadIdx.x + i);
  const float factor = 1.f + float(rounds) * 1e-9f;
  for (int round = 0; round < rounds; ++round)
#pragma unroll
    for (int i = 0; i < 16; ++i) value[i] = fmaf(value[i], factor, 0.5f);
  float sum = 0;
  for (float term : value) sum += term;
  if (sum == 12345.f) *sink = sum;
}

// Measures the rate at first and after about a second, because the clock falls when the power limit is reached.
void rate(const char* kind, double operations, const std::function<void()>& work) {
  work();
  CHECK(cudaDeviceSynchronize());
  std::vector<float> times;
  float total = 0;
  while (total < 1500 && times.size() < 2000) {
    times.push_back(milliseconds(work));
    total += times.back();
  }
  std::vector<float> late(times.begin() + long(times.size() * 2 / 3), times.end());
  std::sort(late.begin(), late.end());
  emit("matrix_rate", "\"kind\": \"%s\", \"tflops_at_first\": %.1f, \"tflops_sustained\": %.1f", kind,
       operations / times[0] / 1e9, operations / late[late.size() / 2] / 1e9);
}

void matrices() {
  DeviceArray<float> sink(1);
  const int blocks = multiprocessors(), rounds = 20000;
  const Launch how{.grid = unsigned(blocks), .block = 256, .shared_bytes = A_BYTES + B_BYTES};
  const double products = 2. * 128 * 256 * 4 * rounds * blocks;  // to be multiplied by the K of one instruction
  rate("bf16 wgmma m64n256k16", products * 16, [&] { launch(how, wgmma_rate<true>, rounds, sink.data); });
  rate("TF32 wgmma m64n256k8", products * 8, [&] { launch(how, wgmma_rate<false>, rounds, sink.data); });
  rate("IEEE fp32 fma", 2. * 16 * 512 * 4 * rounds * blocks, [&] { fma_rate<<<blocks * 4, 512>>>(rounds, sink.data); });
}

int main(int argc, char** argv) {
  return run_measurements(argc, argv, {{"copies", copies}, {"l2_broadcast", l2_broadcast}, {"matrices", matrices}});
}
