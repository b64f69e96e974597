// What the scheduler tells the race checker: which threads came to know of which others' accesses. In the plain object
// everything here is empty.
#pragma once
#include "emulator/runtime.h"
#include "platform/memory.h"

#include <memory>
#include <utility>
#include <vector>

namespace emulator {
struct Block;
struct Thread;

// Clocks of the threads of some blocks: entry t of a block's part is the last moment of its thread t that is known of.
// Never changed once shared, so that all threads that met at a barrier hold one.
struct Clock {
  using Part = std::shared_ptr<const std::vector<uint32_t>>;
  std::vector<std::pair<uint32_t, Part>> parts;  // by block, ascending
  uint32_t at(uint32_t block, uint32_t thread) const;
};
using SharedClock = std::shared_ptr<const Clock>;

// A moment of one thread: what it knew, and its own clock then.
struct Moment {
  SharedClock known;
  uint32_t block, thread, clock;
};

struct Knowledge {
  SharedClock known;
  uint32_t clock = 1;
  SharedClock fenced;                  // at the last fence: what a relaxed store after it releases
  SharedClock offered;                 // by what relaxed loads have seen: a fence acquires it
  std::vector<uint32_t> proxy_fences;  // its clock at each
};

// Who reads and writes without being a thread: the products of a warp, the copies that come to an mbarrier. They have clocks as
// threads have, and numbers after theirs; who has waited for them knows their moment.
struct Actors {
  std::vector<uint32_t> clocks;  // of the warps, then of the mbarriers
  std::vector<const uint64_t*> barriers;
};

#ifdef EMULATOR_RACE
constexpr bool kRace = true;
void race_launch_started(const void* parameters, size_t parameter_bytes);
void race_block_started(Block& block);
// The thread's moment, after which its clock goes on.
Moment release(Thread& thread);
SharedClock join(const std::vector<Moment>& moments);
void acquire(Thread& thread, const SharedClock& clock);
Moment products_moment(Block& block, unsigned warp);
Moment copies_moment(Block& block, const uint64_t* barrier);
// An access by an actor for the current thread: others' must have been known to who issued it, and what threads wrote must have
// been fenced for the proxy that the actor goes through.
void see_asynchronous(const void* address, size_t bytes, Access access, const Moment& issued, const Moment& actor,
                      const char* what, const Where& where);
#else
constexpr bool kRace = false;
inline void race_launch_started(const void*, size_t) {}
inline void race_block_started(Block&) {}
inline Moment release(Thread&) { return {}; }
inline SharedClock join(const std::vector<Moment>&) { return {}; }
inline void acquire(Thread&, const SharedClock&) {}
inline Moment products_moment(Block&, unsigned) { return {}; }
inline Moment copies_moment(Block&, const uint64_t*) { return {}; }
inline void see_asynchronous(const void*, size_t, Access, const Moment&, const Moment&, const char*, const Where&) {}
#endif
}  // namespace emulator
