// Persistent, one cluster per direction and group of samples: a whole pass over a layer in one launch, if the W of a direction
// and the states fit into at most 16 blocks (sm_90 and later).
//
// W is cut into slices, one block each. The blocks of a cluster, at most 16, exchange the state through distributed shared
// memory: st.async writes a block's part of the state into every block and reports its bytes to an mbarrier there. There is no
// cluster barrier per step, and no block waits for another through L2.
//
// Two buffers of the state of each column tile, chosen by the parity of the step, are enough. A block writes the state for step
// s + 1 only when it has the whole state for step s; by then every peer has finished reading the state for step s - 1, which is
// overwritten. A block waits for every state that is sent to it, and none is sent after the last product, so no store to a block
// is under way when it ends.
//
// persistent.cuh says what a block owns and how it multiplies. Rows of the output need no alignment here.
#pragma once
#include "platform/cluster.h"
#include "platform/mbarrier.h"
#include "rnn/persistent.cuh"
#include "rnn/state_buffer.cuh"

template <class Math, class Pass>
class ClusterExchange {
  using T = Storage<Math>;
  static constexpr int kPerStore = kLaneBytes / int(sizeof(T));

 public:
  __device__ ClusterExchange(const RnnParameters<T>& p, const persistent::Slice& slice, unsigned char* shared)
      : state(shared, p.shape.H),
        barriers(reinterpret_cast<uint64_t*>(shared + 2 * slice.tiles * state.buffer_bytes())),
        tiles(slice.tiles),
        blocks(slice.slices),
        H(p.shape.H),
        products(p.products) {
    for (int tile = 0; tile < tiles; ++tile) {
      state.fill(2 * tile, p, Pass::initial(p), slice.direction, (slice.first_tile + tile) * kTileColumns);
      state.fill(2 * tile + 1, p, nullptr, slice.direction, 0);
    }
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2 * tiles; ++i) mbarrier_init(&barriers[i], 1);
      mbarrier_init_fence();
      for (int i = 0; i < 2 * tiles; ++i) mbarrier_arrive_expect(&barriers[i], state_bytes());
    }
    cluster_sync();  // no peer writes a buffer before it is filled
  }
  __device__ int bytes() const {
    return 2 * tiles * state.buffer_bytes() + (2 * tiles * int(sizeof(uint64_t)) + 127) / 128 * 128;
  }

  __device__ void begin_step(const TimeOrder&, int s, int tile) {
    buffer = 2 * tile + (s & 1);
    if (s == 0) return;
    mbarrier_wait(&barriers[buffer], (s - 1) >> 1 & 1);
    // Arms the barrier for the buffer's next state, the one for step s + 2.
    if (threadIdx.x == 0) mbarrier_arrive_expect(&barriers[buffer], state_bytes());
  }
  __device__ uint4 load(int k) const { return *reinterpret_cast<const uint4*>(state.at(buffer, lane_group(), k)); }
  __device__ bool incomplete(const Fragment<Math>&) const { return false; }
  __device__ T held_state(int column, int unit) const { return *state.at(buffer, column, unit); }

  __device__ void publish(int s, int column, int unit, T value, T* out, bool stored, bool active) const {
    if (stored) out[unit] = active ? value : T{};
    if (s + 1 >= products) return;
    const uint4 bits = persistent::gather_lanes(persistent::bits_of(value));
    const int within = unit % kPerStore, first = unit - within;
    if (first >= H) return;
    // The kPerStore lanes that hold these 16 bytes divide the destination blocks among them.
    for (int rank = within; rank < blocks; rank += kPerStore)
      store_async(cluster_address(state.at(buffer ^ 1, column, first), uint32_t(rank)), bits,
                  cluster_address(&barriers[buffer ^ 1], uint32_t(rank)));
  }

 private:
  // The bytes of one state, which arrive in a buffer as 16-byte stores for eight samples.
  __device__ uint32_t state_bytes() const { return uint32_t(kTileColumns * ((H + kPerStore - 1) / kPerStore) * kLaneBytes); }

  const StateBuffers<T> state;
  uint64_t* const barriers;  // one for each buffer
  const int tiles, blocks, H, products;
  int buffer = 0;  // the index of the buffer with the state before the current step
};

template <class Math, class Pass, int kRowTiles>
__global__ void __launch_bounds__(persistent::kThreads, 1)
    rnn_cluster_kernel(const __grid_constant__ RnnParameters<Storage<Math>> p) {
  run_slice<Math, Pass, kRowTiles, ClusterExchange<Math, Pass>>(p);
}
