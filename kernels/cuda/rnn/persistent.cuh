// The body of the persistent kernels that cut W into slices (cluster.cuh, grid_exchange.cuh). A block owns 16 kRowTiles units of
// one direction, its slice, and runs all steps of a group of samples. How the blocks of a group exchange the state is a policy,
// the concept StateExchange below.
//
// A warp owns every kWarps-th chunk of K for all units of the block. It loads the state into registers and multiplies it from
// there; the sums of the warps are added in the order of the warps. The first chunks of W stay in registers, the others in shared
// memory. blockIdx is (slice, group of samples, direction). Each element of an output is written once.
#pragma once
#include "platform/memory.h"
#include "platform/shared_memory.h"
#include "rnn/resident_weights.cuh"
#include "rnn/warp_sums.cuh"

namespace persistent {
constexpr int kWarps = 8, kThreads = kWarps * 32;
template <class Math, int kRowTiles>
constexpr int kChunksInRegisters = 16 / kRowTiles;
// The sums of a row tile take 16 registers in IEEE fp32 and 8 in fp64. With 7 chunks of two row tiles in registers, W in fp32 for
// H = 2560 fits on an H200.
template <int kRowTiles>
constexpr int kChunksInRegisters<float, kRowTiles> = kRowTiles == 2 ? 7 : 8 / kRowTiles;
template <int kRowTiles>
constexpr int kChunksInRegisters<double, kRowTiles> = 12 / kRowTiles;
static_assert(kChunksInRegisters<half, 2> * 2 * 2 * kLaneBytes / 4 == 128, "half of a thread's 255 registers");

template <class Math, int kRowTiles>
using SliceWeights = ResidentWeights<Math, kRowTiles, kChunksInRegisters<Math, kRowTiles>>;

// What a block computes, at every step.
struct Slice {
  int direction, first_unit;
  int slices;             // how many of the blocks along x have units; the others have none
  int first_tile, tiles;  // the group of samples, in column tiles
};

template <class T>
__device__ inline Slice slice_of_block(const RnnParameters<T>& p, int rows) {
  const int batch_tiles = (p.shape.N + kTileColumns - 1) / kTileColumns, groups = int(gridDim.y);
  const int most = (batch_tiles + groups - 1) / groups, first_tile = int(blockIdx.y) * most;
  return {int(blockIdx.z), int(blockIdx.x) * rows, (p.shape.H + rows - 1) / rows, first_tile,
          min(most, batch_tiles - first_tile)};
}

// How many chunks of K this warp owns.
template <class Math>
__device__ inline int warp_chunks(int H) {
  const int chunks = (H + kChunk<Math> - 1) / kChunk<Math>;
  return (chunks - int(threadIdx.x) / 32 + kWarps - 1) / kWarps;
}
// The element of K at which this lane's 16 bytes of a chunk start; `chunk` numbers the chunks of this warp.
template <class Math>
__device__ inline int first_element(int chunk) {
  return (chunk * kWarps + int(threadIdx.x) / 32) * kChunk<Math> + lane_in_group() * Fragment<Math>::size;
}

// An element as an unsigned word.
template <class T>
using Bits = Word<sizeof(T)>;
template <class T>
__device__ inline Bits<T> bits_of(T value) {
  union {
    T value;
    Bits<T> bits;
  } both{value};
  return both.bits;
}

// Each lane passes the bits of one element. An aligned group of lanes holds 16 bytes together: 8 lanes for 2-byte elements, 4 for
// 4-byte ones, 2 for 8-byte ones. Returns the 16 bytes of the lane's group in lane order. The whole warp takes part.
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

template <class A, class B>
constexpr bool kSame = false;
template <class A>
constexpr bool kSame<A, A> = true;
template <class A, class B>
concept Same = kSame<A, B>;
}  // namespace persistent

