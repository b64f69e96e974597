// Replaces kernels/cuda/platform/mbarrier.h with the state machine of the PTX manual. The state of an mbarrier is kept outside of
// the kernel's memory (runtime/mbarrier.cpp). The launch fails if a barrier is used before its initialisation, or has too many
// arrivals or too many pending bytes.
#pragma once
#include "emulator/runtime.h"
#include "platform/types.h"

namespace emulator {
void mbarrier_init(uint64_t* barrier, uint32_t arrivals, const Where& where);
void mbarrier_arrive(uint64_t* barrier, uint32_t bytes, const Where& where);
void mbarrier_arrive_cluster(uint32_t address, const Where& where);
bool mbarrier_try_wait(const uint64_t* barrier, uint32_t parity, const Where& where);
void mbarrier_wait(const uint64_t* barrier, uint32_t parity, const Where& where);
}  // namespace emulator

uint32_t mbarrier_address(const uint64_t* barrier);
inline void mbarrier_init(uint64_t* barrier, uint32_t arrivals, emulator::Where where = emulator::Where::current()) {
  emulator::mbarrier_init(barrier, arrivals, where);
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint64_t* barrier, emulator::Where where = emulator::Where::current()) {
  emulator::mbarrier_arrive(barrier, 0, where);
}
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes, emulator::Where where = emulator::Where::current()) {
  emulator::mbarrier_arrive(barrier, bytes, where);
}
inline void mbarrier_arrive_cluster(uint32_t address, emulator::Where where = emulator::Where::current()) {
  emulator::mbarrier_arrive_cluster(address, where);
}
inline bool mbarrier_try_wait(const uint64_t* barrier, uint32_t parity, emulator::Where where = emulator::Where::current()) {
  return emulator::mbarrier_try_wait(barrier, parity, where);
}
inline void mbarrier_wait(const uint64_t* barrier, uint32_t parity, emulator::Where where = emulator::Where::current()) {
  emulator::mbarrier_wait(barrier, parity, where);
}
inline void mbarrier_wait_cluster(const uint64_t* barrier, uint32_t parity, emulator::Where where = emulator::Where::current()) {
  emulator::mbarrier_wait(barrier, parity, where);
}
