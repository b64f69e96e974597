// Kernels that use TMA and wgmma. Some of them make a mistake that an argument selects.
#pragma once
#include "platform/memory.h"
#include "platform/shared_memory.h"
#include "platform/tensor_map.h"
#include "platform/wgmma.h"

struct BoxParameters {
  TensorMap map;
  unsigned char* to;  // receives the first `bytes` bytes of shared memory after the copy
  int32_t start[4], offset[2];
  int32_t at, bytes;  // at: the offset of the box in shared memory
  int32_t expected;   // how many bytes the mbarrier expects
  int32_t fill;       // the value of every byte before the copy
  int32_t mistake;    // a BoxMistake
};
enum BoxMistake : int32_t { kNone, kLocalMap, kOtherBarrier, kNobodyWaits, kNoProxyFence };

template <bool kIm2col>
__device__ void copy_box(const BoxParameters& p, const TensorMap& map, unsigned char* shared, uint64_t* barrier) {
  if constexpr (kIm2col)
    copy_im2col(shared + p.at, map, p.start[0], p.start[1], p.start[2], p.start[3], p.offset[0], p.offset[1], barrier);
  else
    copy_tiled(shared + p.at, map, p.start[0], p.start[1], p.start[2], p.start[3], barrier);
}

// Executes one copy and writes the contents of shared memory to `to`.
template <bool kIm2col>
__global__ void box_kernel(const __grid_constant__ BoxParameters p) {
  unsigned char* shared = shared_memory<unsigned char>();
  auto* arrived = reinterpret_cast<uint64_t*>(shared + p.bytes);
  if (threadIdx.x == 0) {
    mbarrier_init(arrived, 1);
    mbarrier_init_fence();
    prefetch_tensor_map(p.map);
  }
  for (int i = int(threadIdx.x); i < p.bytes; i += int(blockDim.x)) shared[i] = static_cast<unsigned char>(p.fill);
  if (p.mistake != kNoProxyFence) fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(arrived, uint32_t(p.expected));
    if (p.mistake == kLocalMap) {
      const TensorMap local = p.map;
      copy_box<kIm2col>(p, local, shared, arrived);
    } else {
      copy_box<kIm2col>(p, p.map, shared, p.mistake == kOtherBarrier ? arrived + 1 : arrived);
    }
  }
  if (p.mistake == kNobodyWaits) return;
  mbarrier_wait(arrived, 0);
  for (int i = int(threadIdx.x); i < p.bytes; i += int(blockDim.x)) p.to[i] = shared[i];
}

// The bytes of one operand, which the kernel copies to shared memory, and the fields of its descriptor. `step` is the distance in
// bytes between the parts that successive products read.
struct Operand {
  const unsigned char* bytes;
  int32_t size;
  uint32_t start, leading, stride, span, step;
};
struct WgmmaParameters {
  Operand a, b;
  float* d;  // (64, kN)
  int32_t steps;
};

enum class Mistake { none, no_proxy_fence, no_fence, no_commit, no_wait, early_read, touched, other_descriptor };

template <int kCount>
__device__ void store_fragment(float* to, const float (&d)[kCount]) {
  const int warp = int(threadIdx.x) / 32 % 4, lane = int(threadIdx.x) % 32;
  for (int i = 0; i < kCount; ++i)
    to[(16 * warp + lane / 4 + 8 * (i / 2 % 2)) * 2 * kCount + 8 * (i / 4) + 2 * (lane % 4) + i % 2] = d[i];
}

