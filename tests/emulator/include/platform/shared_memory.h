// Replaces kernels/cuda/platform/shared_memory.h: each emulated block has its own bytes. All their bits are set at the start,
// so floating-point numbers are NaN.
#pragma once
#include "emulator/runtime.h"
#include "platform/types.h"

template <class T>
inline T* shared_memory() {
  return reinterpret_cast<T*>(emulator::shared_memory());
}
