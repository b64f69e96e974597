// Replaces kernels/cuda/platform/memory.h. All bits of an asynchronous copy's destination are set when the copy is issued; the
// data arrive at a random moment before the wait ends (runtime/copies.cpp). Another thread may run before each load_*,
// store_* and add_*.
#pragma once
#include "emulator/runtime.h"
#include "emulator/vector_types.h"
#include "platform/types.h"

namespace emulator {
void copy_async(void* shared, const void* global, int bytes, int source_bytes, const Where& where);
void copy_async_commit();
void copy_async_wait(int pending);

template <class T>
EMULATOR_UNSEEN T load(const T* from, Order order, const Where& where) {
  preempt();
  check_aligned(from, sizeof(T), "load", where);
  synchronise(from, sizeof(T), false, order, where);
  return *from;
}
template <class T>
EMULATOR_UNSEEN void store(T* to, T value, Order order, const Where& where) {
  preempt();
  check_aligned(to, sizeof(T), "store", where);
  synchronise(to, sizeof(T), true, order, where);
  *to = value;
  progress();
}
EMULATOR_UNSEEN inline void add(uint32_t* to, uint32_t value, Order order, const Where& where) {
  preempt();
  check_aligned(to, 4, "add", where);
  synchronise(to, 4, true, order, where);
  *to += value;
  progress();
}
}  // namespace emulator

template <int Bytes>
inline void copy_async(void* shared, const void* global, int source_bytes = Bytes,
                       emulator::Where where = emulator::Where::current()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  emulator::copy_async(shared, global, Bytes, source_bytes, where);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int Pending>
inline void copy_async_wait() {
  emulator::copy_async_wait(Pending);
}

inline uint32_t load_relaxed(const uint32_t* from, emulator::Where where = emulator::Where::current()) {
  return emulator::load(from, emulator::Order::relaxed, where);
}
inline uint64_t load_relaxed(const uint64_t* from, emulator::Where where = emulator::Where::current()) {
  return emulator::load(from, emulator::Order::relaxed, where);
}
inline uint4 load_relaxed(const uint4* from, emulator::Where where = emulator::Where::current()) {
  return emulator::load(from, emulator::Order::relaxed, where);
}
inline void store_relaxed(uint32_t* to, uint32_t value, emulator::Where where = emulator::Where::current()) {
  emulator::store(to, value, emulator::Order::relaxed, where);
}
inline void store_relaxed(uint64_t* to, uint64_t value, emulator::Where where = emulator::Where::current()) {
  emulator::store(to, value, emulator::Order::relaxed, where);
}
inline void store_relaxed(uint4* to, uint4 value, emulator::Where where = emulator::Where::current()) {
  emulator::store(to, value, emulator::Order::relaxed, where);
}
inline uint32_t load_acquire(const uint32_t* from, emulator::Where where = emulator::Where::current()) {
  return emulator::load(from, emulator::Order::acquire, where);
}
inline void store_release(uint32_t* to, uint32_t value, emulator::Where where = emulator::Where::current()) {
  emulator::store(to, value, emulator::Order::release, where);
}
inline void add_release(uint32_t* to, uint32_t value, emulator::Where where = emulator::Where::current()) {
  emulator::add(to, value, emulator::Order::release, where);
}
inline void spin_wait(emulator::Where where = emulator::Where::current()) { emulator::poll(where); }

inline void barrier_sync(int id, int threads, emulator::Where where = emulator::Where::current()) {
  emulator::named_barrier(unsigned(id), unsigned(threads), where);
}
