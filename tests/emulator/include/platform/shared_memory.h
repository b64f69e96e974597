// Stands in for kernels/cuda/platform/shared_memory.h: each emulated block owns its bytes, NaN to begin with.
#pragma once
#include "emulator/runtime.h"
#include "platform/types.h"

template <class T>
inline T* shared_memory() {
  return reinterpret_cast<T*>(emulator::shared_memory());
}
