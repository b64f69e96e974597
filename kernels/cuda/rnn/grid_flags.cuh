// Persistent, many blocks per group of samples: a whole pass over a layer in one cooperative launch, for any H whose W fits on
// chip.
//
// Ladder
//   single_block.cuh  H <= 256: no exchange between blocks.
//   this file         W is cut into slices of 16 kRowTiles units, one block each; the blocks of a group exchange the state
//   through
//                     L2. Samples are cut into independent groups before H is. No flags, no barriers between blocks: the output
//                     itself, filled with a sentinel beforehand, is the flag. Predicted step (model: `_predict_grid_flags` in
//                     variants.py) at H 1024, N 32, 16 bits, 4 groups of 32 blocks: 16 KiB of state per block at 24 B per clock
//                     680 + 208 for mma.sync + 150 for sums and the pointwise part + 700 for a store to be seen through L2 =
//                     1740 clocks, 1.0 us. DeepBench's H 2560, N 64 in 16 bits: 3.4 us. Measured: not yet.
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
// A warp owns every kWarps-th chunk of K for all units of the block: what it waits for goes from L2 into its registers and from
// there into mma.sync; no shared memory, no barrier between. Sums of the warps are added in rank order. 16 / kRowTiles chunks of
// W per warp stay in registers, the others in shared memory. Outputs are written once.
#pragma once
#include "platform/memory.h"
#include "platform/shared_memory.h"
#include "rnn/sequence.cuh"
#include "rnn/warp_sums.cuh"

namespace grid_flags {
constexpr int kWarps = 8;
template <class Math, int kRowTiles>
constexpr int kChunksInRegisters = 16 / kRowTiles;
// IEEE fp32 wants 16 registers per row tile for its sums; with 7 chunks for two row tiles W of H 2560 fits on an H200.
template <int kRowTiles>
constexpr int kChunksInRegisters<float, kRowTiles> = kRowTiles == 2 ? 7 : 8 / kRowTiles;
static_assert(kChunksInRegisters<half, 2> * 2 * 2 * kLaneBytes / 4 == 128, "half of a thread's 255 registers");

template <int kBytes>
struct BitsOf;
template <>
struct BitsOf<2> {
  using type = uint16_t;
};
template <>
struct BitsOf<4> {
  using type = uint32_t;
};
template <>
struct BitsOf<8> {
  using type = uint64_t;
};
template <class T>
using Bits = typename BitsOf<sizeof(T)>::type;

// The sentinel becomes the NaN of the other sign.
template <class T>
__device__ inline Bits<T> publishable(T value) {
  union {
    T value;
    Bits<T> bits;
  } result{value};
  const Bits<T> sentinel = Bits<T>(~Bits<T>(0));
  return result.bits == sentinel ? Bits<T>(sentinel >> 1) : result.bits;
}

// Whether any element is the sentinel still.
template <class Math>
__device__ inline bool incomplete(const Fragment<Math>& fragment) {
  constexpr int kBytes = int(sizeof(Storage<Math>));
  bool found = false;
  if constexpr (kBytes == 8) {
    found = (fragment.word[0] & fragment.word[1]) == ~0u || (fragment.word[2] & fragment.word[3]) == ~0u;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = fragment.word[i];
      // In 16 bits: the lowest zero half of ~word borrows from its top bit.
      found |= kBytes == 4 ? word == ~0u : ((~word - 0x00010001u) & word & 0x80008000u) != 0;
    }
  }
  return found;
}

