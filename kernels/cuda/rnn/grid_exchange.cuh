// Persistent, many blocks per group of samples: a whole pass over a layer in one cooperative launch, for any H whose W fits on
// chip.
//
// W is cut into slices of 16 kRowTiles units, one block each, and the samples into groups that are independent of each other. The
// blocks of a group exchange the state through L2, by way of the output itself, without flags and without barriers between
// blocks.
//
// The host fills the output with a sentinel, all bits set, which is a NaN. Every element of the output is written once, in stores
// of 16 bytes that are never torn, and a result that has the bits of the sentinel is replaced by another NaN. A reader loads 16
// bytes until no element is the sentinel. A value is thus its own flag: no two accesses have to be ordered, and nothing that an
// earlier launch left can end a wait. Blocks wait for each other, so all of them must be resident; the launch is cooperative, and
// fails if they are not.
//
// persistent.cuh says what a block owns and how it multiplies. The state goes from L2 into a lane's registers and from there into
// the product, without shared memory or a barrier in between. Rows of the state start and end at multiples of 16 bytes.
#pragma once
#include "platform/memory.h"
#include "rnn/persistent.cuh"

template <class Math, class Pass>
class GridExchange {
  using T = Storage<Math>;
  using Bits = persistent::Bits<T>;
  static constexpr int kPerStore = kLaneBytes / int(sizeof(T));

 public:
  __device__ GridExchange(const RnnParameters<T>& p, const persistent::Slice& slice, unsigned char*) : p(p), slice(slice) {}
  __device__ int bytes() const { return 0; }

  __device__ void begin_step(const TimeOrder& order, int s, int tile) {
    const int n = (slice.first_tile + tile) * kTileColumns + lane_group();
    state = previous_state<Pass>(p, order, s, n, slice.direction, waits);
  }
  __device__ uint4 load(int k) const {
    return state ? load_relaxed(reinterpret_cast<const uint4*>(state + k)) : uint4{0, 0, 0, 0};
  }
  __device__ bool incomplete(const Fragment<Math>& fragment) const {
    bool has_sentinel = false;
    if constexpr (sizeof(T) == 8) {
      has_sentinel = (fragment.word[0] & fragment.word[1]) == ~0u || (fragment.word[2] & fragment.word[3]) == ~0u;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t word = fragment.word[i];
        // Two 16-bit elements: if one of them is the sentinel, its half of ~word is 0, and subtracting 1 sets the half's top bit.
        has_sentinel |= sizeof(T) == 4 ? word == ~0u : ((~word - 0x00010001u) & word & 0x80008000u) != 0;
      }
    }
    return waits && has_sentinel;
  }
  __device__ T held_state(int, int) const { return {}; }
  __device__ void publish(int, int, int unit, T value, T* out, bool stored, bool) const {
    const uint4 bits = persistent::gather_lanes(publishable(value));
    if (stored && unit % kPerStore == 0) store_relaxed(reinterpret_cast<uint4*>(out + unit), bits);
  }

 private:
  // The bits of a value, with the sentinel replaced by the NaN of the other sign.
  static __device__ Bits publishable(T value) {
    const Bits bits = persistent::bits_of(value), sentinel = Bits(~Bits(0));
    return bits == sentinel ? Bits(sentinel >> 1) : bits;
  }

  const RnnParameters<T>& p;
  const persistent::Slice slice;
  const T* state = nullptr;  // the row of the sample in this lane's column; null: zeros
  bool waits = false;        // whether a block of this launch writes that state
};

template <class Math, class Pass, int kRowTiles>
__global__ void __launch_bounds__(persistent::kThreads, 1)
    rnn_grid_exchange_kernel(const __grid_constant__ RnnParameters<Storage<Math>> p) {
  run_slice<Math, Pass, kRowTiles, GridExchange<Math, Pass>>(p);
}
