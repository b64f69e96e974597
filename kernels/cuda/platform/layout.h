// Helpers for the source that kernels/layout.py generates to check that a struct is laid out like its mirror in Python.
#pragma once
#include <platform/types.h>

// Whether a field has the same offset and size in C++ and in Python; the compiler's message shows the numbers.
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

// A value of a type for operands that are not evaluated, such as those of sizeof and decltype.
template <class Struct>
__device__ const Struct& unevaluated();
