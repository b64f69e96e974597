// Warp-level matrix products, D += A B (mma.sync, sm_80 and later). All lanes of the warp take part.
//
// The tables use g = lane / 4 and t = lane % 4; k numbers the depth. For m16n8k16, a register of A or B holds two 16-bit
// elements: the one at the listed k in its lower half, the one at k + 1 in its upper half.
//
//              A (row-major)                        B (one column per lane group)   D
//   m16n8k16   a[j]: row g + 8 (j&1), k 2t + 8 (j>>1)  b[j]: k 2t + 8j, column g       d[i]: row g + 8 (i>>1), column 2t + (i&1)
//   m16n8k8    a[j]: row g + 8 (j&1), k t + 4 (j>>1)   b[j]: k t + 4j, column g        the same
//   m8n8k4     a: row g, k t                           b: k t, column g                d[i]: row g, column 2t + i
//
// ldmatrix loads fragments from shared memory. Lane 8 j + i passes the address of row i of the 8x8 matrix j: 16 bytes, at a
// multiple of 16. Register j of a lane then holds columns 2t and 2t + 1 of row g of matrix j or, transposed, rows 2t and 2t + 1
// of column g.
#pragma once
#include "platform/types.h"

// T is half or bfloat16.
template <class T>
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ inline void mma_m16n8k16<half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ inline void mma_m16n8k16<bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// a and b hold the bits of fp32 values that round_tf32 has rounded.
__device__ inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Rounds to a mantissa of 10 bits, to nearest with ties away from zero.
__device__ inline uint32_t round_tf32(float value) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
}

__device__ inline void mma_m8n8k4_f64(double (&d)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+d"(d[0]), "+d"(d[1])
               : "d"(a), "d"(b));
}

// Loads 1, 2 or 4 matrices, whose rows the first 8 * Matrices lanes address.
template <int Matrices>
__device__ inline void ldmatrix(uint32_t (&matrix)[Matrices], const void* row) {
  static_assert(Matrices == 1 || Matrices == 2 || Matrices == 4);
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (Matrices == 1)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(matrix[0]) : "r"(address) : "memory");
  else if constexpr (Matrices == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(matrix[0]), "=r"(matrix[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(address)
                 : "memory");
}
template <int Matrices>
__device__ inline void ldmatrix_transposed(uint32_t (&matrix)[Matrices], const void* row) {
  static_assert(Matrices == 1 || Matrices == 2 || Matrices == 4);
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (Matrices == 1)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(matrix[0]) : "r"(address) : "memory");
  else if constexpr (Matrices == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(matrix[0]), "=r"(matrix[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(address)
                 : "memory");
}

// The inverse of ldmatrix; sm_90 and later.
template <int Matrices>
__device__ inline void stmatrix(void* row, const uint32_t (&matrix)[Matrices]) {
  static_assert(Matrices == 1 || Matrices == 2 || Matrices == 4);
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (Matrices == 1)
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(address), "r"(matrix[0]) : "memory");
  else if constexpr (Matrices == 2)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" ::"r"(address), "r"(matrix[0]), "r"(matrix[1])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(matrix[0]), "r"(matrix[1]),
                 "r"(matrix[2]), "r"(matrix[3])
                 : "memory");
}
