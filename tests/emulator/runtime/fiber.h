// Fibers: stacks on which functions can be suspended and resumed.
#pragma once
#include <cstddef>
#include <vector>

namespace emulator {
struct Fiber {
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;  // the lowest byte, above a guard page
};
constexpr size_t kStackBytes = 256 << 10;  // of address space; a page takes memory when it is first written

// Suspends one fiber and resumes the other. Unlike swapcontext it makes no system call.
void switch_fiber(Fiber& from, Fiber& to);

// Maps stacks and reuses them in later launches, until unmap().
class FiberPool {
 public:
  explicit FiberPool(void (*body)()) : body_(body) {}
  Fiber* take();
  void give(Fiber* fiber) { free_.push_back(fiber); }
  void abandon_all();  // resets every fiber to its start, even suspended ones
  void unmap();        // gives the stacks of all fibers back; none may be running or suspended
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
