// Replaces kernels/cuda/platform/vector.h. As on a GPU, a misaligned access fails the launch.
#pragma once
#include "emulator/runtime.h"
#include "platform/types.h"

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T element[N];
  static_assert(sizeof(T) * N <= 16, "the widest access is 16 bytes");
};

template <int N, class T>
inline Vector<T, N> load_vector(const T* from, emulator::Where where = emulator::Where::current()) {
  emulator::check_aligned(from, sizeof(T) * N, "load_vector", where);
  return *reinterpret_cast<const Vector<T, N>*>(from);
}
template <int N, class T>
inline void store_vector(T* to, const Vector<T, N>& value, emulator::Where where = emulator::Where::current()) {
  emulator::check_aligned(to, sizeof(T) * N, "store_vector", where);
  *reinterpret_cast<Vector<T, N>*>(to) = value;
}
