// Replaces kernels/cuda/platform/types.h: the same names, with conversions in C++ instead of PTX.
#pragma once
#include "emulator/vector_types.h"

#include <bit>
#include <cstdint>

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
template <int kBytes>
using Word = typename WordOf<kBytes>::type;

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(bfloat16 value) { return std::bit_cast<float>(uint32_t(value.bits) << 16); }
inline float widen(half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
  if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13);  // infinity, NaN
  // The bits of a half's exponent and mantissa, read as those of a float, represent 2^-112 times its value, even if the half is
  // subnormal.
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::bit_cast<float>(rest << 13) * 0x1p112f));
}

template <class T>
inline T narrow(Accumulator<T> value) {
  return value;
}
template <>
inline bfloat16 narrow<bfloat16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};  // a GPU returns this NaN for every NaN
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline half narrow<half>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), rest = bits & 0x7fffffff;
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  if (rest > 0x7f800000) return {0x7fff};                    // a GPU returns this NaN for every NaN
  if (rest >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and above round to infinity
  if (rest >= 0x38800000)                                    // 2^-14 and above are normal
    return {uint16_t(sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13))};
  // For subnormal results, adding 0.5 rounds to multiples of 2^-24, the last place of such a half.
  const float shifted = std::bit_cast<float>(rest) + 0.5f;
  return {uint16_t(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000))};
}
