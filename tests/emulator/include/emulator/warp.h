// Warp collectives. Lanes do not run in lockstep: each runs until the collective, where it waits for the others.
#pragma once
#include "emulator/runtime.h"

#include <cstring>
#include <type_traits>

// CUDA guarantees only that the mask contains the calling lane.
inline unsigned __activemask() { return 1u << emulator::lane(); }
inline void __syncwarp(unsigned mask = 0xffffffff, emulator::Where where = emulator::Where::current()) {
  emulator::warp_collective(mask, "__syncwarp", nullptr, [](void* const*, uint32_t) {}, where);
}

namespace emulator {
template <class T>
struct Shuffle {
  T value, result;
  int source;  // the lane to read
};

// A value read from a lane that does not take part is undefined on a GPU; here all its bits are set.
template <class T>
EMULATOR_UNSEEN T shuffle(const char* what, uint32_t mask, T value, int source, const Where& where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  Shuffle<T> operand{value, value, source};
  auto combine = [](void* const lanes[32], uint32_t) {
    for (int lane = 0; lane < 32; ++lane)
      if (auto* reader = static_cast<Shuffle<T>*>(lanes[lane])) {
        if (auto* source = static_cast<Shuffle<T>*>(lanes[reader->source]))
          reader->result = source->value;
        else
          std::memset(&reader->result, 0xff, sizeof(T));
      }
  };
  warp_collective(mask, what, &operand, combine, where);
  return operand.result;
}

struct Ballot {
  uint32_t ballot, lanes;
};
EMULATOR_UNSEEN inline Ballot vote(const char* what, uint32_t mask, bool predicate, const Where& where) {
  struct Operand {
    bool predicate;
    uint32_t ballot, lanes;
  } operand{predicate, 0, 0};
  auto combine = [](void* const lanes[32], uint32_t present) {
    uint32_t ballot = 0;
    for (int lane = 0; lane < 32; ++lane)
      if (auto* voter = static_cast<Operand*>(lanes[lane])) ballot |= uint32_t(voter->predicate) << lane;
    for (int lane = 0; lane < 32; ++lane)
      if (auto* voter = static_cast<Operand*>(lanes[lane])) voter->ballot = ballot, voter->lanes = present;
  };
  warp_collective(mask, what, &operand, combine, where);
  return {operand.ballot, operand.lanes};
}
}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, emulator::Where where = emulator::Where::current()) {
  const int lane = int(emulator::lane()), first = lane & ~(width - 1);
  return emulator::shuffle("__shfl_sync", mask, value, first + (source & (width - 1)), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, emulator::Where where = emulator::Where::current()) {
  const int lane = int(emulator::lane()), source = lane ^ bits;
  return emulator::shuffle("__shfl_xor_sync", mask, value, source > (lane | (width - 1)) ? lane : source, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, emulator::Where where = emulator::Where::current()) {
  const int lane = int(emulator::lane()), source = lane + int(by);
  return emulator::shuffle("__shfl_down_sync", mask, value, source > (lane | (width - 1)) ? lane : source, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, emulator::Where where = emulator::Where::current()) {
  const int lane = int(emulator::lane()), source = lane - int(by);
  return emulator::shuffle("__shfl_up_sync", mask, value, source < (lane & ~(width - 1)) ? lane : source, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Where where = emulator::Where::current()) {
  return emulator::vote("__ballot_sync", mask, predicate != 0, where).ballot;
}
inline int __any_sync(unsigned mask, int predicate, emulator::Where where = emulator::Where::current()) {
  return emulator::vote("__any_sync", mask, predicate != 0, where).ballot != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulator::Where where = emulator::Where::current()) {
  const emulator::Ballot vote = emulator::vote("__all_sync", mask, predicate != 0, where);
  return vote.ballot == vote.lanes;
}
