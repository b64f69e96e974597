// Persistent, one cluster per group of samples: a whole pass over a layer in one launch, for an H that 16 blocks hold (sm_90).
//
// Ladder
//   single_block.cuh  H <= 256: no exchange between blocks.
//   this file         W is cut into slices, one block each; the blocks of a cluster, at most 16, exchange the state through
//                     distributed shared memory: st.async writes a block's part into every block, and tells an mbarrier there.
//                     No cluster barrier per step, nothing goes through L2 that is waited for. Predicted step (model:
//                     `_predict_cluster` in variants.py) at H 1024, N 32, 16 bits, 4 clusters of 16: 15 KiB come in at 16 B per
//                     clock, 960 clocks, beside 416 of mma.sync; + 150 for sums and the pointwise part + 250 for the hand-off =
//                     1360 clocks, 0.8 us; at H 512, clusters of 8, 0.5 us. Measured: not yet.
//   grid_flags.cuh    any H: the exchange through L2, blocks of a group anywhere.
//   Not built: a cluster barrier per step (~225 clocks, and it would make every warp wait for the slowest warp of 16 blocks).
//
// Two buffers of the state, by the parity of the step, are enough: a block writes what step s + 1 reads only when it has the
// whole state of step s, hence after every peer has finished reading that of step s - 1, which the buffer held. For the same
// reason no block has stores under way to it when it ends.
//
// What a block owns and how it multiplies: slices.cuh. Rows of the output need no alignment here.
#pragma once
#include "platform/cluster.h"
#include "platform/mbarrier.h"
#include "rnn/carry.cuh"
#include "rnn/slices.cuh"

template <class Math, class Pass>
class ClusterExchange {
  using T = Storage<Math>;
  static constexpr int kPerStore = kLaneBytes / int(sizeof(T));

 public:
  __device__ ClusterExchange(const RnnParameters<T>& p, const slices::Part& part, unsigned char* shared)
      : carry(shared, p.shape.H),
        barriers(reinterpret_cast<uint64_t*>(shared + 2 * part.tiles * carry.buffer_bytes())),
        tiles(part.tiles),
        blocks(part.slices),
        H(p.shape.H),
        products(p.shape.T + Pass::backward) {
    for (int tile = 0; tile < tiles; ++tile) {
      carry.fill(2 * tile, p, Pass::initial(p), part.direction, (part.first_tile + tile) * kTileColumns);
      carry.fill(2 * tile + 1, p, nullptr, part.direction, 0);
    }
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2 * tiles; ++i) mbarrier_init(&barriers[i], 1);
      mbarrier_init_fence();
      for (int i = 0; i < 2 * tiles; ++i) mbarrier_arrive_expect(&barriers[i], state_bytes());
    }
    cluster_sync();  // nobody's buffer is written before it is filled
  }
  __device__ int bytes() const {
    return 2 * tiles * carry.buffer_bytes() + (2 * tiles * int(sizeof(uint64_t)) + 127) / 128 * 128;
  }

  __device__ void enter(const Walk&, int s, int tile) {
    now = 2 * tile + (s & 1);
    if (s == 0) return;
    mbarrier_wait(&barriers[now], (s - 1) >> 1 & 1);
    if (threadIdx.x == 0) mbarrier_arrive_expect(&barriers[now], state_bytes());  // for two steps on
  }
  __device__ uint4 load(int k) const { return *reinterpret_cast<const uint4*>(carry.at(now, lane_group(), k)); }
  __device__ bool incomplete(const Fragment<Math>&) const { return false; }
  __device__ T kept(int column, int unit) const { return *carry.at(now, column, unit); }

  __device__ void publish(int s, int column, int unit, T value, T* out, bool stored, bool active) const {
    if (stored) out[unit] = active ? value : T{};
    if (s + 1 >= products) return;
    const uint4 bits = slices::gather_lanes(slices::bits_of(value));
    const int within = unit % kPerStore, first = unit - within;
    if (first >= H) return;
    // The lanes that hold these 16 bytes share the blocks they go to.
    for (int rank = within; rank < blocks; rank += kPerStore)
      store_async(cluster_address(carry.at(now ^ 1, column, first), uint32_t(rank)), bits,
                  cluster_address(&barriers[now ^ 1], uint32_t(rank)));
  }

 private:
  // What each step brings to a buffer: eight samples, whole stores.
  __device__ uint32_t state_bytes() const { return uint32_t(kTileColumns * ((H + kPerStore - 1) / kPerStore) * kLaneBytes); }

  const Carry<T> carry;
  uint64_t* const barriers;  // one for each buffer
  const int tiles, blocks, H, products;
  int now = 0;  // the buffer of this step
};

template <class Math, class Pass, int kRowTiles>
__global__ void __launch_bounds__(slices::kWarps * 32, 1)
    rnn_cluster_kernel(const __grid_constant__ RnnParameters<Storage<Math>> p) {
  run_slice<Math, Pass, kRowTiles, ClusterExchange<Math, Pass>>(p);
}
