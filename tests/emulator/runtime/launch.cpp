// The C interface of kernels/cuda/launch.cu for the emulated GPU, and functions for tests (torch_unroll_emulator_*).
#include "platform/interface.h"
#include "platform/launch_sequence.h"
#include "platform/registry.h"
#include "scheduler.h"
#include "shadow.h"
#include "tensor_map.h"

#include <algorithm>
#include <mutex>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {
using namespace emulator;

std::vector<KernelEntry>& table() {
  static std::vector<KernelEntry> entries;  // local, because registrations may run before the initialisers of this file's globals
  return entries;
}

struct alignas(128) ParameterLine {
  unsigned char bytes[128];
};

struct State {
  std::mutex mutex;  // held during a launch: torch runs backward passes in threads of its own
  Limits limits;
  uint64_t seed = 1;
  std::vector<uint64_t> launches;         // the number of launches of each kernel
  std::string failure;                    // of the last call that failed
  std::vector<ParameterLine> parameters;  // a copy with the alignment of TensorMaps, which Python does not ensure
};
State& state() {
  static State instance;
  return instance;
}

constexpr unsigned kBlocksAtATime = 4;

enum Status {
  kSuccess = 0,
  kInvalidValue = 1,
  kInvalidConfiguration = 9,
  kLaunchFailure = 719,
  kCooperativeTooLarge = 720
};  // values of cudaError_t

Status refuse(Status status, const char* name, std::string message) {
  state().failure = std::string(name) + ": " + std::move(message);
  return status;
}

unsigned volume(const uint32_t size[3]) { return size[0] * size[1] * size[2]; }

// Which rule of compute capability 9.0 the launch configuration violates; empty if it violates none.
std::string against_limits(const LaunchConfig& config) {
  const uint32_t *grid = config.grid, *block = config.block;
  if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535)
    return "grid (" + std::to_string(grid[0]) + "," + std::to_string(grid[1]) + "," + std::to_string(grid[2]) +
           "): extents are 1 to 2^31-1, 65535, 65535";
  if (!volume(block) || block[0] > 1024 || block[1] > 1024 || block[2] > 64 || volume(block) > Limits::kThreadsPerBlock)
    return "block (" + std::to_string(block[0]) + "," + std::to_string(block[1]) + "," + std::to_string(block[2]) +
           "): at most 1024 threads, z at most 64";
  if (config.shared_bytes > Limits::kSharedPerBlock)
    return std::to_string(config.shared_bytes) + " bytes of shared memory: a block has at most 232448";
  for (int i = 0; i < 3; ++i)
    if (!config.cluster[i] || grid[i] % config.cluster[i]) return "the cluster's extents do not divide the grid's";
  if (volume(config.cluster) > 16) return "a cluster has at most 16 blocks";
  return {};
}

unsigned resident_per_multiprocessor(const LaunchConfig& config) {
  const unsigned threads = (volume(config.block) + 31) / 32 * 32;
  return std::min({Limits::kThreadsPerMultiprocessor / threads, Limits::kBlocksPerMultiprocessor,
                   Limits::kSharedPerMultiprocessor / (config.shared_bytes + Limits::kSharedReserved)});
}
dim3 extents(const uint32_t size[3]) { return {size[0], size[1], size[2]}; }
}  // namespace

KernelRegistration::KernelRegistration(KernelEntry entry) { table().push_back(entry); }

EXPORT int torch_unroll_kernel_count() { return int(table().size()); }
EXPORT const char* torch_unroll_kernel_name(int kernel) { return table()[kernel].name; }
EXPORT uint64_t torch_unroll_parameter_bytes(int kernel) { return table()[kernel].parameter_bytes; }
EXPORT const char* torch_unroll_parameter_layout(int kernel) { return table()[kernel].layout; }
EXPORT const char* torch_unroll_error_text(int status) { return status ? state().failure.c_str() : "no error"; }
EXPORT int torch_unroll_preload(int) { return kSuccess; }

EXPORT int torch_unroll_resident(int kernel, const LaunchConfig* config, int* count) {
  const std::lock_guard guard(state().mutex);
  if (std::string wrong = against_limits(*config); !wrong.empty())
    return refuse(kInvalidConfiguration, table()[kernel].name, std::move(wrong));
  *count = int(resident_per_multiprocessor(*config) * state().limits.multiprocessors / volume(config->cluster));
  return kSuccess;
}

