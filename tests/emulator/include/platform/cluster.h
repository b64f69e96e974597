// Replaces kernels/cuda/platform/cluster.h. As on a GPU, a cluster address has the block's rank in its top byte and an offset in
// the lower bytes. An access to the memory of a block that has not started or has ended fails the launch (runtime/cluster.cpp).
#pragma once
#include "emulator/runtime.h"
#include "platform/vector.h"

namespace emulator {
void cluster_arrive(const Where& where);
void cluster_wait(const Where& where);
unsigned char* cluster_pointer(uint32_t address, size_t bytes, const char* what, const Where& where);
void store_async(uint32_t address, const void* value, size_t bytes, uint32_t mbarrier, const Where& where);
}  // namespace emulator

uint32_t cluster_rank();
uint32_t cluster_size();
uint32_t cluster_address(const void* shared, uint32_t rank);

inline void cluster_arrive(emulator::Where where = emulator::Where::current()) { emulator::cluster_arrive(where); }
inline void cluster_wait(emulator::Where where = emulator::Where::current()) { emulator::cluster_wait(where); }
inline void cluster_sync(emulator::Where where = emulator::Where::current()) {
  emulator::cluster_arrive(where);
  emulator::cluster_wait(where);
}

template <class T>
EMULATOR_UNSEEN T load_cluster(uint32_t address, emulator::Where where = emulator::Where::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  const unsigned char* from = emulator::cluster_pointer(address, sizeof(T), "load_cluster", where);
  emulator::see(from, sizeof(T), emulator::Access::read, where);
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <class T>
EMULATOR_UNSEEN void store_cluster(uint32_t address, const T& value, emulator::Where where = emulator::Where::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  unsigned char* to = emulator::cluster_pointer(address, sizeof(T), "store_cluster", where);
  emulator::see(to, sizeof(T), emulator::Access::write, where);
  std::memcpy(to, &value, sizeof(T));
}
template <class T>
inline void store_async(uint32_t address, const T& value, uint32_t mbarrier, emulator::Where where = emulator::Where::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  emulator::store_async(address, &value, sizeof(T), mbarrier, where);
}
