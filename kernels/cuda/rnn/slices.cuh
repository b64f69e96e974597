// The body of the persistent kernels that cut W into slices: a block holds 16 kRowTiles units of one direction and runs all steps
// of a group of samples; how the blocks of a group exchange the state is the policy (grid_flags.cuh, cluster.cuh).
//
// A warp owns every kWarps-th chunk of K for all units of the block; the state goes straight into its registers and from there
// into the product. Sums of the warps are added in rank order. The first chunks of W stay in registers, the others in
// shared memory. blockIdx: slice, group of samples, direction. Outputs are written once.
#pragma once
#include "platform/memory.h"
#include "platform/shared_memory.h"
#include "rnn/sequence.cuh"
#include "rnn/warp_sums.cuh"

namespace slices {
constexpr int kWarps = 8;
template <class Math, int kRowTiles>
constexpr int kChunksInRegisters = 16 / kRowTiles;
// IEEE fp32 wants 16 registers per row tile for its sums, fp64 8; with 7 chunks for two row tiles W of H 2560 in fp32 fits on an
// H200.
template <int kRowTiles>
constexpr int kChunksInRegisters<float, kRowTiles> = kRowTiles == 2 ? 7 : 8 / kRowTiles;
template <int kRowTiles>
constexpr int kChunksInRegisters<double, kRowTiles> = 12 / kRowTiles;
static_assert(kChunksInRegisters<half, 2> * 2 * 2 * kLaneBytes / 4 == 128, "half of a thread's 255 registers");

// What a lane hands over: the 16 bytes of its and its neighbours' values, in each of them. The whole warp takes part.
__device__ inline uint4 gather_lanes(uint16_t bits) {
  const int lane = int(threadIdx.x) % 32, first = lane & ~7;
  const uint32_t other = __shfl_xor_sync(~0u, uint32_t(bits), 1);
  const uint32_t word = lane & 1 ? other | uint32_t(bits) << 16 : bits | other << 16;
  return {__shfl_sync(~0u, word, first), __shfl_sync(~0u, word, first + 2), __shfl_sync(~0u, word, first + 4),
          __shfl_sync(~0u, word, first + 6)};
}
__device__ inline uint4 gather_lanes(uint32_t word) {
  const int first = int(threadIdx.x) % 32 & ~3;
  return {__shfl_sync(~0u, word, first), __shfl_sync(~0u, word, first + 1), __shfl_sync(~0u, word, first + 2),
          __shfl_sync(~0u, word, first + 3)};
}
__device__ inline uint4 gather_lanes(uint64_t bits) {
  const int first = int(threadIdx.x) % 32 & ~1;
  const uint32_t low = uint32_t(bits), high = uint32_t(bits >> 32);
  return {__shfl_sync(~0u, low, first), __shfl_sync(~0u, high, first), __shfl_sync(~0u, low, first + 1),
          __shfl_sync(~0u, high, first + 1)};
}

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
template <class T>
__device__ inline Bits<T> bits_of(T value) {
  union {
    T value;
    Bits<T> bits;
  } both{value};
  return both.bits;
}

// What a block runs; each thread the same results of every step.
struct Part {
  int direction, first_unit;  // of the slice
  int slices;                 // that have units at all; a cluster may have more blocks
  int first_tile, tiles;      // of the batch, in column tiles
};
}  // namespace slices