EXPORT int torch_unroll_launch(int kernel, const LaunchConfig* config, const void* parameters, void*) {
  const std::lock_guard guard(state().mutex);
  State& all = state();
  const KernelEntry& entry = table()[kernel];
  if (std::string wrong = against_limits(*config); !wrong.empty())
    return refuse(kInvalidConfiguration, entry.name, std::move(wrong));
  const unsigned blocks = volume(config->grid);
  unsigned resident = resident_per_multiprocessor(*config) * all.limits.multiprocessors;
  if (config->cooperative && blocks > resident)
    return refuse(
        kCooperativeTooLarge, entry.name,
        std::to_string(blocks) + " blocks in a cooperative launch: " + std::to_string(resident) + " are resident at once");
  const unsigned cluster = volume(config->cluster);
  if (cluster > resident)
    return refuse(
        kInvalidConfiguration, entry.name,
        "clusters of " + std::to_string(cluster) + " blocks: " + std::to_string(resident) + " blocks are resident at once");
  // Blocks may wait for each other only in a cooperative launch or within a cluster. A launch that is not cooperative runs a few
  // blocks, at least one cluster, at a time, which saves memory.
  if (!config->cooperative) resident = std::min(resident, std::max(kBlocksAtATime, cluster));
  all.launches.resize(table().size());
  ++all.launches[kernel];
  const uint64_t seed = all.seed;
  all.seed = seed * 6364136223846793005 + 1442695040888963407;
  all.parameters.resize((entry.parameter_bytes + sizeof(ParameterLine) - 1) / sizeof(ParameterLine));
  std::memcpy(static_cast<void*>(all.parameters.data()), parameters, entry.parameter_bytes);
  const LaunchRequest request{.name = entry.name,
                              .run = entry.run,
                              .parameters = all.parameters.data(),
                              .parameter_bytes = entry.parameter_bytes,
                              .grid = extents(config->grid),
                              .block = extents(config->block),
                              .cluster = extents(config->cluster),
                              .shared_bytes = config->shared_bytes,
                              .resident = resident};
  if (scheduler().launch(request, seed)) return kSuccess;
  return refuse(kLaunchFailure, entry.name, scheduler().failure() + "  replay this launch with seed " + std::to_string(seed));
}

EXPORT int torch_unroll_encode_tensor_map(const TensorMapSpec* spec, void* map) {
  const std::lock_guard guard(state().mutex);
  if (std::string wrong = encode_tensor_map(*spec, map); !wrong.empty())
    return refuse(kInvalidValue, "encode_tensor_map", std::move(wrong));
  return kSuccess;
}

EXPORT int torch_unroll_launch_sequence(const LaunchSequence* sequence, const uint64_t* pointers, void* stream) {
  const auto launch = [stream](int kernel, const LaunchConfig* config, const void* parameters) {
    return torch_unroll_launch(kernel, config, parameters, stream);
  };
  return launch_sequence(*sequence, pointers, launch, torch_unroll_encode_tensor_map);
}

// Sets the seed of the next launch, from which the seeds of later ones follow.
EXPORT void torch_unroll_emulator_seed(uint64_t seed) { state().seed = seed; }
EXPORT unsigned torch_unroll_emulator_multiprocessors() { return state().limits.multiprocessors; }
EXPORT void torch_unroll_emulator_set_multiprocessors(unsigned count) { state().limits.multiprocessors = count; }
EXPORT uint64_t torch_unroll_emulator_launches(int kernel) {
  return size_t(kernel) < state().launches.size() ? state().launches[kernel] : 0;
}
EXPORT void torch_unroll_emulator_forget_launches() { state().launches.clear(); }
// Unmaps the stacks of emulated threads, which are otherwise kept for later launches. Linux limits the number of mappings of a
// process, and every stack needs two.
EXPORT void torch_unroll_emulator_unmap_stacks() {
  const std::lock_guard guard(state().mutex);
  scheduler().unmap_stacks();
}
// The numbers of threads that have run and of switches between them since the library was loaded.
EXPORT void torch_unroll_emulator_statistics(uint64_t* threads, uint64_t* switches) {
  *threads = scheduler().threads, *switches = scheduler().switches;
}

// Executes a copy to the offset `to` without a kernel; `memory` represents an address in shared memory that is a multiple of
// 1024. Also accepts boxes that the emulator refuses in kernels.
EXPORT int torch_unroll_emulator_copy_box(const TensorMapSpec* spec, const int32_t (*start)[4], const int32_t* offset,
                                          uint32_t to, unsigned char* memory) {
  const std::lock_guard guard(state().mutex);
  std::string wrong = refused_by_driver(*spec);
  Box box(*spec, *start, offset);
  if (wrong.empty()) wrong = box.wrong_start();
  if (!wrong.empty()) return refuse(kInvalidValue, "copy_box", std::move(wrong));
  box.copy(memory, to);
  return kSuccess;
}

#ifdef EMULATOR_COVERAGE
extern "C" void __gcov_dump();
// Writes the line counts, which would be lost if the process ended abnormally later.
EXPORT void torch_unroll_emulator_write_coverage() { __gcov_dump(); }
#endif

#ifdef EMULATOR_RACE
// Adds to the memory that kernels may access. As long as nothing has been added, they may access all memory.
EXPORT void torch_unroll_emulator_allow_memory(const void* address, uint64_t bytes) { allow_memory(address, bytes); }
EXPORT void torch_unroll_emulator_forget_memory() { forget_memory(); }
#endif
