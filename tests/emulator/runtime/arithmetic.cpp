#include "arithmetic.h"

#include <cstdlib>

namespace emulator {
namespace {
// Until golden/tma_tf32.jsonl.gz is there to say which it is, the copy engine's rounding is a guess; test_golden.py compares.
constexpr Tf32 kCopied = Tf32::nearest_even;

bool environment_says(const char* name, const char* value) {
  const char* set = std::getenv(name);
  return set && !std::strcmp(set, value);
}

Arithmetic chosen{environment_says("TORCH_UNROLL_EMULATED_ADDITION", "truncate") ? Addition::truncate : Addition::nearest,
                  environment_says("TORCH_UNROLL_EMULATED_TF32", "truncate") ? Tf32::truncate : kCopied};
}  // namespace

const Arithmetic& arithmetic() { return chosen; }
}  // namespace emulator

extern "C" {
// The mode of the launches to come: 1 to truncate, 0 not to, -1 to leave it. Returns the mode before, the addition's in bit 0.
__attribute__((visibility("default"))) int torch_unroll_emulator_arithmetic(int addition, int copied) {
  emulator::Arithmetic& mode = emulator::chosen;
  const int before = int(mode.addition) | int(mode.copied) << 1;
  if (addition >= 0) mode.addition = emulator::Addition(addition);
  if (copied >= 0) mode.copied = emulator::Tf32(copied);
  return before;
}
}
