// Launches a recorded sequence on the pointers of a call. Host code without CUDA, which launch.cu and the emulator share.
#pragma once
#include "platform/interface.h"

#include <cstring>
#include <memory>

// Returned if a pointer is less aligned than when the sequence was recorded; nothing has been launched then. It is no
// cudaError_t.
constexpr int kNotAligned = -1;

// `launch(kernel, config, parameters)` and `encode(spec, map)` are the functions of the C interface; they return 0 or an error,
// which ends the sequence.
template <class Launch, class Encode>
int launch_sequence(const LaunchSequence& sequence, const uint64_t* pointers, Launch launch, Encode encode) {
  for (uint32_t i = 0; i < sequence.aligned_count; ++i)
    if (pointers[i] % 16) return kNotAligned;
  // Several threads may launch one sequence at once, so each call patches a copy of the parameters.
  constexpr uint32_t kOnStack = 8192;
  unsigned char on_stack[kOnStack];
  std::unique_ptr<unsigned char[]> on_heap;
  if (sequence.parameter_bytes > kOnStack) on_heap.reset(new unsigned char[sequence.parameter_bytes]);
  unsigned char* const block = on_heap ? on_heap.get() : on_stack;
  std::memcpy(block, sequence.parameters, sequence.parameter_bytes);
  for (uint32_t i = 0; i < sequence.patch_count; ++i) {
    const SequencePatch& patch = sequence.patches[i];
    const uint64_t address = pointers[patch.pointer] + uint64_t(patch.offset);
    if (patch.map < 0) {
      std::memcpy(block + patch.at, &address, sizeof address);
      continue;
    }
    TensorMapSpec spec = sequence.maps[patch.map];
    spec.address = reinterpret_cast<const void*>(address);
    if (const int error = encode(&spec, block + patch.at)) return error;
  }
  for (uint32_t i = 0; i < sequence.launch_count; ++i) {
    const SequenceLaunch& next = sequence.launches[i];
    if (const int error = launch(next.kernel, &next.config, block + next.parameters)) return error;
  }
  return 0;
}
