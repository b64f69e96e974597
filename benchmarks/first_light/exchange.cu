// How fast blocks exchange data: barriers, one-way hand-offs, and the all-gather of a recurrent state, each within a cluster and
// across the grid through L2. In an all-gather every block writes its part and waits for all parts, as a persistent recurrent
// kernel does at each step. The results are cycles and nanoseconds per barrier, one-way hand-off or all-gather.
#include "common.cuh"
#include "hopper.cuh"

constexpr int STEPS = 2000;

struct Result {
  long long cycles;                // of block 0
  unsigned long long nanoseconds;  // of block 0
  int gave_up;                     // set by any block that has waited too long
};

struct Stopwatch {
  long long from_cycles;
  unsigned long long from_nanoseconds;
  __device__ Stopwatch() : from_cycles(cycles()), from_nanoseconds(nanoseconds()) {}
  __device__ void stop(Result* result, bool fine) const {
    if (!fine) result->gave_up = 1;
    if (blockIdx.x || threadIdx.x) return;
    result->cycles = cycles() - from_cycles;
    result->nanoseconds = nanoseconds() - from_nanoseconds;
  }
};

// Waits until a counter in global memory reaches a value; returns false if that takes longer than PATIENCE.
__device__ bool wait_for(const uint32_t* counter, uint32_t value) {
  const long long started = cycles();
  while (int(load_acquire(counter) - value) < 0)
    if (cycles() - started > PATIENCE) return false;
  return true;
}

__global__ void grid_barrier(uint32_t* counter, Result* result) {
  bool fine = true;
  const Stopwatch watch;
  for (uint32_t step = 1; step <= STEPS && fine; ++step) {
    __syncthreads();
    if (threadIdx.x == 0) {
      add_release(counter, 1);
      fine = wait_for(counter, step * gridDim.x);
    }
    fine = __syncthreads_and(fine);
  }
  watch.stop(result, fine);
}

__global__ void cluster_barriers(Result* result) {
  const Stopwatch watch;
  for (int step = 0; step < STEPS; ++step) cluster_barrier();
  watch.stop(result, true);
}

// Initializes mbarriers for one arrival each, and makes them visible to all blocks of the cluster.
__device__ void init_barriers(uint64_t* barriers, int count) {
  if (threadIdx.x == 0)
    for (int i = 0; i < count; ++i) barrier_init(&barriers[i], 1);
  barrier_init_visible();
  cluster_barrier();
}

// Two blocks of a cluster send each other 16 bytes by st.async. A step is a message in each direction.
__global__ void ping_pong_cluster(Result* result) {
  __shared__ alignas(16) float4 inbox;
  __shared__ uint64_t arrived;
  init_barriers(&arrived, 1);
  const uint32_t rank = cluster_rank(), peer = rank ^ 1;
  const uint32_t peer_inbox = remote(shared_address(&inbox), peer), peer_arrived = remote(shared_address(&arrived), peer);
  bool fine = true;
  const Stopwatch watch;
  if (threadIdx.x == 0)
    for (int step = 0; step < STEPS && fine; ++step) {
      barrier_arrive_expect(&arrived, 16);
      if (rank == 0) store_async(peer_inbox, float4{1, 2, 3, float(step)}, peer_arrived);
      fine = barrier_wait(&arrived, step & 1);
      if (rank == 1) store_async(peer_inbox, float4{1, 2, 3, float(step)}, peer_arrived);
    }
  watch.stop(result, fine);
  cluster_barrier();
}

// Block 0 and block `partner` send each other messages through L2. With `flag_in_data`, one word of 8 bytes contains message and
// flag; otherwise a separate flag is written with release and read with acquire semantics.
__global__ void ping_pong_l2(uint64_t* boxes, uint32_t* flags, int partner, bool flag_in_data, Result* result) {
  const bool first = blockIdx.x == 0;
  if (threadIdx.x || (!first && blockIdx.x != partner)) return;
  uint64_t *mine = boxes + (first ? 0 : 64), *theirs = boxes + (first ? 64 : 0);  // 512 bytes apart
  uint32_t *my_flag = flags + (first ? 0 : 128), *their_flag = flags + (first ? 128 : 0);
  bool fine = true;
  auto send = [&](uint32_t step) {
    if (flag_in_data) return store_relaxed(theirs, uint64_t(step) << 32 | step);
    store_relaxed(theirs, uint64_t(step));
    store_release(their_flag, step);
  };
  auto receive = [&](uint32_t step) {
    if (!flag_in_data) return wait_for(my_flag, step);
    const long long started = cycles();
    while (load_relaxed(mine) >> 32 != step)
      if (cycles() - started > PATIENCE) return false;
    return true;
  };
  const Stopwatch watch;
  for (uint32_t step = 1; step <= STEPS && fine; ++step) {
    if (first) send(step);
    fine = receive(step);
    if (!first) send(step);
  }
  watch.stop(result, fine);
}

