// Stands in for kernels/cuda/platform/registry.h: an entry holds how to call its kernel for one emulated thread.
#pragma once
#include <cstddef>

struct KernelEntry {
  const char* name;
  void (*run)(const void* parameters);
  size_t parameter_bytes;
};

template <auto Function>
struct KernelOf;
template <class Parameters, void (*Function)(const Parameters)>
struct KernelOf<Function> {
  static void run(const void* parameters) { Function(*static_cast<const Parameters*>(parameters)); }
  static KernelEntry entry(const char* name) { return {name, run, sizeof(Parameters)}; }
};
template <auto Function>
KernelEntry kernel_entry(const char* name) {
  return KernelOf<Function>::entry(name);
}

struct KernelRegistration {
  explicit KernelRegistration(KernelEntry entry);
};
