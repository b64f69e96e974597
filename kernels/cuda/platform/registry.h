// The table of compiled kernels and the one C interface that launches them (launch.cu). Host code.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

struct KernelEntry {
  const char* name;        // the C++ name expression of kernels/table.py
  const void* function;    // what cudaLaunchKernelExC takes
  size_t parameter_bytes;  // sizeof its one parameter
};

template <auto Function>
struct KernelOf;
template <class Parameters, void (*Function)(const Parameters)>
struct KernelOf<Function> {
  static KernelEntry entry(const char* name) { return {name, reinterpret_cast<const void*>(Function), sizeof(Parameters)}; }
};
template <auto Function>
KernelEntry kernel_entry(const char* name) {
  return KernelOf<Function>::entry(name);
}

// Adds an entry to the table while the object is being loaded.
struct KernelRegistration {
  explicit KernelRegistration(KernelEntry entry);
};
