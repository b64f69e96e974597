// The table of compiled kernels and the one C interface that launches them (launch.cu). Host code.
#pragma once
#include <cuda_runtime.h>

struct KernelEntry {
  const char* name;      // the C++ name expression of kernels/table.py
  const void* function;  // what cudaLaunchKernelExC takes
  const char* layout;    // of its one parameter: a record of kernels/layout.py
};

template <auto Function>
struct KernelOf;
template <class Parameters, void (*Function)(const Parameters)>
struct KernelOf<Function> {
  static KernelEntry entry(const char* name, const char* layout) {
    return {name, reinterpret_cast<const void*>(Function), layout};
  }
};
template <auto Function>
KernelEntry kernel_entry(const char* name, const char* layout) {
  return KernelOf<Function>::entry(name, layout);
}

// Adds an entry to the table while the object is being loaded.
struct KernelRegistration {
  explicit KernelRegistration(KernelEntry entry);
};