// D = 1 + A B. The threads copy the bytes of the operands into shared memory.
template <class T, int kN, Major kMajorA, Major kMajorB, Mistake kMistake>
__global__ void wgmma_kernel(const __grid_constant__ WgmmaParameters p) {
  unsigned char* a = shared_memory<unsigned char>();
  unsigned char* b = a + p.a.size;
  for (int i = int(threadIdx.x); i < p.a.size; i += int(blockDim.x)) a[i] = p.a.bytes[i];
  for (int i = int(threadIdx.x); i < p.b.size; i += int(blockDim.x)) b[i] = p.b.bytes[i];
  if (kMistake != Mistake::no_proxy_fence || threadIdx.x != 77) fence_proxy_async();
  __syncthreads();
  float d[kN / 2];
  for (float& sum : d) sum = 1;
  uint64_t left = matrix_descriptor(a + p.a.start, p.a.leading, p.a.stride, p.a.span);
  uint64_t right = matrix_descriptor(b + p.b.start, p.b.leading, p.b.stride, p.b.span);
  if (kMistake == Mistake::other_descriptor && threadIdx.x / 32 == 2) left = advance(left, 32);
  if (kMistake != Mistake::no_fence) wgmma_fence();
  for (int step = 0; step < p.steps; ++step) {
    wgmma<T, kMajorA, kMajorB>(d, advance(left, step * p.a.step), advance(right, step * p.b.step));
    if (kMistake == Mistake::touched && step == 0) d[3] += 1;
  }
  if (kMistake != Mistake::no_commit) wgmma_commit();
  if constexpr (kMistake == Mistake::early_read) store_fragment(p.d, d);
  if constexpr (kMistake != Mistake::no_wait) wgmma_wait<0>(d);
  if constexpr (kMistake != Mistake::early_read) store_fragment(p.d, d);
}

enum class Ring { correct, wrong_parity, wrong_span, late_wait, wrong_bytes };

struct RingParameters {
  TensorMap a, b;  // a: (M, K), boxes of 64 rows by 128 bytes; b: (N, K), boxes of kN rows by 128 bytes
  float* d;        // (M, N)
  int32_t N, steps;
};

template <int kN>
struct RingMemory {
  alignas(1024) unsigned char a[2][64 * 128];
  alignas(1024) unsigned char b[2][kN * 128];
  uint64_t full[2], empty[2];
};

// A small GEMM with two stages: warp 4 copies, and warps 0 to 3, a warpgroup, multiply. A block computes one tile of 64 x kN.
template <class T, int kN, Ring kRing>
__global__ void gemm_ring_kernel(const __grid_constant__ RingParameters p) {
  using Memory = RingMemory<kN>;
  constexpr uint32_t kSpan = kRing == Ring::wrong_span ? 64 : 128, kBytes = (64 + kN) * 128;
  Memory& memory = *shared_memory<Memory>();
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      mbarrier_init(&memory.full[stage], 1);
      mbarrier_init(&memory.empty[stage], 4);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (warp == 4) {
    if (lane != 0) return;
    for (int step = 0; step < p.steps; ++step) {
      const int stage = step % 2, turn = step / 2 % 2, k = step * 128 / int(sizeof(T));
      mbarrier_wait(&memory.empty[stage], turn ^ 1);
      mbarrier_arrive_expect(&memory.full[stage], kRing == Ring::wrong_bytes ? kBytes + 16 : kBytes);
      copy_tiled(memory.a[stage], p.a, k, int(blockIdx.y) * 64, 0, 0, &memory.full[stage]);
      copy_tiled(memory.b[stage], p.b, k, int(blockIdx.x) * kN, 0, 0, &memory.full[stage]);
    }
    return;
  }
  float d[kN / 2] = {};
  for (int step = 0; step < p.steps; ++step) {
    const int stage = step % 2, turn = step / 2 % 2;
    mbarrier_wait(&memory.full[stage], kRing == Ring::wrong_parity ? turn ^ 1 : turn);
    const uint64_t a = matrix_descriptor(memory.a[stage], 16, 8 * kSpan, kSpan);
    const uint64_t b = matrix_descriptor(memory.b[stage], 16, 8 * kSpan, kSpan);
    wgmma_fence();
    for (uint32_t k = 0; k < kSpan; k += 32) wgmma<T, Major::depth, Major::depth>(d, advance(a, k), advance(b, k));
    wgmma_commit();
    wgmma_wait<1>();
    if (kRing == Ring::late_wait) {
      if (lane == 0) mbarrier_arrive(&memory.empty[stage]);
    } else if (step && lane == 0) {
      mbarrier_arrive(&memory.empty[stage ^ 1]);
    }
  }
  wgmma_wait<0>(d);
  const int first = int(blockIdx.y) * 64 + 16 * warp + lane / 4, column = int(blockIdx.x) * kN + 2 * (lane % 4);
  for (int i = 0; i < kN / 2; ++i) p.d[(first + 8 * (i / 2 % 2)) * p.N + column + 8 * (i / 4) + i % 2] = d[i];
}
