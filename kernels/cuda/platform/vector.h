// Loads and stores of N elements by one access. The address must be a multiple of their total size.
#pragma once
#include "platform/types.h"

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T element[N];
  static_assert(sizeof(T) * N <= 16, "the widest access is 16 bytes");
};

// The word of a vector access. Taking elements of 16 bits out of a uint2 needs fewer instructions than out of a uint64_t.
template <int kBytes>
struct VectorWordOf {
  using type = Word<kBytes>;
};
template <>
struct VectorWordOf<8> {
  using type = uint2;
};
template <int kBytes>
using VectorWord = typename VectorWordOf<kBytes>::type;

// The access goes through a word of the same size, because the compiler would split the copy of an array into its elements.
template <int N, class T>
__device__ inline Vector<T, N> load_vector(const T* from) {
  union {
    VectorWord<sizeof(T) * N> word;
    Vector<T, N> vector;
  } result{*reinterpret_cast<const VectorWord<sizeof(T) * N>*>(from)};
  return result.vector;
}
template <int N, class T>
__device__ inline void store_vector(T* to, const Vector<T, N>& value) {
  union {
    Vector<T, N> vector;
    VectorWord<sizeof(T) * N> word;
  } source{value};
  *reinterpret_cast<VectorWord<sizeof(T) * N>*>(to) = source.word;
}