// Every block of a cluster writes its slice of the state into the shared memory of every block, by st.async of 16 bytes at a
// time. A block holds two states, of an even and of an odd step, so step t + 1 overwrites step t - 1. That is safe, because a
// block sends its slice of step t + 1 only after it has received every slice of step t, and every block is done with step t - 1
// before it sends its slice of step t.
__global__ void all_gather_cluster(int slice_bytes, Result* result) {
  extern __shared__ __align__(128) unsigned char state[];
  __shared__ uint64_t arrived[2];
  const uint32_t blocks = cluster_size(), rank = cluster_rank();
  const int state_bytes = slice_bytes * int(blocks);
  const uint32_t pieces = uint32_t(slice_bytes) / 16;  // a power of two, as is `blocks`
  const uint32_t shift = uint32_t(__ffs(int(pieces)) - 1);
  init_barriers(arrived, 2);
  bool fine = true;
  const Stopwatch watch;
  for (int step = 0; step < STEPS && fine; ++step) {
    const int slot = step & 1;
    if (threadIdx.x == 0) barrier_arrive_expect(&arrived[slot], state_bytes);
    const uint32_t to = shared_address(state) + uint32_t(slot * state_bytes) + rank * uint32_t(slice_bytes);
    for (uint32_t i = threadIdx.x; i < pieces * blocks; i += blockDim.x) {
      const uint32_t peer = (rank + (i >> shift)) & (blocks - 1);
      store_async(remote(to + (i & (pieces - 1)) * 16, peer), float4{1, 2, 3, float(step)},
                  remote(shared_address(&arrived[slot]), peer));
    }
    fine = __syncthreads_and(barrier_wait(&arrived[slot], (step >> 1) & 1));
  }
  watch.stop(result, fine);
  cluster_barrier();
}

// The all-gather of a cluster by multicast: a block writes its slice to global memory, and one bulk copy moves it from L2 to
// the shared memory of every block.
__global__ void all_gather_multicast(unsigned char* exchange, int slice_bytes, Result* result) {
  extern __shared__ __align__(128) unsigned char state[];
  __shared__ uint64_t arrived[2];
  const uint32_t blocks = cluster_size(), rank = cluster_rank();
  const int state_bytes = slice_bytes * int(blocks);
  init_barriers(arrived, 2);
  bool fine = true;
  const Stopwatch watch;
  for (int step = 0; step < STEPS && fine; ++step) {
    const int slot = step & 1;
    unsigned char* mine = exchange + slot * state_bytes + int(rank) * slice_bytes;
    for (int i = int(threadIdx.x); i < slice_bytes / 16; i += int(blockDim.x))
      reinterpret_cast<float4*>(mine)[i] = float4{1, 2, 3, float(step)};
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
      barrier_arrive_expect(&arrived[slot], state_bytes);
      copy_multicast(shared_address(state) + uint32_t(slot * state_bytes) + rank * uint32_t(slice_bytes), mine, slice_bytes,
                     shared_address(&arrived[slot]), uint16_t((1u << blocks) - 1));
    }
    fine = __syncthreads_and(barrier_wait(&arrived[slot], (step >> 1) & 1));
  }
  watch.stop(result, fine);
  cluster_barrier();
}

// Every block of the grid writes its slice of the state to global memory and reads the whole state. Each word of 16 bytes
// contains the step as a flag, and even and odd steps have separate copies of the state.
__global__ void all_gather_l2(uint4* exchange, int words, Result* result) {
  const int slice = words / int(gridDim.x);
  bool fine = true;
  const Stopwatch watch;
  for (uint32_t step = 1; step <= STEPS && fine; ++step) {
    uint4* state = exchange + int(step & 1) * words;
    for (int i = int(threadIdx.x); i < slice; i += int(blockDim.x))
      store_relaxed(state + int(blockIdx.x) * slice + i, uint4{1, 2, 3, step});
    const long long started = cycles();
    for (int i = int(threadIdx.x); i < words && fine; i += int(blockDim.x))
      while (load_relaxed(state + i).w != step && fine) fine = cycles() - started < PATIENCE;
    fine = __syncthreads_and(fine);
  }
  watch.stop(result, fine);
}

