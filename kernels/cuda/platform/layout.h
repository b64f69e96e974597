// How kernels/layout.py states, in the source that a compiler is given, where a mirror in Python has the fields of a struct.
#pragma once
#include <platform/types.h>

// Whether a field has the same place on both sides; the compiler's message shows the numbers.
template <uint64_t kOffset, uint64_t kSize, uint64_t kMirrorOffset, uint64_t kMirrorSize>
struct SameField {
  static constexpr bool value = kOffset == kMirrorOffset && kSize == kMirrorSize;
  static_assert(value, "a struct and its mirror in Python differ in the numbers named: change one of the two");
};

template <class Kernel>
struct ParametersOf;
template <class Parameters>
struct ParametersOf<void (*)(Parameters)> {
  using type = Parameters;
};

// For operands that are not evaluated.
template <class Struct>
__device__ const Struct& unevaluated();
