// Encodes a TensorMap on the host with the driver's encoders, which are looked up at run time to avoid linking against libcuda.
#pragma once
#include "platform/interface.h"

#include <cuda.h>
#include <cuda_runtime.h>

template <class Function>
inline cudaError_t driver_function(const char* name, Function& function) {
  void* entry_point = nullptr;
  cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
  if (auto error = cudaGetDriverEntryPointByVersion(name, &entry_point, 12000, cudaEnableDefault, &result)) return error;
#else
  if (auto error = cudaGetDriverEntryPoint(name, &entry_point, cudaEnableDefault, &result)) return error;
#endif
  if (result != cudaDriverEntryPointSuccess) return cudaErrorInsufficientDriver;
  function = reinterpret_cast<Function>(entry_point);
  return cudaSuccess;
}

inline cudaError_t encode_tensor_map(const TensorMapSpec& spec, void* map) {
  const CUtensorMapDataType types[] = {CU_TENSOR_MAP_DATA_TYPE_FLOAT16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                       CU_TENSOR_MAP_DATA_TYPE_TFLOAT32};
  const CUtensorMapSwizzle swizzle = spec.swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : spec.swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                          : CU_TENSOR_MAP_SWIZZLE_32B;
  alignas(128) CUtensorMap encoded;  // CUDA 13 declares this alignment, CUDA 12 a smaller one
  void* address = const_cast<void*>(spec.address);
  CUresult result;
  if (spec.im2col) {
    static decltype(&cuTensorMapEncodeIm2col) encode = nullptr;
    if (!encode)
      if (auto error = driver_function("cuTensorMapEncodeIm2col", encode)) return error;
    result = encode(&encoded, types[spec.type], 4, address, spec.extent, spec.stride, spec.lower, spec.upper, spec.channels,
                    spec.pixels, spec.element_stride, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  } else {
    static decltype(&cuTensorMapEncodeTiled) encode = nullptr;
    if (!encode)
      if (auto error = driver_function("cuTensorMapEncodeTiled", encode)) return error;
    result =
        encode(&encoded, types[spec.type], 4, address, spec.extent, spec.stride, spec.box, spec.element_stride,
               CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  }
  for (size_t i = 0; i < sizeof encoded; ++i) static_cast<char*>(map)[i] = reinterpret_cast<const char*>(&encoded)[i];
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