std::string detail(const char* name, int value) { return "\"" + std::string(name) + "\": " + std::to_string(value) + ", "; }

// Runs a kernel, whose last parameter is its Result, twice, each time after `prepare`. The times are those of the second run;
// gave_up is set if either run gave up. The time of a step is divided by `parts`, the number of equal parts of a step.
template <class Kernel, class... Arguments>
void measure(const char* name, const std::string& details, int parts, const Launch& how, const std::function<void()>& prepare,
             Kernel kernel, Arguments... arguments) {
  DeviceArray<Result> result(1);
  for (int run = 0; run < 2; ++run) {
    prepare();
    launch(how, kernel, arguments..., result.data);
    CHECK(cudaDeviceSynchronize());
  }
  const Result measured = result.get()[0];
  emit(name, "%s\"cycles\": %.1f, \"nanoseconds\": %.1f, \"gave_up\": %s", details.c_str(),
       double(measured.cycles) / STEPS / parts, double(measured.nanoseconds) / STEPS / parts,
       measured.gave_up ? "true" : "false");
}

template <class T>
std::function<void()> clearing(const DeviceArray<T>& array) {
  return [&array] { CHECK(cudaMemset(array.data, 0, array.count * sizeof(T))); };
}

void barriers() {
  DeviceArray<uint32_t> counter(1);
  for (int threads : {128, 512}) {
    for (int blocks : {8, 32, 64, 128, multiprocessors()})
      measure("grid_barrier", detail("blocks", blocks) + detail("threads", threads), 1,
              {.grid = unsigned(blocks), .block = unsigned(threads), .cooperative = true}, clearing(counter), grid_barrier,
              counter.data);
    for (int blocks : {2, 4, 8, 16})
      measure(
          "cluster_barrier", detail("blocks", blocks) + detail("threads", threads), 1,
          {.grid = unsigned(blocks), .block = unsigned(threads), .cluster = blocks}, [] {}, cluster_barriers);
  }
}

void hand_off() {
  measure("st_async_to_mbarrier", "", 2, {.grid = 2, .block = 32, .cluster = 2}, [] {}, ping_pong_cluster);
  DeviceArray<uint64_t> boxes(256);
  uint32_t* flags = reinterpret_cast<uint32_t*>(boxes.data + 128);
  for (bool flag_in_data : {true, false})
    for (int partner : {1, 2, 17, 33, 65, 97, multiprocessors() - 1})  // blocks that may differ in their distance from block 0
      measure(flag_in_data ? "l2_flag_in_data" : "l2_release_acquire", detail("partner", partner), 2,
              {.grid = unsigned(multiprocessors()), .block = 32, .cooperative = true}, clearing(boxes), ping_pong_l2, boxes.data,
              flags, partner, flag_in_data);
}

void gather_in_clusters() {
  DeviceArray<unsigned char> exchange(2 * 16 * 4096);
  for (int blocks : {8, 16})
    for (int slice : {256, 1024, 4096}) {
      const Launch how{.grid = unsigned(blocks), .block = 256, .shared_bytes = size_t(2 * blocks * slice), .cluster = blocks};
      const std::string details = detail("blocks", blocks) + detail("slice_bytes", slice);
      measure("all_gather_dsmem", details, 1, how, [] {}, all_gather_cluster, slice);
      measure("all_gather_multicast", details, 1, how, [] {}, all_gather_multicast, exchange.data, slice);
    }
}

void gather_through_l2() {
  for (int blocks : {16, 32, 64, 128})
    for (int kilobytes : {8, 32, 128}) {
      const int words = kilobytes * 1024 / int(sizeof(uint4));
      DeviceArray<uint4> exchange(2 * size_t(words));
      measure("all_gather_l2", detail("blocks", blocks) + detail("state_bytes", kilobytes * 1024), 1,
              {.grid = unsigned(blocks), .block = 512, .cooperative = true}, clearing(exchange), all_gather_l2, exchange.data,
              words);
    }
}

int main(int argc, char** argv) {
  return run_measurements(argc, argv,
                          {{"barriers", barriers},
                           {"hand_off", hand_off},
                           {"gather_in_clusters", gather_in_clusters},
                           {"gather_l2", gather_through_l2}});
}
