// The functions that inform the race checker which accesses of other threads happen before a thread's next access. Without race
// mode they do nothing.
#pragma once
#include "emulator/runtime.h"
#include "platform/memory.h"

#include <memory>
#include <utility>
#include <vector>

namespace emulator {
struct Block;
struct Thread;

// The vector clock of a moment has parts for blocks. Entry t of a block's part is the clock of the block's thread or actor t (see
// below) at the latest of its moments that happened before this one. A clock is not changed once it is shared, so all threads
// that met at a barrier refer to the same one.
struct Clock {
  using Part = std::shared_ptr<const std::vector<uint32_t>>;
  std::vector<std::pair<uint32_t, Part>> parts;  // in ascending order of their blocks
  uint32_t at(uint32_t block, uint32_t thread) const;
};
using SharedClock = std::shared_ptr<const Clock>;

// A moment of a thread or actor (see below): what is known to have happened before it, and the clock of the thread or actor.
struct Moment {
  SharedClock known;
  uint32_t block, thread, clock;
};

struct Knowledge {
  SharedClock known;
  uint32_t clock = 1;
  SharedClock fenced;                  // what was known at the last fence; later relaxed writes release it
  SharedClock offered;                 // what was released with the values that relaxed accesses read; the next fence acquires it
  std::vector<uint32_t> proxy_fences;  // the thread's clock at each fence_proxy_async
};

// An actor accesses memory without being a thread: it is the products of one warp, or the copies that complete at one mbarrier.
// Like a thread, it has a clock and an index; the indices of actors follow those of the threads. A thread that waits for such
// products or copies acquires the moment of their actor.
struct Actors {
  std::vector<uint32_t> clocks;  // of the warps' products, then of the mbarriers' copies
  std::vector<const uint64_t*> barriers;
};

#ifdef EMULATOR_RACE
constexpr bool kRace = true;
void race_launch_started(const void* parameters, size_t parameter_bytes);
void race_block_started(Block& block);
// Returns the thread's moment and advances its clock.
Moment release(Thread& thread);
SharedClock join(const std::vector<Moment>& moments);
void acquire(Thread& thread, const SharedClock& clock);
Moment products_moment(Block& block, unsigned warp);
Moment copies_moment(Block& block, const uint64_t* barrier);
// Checks an access by an actor and records it. `issued` is the moment at which a thread issued the operation, `actor` the moment
// of the actor. Conflicting accesses must have happened before `issued`, and writes by threads must also be ordered by a proxy
// fence.
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
