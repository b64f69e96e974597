// One warp's registers go into an instruction and come out, lane by lane, as in benchmarks/first_light/golden_warp.cu.
#pragma once
#include "platform/mma.h"
#include "platform/shared_memory.h"

struct RegisterParameters {
  const uint32_t* a;    // 4 a lane; of stmatrix, what it stores; of tf32, `count` values
  const uint32_t* b;    // 2 a lane
  const int32_t* rows;  // the row of 8 elements whose address each lane gives
  uint32_t* d;       // 4 a lane, C before and D after; of ldmatrix, what it loads; of tf32, the rounded values and the products
  uint16_t* memory;  // 64 rows of 8 elements, as shared memory was after stmatrix
  int32_t count;
};

// T: half or bfloat16, or float for TF32.
template <class T>
__global__ void mma_registers_kernel(const __grid_constant__ RegisterParameters p) {
  const int lane = int(threadIdx.x);
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = p.a[lane * 4 + i], d[i] = __uint_as_float(p.d[lane * 4 + i]);
  for (int i = 0; i < 2; ++i) b[i] = p.b[lane * 2 + i];
  if constexpr (sizeof(T) == 4)
    mma_m16n8k8_tf32(d, a, b);
  else
    mma_m16n8k16<T>(d, a, b);
  for (int i = 0; i < 4; ++i) p.d[lane * 4 + i] = __float_as_uint(d[i]);
}

template <int kMatrices, bool kTransposed>
__global__ void ldmatrix_registers_kernel(const __grid_constant__ RegisterParameters p) {
  uint16_t* memory = shared_memory<uint16_t>();
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 64 * 8; i += 32) memory[i] = uint16_t(i);
  __syncwarp();
  uint32_t matrix[kMatrices];
  if constexpr (kTransposed)
    ldmatrix_transposed(matrix, memory + p.rows[lane] * 8);
  else
    ldmatrix(matrix, memory + p.rows[lane] * 8);
  for (int i = 0; i < kMatrices; ++i) p.d[lane * kMatrices + i] = matrix[i];
}

template <int kMatrices>
__global__ void stmatrix_registers_kernel(const __grid_constant__ RegisterParameters p) {
  uint16_t* memory = shared_memory<uint16_t>();
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 64 * 8; i += 32) memory[i] = 0xFFFF;
  __syncwarp();
  uint32_t matrix[kMatrices];
  for (int i = 0; i < kMatrices; ++i) matrix[i] = p.a[lane * kMatrices + i];
  stmatrix(memory + p.rows[lane] * 8, matrix);
  __syncwarp();
  for (int i = lane; i < 64 * 8; i += 32) p.memory[i] = memory[i];
}

// What cvt.rna makes of a value, and what mma.sync makes of one that was not rounded, times one.
template <class T>
__global__ void tf32_registers_kernel(const __grid_constant__ RegisterParameters p) {
  const bool first = threadIdx.x == 0;
  for (int i = 0; i < p.count; ++i) {
    const uint32_t a[4] = {first ? p.a[i] : 0, 0, 0, 0}, b[2] = {first ? __float_as_uint(1.f) : 0, 0};
    float d[4] = {};
    mma_m16n8k8_tf32(d, a, b);
    if (first) p.d[i] = round_tf32(__uint_as_float(p.a[i])), p.d[p.count + i] = __float_as_uint(d[0]);
  }
}
