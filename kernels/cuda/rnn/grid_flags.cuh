// Persistent, many blocks per group of samples: a whole pass over a layer in one cooperative launch, for any H whose W fits on
// chip.
//
// Ladder
//   single_block.cuh  H <= 256: no exchange between blocks.
//   this file         W is cut into slices of 16 kRowTiles units, one block each; the blocks of a group exchange the state
//   through
//                     L2. Samples are cut into independent groups before H is. No flags, no barriers between blocks: the output
//                     itself, filled with a sentinel beforehand, is the flag. Predicted step (model: `_slice_clocks` in
//                     variants.py) at H 1024, N 32, 16 bits, 4 groups of 32 blocks: 16 KiB of state per block at 24 B per clock
//                     680, beside 208 of mma.sync; + 150 for sums and the pointwise part + 700 for a store to be seen through L2
//                     = 1530 clocks, 0.87 us (TF32 1.3, IEEE fp32 1.7). DeepBench in 16 bits: H 1760, N 64 1.5 us; H 2560, N
//                     64 3.2 us, N 128 6.4 us; in TF32 H 2560, N 64 16 us, for every block reads the whole state. Measured: not
//                     yet.
//   cluster.cuh       H <= 1024 or so: the exchange through distributed shared memory.
//   step.cuh          W does not fit, or the blocks are not resident together.
//   Not built: a barrier of the grid per step (~1100 clocks, for all groups at once); a ring of states instead of the output
//   itself (it would need acknowledgements before a slot is written again).
//
// The exchange. Every element of the output is written once, by 16-byte stores of one scalar access each; a reader loads 16 bytes
// until no element is the sentinel, all bits set: a NaN that a result is kept from being. So a value is its own flag, nothing has
// to be ordered, and no wait can be satisfied by what an earlier launch left. Blocks wait for each other, so all must be
// resident: the launch is cooperative, and fails rather than hangs.
//
// What a block owns and how it multiplies: slices.cuh. What a lane waits for goes from L2 into its registers and from there into
// the product: no shared memory and no barrier between.
#pragma once
#include "platform/memory.h"
#include "rnn/slices.cuh"

template <class Math, class Pass>
class GridExchange {
  using T = Storage<Math>;
  static constexpr int kPerStore = kLaneBytes / int(sizeof(T));

 public:
  __device__ GridExchange(const RnnParameters<T>& p, const slices::Part& part, unsigned char*) : p(p), part(part) {}
  __device__ int bytes() const { return 0; }

  __device__ void enter(const Walk& walk, int s, int tile) {
    const int n = (part.first_tile + tile) * kTileColumns + lane_group(), length = length_of(p, n), t = walk.time(s);
    const bool last = s == walk.steps, active = last ? length > 0 : t < length;
    const int previous = last ? (walk.down ? 0 : length - 1) : walk.previous(t, length);
    const T* initial = Pass::initial(p);
    waits = active && previous >= 0;
    state = nullptr;
    if (waits)
      state = Pass::carried_row(p, previous, n) + part.direction * p.shape.H;
    else if (active && initial)
      state = initial + (int64_t(part.direction) * p.shape.N + n) * p.shape.H;
  }
  __device__ uint4 load(int k) const {
    return state ? load_relaxed(reinterpret_cast<const uint4*>(state + k)) : uint4{0, 0, 0, 0};
  }
  // Whether any element is the sentinel still.
  __device__ bool incomplete(const Fragment<Math>& fragment) const {
    bool found = false;
    if constexpr (sizeof(T) == 8) {
      found = (fragment.word[0] & fragment.word[1]) == ~0u || (fragment.word[2] & fragment.word[3]) == ~0u;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t word = fragment.word[i];
        // In 16 bits: the lowest zero half of ~word borrows from its top bit.
        found |= sizeof(T) == 4 ? word == ~0u : ((~word - 0x00010001u) & word & 0x80008000u) != 0;
      }
    }
    return waits && found;
  }
  __device__ T kept(int, int) const { return {}; }
  __device__ void publish(int, int, int unit, T value, T* out, bool stored, bool) const {
    const uint4 bits = slices::gather_lanes(publishable(value));
    if (stored && unit % kPerStore == 0) store_relaxed(reinterpret_cast<uint4*>(out + unit), bits);
  }

 private:
  // The sentinel becomes the NaN of the other sign.
  static __device__ slices::Bits<T> publishable(T value) {
    const slices::Bits<T> bits = slices::bits_of(value), sentinel = slices::Bits<T>(~slices::Bits<T>(0));
    return bits == sentinel ? slices::Bits<T>(sentinel >> 1) : bits;
  }

  const RnnParameters<T>& p;
  const slices::Part part;
  const T* state = nullptr;  // of this lane's column; null: 0
  bool waits = false;        // for somebody to write it
};

template <class Math, class Pass, int kRowTiles>
__global__ void __launch_bounds__(slices::kWarps * 32, 1)
    rnn_grid_flags_kernel(const __grid_constant__ RnnParameters<Storage<Math>> p) {
  run_slice<Math, Pass, kRowTiles, GridExchange<Math, Pass>>(p);
}
