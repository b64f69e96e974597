// CUDA's atomic functions, with relaxed order. One host thread at a time runs all device threads, so plain arithmetic is atomic.
// Each function first calls preempt, which may let other device threads run.
#pragma once
#include "emulator/runtime.h"

namespace emulator {
template <class T, class F>
EMULATOR_UNSEEN T atomic(T* address, F&& change, const Where& where) {
  preempt();
  synchronise(address, sizeof(T), true, Order::relaxed, where);
  const T old = *address;
  *address = change(old);
  progress();
  return old;
}
}  // namespace emulator

// Only the pointer's type is deduced, because CUDA accepts atomicAdd(unsigned*, 1).
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value, emulator::Where where = emulator::Where::current()) {
  return emulator::atomic(address, [value](T old) { return T(old + value); }, where);
}
template <class T>
T atomicSub(T* address, std::type_identity_t<T> value, emulator::Where where = emulator::Where::current()) {
  return emulator::atomic(address, [value](T old) { return T(old - value); }, where);
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value, emulator::Where where = emulator::Where::current()) {
  return emulator::atomic(address, [value](T) { return value; }, where);
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value, emulator::Where where = emulator::Where::current()) {
  return emulator::atomic(address, [value](T old) { return value < old ? value : old; }, where);
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value, emulator::Where where = emulator::Where::current()) {
  return emulator::atomic(address, [value](T old) { return old < value ? value : old; }, where);
}
template <class T>
T atomicAnd(T* address, std::type_identity_t<T> value, emulator::Where where = emulator::Where::current()) {
  return emulator::atomic(address, [value](T old) { return T(old & value); }, where);
}
template <class T>
T atomicOr(T* address, std::type_identity_t<T> value, emulator::Where where = emulator::Where::current()) {
  return emulator::atomic(address, [value](T old) { return T(old | value); }, where);
}
template <class T>
T atomicXor(T* address, std::type_identity_t<T> value, emulator::Where where = emulator::Where::current()) {
  return emulator::atomic(address, [value](T old) { return T(old ^ value); }, where);
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value,
            emulator::Where where = emulator::Where::current()) {
  return emulator::atomic(address, [expected, value](T old) { return old == expected ? value : old; }, where);
}
