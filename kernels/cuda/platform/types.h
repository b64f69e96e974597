// Number types, defined without a header of the CUDA toolkit, because NVRTC is given no include path.
// The 16-bit types are for storage; arithmetic is done in the accumulator type.
#pragma once

#ifdef __CUDACC_RTC__
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#endif

struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
// fp64 for fp64, fp32 for every other type.
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

template <int kBytes>
struct WordOf;
template <>
struct WordOf<1> {
  using type = uint8_t;
};
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint64_t;
};
template <>
struct WordOf<16> {
  using type = uint4;
};
// The unsigned type that one access of kBytes (1, 2, 4, 8 or 16) moves.
template <int kBytes>
using Word = typename WordOf<kBytes>::type;

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(half value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}
__device__ inline float widen(bfloat16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }

// Rounds to nearest even; fp32 and fp64 stay as they are.
template <class T>
__device__ inline T narrow(Accumulator<T> value) {
  return value;
}
template <>
__device__ inline half narrow<half>(float value) {
  half narrowed;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrowed.bits) : "f"(value));
  return narrowed;
}
template <>
__device__ inline bfloat16 narrow<bfloat16>(float value) {
  bfloat16 narrowed;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrowed.bits) : "f"(value));
  return narrowed;
}
