// Replaces kernels/cuda/platform/wgmma.h. D is NaN from a product until the wait for its group. The operands are read at the
// wait, sometimes earlier (runtime/wgmma.cpp). The warps of a warpgroup run independently.
#pragma once
#include "emulator/runtime.h"
#include "platform/types.h"

enum class Major : int { depth, rows };

namespace emulator {
enum class WgmmaType { f16, bf16, tf32 };
template <class T>
constexpr WgmmaType kWgmmaType = WgmmaType::tf32;
template <>
constexpr WgmmaType kWgmmaType<half> = WgmmaType::f16;
template <>
constexpr WgmmaType kWgmmaType<bfloat16> = WgmmaType::bf16;

uint64_t matrix_descriptor(const void* shared, uint32_t leading, uint32_t stride, uint32_t span, const Where& where);
void wgmma_fence(const Where& where);
void wgmma(WgmmaType type, bool rows_a, bool rows_b, float* d, int count, uint64_t a, uint64_t b, const Where& where);
void wgmma_commit(const Where& where);
void wgmma_wait(int pending, const Where& where);
}  // namespace emulator

inline uint64_t matrix_descriptor(const void* shared, uint32_t leading, uint32_t stride, uint32_t span,
                                  emulator::Where where = emulator::Where::current()) {
  return emulator::matrix_descriptor(shared, leading, stride, span, where);
}
inline uint64_t advance(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

inline int32_t computed_again(int32_t value) { return value; }

inline void wgmma_fence(emulator::Where where = emulator::Where::current()) { emulator::wgmma_fence(where); }
template <int kCount>
inline void wgmma_written(float (&)[kCount]) {}
inline void wgmma_commit(emulator::Where where = emulator::Where::current()) { emulator::wgmma_commit(where); }
template <int kPending>
inline void wgmma_wait(emulator::Where where = emulator::Where::current()) {
  static_assert(kPending >= 0 && kPending <= 7);
  emulator::wgmma_wait(kPending, where);
}
template <int kPending, int kCount>
inline void wgmma_wait(float (&)[kCount], emulator::Where where = emulator::Where::current()) {
  static_assert(kPending == 0, "D may not be used while a product on it is incomplete");
  emulator::wgmma_wait(0, where);
}

template <class T, Major kMajorA, Major kMajorB, int kCount>
inline void wgmma(float (&d)[kCount], uint64_t a, uint64_t b, emulator::Where where = emulator::Where::current()) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4);
  static_assert(kCount == 32 || kCount == 64 || kCount == 128);
  static_assert(sizeof(T) == 2 || (kMajorA == Major::depth && kMajorB == Major::depth));
  emulator::wgmma(emulator::kWgmmaType<T>, kMajorA == Major::rows, kMajorB == Major::rows, d, kCount, a, b, where);
}
