// Replaces kernels/cuda/platform/registry.h: an entry holds a function that runs the kernel for one emulated thread.
#pragma once
#include <cstddef>
#include <type_traits>

struct KernelEntry {
  const char* name;
  void (*run)(const void* parameters);
  size_t parameter_bytes;
  const char* layout;
};

template <auto Function>
struct KernelOf;
template <class Parameters, void (*Function)(const Parameters)>
struct KernelOf<Function> {
  static void run(const void* parameters) {
    if constexpr (std::is_trivially_copyable_v<Parameters>) {
      Function(*static_cast<const Parameters*>(parameters));
    } else {
      // Parameters with a TensorMap: the ABI passes them by address, so this call passes the launch's own parameters, not a copy.
      auto function = reinterpret_cast<void (*)(const void*)>(Function);
      asm("" : "+r"(function));
      function(parameters);
    }
  }
  static KernelEntry entry(const char* name, const char* layout) { return {name, run, sizeof(Parameters), layout}; }
};
template <auto Function>
KernelEntry kernel_entry(const char* name, const char* layout) {
  return KernelOf<Function>::entry(name, layout);
}

struct KernelRegistration {
  explicit KernelRegistration(KernelEntry entry);
};
