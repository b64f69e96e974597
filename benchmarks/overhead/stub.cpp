// The functions of kernels/cuda/launch.cu that launch and that call the driver, without launches and without a driver: the
// overhead benchmark calls them in place of those of the emulated kernels, so that it times host code only.
#include "platform/interface.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Not atomic: one thread makes all calls that are timed.
static uint64_t launches;
EXPORT uint64_t stub_launches() { return launches; }

// Neither function is inlined into a sequence, which calls the real ones as often.
EXPORT __attribute__((noinline)) int torch_unroll_launch(int, const LaunchConfig*, const void*, void*) {
  ++launches;
  return 0;
}

// Different tensors have different maps, by which host code that records a call tells them apart.
EXPORT __attribute__((noinline)) int torch_unroll_encode_tensor_map(const TensorMapSpec* spec, void* map) {
  static_assert(offsetof(TensorMapSpec, type) == 120, "a map has 128 bytes");
  const int32_t rest[] = {spec->type, 2 * spec->swizzle + spec->im2col};
  std::memcpy(map, spec, 120);
  std::memcpy(static_cast<char*>(map) + 120, rest, sizeof rest);
  return 0;
}

#if __has_include("platform/launch_sequence.h")
#include "platform/launch_sequence.h"

// All of it is the real one, but for the two functions that it calls.
EXPORT int torch_unroll_launch_sequence(const LaunchSequence* sequence, const uint64_t* pointers, void* stream) {
  const auto launch = [stream](int kernel, const LaunchConfig* config, const void* parameters) {
    return torch_unroll_launch(kernel, config, parameters, stream);
  };
  return launch_sequence(*sequence, pointers, launch, torch_unroll_encode_tensor_map);
}
#endif
