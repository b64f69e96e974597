// Replaces kernels/cuda/platform/tensor_map.h. All bits of a copy's destination are set when the copy is issued. At a random
// later moment the data arrive, and their bytes are reported to the mbarrier (runtime/tma.cpp).
#pragma once
#include "emulator/runtime.h"
#include "platform/mbarrier.h"

// A TensorMap is not trivially copyable, so that kernel parameters that contain one are passed by address (platform/registry.h).
// The emulator can then distinguish a copy of the map from the map in the launch's parameters.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
  TensorMap() = default;
  TensorMap(const TensorMap& other) { std::memcpy(bytes, other.bytes, sizeof bytes); }
  TensorMap& operator=(const TensorMap&) = default;
};

namespace emulator {
void prefetch_tensor_map(const void* map, const Where& where);
// `start` lists coordinates innermost first; `offset` (W, H) is null for a tiled copy.
void copy_box(void* shared, const void* map, const int32_t (&start)[4], const int32_t* offset, uint64_t* barrier,
              const Where& where);
void fence_proxy_async();
}  // namespace emulator

inline void prefetch_tensor_map(const TensorMap& map, emulator::Where where = emulator::Where::current()) {
  emulator::prefetch_tensor_map(&map, where);
}
inline void copy_tiled(void* shared, const TensorMap& map, int32_t x0, int32_t x1, int32_t x2, int32_t x3, uint64_t* barrier,
                       emulator::Where where = emulator::Where::current()) {
  emulator::copy_box(shared, &map, {x0, x1, x2, x3}, nullptr, barrier, where);
}
inline void copy_im2col(void* shared, const TensorMap& map, int32_t c, int32_t w, int32_t h, int32_t n, int32_t offset_w,
                        int32_t offset_h, uint64_t* barrier, emulator::Where where = emulator::Where::current()) {
  const int32_t offset[] = {offset_w, offset_h};
  emulator::copy_box(shared, &map, {c, w, h, n}, offset, barrier, where);
}
inline void fence_proxy_async() { emulator::fence_proxy_async(); }
