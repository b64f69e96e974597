// Built-in variables, barriers of a block, fences, the clock, __nanosleep, and loads and stores with a cache hint.
#pragma once
#include "emulator/runtime.h"
#include "emulator/vector_types.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

inline void __syncthreads(emulator::Where where = emulator::Where::current()) { emulator::block_barrier(false, where); }
inline int __syncthreads_count(int predicate, emulator::Where where = emulator::Where::current()) {
  return emulator::block_barrier(predicate != 0, where).count;
}
inline int __syncthreads_and(int predicate, emulator::Where where = emulator::Where::current()) {
  return emulator::block_barrier(predicate != 0, where).all;
}
inline int __syncthreads_or(int predicate, emulator::Where where = emulator::Where::current()) {
  return emulator::block_barrier(predicate != 0, where).any;
}

inline void __threadfence() { emulator::fence(); }
inline void __threadfence_block() { emulator::fence(); }

long long clock64();
inline void __nanosleep(unsigned, emulator::Where where = emulator::Where::current()) { emulator::poll(where); }

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
void __stcg(T* to, T value) {
  *to = value;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}
