#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// emulator_switch(save, to) pushes the registers that the ABI requires a callee to preserve, stores the stack pointer in *save,
// and continues with the registers and the return address on the stack `to`.
#if defined(__x86_64__)
asm(R"(
.text
.type emulator_switch, @function
.hidden emulator_switch
.globl emulator_switch
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");
constexpr size_t kReturnAddress = 6, kFrameWords = 8;  // after `ret` the stack pointer is 8 modulo 16, as after a call
#elif defined(__aarch64__)
asm(R"(
.text
.type emulator_switch, %function
.hidden emulator_switch
.globl emulator_switch
emulator_switch:
  stp x19, x20, [sp, #-160]!
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x19, x20, [sp], #160
  ret
.size emulator_switch, .-emulator_switch
)");
constexpr size_t kReturnAddress = 11, kFrameWords = 20;
#else
#error "the emulator switches stacks on x86-64 and aarch64 only"
#endif
extern "C" void emulator_switch(void** save, void* to);

namespace emulator {
namespace {
constexpr size_t kPage = 4096, kSlabStacks = 256;
}

void switch_fiber(Fiber& from, Fiber& to) { emulator_switch(&from.stack_pointer, to.stack_pointer); }

void FiberPool::rewind(Fiber& fiber) {
  auto* frame = reinterpret_cast<uintptr_t*>(fiber.stack + kStackBytes) - kFrameWords;
  std::memset(frame, 0, kFrameWords * sizeof *frame);
  frame[kReturnAddress] = reinterpret_cast<uintptr_t>(body_);
  fiber.stack_pointer = frame;
}

void FiberPool::map_slab() {
  const size_t pitch = kPage + kStackBytes, bytes = pitch * kSlabStacks;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("the emulator cannot map stacks for its threads");
    std::abort();
  }
  auto* begin = static_cast<unsigned char*>(memory);
  slabs_.push_back({begin, bytes});
  for (size_t i = 0; i < kSlabStacks; ++i) {
    mprotect(begin + i * pitch, kPage, PROT_NONE);
    auto* fiber = new Fiber;
    fiber->stack = begin + i * pitch + kPage;
    rewind(*fiber);
    all_.push_back(fiber);
    free_.push_back(fiber);
  }
}

Fiber* FiberPool::take() {
  if (free_.empty()) map_slab();
  Fiber* fiber = free_.back();
  free_.pop_back();
  return fiber;
}

void FiberPool::unmap() {
  for (const Slab& slab : slabs_) munmap(slab.begin, slab.bytes);
  for (Fiber* fiber : all_) delete fiber;
  slabs_.clear(), all_.clear(), free_.clear();
}

void FiberPool::abandon_all() {
  free_ = all_;
  for (Fiber* fiber : all_) rewind(*fiber);
}

bool FiberPool::owns_stack_at(const void* address) const {
  const auto* byte = static_cast<const unsigned char*>(address);
  for (const Slab& slab : slabs_)
    if (byte >= slab.begin && byte < slab.begin + slab.bytes) return true;
  return false;
}
}  // namespace emulator
