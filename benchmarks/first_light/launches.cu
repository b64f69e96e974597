// The time of a launch from the host, of a cooperative launch, and of a graph's kernel node, with and without clusters.
#include <chrono>

#include "common.cuh"

__global__ void nothing() {}
__global__ void __cluster_dims__(8, 1, 1) nothing_in_clusters() {}

double microseconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

void host() {
  constexpr int COUNT = 2000;
  nothing<<<1, 32>>>();
  CHECK(cudaDeviceSynchronize());
  const double back_to_back = microseconds([] {
    for (int i = 0; i < COUNT; ++i) nothing<<<1, 32>>>();
    CHECK(cudaDeviceSynchronize());
  });
  const double round_trip = microseconds([] {
    for (int i = 0; i < COUNT; ++i) {
      nothing<<<1, 32>>>();
      CHECK(cudaDeviceSynchronize());
    }
  });
  emit("launch", "\"back_to_back_us\": %.3f, \"with_synchronisation_us\": %.3f", back_to_back / COUNT, round_trip / COUNT);
}

void graph(const char* kind, const std::function<void(cudaStream_t)>& node) {
  constexpr int NODES = 1000;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < NODES; ++i) node(stream);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  const Spread time = spread(20, [&] { CHECK(cudaGraphLaunch(executable, cudaStreamLegacy)); });
  emit("graph_node", "\"kernel\": \"%s\", \"least_us\": %.4f, \"median_us\": %.4f", kind, time.least * 1000 / NODES,
       time.median * 1000 / NODES);
}

void graphs() {
  graph("1 block", [](cudaStream_t stream) { nothing<<<1, 128, 0, stream>>>(); });
  graph("a block per multiprocessor", [](cudaStream_t stream) { nothing<<<multiprocessors(), 256, 0, stream>>>(); });
  graph("clusters of 8", [](cudaStream_t stream) { nothing_in_clusters<<<128, 256, 0, stream>>>(); });
}

void cooperative() {
  const Spread time = spread(20, [] {
    for (int i = 0; i < 100; ++i) launch({.grid = unsigned(multiprocessors()), .block = 256, .cooperative = true}, nothing);
  });
  emit("cooperative_launch", "\"median_us\": %.3f", time.median * 10);
}

int main(int argc, char** argv) {
  return run_measurements(argc, argv, {{"host", host}, {"graphs", graphs}, {"cooperative", cooperative}});
}
