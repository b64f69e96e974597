// The C interface of the kernel object, which depends on no version of torch or Python. Python checks, allocates and plans; this
// file launches. pyext/torch_unroll/engines/cuda.py calls it. Functions that can fail return a cudaError_t, 0 for success.
#include "platform/encode.h"
#include "platform/interface.h"
#include "platform/launch_sequence.h"
#include "platform/registry.h"

#include <cstdint>
#include <vector>

namespace {
std::vector<KernelEntry>& table() {
  static std::vector<KernelEntry> entries;  // local, because registrations may run before this file's globals are initialised
  return entries;
}

// A launch configuration in the form of the CUDA runtime, with the attributes to which it points.
struct Attributes {
  cudaLaunchAttribute list[2];
  cudaLaunchConfig_t config{};
  Attributes(const LaunchConfig& from, void* stream) {
    config.gridDim = {from.grid[0], from.grid[1], from.grid[2]};
    config.blockDim = {from.block[0], from.block[1], from.block[2]};
    config.dynamicSmemBytes = from.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = list;
    if (from.cluster[0] * from.cluster[1] * from.cluster[2] > 1) {
      cudaLaunchAttribute& attribute = list[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {from.cluster[0], from.cluster[1], from.cluster[2]};
    }
    if (from.cooperative) {
      cudaLaunchAttribute& attribute = list[config.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
  }
};

// Returns an error after removing it from the runtime, which would otherwise report it for the next launch as well.
cudaError_t cleared(cudaError_t error) {
  if (error) cudaGetLastError();
  return error;
}

// Permits a kernel more than 48 KiB of shared memory and clusters of more than 8 blocks, if the launch needs them.
cudaError_t allow(const KernelEntry& entry, const LaunchConfig& config) {
  if (config.shared_bytes > 48 << 10)
    if (auto error = cudaFuncSetAttribute(entry.function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(config.shared_bytes)))
      return error;
  if (config.cluster[0] * config.cluster[1] * config.cluster[2] > 8)
    return cudaFuncSetAttribute(entry.function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return cudaSuccess;
}

cudaError_t count_resident(const KernelEntry& entry, const LaunchConfig& config, int* count) {
  if (auto error = allow(entry, config)) return error;
  if (config.cluster[0] * config.cluster[1] * config.cluster[2] > 1) {
    Attributes attributes(config, nullptr);
    return cudaOccupancyMaxActiveClusters(count, entry.function, &attributes.config);
  }
  int device, multiprocessors, blocks;
  if (auto error = cudaGetDevice(&device)) return error;
  if (auto error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) return error;
  const int threads = int(config.block[0] * config.block[1] * config.block[2]);
  if (auto error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, entry.function, threads, config.shared_bytes))
    return error;
  *count = blocks * multiprocessors;
  return cudaSuccess;
}
}  // namespace

KernelRegistration::KernelRegistration(KernelEntry entry) { table().push_back(entry); }

#pragma GCC visibility push(default)  // exports the C interface; the other symbols of this file stay hidden
extern "C" {
int torch_unroll_kernel_count() { return int(table().size()); }
const char* torch_unroll_kernel_name(int kernel) { return table()[kernel].name; }
const char* torch_unroll_parameter_layout(int kernel) { return table()[kernel].layout; }
const char* torch_unroll_error_text(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

// Loads a kernel on the current device, so that its first launch may be part of a graph capture.
int torch_unroll_preload(int kernel) {
  cudaFuncAttributes attributes;
  return cleared(cudaFuncGetAttributes(&attributes, table()[kernel].function));
}

int torch_unroll_launch(int kernel, const LaunchConfig* config, const void* parameters, void* stream) {
  const KernelEntry& entry = table()[kernel];
  if (auto error = allow(entry, *config)) return cleared(error);
  Attributes attributes(*config, stream);
  void* arguments[] = {const_cast<void*>(parameters)};
  return cleared(cudaLaunchKernelExC(&attributes.config, entry.function, arguments));
}

// Writes the 128 bytes of a TensorMap.
int torch_unroll_encode_tensor_map(const TensorMapSpec* spec, void* map) { return cleared(encode_tensor_map(*spec, map)); }

// Launches a recorded sequence on the pointers of a call.
int torch_unroll_launch_sequence(const LaunchSequence* sequence, const uint64_t* pointers, void* stream) {
  const auto launch = [stream](int kernel, const LaunchConfig* config, const void* parameters) {
    return torch_unroll_launch(kernel, config, parameters, stream);
  };
  return launch_sequence(*sequence, pointers, launch, torch_unroll_encode_tensor_map);
}

// Counts the blocks that can be resident on the current device at once; for a launch with clusters, the clusters.
int torch_unroll_resident(int kernel, const LaunchConfig* config, int* count) {
  return cleared(count_resident(table()[kernel], *config, count));
}
}
#pragma GCC visibility pop