// How the state gets from block to block. An exchange has a current step and column tile, which begin_step sets and to which
// its other functions refer.
template <class Exchange, class Math>
concept StateExchange =
    requires(const RnnParameters<Storage<Math>>& p, const persistent::Slice& slice, unsigned char* shared, Exchange exchange,
             const Exchange& current, const TimeOrder& order, const Fragment<Math>& fragment, Storage<Math> value,
             Storage<Math>* out, int s, int tile, int k, int column, int unit, bool stored, bool active) {
      // All threads of the block construct the exchange. `shared` is aligned to 128 bytes and has bytes() bytes for the exchange.
      Exchange(p, slice, shared);
      { current.bytes() } -> persistent::Same<int>;
      exchange.begin_step(order, s, tile);
      // Returns 16 bytes of the state before the step, for sample lane_group() of the tile, from element k < H on.
      { current.load(k) } -> persistent::Same<uint4>;
      // Whether some element had not been written yet when the fragment was loaded; the caller then loads it again.
      { current.incomplete(fragment) } -> persistent::Same<bool>;
      // Returns an element of the state of a sample that is not active at the step; 0 if the exchange does not hold it.
      { current.held_state(column, unit) } -> persistent::Same<Storage<Math>>;
      // Makes an element of the state after the step known to the other blocks. If `stored`, it also writes the output: out[unit]
      // becomes the value, or 0 if the sample is not `active`. Whole warps call it together.
      current.publish(s, column, unit, value, out, stored, active);
    };

namespace persistent {

// Reads this warp's chunks of the state of the current column tile.
template <class Math, class Exchange>
struct StateReader {
  const Exchange& exchange;
  int chunks, H;

  // Starts to load a chunk; returns zeros for a chunk that the warp does not have.
  __device__ Fragment<Math> start(int chunk) const {
    const int k = first_element<Math>(chunk);
    Fragment<Math> fragment;
    fragment.bits = chunk < chunks && k < H ? exchange.load(k) : uint4{0, 0, 0, 0};
    return fragment;
  }
  // Waits until a chunk is complete, and prepares it for the product.
  __device__ void complete(int chunk, Fragment<Math>& fragment) const {
    while (exchange.incomplete(fragment)) {
      spin_wait();
      fragment.bits = exchange.load(first_element<Math>(chunk));
    }
    __syncwarp();
    prepare(fragment);
  }
};

// Adds the product of this warp's part of W with the state. Loads of the state run kInFlight chunks ahead of the product.
template <class Math, int kRowTiles, class Exchange>
__device__ inline void multiply_state(WarpTile<Math, kRowTiles>& product, const SliceWeights<Math, kRowTiles>& weights,
                                      const StateReader<Math, Exchange>& state) {
  constexpr int kChunks = kChunksInRegisters<Math, kRowTiles>;
  // With 16 bytes per lane, up to 32 KiB of loads are in flight in a block. IEEE fp32 and TF32 leave registers for fewer chunks.
  constexpr int kMost = kSame<Math, float> ? 6 : kSame<Math, tfloat32> ? 7 : 8, kInFlight = kChunks < kMost ? kChunks : kMost;
  Fragment<Math> b[kInFlight];
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) b[i] = state.start(i);
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk)
    if (chunk < state.chunks) {
      state.complete(chunk, b[chunk % kInFlight]);
      product.multiply(weights.in_registers(chunk), b[chunk % kInFlight]);
      b[chunk % kInFlight] = state.start(chunk + kInFlight);
    }
  for (int first = kChunks; first < state.chunks; first += kInFlight) {
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int chunk = first + i, slot = (kChunks + i) % kInFlight;
      if (chunk >= state.chunks) break;
      state.complete(chunk, b[slot]);
      Fragment<Math> rows[kRowTiles][2];
      weights.copy_from_shared(chunk, rows);
      product.multiply(rows, b[slot]);
      b[slot] = state.start(chunk + kInFlight);
    }
  }
}

// The results of a thread: result i is unit row(i) of the slice for sample column(i) of the column tile, at every step.
template <class Math, class Pass, int kRows>
class SliceResults {
  using T = Storage<Math>;
  static constexpr int kCount = (kRows * kTileColumns + kThreads - 1) / kThreads;