// Exchange, how the state gets from block to block:
//   Exchange(p, part, shared)   by the whole block; shared: bytes() of its own, on 128
//   enter(walk, s, tile)        step s of a tile begins, and is what the rest is about until the next call
//   load(k)                     the state of this lane's column, 16 bytes from element k < H on
//   incomplete(fragment)        it must be loaded again
//   kept(column, unit)          the state of a sample that is not active
//   publish(s, column, unit, value, out, stored, active)
//                               the state after step s, by whole warps; if `stored`, the output gets it too, or 0 if not `active`
template <class Math, class Pass, int kRowTiles, class Exchange>
__device__ inline void run_slice(const RnnParameters<Storage<Math>>& p) {
  using namespace slices;
  using T = Storage<Math>;
  constexpr int kRows = kRowTiles * kTileRows, kChunks = kChunksInRegisters<Math, kRowTiles>;
  constexpr int kInFlight = kChunks < 8 ? kChunks : 8;  // 16 bytes each and lane: up to 32 KiB of loads under way in a block
  constexpr int kResults = (kRows * kTileColumns + kWarps * 32 - 1) / (kWarps * 32);  // per thread
  using Sums = WarpSums<Accumulator<T>, kWarps, kRows, kTileColumns>;

  const int H = p.shape.H, N = p.shape.N, warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int all_chunks = (H + kChunk<Math> - 1) / kChunk<Math>, chunks = (all_chunks - warp + kWarps - 1) / kWarps;
  const int batch_tiles = (N + kTileColumns - 1) / kTileColumns, groups = int(gridDim.y);
  const int most = (batch_tiles + groups - 1) / groups, first_tile = int(blockIdx.y) * most;
  const Part part{int(blockIdx.z), int(blockIdx.x) * kRows, (H + kRows - 1) / kRows, first_tile,
                  min(most, batch_tiles - first_tile)};
  const Walk walk = walk_of<Pass>(p, part.direction);

  Accumulator<T>* sums = shared_memory<Accumulator<T>>();
  unsigned char* after_sums = reinterpret_cast<unsigned char*>(sums + 2 * Sums::size);
  Exchange exchange(p, part, after_sums);
  if (part.first_unit >= H) return;
  Fragment<Math>* resident = reinterpret_cast<Fragment<Math>*>(after_sums + exchange.bytes());

  auto k_of = [&](int chunk) { return (chunk * kWarps + warp) * kChunk<Math> + lane_in_group() * Fragment<Math>::size; };
  auto weight = [&](int chunk, int r, int half) {
    const int unit = part.first_unit + r * kTileRows + half * 8 + lane_group();
    const T* row = p.w + (int64_t(part.direction) * H + unit) * p.w_stride;
    Fragment<Math> fragment = load_fragment<Math>(row, k_of(chunk), unit < H ? p.w_stride : 0);
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

  // A thread's results: unit `row` of sample `column`.
  auto row_of = [&](int i) { return (int(threadIdx.x) + i * kWarps * 32) % kRows; };
  auto column_of = [&](int i) { return (int(threadIdx.x) + i * kWarps * 32) / kRows; };
  typename Pass::template Inputs<T> in[kResults] = {};
  auto fetch = [&](int s, int tile) {
    if (s >= walk.steps) return;
    const int t = walk.time(s);
#pragma unroll
    for (int i = 0; i < kResults; ++i) {
      const int unit = part.first_unit + row_of(i), n = (part.first_tile + tile) * kTileColumns + column_of(i);
      if (column_of(i) < kTileColumns && unit < H && t < length_of(p, n))
        in[i] = typename Pass::template Row<T>(p, t, n, part.direction * H + unit).at(0);
    }
  };
  fetch(0, 0);

  int parity = 0;
  // One more product than there are steps gives dh0.
  for (int s = 0; s < walk.steps + Pass::backward; ++s) {
    const bool last = s == walk.steps;
    const int t = walk.time(s);
    for (int tile = 0; tile < part.tiles; ++tile, parity ^= 1) {
      exchange.enter(walk, s, tile);
      // Loads run kInFlight chunks ahead of the product.
      auto load = [&](int chunk) {
        Fragment<Math> fragment;
        fragment.bits = chunk < chunks && k_of(chunk) < H ? exchange.load(k_of(chunk)) : uint4{0, 0, 0, 0};
        return fragment;
      };
      auto complete = [&](int chunk, Fragment<Math>& fragment) {
        while (exchange.incomplete(fragment)) {
          spin_wait();
          fragment.bits = exchange.load(k_of(chunk));
        }
        __syncwarp();
        prepare(fragment);
      };
      WarpTile<Math, kRowTiles> product;
      Fragment<Math> b[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) b[i] = load(i);
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk)
        if (chunk < chunks) {
          complete(chunk, b[chunk % kInFlight]);
          product.multiply(a[chunk], b[chunk % kInFlight]);
          b[chunk % kInFlight] = load(chunk + kInFlight);
        }
      for (int first = kChunks; first < chunks; first += kInFlight) {
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
          const int chunk = first + i, slot = (kChunks + i) % kInFlight;
          if (chunk >= chunks) break;
          complete(chunk, b[slot]);
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
        const int row = row_of(i), column = column_of(i), unit = part.first_unit + row;
        if (column >= kTileColumns) break;  // whole warps
        const int n = (part.first_tile + tile) * kTileColumns + column;
        const bool active = t < length_of(p, n), inside = unit < H && n < N;
        const Accumulator<T> total = sum.total(row, column);
        typename Pass::State state;
        T value{};
        if (inside)
          value = last ? narrow<T>(total) : active ? Pass::evaluate(p, in[i], total, state) : exchange.kept(column, unit);
        T* out = last ? p.dh0 + (int64_t(part.direction) * N + n) * H : Pass::carried_row(p, t, n) + part.direction * H;
        exchange.publish(s, column, unit, value, out, inside && (last || active || !p.step_offsets), last || active);
      }
      const bool wraps = tile + 1 == part.tiles;
      fetch(s + wraps, wraps ? 0 : tile + 1);
    }
  }
}
