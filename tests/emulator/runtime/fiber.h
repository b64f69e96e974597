// A fiber: a stack, and where it left off.
#pragma once
#include <cstddef>
#include <vector>

namespace emulator {
struct Fiber {
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;  // its lowest byte; a guard page lies below
};
constexpr size_t kStackBytes = 256 << 10;  // address space; pages count when touched

// Leaves one fiber and goes on in the other: a dozen instructions and no system call, unlike swapcontext.
void switch_fiber(Fiber& from, Fiber& to);

// Stacks are mapped once and reused by every later launch.
class FiberPool {
 public:
  explicit FiberPool(void (*body)()) : body_(body) {}
  Fiber* take();
  void give(Fiber* fiber) { free_.push_back(fiber); }
  void abandon_all();  // every fiber starts afresh, wherever it was
  bool owns_stack_at(const void* address) const;

 private:
  void map_slab();
  void rewind(Fiber& fiber);
  void (*body_)();
  std::vector<Fiber*> all_, free_;
  struct Slab {
    unsigned char* begin;
    size_t bytes;
  };
  std::vector<Slab> slabs_;
};
}  // namespace emulator