 public:
  // Fetches the inputs of step s of a tile, for the next call of `finish`.
  __device__ void fetch(const RnnParameters<T>& p, const Slice& slice, const TimeOrder& order, int s, int tile) {
    if (s >= order.steps) return;
    const int H = p.shape.H, t = order.time(s);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int unit = slice.first_unit + row(i), n = (slice.first_tile + tile) * kTileColumns + column(i);
      if (column(i) < kTileColumns && unit < H && t < length_of(p, n))
        inputs[i] = typename Pass::template Row<T>(p, t, n, slice.direction * H + unit).at(0);
    }
  }
  // Turns the sums of step s of a tile into this thread's results and hands them to the exchange.
  template <class Sums, class Exchange>
  __device__ void finish(const RnnParameters<T>& p, const Slice& slice, const TimeOrder& order, int s, int tile, const Sums& sums,
                         const Exchange& exchange) const {
    const int H = p.shape.H, N = p.shape.N, t = order.time(s);
    const bool after_last = s == order.steps;  // only in a backward pass: the product alone is dh0
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (column(i) >= kTileColumns) break;  // all lanes of a warp agree on this, as publish requires
      const int unit = slice.first_unit + row(i), n = (slice.first_tile + tile) * kTileColumns + column(i);
      const int length = length_of(p, n);
      const bool active = t < length, inside = unit < H && n < N;
      const Accumulator<T> sum = sums.total(row(i), column(i));
      T value{};
      if (inside) {
        const Result result{length, element_offset(p, slice.direction, n, unit)};
        const Accumulator<T> received = Pass::received(p, order, s, result, sum);
        value = after_last ? narrow<T>(received)
                : active   ? Pass::evaluate(p, inputs[i], received)
                           : exchange.held_state(column(i), unit);
        if (!after_last) Pass::keep_last(p, order, s, result, value);
      }
      T* out = after_last ? p.dh0 + element_offset(p, slice.direction, n) : Pass::state_row(p, t, n) + slice.direction * H;
      const bool stored = inside && (after_last || active || !p.step_offsets);
      exchange.publish(s, column(i), unit, value, out, stored, after_last || active);
    }
  }

 private:
  static __device__ int row(int i) { return (int(threadIdx.x) + i * kThreads) % kRows; }
  static __device__ int column(int i) { return (int(threadIdx.x) + i * kThreads) / kRows; }

  typename Pass::template Inputs<T> inputs[kCount] = {};
};
}  // namespace persistent

template <class Math, class Pass, int kRowTiles, class Exchange>
  requires StateExchange<Exchange, Math>
__device__ inline void run_slice(const RnnParameters<Storage<Math>>& p) {
  using namespace persistent;
  using A = Accumulator<Storage<Math>>;
  constexpr int kRows = kRowTiles * kTileRows;
  using Sums = WarpSums<A, kWarps, kRows, kTileColumns>;

  const Slice slice = slice_of_block(p, kRows);
  const TimeOrder order = time_order<Pass>(p, slice.direction);
  A* sums = shared_memory<A>();
  unsigned char* after_sums = reinterpret_cast<unsigned char*>(sums + 2 * Sums::size);
  Exchange exchange(p, slice, after_sums);
  if (slice.first_unit >= p.shape.H) return;

  const int chunks = warp_chunks<Math>(p.shape.H);
  const WarpPart part{slice.direction, slice.first_unit, first_element<Math>(0), kWarps * kChunk<Math>};
  const SliceWeights<Math, kRowTiles> weights(p, part, chunks, kWarps, after_sums + exchange.bytes());
  SliceResults<Math, Pass, kRows> results;
  results.fetch(p, slice, order, 0, 0);

  int parity = 0;
  for (int s = 0; s < p.products; ++s)
    for (int tile = 0; tile < slice.tiles; ++tile, parity ^= 1) {
      exchange.begin_step(order, s, tile);
      WarpTile<Math, kRowTiles> product;
      multiply_state(product, weights, StateReader<Math, Exchange>{exchange, chunks, p.shape.H});
      product.finish();
      // Two buffers of sums alternate, so that one barrier per product is enough.
      const Sums warp_sums{sums + parity * Sums::size};
      warp_sums.put(product, 0);
      __syncthreads();
      results.finish(p, slice, order, s, tile, warp_sums, exchange);
      if (tile + 1 < slice.tiles)
        results.fetch(p, slice, order, s, tile + 1);
      else
        results.fetch(p, slice, order, s + 1, 0);
    }
}
