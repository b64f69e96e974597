// The functions that the programs of first light share. A program prints one JSON object per line to stdout and nothing else. It
// runs all its measurements or, given the name of one as its argument, only that one. programs.py builds and runs the programs.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#define CHECK(call)                                                                                   \
  do {                                                                                                \
    if (cudaError_t status = (call)) {                                                                \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status)); \
      std::exit(1);                                                                                   \
    }                                                                                                 \
  } while (0)

// Prints one result as a JSON object with a name and the fields in `format`, as in emit("copy", "\"bytes\": %zu", n).
inline void emit(const char* name, const char* format, ...) {
  std::printf("{\"name\": \"%s\", ", name);
  va_list values;
  va_start(values, format);
  std::vprintf(format, values);
  va_end(values);
  std::printf("}\n");
  std::fflush(stdout);
}

// Four hexadecimal digits for each word of 16 bits, eight for each word of 32 bits.
template <class Word>
std::string hex(const std::vector<Word>& words) {
  std::string text(words.size() * sizeof(Word) * 2, '0');
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t digits = sizeof(Word) * 2;
    text[i] = "0123456789abcdef"[words[i / digits] >> (4 * (digits - 1 - i % digits)) & 15];
  }
  return text;
}

template <class T>
struct DeviceArray {
  T* data = nullptr;
  size_t count;
  explicit DeviceArray(size_t count) : count(count) {
    CHECK(cudaMalloc(&data, count * sizeof(T)));
    CHECK(cudaMemset(data, 0, count * sizeof(T)));
  }
  ~DeviceArray() { cudaFree(data); }
  DeviceArray(const DeviceArray&) = delete;
  void set(const std::vector<T>& values) { CHECK(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyDefault)); }
  std::vector<T> get() const {
    std::vector<T> values(count);
    CHECK(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDefault));
    return values;
  }
};

inline int attribute(cudaDeviceAttr which) {
  int value;
  CHECK(cudaDeviceGetAttribute(&value, which, 0));
  return value;
}
inline int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

struct Launch {
  dim3 grid = 1, block = 1;
  size_t shared_bytes = 0;
  int cluster = 1;
  bool cooperative = false;
};

// Launches kernel(arguments...) on the default stream.
template <class... Parameters>
void launch(const Launch& how, void (*kernel)(Parameters...), std::type_identity_t<Parameters>... arguments) {
  if (how.shared_bytes > 48 << 10)
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(how.shared_bytes)));
  if (how.cluster > 8) CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.attrs = attributes;
  if (how.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {unsigned(how.cluster), 1, 1};
  }
  if (how.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// The GPU time in milliseconds that `work` takes.
inline float milliseconds(const std::function<void()>& work) {
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  CHECK(cudaEventRecord(start));
  work();
  CHECK(cudaEventRecord(stop));
  CHECK(cudaEventSynchronize(stop));
  float elapsed;
  CHECK(cudaEventElapsedTime(&elapsed, start, stop));
  CHECK(cudaEventDestroy(start));
  CHECK(cudaEventDestroy(stop));
  return elapsed;
}

struct Spread {
  float least, median, most;
};
// The spread, in milliseconds, of `repeats` timings after a warm-up call.
inline Spread spread(int repeats, const std::function<void()>& work) {
  work();
  std::vector<float> times;
  for (int i = 0; i < repeats; ++i) times.push_back(milliseconds(work));
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2], times.back()};
}

// A linear congruential generator, whose sequence is the same on every machine.
struct Sequence {
  uint64_t state;
  explicit Sequence(uint64_t seed) : state(seed * 2 + 1) {}
  uint32_t next() { return uint32_t((state = state * 6364136223846793005ull + 1442695040888963407ull) >> 33); }
  int below(int bound) { return int(next() % uint32_t(bound)); }
};

struct Measurement {
  const char* name;
  void (*run)();
};
inline int run_measurements(int argc, char** argv, std::initializer_list<Measurement> measurements) {
  bool ran = false;
  for (const Measurement& measurement : measurements)
    if (argc < 2 || !std::strcmp(argv[1], measurement.name)) measurement.run(), ran = true;
  if (!ran) std::fprintf(stderr, "no measurement %s\n", argv[1]);
  return ran ? 0 : 2;
}
