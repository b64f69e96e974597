// The choice of the modes in arithmetic.h.
#include "arithmetic.h"

#include <cstdlib>

namespace emulator {
namespace {
// It is an assumption that TMA rounds fp32 to TF32 by nearest even. Once golden/tma_tf32.jsonl.gz has been recorded,
// test_golden.py checks the assumption.
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
// Sets the modes of later launches: 1 truncates, 0 does not, -1 leaves a mode as it is. Returns the previous modes: that of
// the addition in bit 0, that of copies in bit 1.
__attribute__((visibility("default"))) int torch_unroll_emulator_arithmetic(int addition, int copied) {
  emulator::Arithmetic& mode = emulator::chosen;
  const int before = int(mode.addition) | int(mode.copied) << 1;
  if (addition >= 0) mode.addition = emulator::Addition(addition);
  if (copied >= 0) mode.copied = emulator::Tf32(copied);
  return before;
}
}
