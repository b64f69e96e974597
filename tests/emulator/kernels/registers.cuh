// Kernels that execute a warp's instructions on the registers of its lanes, as benchmarks/first_light/golden_warp.cu does.
#pragma once
#include "platform/mma.h"
#include "platform/shared_memory.h"

struct RegisterParameters {
  const uint32_t* a;    // mma: 4 per lane; stmatrix: the stored registers; tf32: `count` values
  const uint32_t* b;    // mma: 2 per lane
  const int32_t* rows;  // the row of 8 elements whose address each lane passes
  uint32_t* d;       // mma: 4 per lane, C before and D after; ldmatrix: the loaded registers; tf32: rounded values, then products
  uint16_t* memory;  // stmatrix: 64 rows of 8 elements, the contents of shared memory afterwards
  int32_t count;
};

// T is half, bfloat16, or float for TF32.
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

// Rounds values by cvt.rna, and multiplies the unrounded values by 1 with mma.sync.
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
