// Replaces kernels/cuda/platform/mma.h: the last lane that arrives computes for the whole warp (runtime/mma.cpp).
#pragma once
#include "emulator/runtime.h"
#include "platform/types.h"

namespace emulator {
enum class Product { f16, bf16, tf32 };
void mma(Product product, float* d, const uint32_t* a, const uint32_t* b, const Where& where);
void mma_f64(double* d, double a, double b, const Where& where);
void ldmatrix(uint32_t* matrix, int matrices, const void* row, bool transposed, const Where& where);
void stmatrix(void* row, int matrices, const uint32_t* matrix, const Where& where);
}  // namespace emulator

template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         emulator::Where where = emulator::Where::current());
template <>
inline void mma_m16n8k16<half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], emulator::Where where) {
  emulator::mma(emulator::Product::f16, d, a, b, where);
}
template <>
inline void mma_m16n8k16<bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], emulator::Where where) {
  emulator::mma(emulator::Product::bf16, d, a, b, where);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             emulator::Where where = emulator::Where::current()) {
  emulator::mma(emulator::Product::tf32, d, a, b, where);
}
inline void mma_m8n8k4_f64(double (&d)[2], double a, double b, emulator::Where where = emulator::Where::current()) {
  emulator::mma_f64(d, a, b, where);
}

inline uint32_t round_tf32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7f800000) == 0x7f800000) return (bits & 0x7fffff) ? 0x7fffffff : bits;  // NaN, infinity
  return (bits + 0x1000) & ~0x1fffu;
}

template <int Matrices>
inline void ldmatrix(uint32_t (&matrix)[Matrices], const void* row, emulator::Where where = emulator::Where::current()) {
  static_assert(Matrices == 1 || Matrices == 2 || Matrices == 4);
  emulator::ldmatrix(matrix, Matrices, row, false, where);
}
template <int Matrices>
inline void ldmatrix_transposed(uint32_t (&matrix)[Matrices], const void* row,
                                emulator::Where where = emulator::Where::current()) {
  static_assert(Matrices == 1 || Matrices == 2 || Matrices == 4);
  emulator::ldmatrix(matrix, Matrices, row, true, where);
}
template <int Matrices>
inline void stmatrix(void* row, const uint32_t (&matrix)[Matrices], emulator::Where where = emulator::Where::current()) {
  static_assert(Matrices == 1 || Matrices == 2 || Matrices == 4);
  emulator::stmatrix(row, Matrices, matrix, where);
}
