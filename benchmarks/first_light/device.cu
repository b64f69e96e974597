// The properties that the device reports, how many clusters it can run at once if each block uses all the shared memory that it
// may have, and its clock under load.
#include "common.cuh"
#include "hopper.cuh"

void properties() {
  cudaDeviceProp device;
  int driver, runtime;
  CHECK(cudaGetDeviceProperties(&device, 0));
  CHECK(cudaDriverGetVersion(&driver));
  CHECK(cudaRuntimeGetVersion(&runtime));
  emit(
      "device",
      "\"gpu\": \"%s\", \"capability\": \"%d.%d\", \"driver\": %d, \"runtime\": %d, \"multiprocessors\": %d, \"memory_bytes\": "
      "%zu, "
      "\"l2_bytes\": %d, \"l2_persisting_bytes\": %d, \"shared_bytes_per_block\": %zu, \"shared_bytes_per_multiprocessor\": %zu, "
      "\"registers_per_multiprocessor\": %d, \"sm_clock_khz\": %d, \"memory_clock_khz\": %d, \"memory_bus_bits\": %d",
      device.name, device.major, device.minor, driver, runtime, device.multiProcessorCount, device.totalGlobalMem,
      device.l2CacheSize, device.persistingL2CacheMaxSize, device.sharedMemPerBlockOptin, device.sharedMemPerMultiprocessor,
      device.regsPerMultiprocessor, attribute(cudaDevAttrClockRate), attribute(cudaDevAttrMemoryClockRate),
      attribute(cudaDevAttrGlobalMemoryBusWidth));
}

__global__ void full_block() {}

void clusters() {
  const int shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  CHECK(cudaFuncSetAttribute(full_block, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  CHECK(cudaFuncSetAttribute(full_block, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  for (int size : {1, 2, 4, 8, 16}) {
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {unsigned(size), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = size;
    config.blockDim = 256;
    config.dynamicSmemBytes = shared_bytes;
    config.attrs = &cluster;
    config.numAttrs = 1;
    int count = 0;
    const cudaError_t status = cudaOccupancyMaxActiveClusters(&count, full_block, &config);
    cudaGetLastError();
    emit("active_clusters", "\"blocks_per_cluster\": %d, \"shared_bytes_per_block\": %d, \"clusters\": %d, \"status\": \"%s\"",
         size, shared_bytes, count, cudaGetErrorString(status));
  }
}

__global__ void spin(long long* elapsed, long long duration) {
  const long long start = cycles();
  const unsigned long long from = nanoseconds();
  float value = float(threadIdx.x);
  while (cycles() - start < duration)
    for (int i = 0; i < 64; ++i) value = fmaf(value, 0.5f, 1.f);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    elapsed[0] = cycles() - start;
    elapsed[1] = (long long)(nanoseconds() - from);
  }
  if (value == 12345.f) elapsed[2] = 1;  // never true; keeps the compiler from removing the arithmetic
}

// The clock in GHz while a kernel keeps every multiprocessor busy.
void sm_clock() {
  DeviceArray<long long> elapsed(3);
  for (int i = 0; i < 3; ++i) {
    launch({.grid = unsigned(multiprocessors()), .block = 256}, spin, elapsed.data, 200'000'000ll);
    CHECK(cudaDeviceSynchronize());
    const auto cycles_and_nanoseconds = elapsed.get();
    emit("sm_clock_under_load", "\"gigahertz\": %.4f", double(cycles_and_nanoseconds[0]) / double(cycles_and_nanoseconds[1]));
  }
}

int main(int argc, char** argv) {
  return run_measurements(argc, argv, {{"properties", properties}, {"clusters", clusters}, {"clock", sm_clock}});
}
