// What the stand-in headers ask of the emulator's runtime (tests/emulator/runtime): waiting, failing, being seen.
#pragma once
#include <cstdint>
#include <cstring>
#include <source_location>

namespace emulator {
using Where = std::source_location;

// Ends the launch with this message: no thread runs on.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

const char* base_name(const char* path);  // what reports call a file

// A point at which another thread may run instead: now and then one does.
void preempt();
// The thread polls: it goes on when others have had their turn.
void poll(const Where& where);
// Something that a polling thread may wait for has happened.
void progress();

struct Predicates {
  int count, all, any;
};
// __syncthreads, and the number of threads whose predicate is true.
Predicates block_barrier(bool predicate, const Where& where);
// bar.sync and bar.arrive: `count` threads in all, of which `wait` ones wait.
void named_barrier(unsigned id, unsigned count, bool wait, const Where& where);

// Lanes of a warp meet. The last to arrive runs `combine` over everybody's operand (null for lanes that are not there),
// which may stand on the lanes' stacks; then all go on.
using Combine = void(void* const operand[32], uint32_t lanes);
void warp_collective(uint32_t mask, const char* what, void* operand, Combine* combine, const Where& where);
unsigned lane();

// The running block's shared memory.
unsigned char* shared_memory();
bool is_shared(const void* address, size_t bytes);
void check_aligned(const void* address, size_t alignment, const char* what, const Where& where);

// An access that the emulator makes for a thread, told to the race checker (nothing happens in the other modes).
enum class Access { read, write, atomic, atomic_read };
void see(const void* address, size_t bytes, Access access, const Where& where);

enum class Order { relaxed, acquire, release, acquire_release };
// Tells the race checker of an access that synchronises.
void synchronise(const void* address, size_t bytes, bool writes, Order order, const Where& where);
void fence();

// Stand-in functions touch a kernel's memory for it and say so through see(): their own instructions are not watched.
#define EMULATOR_UNSEEN __attribute__((no_sanitize("thread"), noinline))
}  // namespace emulator
