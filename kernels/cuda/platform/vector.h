// N elements moved by one access; the address must be a multiple of their total size.
#pragma once
#include "platform/types.h"

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T element[N];
  static_assert(sizeof(T) * N <= 16, "the widest access is 16 bytes");
};

template <int Bytes>
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
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

// Through a word of the same size: the compiler splits the copy of an array member into its elements.
template <int N, class T>
__device__ inline Vector<T, N> load_vector(const T* from) {
  using Word = typename WordOf<sizeof(T) * N>::type;
  union {
    Word word;
    Vector<T, N> vector;
  } result{*reinterpret_cast<const Word*>(from)};
  return result.vector;
}
template <int N, class T>
__device__ inline void store_vector(T* to, const Vector<T, N>& value) {
  using Word = typename WordOf<sizeof(T) * N>::type;
  union {
    Vector<T, N> vector;
    Word word;
  } source{value};
  *reinterpret_cast<Word*>(to) = source.word;
}
