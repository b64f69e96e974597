// The cycles that the product of a recurrent step, W times h, takes on one multiprocessor, by mma.sync with n = 8 and by wgmma
// with n = 8 ... 256. In each step, each warp (for wgmma each warpgroup) multiplies its rows of W, of length K = 256, by h, and
// waits for D, because the next step of a recurrence depends on D. h is in shared memory. W is in registers, and for wgmma also
// in shared memory, which is measured separately.
#include "common.cuh"
#include "hopper.cuh"

constexpr int K = 256, TILES = K / 16, STEPS = 2000;

struct Result {
  long long cycles;
  float sink;
};

__device__ void finish(Result* result, long long started, float sum) {
  __syncthreads();
  if (threadIdx.x == 0) result->cycles = cycles() - started;
  if (sum == 12345.f) result->sink = sum;  // never true; keeps the compiler from removing the products
}

// Loads W from `words` words of shared memory, because the compiler keeps loaded values in registers, but might recompute
// constants.
__device__ void load_w(uint32_t (&w)[TILES][4], const void* shared, uint32_t words) {
  for (int i = 0; i < TILES * 4; ++i)
    w[i / 4][i % 4] = static_cast<const volatile uint32_t*>(shared)[(threadIdx.x + uint32_t(i)) % words];
}

// Each warp holds 16 rows of W in 64 registers and reads h [8 columns][K] by ldmatrix. The products of successive
// K tiles use `Chains` accumulators in turn.
template <int Chains>
__global__ void __launch_bounds__(512) mma_step(Result* result) {
  extern __shared__ __align__(1024) unsigned char shared[];
  bfloat16* h = reinterpret_cast<bfloat16*>(shared);
  constexpr int PITCH = K + 8;  // shifts each row by 16 bytes, so that ldmatrix has no bank conflicts
  for (int i = int(threadIdx.x); i < 8 * PITCH; i += int(blockDim.x)) h[i] = narrow<bfloat16>(1.f);
  __syncthreads();
  uint32_t w[TILES][4];
  load_w(w, shared, 8 * PITCH / 2);
  const int lane = int(threadIdx.x) % 32;
  const bfloat16* row = h + lane % 8 * PITCH + lane / 8 * 8;
  float sum = 0;
  const long long started = cycles();
  for (int step = 0; step < STEPS; ++step) {
    float d[Chains][4] = {};
#pragma unroll
    for (int tile = 0; tile < TILES; tile += 2) {  // ldmatrix x4 loads B of two tiles
      uint32_t both[4];
      ldmatrix(both, row + tile * 16);
      const uint32_t first[2] = {both[0], both[1]}, second[2] = {both[2], both[3]};
      mma_m16n8k16<bfloat16>(d[tile % Chains], w[tile], first);
      mma_m16n8k16<bfloat16>(d[(tile + 1) % Chains], w[tile + 1], second);
    }
    for (const auto& chain : d) sum += chain[0] + chain[1] + chain[2] + chain[3];
    __syncthreads();
  }
  finish(result, started, sum);
}

// Each warpgroup has 64 rows of W, in 64 registers or in shared memory. h [N][K] is in shared memory, K-major in blocks of 64 k,
// with a swizzle of 128 bytes.
template <int N, bool InRegisters>
constexpr int most_threads =
    N / 2 + (InRegisters ? 64 : 0) + 24 > 128 ? 256 : 512;  // 512 threads have 128 registers each, for D, W and about 24 others

template <int N, bool InRegisters>
__global__ void __launch_bounds__(most_threads<N, InRegisters>) wgmma_step(Result* result) {
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int BLOCK_BYTES = N * 128;  // of a block of h: N columns of 64 k
  const uint32_t h = shared_address(shared), w = h + uint32_t(K / 64 * BLOCK_BYTES) + threadIdx.x / 128 * (K / 64 * 64 * 128);
  const int total = K / 64 * BLOCK_BYTES + (InRegisters ? 0 : int(blockDim.x) / 128 * K / 64 * 64 * 128);
  for (int i = int(threadIdx.x); i < total / 4; i += int(blockDim.x)) reinterpret_cast<uint32_t*>(shared)[i] = 0x3C003C00u;
  fence_proxy_async();
  __syncthreads();
  uint32_t in_registers[TILES][4];
  if constexpr (InRegisters) load_w(in_registers, shared, uint32_t(total / 4));
  float d[N / 2], sum = 0;
  for (float& value : d) value = 0;
  const long long started = cycles();
  for (int step = 0; step < STEPS; ++step) {
    wgmma_fence();
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const uint32_t block = uint32_t(tile / 4), within = uint32_t(tile % 4) * 32;
      const uint64_t b = matrix_descriptor(h + block * BLOCK_BYTES + within, 16, 1024, SWIZZLE_128);
      if constexpr (InRegisters)
        wgmma(d, in_registers[tile], b, tile != 0);
      else
        wgmma<0, 0>(d, matrix_descriptor(w + block * (64 * 128) + within, 16, 1024, SWIZZLE_128), b, tile != 0);
    }
    wgmma_commit();
    wgmma_wait();
    sum += d[0] + d[N / 2 - 1];
    __syncthreads();
  }
  finish(result, started, sum);
}

void measure(const char* instruction, const char* w, int n, int rows, int chains, const Launch& how, void (*kernel)(Result*)) {
  DeviceArray<Result> result(1);
  for (int run = 0; run < 2; ++run) {
    launch(how, kernel, result.data);
    CHECK(cudaDeviceSynchronize());
  }
  const double step = double(result.get()[0].cycles) / STEPS;
  emit("product",
       "\"instruction\": \"%s\", \"w_in\": \"%s\", \"n\": %d, \"rows\": %d, \"k\": %d, \"chains\": %d, "
       "\"cycles_per_step\": %.1f, \"multiply_adds_per_cycle\": %.1f",
       instruction, w, n, rows, K, chains, step, double(rows) * n * K / step);
}

template <int Chains>
void mma() {
  for (int warps : {4, 8, 16})
    measure("mma.sync m16n8k16", "registers", 8, 16 * warps, Chains,
            {.block = unsigned(32 * warps), .shared_bytes = 8 * (K + 8) * sizeof(bfloat16)}, mma_step<Chains>);
}

template <int N>
void wgmma_n() {
  for (int groups : {1, 2, 4}) {
    if (groups * 128 <= most_threads<N, true>)
      measure("wgmma m64k16", "registers", N, 64 * groups, 1,
              {.block = unsigned(128 * groups), .shared_bytes = size_t(N) * K * 2}, wgmma_step<N, true>);
    const size_t shared_bytes = size_t(N + 64 * groups) * K * 2;
    if (groups * 128 <= most_threads<N, false> && shared_bytes <= 227 << 10)
      measure("wgmma m64k16", "shared memory", N, 64 * groups, 1, {.block = unsigned(128 * groups), .shared_bytes = shared_bytes},
              wgmma_step<N, false>);
  }
}

void with_mma() { mma<1>(), mma<2>(), mma<4>(); }
void with_wgmma() { wgmma_n<8>(), wgmma_n<16>(), wgmma_n<32>(), wgmma_n<64>(), wgmma_n<128>(), wgmma_n<256>(); }

int main(int argc, char** argv) { return run_measurements(argc, argv, {{"mma", with_mma}, {"wgmma", with_wgmma}}); }