// 16 bytes of consecutive lanes' values, complete in the first lane of each 16 bytes. The whole warp takes part.
__device__ inline uint4 gather_lanes(uint16_t bits) {
  const uint32_t word = bits | __shfl_down_sync(~0u, uint32_t(bits), 1) << 16;
  return {word, __shfl_down_sync(~0u, word, 2), __shfl_down_sync(~0u, word, 4), __shfl_down_sync(~0u, word, 6)};
}
__device__ inline uint4 gather_lanes(uint32_t word) {
  return {word, __shfl_down_sync(~0u, word, 1), __shfl_down_sync(~0u, word, 2), __shfl_down_sync(~0u, word, 3)};
}
__device__ inline uint4 gather_lanes(uint64_t bits) {
  const uint32_t low = uint32_t(bits), high = uint32_t(bits >> 32);
  return {low, high, __shfl_down_sync(~0u, low, 1), __shfl_down_sync(~0u, high, 1)};
}
}  // namespace grid_flags

template <class Math, class Pass, int kRowTiles>
__global__ void __launch_bounds__(grid_flags::kWarps * 32, 1)
    rnn_grid_flags_kernel(const __grid_constant__ RnnParameters<Storage<Math>> p) {
  using namespace grid_flags;
  using T = Storage<Math>;
  constexpr int kRows = kRowTiles * kTileRows, kChunks = kChunksInRegisters<Math, kRowTiles>;
  constexpr int kInFlight = kChunks < 8 ? kChunks : 8;  // 16 bytes each and lane: 32 KiB of loads under way in a block
  constexpr int kResults = (kRows * kTileColumns + kWarps * 32 - 1) / (kWarps * 32);  // per thread
  constexpr int kPerStore = kLaneBytes / int(sizeof(T));
  using Sums = WarpSums<Accumulator<T>, kWarps, kRows, kTileColumns>;

  const int H = p.shape.H, N = p.shape.N, direction = int(blockIdx.z), first_unit = int(blockIdx.x) * kRows;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int all_chunks = (H + kChunk<Math> - 1) / kChunk<Math>, chunks = (all_chunks - warp + kWarps - 1) / kWarps;
  const int batch_tiles = (N + kTileColumns - 1) / kTileColumns;
  const int tiles_per_group = (batch_tiles + int(gridDim.y) - 1) / int(gridDim.y), first_tile = int(blockIdx.y) * tiles_per_group;
  const int tiles = min(tiles_per_group, batch_tiles - first_tile);
  const Walk walk = walk_of<Pass>(p, direction);

  Accumulator<T>* sums = shared_memory<Accumulator<T>>();
  Fragment<Math>* resident = reinterpret_cast<Fragment<Math>*>(sums + 2 * Sums::size);
  auto k_of = [&](int chunk) { return (chunk * kWarps + warp) * kChunk<Math> + lane_in_group() * Fragment<Math>::size; };
  auto weight = [&](int chunk, int r, int half) {
    const int unit = first_unit + r * kTileRows + half * 8 + lane_group();
    Fragment<Math> fragment =
        load_fragment<Math>(p.w + (int64_t(direction) * H + unit) * p.w_stride, k_of(chunk), unit < H ? p.w_stride : 0);
    prepare(fragment);
    return fragment;
  };
  auto shared_fragment = [&](int chunk, int r, int half) -> Fragment<Math>& {
    return resident[((((chunk - kChunks) * kWarps + warp) * kRowTiles + r) * 2 + half) * 32 + lane];
  };
  Fragment<Math> a[kChunks][kRowTiles][2];
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk)
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) a[chunk][r][half] = weight(chunk, r, half);
  for (int chunk = kChunks; chunk < chunks; ++chunk)  // read by the lanes that write it
    for (int r = 0; r < kRowTiles; ++r)
      for (int half = 0; half < 2; ++half) shared_fragment(chunk, r, half) = weight(chunk, r, half);

  // A thread's results of every step and tile: unit `row` of sample `column`.
  auto row_of = [&](int i) { return (int(threadIdx.x) + i * kWarps * 32) % kRows; };
  auto column_of = [&](int i) { return (int(threadIdx.x) + i * kWarps * 32) / kRows; };
  typename Pass::template Inputs<T> in[kResults] = {};
  auto fetch = [&](int s, int tile) {
    if (s >= walk.steps) return;
    const int t = walk.time(s);
#pragma unroll
    for (int i = 0; i < kResults; ++i) {
      const int unit = first_unit + row_of(i), n = (first_tile + tile) * kTileColumns + column_of(i);
      if (column_of(i) < kTileColumns && unit < H && t < length_of(p, n))
        in[i] = typename Pass::template Row<T>(p, t, n, direction * H + unit).at(0);
    }
  };
  fetch(0, 0);

  int parity = 0;
  // One more product than there are steps gives dh0.
  for (int s = 0; s < walk.steps + Pass::backward; ++s) {
    const bool last = s == walk.steps;
    const int t = walk.time(s);
    for (int tile = 0; tile < tiles; ++tile, parity ^= 1) {
      // The state that this lane multiplies: of the step before, to be waited for; or the initial one; or none.
      const int n = (first_tile + tile) * kTileColumns + lane_group(), length = length_of(p, n);
      const int previous = last ? (length == 0 || walk.down ? 0 : length - 1) : t < length ? walk.previous(t, length) : -1;
      const bool waits = (last ? length > 0 : t < length) && previous >= 0;
      const T* state = waits ? Pass::carried_row(p, previous, n) + direction * H : nullptr;
      if (!waits && !last && t < length && Pass::initial(p)) state = Pass::initial(p) + (int64_t(direction) * N + n) * H;
      auto load = [&](int chunk) {
        Fragment<Math> fragment;
        const bool inside = state && chunk < chunks && k_of(chunk) < H;
        fragment.bits = inside ? load_relaxed(reinterpret_cast<const uint4*>(state + k_of(chunk))) : uint4{0, 0, 0, 0};
        return fragment;
      };
      auto wait = [&](int chunk, Fragment<Math>& fragment) {
        while (waits && incomplete(fragment)) {
          spin_wait();
          fragment = load(chunk);
        }
        __syncwarp();
        prepare(fragment);
      };

      // Loads run kInFlight chunks ahead of the product.
      WarpTile<Math, kRowTiles> product;
      Fragment<Math> b[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) b[i] = load(i);
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk)
        if (chunk < chunks) {
          wait(chunk, b[chunk % kInFlight]);
          product.multiply(a[chunk], b[chunk % kInFlight]);
          b[chunk % kInFlight] = load(chunk + kInFlight);
        }
      for (int first = kChunks; first < chunks; first += kInFlight) {
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
          const int chunk = first + i, slot = (kChunks + i) % kInFlight;
          if (chunk >= chunks) break;
          wait(chunk, b[slot]);
          Fragment<Math> w[kRowTiles][2];
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
            for (int half = 0; half < 2; ++half) w[r][half] = shared_fragment(chunk, r, half);
          product.multiply(w, b[slot]);
          b[slot] = load(chunk + kInFlight);
        }
      }
      product.finish();
      const Sums sum{sums + parity * Sums::size};  // two, so that one barrier per step is enough
      sum.put(product, 0);
      __syncthreads();

#pragma unroll
      for (int i = 0; i < kResults; ++i) {
        const int row = row_of(i), column = column_of(i), unit = first_unit + row;
        if (column >= kTileColumns) break;  // whole warps
        const int n = (first_tile + tile) * kTileColumns + column;
        const Accumulator<T> total = sum.total(row, column);
        typename Pass::State state;
        const bool active = t < length_of(p, n);
        T value = last ? narrow<T>(total) : active ? Pass::evaluate(p, in[i], total, state) : T{};
        const uint4 bits = gather_lanes(publishable(value));
        if (row % kPerStore || unit >= H || n >= N) continue;
        T* out = last ? p.dh0 + (int64_t(direction) * N + n) * H : Pass::carried_row(p, t, n) + direction * H;
        if (last || active || !p.step_offsets) store_relaxed(reinterpret_cast<uint4*>(out + unit), bits);
      }
      const bool wraps = tile + 1 == tiles;
      fetch(s + wraps, wraps ? 0 : tile + 1);
    }
  }
}
