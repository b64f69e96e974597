// Modes for Hopper arithmetic that NVIDIA does not document: how tensor cores add, and how TMA converts fp32 to TF32.
//
// Addition::nearest adds the products one by one in the order of k, and rounds each sum to fp32.
//
// Addition::truncate implements models that agree bit by bit with the results of GPUs: Xie et al., "MMA-Sim" (2025), and Khattak
// and Mikaitis, "Accurate Models of NVIDIA Tensor Cores" (2025), which extend Fasi et al. (2021) to Hopper. One instruction adds
// all its products along k to the accumulator at once:
//   - Products are exact and not normalised: the exponent of a product is the sum of its operands' exponents.
//   - All terms are aligned to the largest exponent among them and truncated to 25 binary places.
//   - Their sum is exact, and is truncated to fp32.
// The papers leave three cases open, for which this file assumes: a product of zero does not affect the alignment, a sum that is
// too large is infinite, and if an operand is infinite or NaN, the sum is that of IEEE 754.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulator {
enum class Addition { nearest, truncate };
enum class Tf32 { nearest_even, truncate };

struct Arithmetic {
  Addition addition;
  Tf32 copied;  // how copies convert fp32 if the map's type is TF32
};
// The current modes. Environment variables set them when the library is loaded (arithmetic.cpp), and
// torch_unroll_emulator_arithmetic changes them.
const Arithmetic& arithmetic();

namespace truncating {
constexpr int kPlaces = 25;
// kOfZero represents the exponent of zero, kOfInfinite that of infinity and NaN. A sum of two exponents is at least
// kNotFinite if one of them is kOfInfinite; otherwise it is below kLeast if one of them is kOfZero.
constexpr int kOfZero = -0x1000, kOfInfinite = 0x4000, kNotFinite = 0x2000, kLeast = -300;

// `least` is the exponent of subnormal numbers in the operand's format.
inline int exponent(float value, int least) {
  const uint32_t bits = std::bit_cast<uint32_t>(value) & 0x7fffffff;
  if (!bits) return kOfZero;
  const int exponent = int(bits >> 23) - 127;
  return exponent == 128 ? kOfInfinite : std::max(exponent, least);
}

inline double power_of_two(int exponent) { return std::bit_cast<double>(uint64_t(1023 + exponent) << 52); }

inline float towards_zero(double value) {
  const float nearest = float(value);
  if (std::fabs(double(nearest)) <= std::fabs(value) || std::fabs(value) >= 0x1p128) return nearest;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(nearest) - 1);
}

// Adds products to kCount adjacent sums of a row. All terms must be finite; most[n] is the largest exponent among the terms of
// sum n.
template <int kCount, int kN, int kK>
void add_finite(float* __restrict sums, const float* __restrict a, const float* __restrict b, const int* __restrict most) {
  double scale[kCount];
  int64_t total[kCount];
  for (int n = 0; n < kCount; ++n) scale[n] = power_of_two(kPlaces - std::max(most[n], kLeast));
  for (int n = 0; n < kCount; ++n) total[n] = int32_t(double(sums[n]) * scale[n]);
  for (int k = 0; k < kK; ++k) {
    const double left = a[k];
    for (int n = 0; n < kCount; ++n) total[n] += int32_t(left * double(b[k * kN + n]) * scale[n]);
  }
  for (int n = 0; n < kCount; ++n) sums[n] = towards_zero(double(total[n]) * power_of_two(std::max(most[n], kLeast) - kPlaces));
}

template <int kM, int kN, int kK>
void add_products(float* sums, const float* a, const float* b, int least_exponent) {
  int exponents_of_b[kK * kN], most[kN];
  for (int i = 0; i < kK * kN; ++i) exponents_of_b[i] = exponent(b[i], least_exponent);
  for (int m = 0; m < kM; ++m, a += kK, sums += kN) {
    for (int n = 0; n < kN; ++n) most[n] = exponent(sums[n], -126);
    for (int k = 0; k < kK; ++k) {
      const int left = exponent(a[k], least_exponent);
      for (int n = 0; n < kN; ++n) most[n] = std::max(most[n], left + exponents_of_b[k * kN + n]);
    }
    if (*std::max_element(most, most + kN) < kNotFinite) {
      add_finite<kN, kN, kK>(sums, a, b, most);
      continue;
    }
    for (int n = 0; n < kN; ++n) {
      if (most[n] < kNotFinite) {
        add_finite<1, kN, kK>(sums + n, a, b + n, most + n);
        continue;
      }
      double total = sums[n];
      for (int k = 0; k < kK; ++k) total += double(a[k]) * double(b[k * kN + n]);  // products of finite operands are exact
      sums[n] = float(total);
    }
  }
}
}  // namespace truncating

// Adds the product of a (kM x kK) and b (kK x kN) to the sums (kM x kN), as one instruction does. `least_exponent` is the
// exponent of subnormal numbers in the operands' format.
template <int kM, int kN, int kK>
void add_products(float* __restrict sums, const float* a, const float* __restrict b, int least_exponent) {
  if (arithmetic().addition == Addition::truncate) return truncating::add_products<kM, kN, kK>(sums, a, b, least_exponent);
  for (int m = 0; m < kM; ++m, sums += kN)
    for (int k = 0; k < kK; ++k) {
      const float left = a[m * kK + k];
      for (int n = 0; n < kN; ++n) sums[n] += left * b[k * kN + n];
    }
}
}  // namespace emulator
