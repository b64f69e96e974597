// The functions that code compiled with -fsanitize=thread calls: those at its accesses to memory check the access, the others do
// nothing.
#ifdef EMULATOR_RACE
#include "shadow.h"

using emulator::Access;
using emulator::check_access;

#define SEE(name, bytes, access) \
  extern "C" void name(void* address) { check_access(address, bytes, Access::access, __builtin_return_address(0)); }
#define SEE_SIZES(name, access) \
  SEE(name##1, 1, access) SEE(name##2, 2, access) SEE(name##4, 4, access) SEE(name##8, 8, access) SEE(name##16, 16, access)
SEE_SIZES(__tsan_read, read)
SEE_SIZES(__tsan_write, write)
SEE_SIZES(__tsan_unaligned_read, read)
SEE_SIZES(__tsan_unaligned_write, write)
SEE_SIZES(__tsan_volatile_write, atomic)
SEE_SIZES(__tsan_unaligned_volatile_read, atomic_read)
SEE_SIZES(__tsan_unaligned_volatile_write, atomic)

// A kernel may poll a volatile variable, so reading one sometimes lets another thread run.
#define POLL(bytes)                                                                 \
  extern "C" void __tsan_volatile_read##bytes(void* address) {                      \
    check_access(address, bytes, Access::atomic_read, __builtin_return_address(0)); \
    emulator::preempt();                                                            \
  }
// clang-format off
POLL(1) POLL(2) POLL(4) POLL(8) POLL(16)
    // clang-format on

    extern "C" void __tsan_read_range(void* address, size_t bytes) {
  check_access(address, bytes, Access::read, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* address, size_t bytes) {
  check_access(address, bytes, Access::write, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
#endif
