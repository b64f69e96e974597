// How compiled kernels enter the table that launch.cu launches them from. Host code.
#pragma once
#include <cuda_runtime.h>

struct KernelEntry {
  const char* name;      // Kernel.expression of kernels/table.py
  const void* function;  // for cudaLaunchKernelExC
  const char* layout;    // how the kernel's one parameter is laid out, as recorded by kernels/layout.py
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

// A global object of this type adds an entry to the table when the shared object is loaded.
struct KernelRegistration {
  explicit KernelRegistration(KernelEntry entry);
};
