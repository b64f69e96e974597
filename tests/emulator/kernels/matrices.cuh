// In each kernel, one warp multiplies tiles with one of the matrix instructions, or moves matrices with ldmatrix and stmatrix.
#pragma once
#include "platform/mma.h"
#include "platform/shared_memory.h"

// The shapes are those of a product; stmatrix_kernel uses a and b for other matrices.
template <class T>
struct ProductParameters {
  const T* a;  // (M, K)
  const T* b;  // (N, K)
  const Accumulator<T>* c;
  Accumulator<T>* d;  // (M, N)
};

template <class T>
__device__ uint32_t pair(const T* from) {
  return uint32_t(from[1].bits) << 16 | from[0].bits;
}

// An m16n8k16 product of fragments that are loaded by the table at the head of kernels/cuda/platform/mma.h, without ldmatrix.
template <class T>
__global__ void mma_16bit_kernel(const __grid_constant__ ProductParameters<T> p) {
  const int g = int(threadIdx.x) / 4, t = int(threadIdx.x) % 4;
  uint32_t a[4], b[2];
  float d[4];
  for (int j = 0; j < 4; ++j) a[j] = pair(p.a + (g + 8 * (j & 1)) * 16 + 2 * t + 8 * (j >> 1));
  for (int j = 0; j < 2; ++j) b[j] = pair(p.b + g * 16 + 2 * t + 8 * j);
  for (int i = 0; i < 4; ++i) d[i] = p.c[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)];
  mma_m16n8k16<T>(d, a, b);
  for (int i = 0; i < 4; ++i) p.d[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)] = d[i];
}

// An m16n8k16 product of fragments that ldmatrix loads from shared memory. B is stored there as (N, K), or transposed as (K, N).
template <class T, bool kTransposed>
__global__ void ldmatrix_kernel(const __grid_constant__ ProductParameters<T> p) {
  T* a_tile = shared_memory<T>();  // (16, 16)
  T* b_tile = a_tile + 256;        // (8, 16), or (16, 8)
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 256; i += 32) a_tile[i] = p.a[i];
  for (int i = lane; i < 128; i += 32) b_tile[kTransposed ? i % 16 * 8 + i / 16 : i] = p.b[i];
  __syncwarp();
  uint32_t a[4], b[2];
  ldmatrix(a, a_tile + lane % 16 * 16 + lane / 16 * 8);
  if constexpr (kTransposed)
    ldmatrix_transposed(b, b_tile + lane % 16 * 8);
  else
    ldmatrix(b, b_tile + lane % 8 * 16 + lane / 8 % 2 * 8);
  float d[4];
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) d[i] = p.c[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)];
  mma_m16n8k16<T>(d, a, b);
  for (int i = 0; i < 4; ++i) p.d[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)] = d[i];
}

__device__ inline void tf32_step(const ProductParameters<float>& p, float (&d)[4], int g, int t) {
  uint32_t a[4], b[2];
  for (int j = 0; j < 4; ++j) a[j] = round_tf32(p.a[(g + 8 * (j & 1)) * 8 + t + 4 * (j >> 1)]);
  for (int j = 0; j < 2; ++j) b[j] = round_tf32(p.b[g * 8 + t + 4 * j]);
  mma_m16n8k8_tf32(d, a, b);
}

// An m16n8k8 product in TF32. T is always float.
template <class T>
__global__ void mma_tf32_kernel(const __grid_constant__ ProductParameters<T> p) {
  const int g = int(threadIdx.x) / 4, t = int(threadIdx.x) % 4;
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = p.c[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)];
  tf32_step(p, d, g, t);
  for (int i = 0; i < 4; ++i) p.d[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)] = d[i];
}

// An m8n8k4 product in fp64.
template <class T>
__global__ void mma_f64_kernel(const __grid_constant__ ProductParameters<T> p) {
  const int g = int(threadIdx.x) / 4, t = int(threadIdx.x) % 4;
  double d[2] = {p.c[g * 8 + 2 * t], p.c[g * 8 + 2 * t + 1]};
  mma_m8n8k4_f64(d, p.a[g * 4 + t], p.b[g * 4 + t]);
  for (int i = 0; i < 2; ++i) p.d[g * 8 + 2 * t + i] = d[i];
}

// Copies four 8x8 matrices from a to b by ldmatrix and stmatrix; c and d are unused.
template <class T>
__global__ void stmatrix_kernel(const __grid_constant__ ProductParameters<T> p) {
  T* from = shared_memory<T>();
  T* to = from + 256;
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 256; i += 32) from[i] = p.a[i];
  __syncwarp();
  uint32_t matrix[4];
  ldmatrix(matrix, from + lane * 8);
  stmatrix(to + lane * 8, matrix);
  __syncwarp();
  for (int i = lane; i < 256; i += 32) const_cast<T*>(p.b)[i] = to[i];
}
