// The interface of the emulator's runtime (tests/emulator/runtime) for the headers in tests/emulator/include.
#pragma once
#include <cstdint>
#include <cstring>
#include <source_location>

namespace emulator {
using Where = std::source_location;

// Fails the launch with this message.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

const char* base_name(const char* path);  // the last part of a path

// Sometimes lets another thread run.
void preempt();
// Lets other threads run, because this one polls.
void poll(const Where& where);
// Reports an event that a polling thread may wait for.
void progress();

struct Predicates {
  int count, all, any;
};
// __syncthreads; returns how many threads passed a true predicate, and whether all or any did.
Predicates block_barrier(bool predicate, const Where& where);
// bar.sync for `count` threads.
void named_barrier(unsigned id, unsigned count, const Where& where);

// Waits until every lane of the mask has called this function or exited. Then `combine` runs once on the operands of `lanes`,
// the lanes that called; the other operands are null. Operands may be on the lanes' stacks.
using Combine = void(void* const operand[32], uint32_t lanes);
void warp_collective(uint32_t mask, const char* what, void* operand, Combine* combine, const Where& where);
unsigned lane();

// The running block's shared memory.
unsigned char* shared_memory();
bool is_shared(const void* address, size_t bytes);
void check_aligned(const void* address, size_t alignment, const char* what, const Where& where);

// Reports to the race checker an access that the emulator makes on behalf of a thread. Does nothing outside of race mode.
enum class Access { read, write, atomic, atomic_read };
void see(const void* address, size_t bytes, Access access, const Where& where);

enum class Order { relaxed, acquire, release };
// Reports to the race checker an access that may synchronise threads.
void synchronise(const void* address, size_t bytes, bool writes, Order order, const Where& where);
void fence();

// For functions that the compiler must not instrument: they report their accesses to a kernel's memory by see() or synchronise().
#define EMULATOR_UNSEEN __attribute__((no_sanitize("thread"), noinline))
}  // namespace emulator
