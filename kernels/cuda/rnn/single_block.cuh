// Persistent, one block per 8 samples and direction: a whole pass over a layer in one launch, for H <= 256.
//
// Ladder
//   step.cuh         T launches, W read from L2 at every step.
//   this file        W stays in registers, the state goes from warp to warp through shared memory, one barrier per step; blocks
//                    never wait for each other. Predicted step (model: `_predict_single_block` in variants.py) at H 256, 16 bits:
//                    64 mma.sync for each of the 4 schedulers at ~6.5 clocks = 416, beside the state read by 8 warps (32 KiB at
//                    128 B per clock = 256); + 150 for the pointwise part, its stores and the barrier = 560 clocks, 0.32 us. In
//                    TF32 W does not fit into registers, and 128 KiB of it come from shared memory at each step: 0.96 us. IEEE
//                    fp32: 4096 multiply-adds per scheduler, 2.4 us. Measured: not yet.
//   cluster.cuh, grid_flags.cuh   several blocks for the same samples: wider H, and sooner done in fp32.
//   Tried on paper: 16 warps with one row tile each read the state twice as often (512 clocks: it would bound the step);
//   splitting K over warps instead reads it once but adds cross-warp sums of the same size.
//
// A warp owns two row tiles (32 units) and all of K; a lane their fragments: 8 chunks in 128 registers, the others in shared
// memory in the order lanes read them. A lane owns the same 8 results at every step and fetches their inputs a step ahead.
// Results are written once; the state of a sample that is not active yet stays what it was.
#pragma once
#include "platform/shared_memory.h"
#include "rnn/carry.cuh"

namespace single_block {
constexpr int kRowTiles = 2, kMaxWarps = 8;
template <class Math>
constexpr int kChunksInRegisters = 8;
template <>
constexpr int kChunksInRegisters<float> = 6;  // IEEE fp32 wants 32 registers for its sums
template <>
constexpr int kChunksInRegisters<double> = 6;  // fp64 wants two for each of them and of the inputs
static_assert(kRowTiles * kChunksInRegisters<half> * 2 * kLaneBytes / 4 == 128, "half of a thread's 255 registers");
static_assert(kMaxWarps * kRowTiles * kTileRows == 256, "the widest H");
}  // namespace single_block

template <class Math, class Pass>
__global__ void __launch_bounds__(single_block::kMaxWarps * 32)
    rnn_single_block_kernel(const __grid_constant__ RnnParameters<Storage<Math>> p) {
  using namespace single_block;
  using T = Storage<Math>;
  constexpr int kRegisterChunks = kChunksInRegisters<Math>;
  const int H = p.shape.H, chunks = (H + kChunk<Math> - 1) / kChunk<Math>;
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32, lane = int(threadIdx.x) % 32;
  const int direction = int(blockIdx.y), first = int(blockIdx.x) * kTileColumns;
  const Walk walk = walk_of<Pass>(p, direction);

  // Two buffers: a step writes one while the other is read.
  const Carry<T> carry(shared_memory<unsigned char>(), H);
  Fragment<Math>* resident = reinterpret_cast<Fragment<Math>*>(carry.bytes + 2 * carry.buffer_bytes());
  auto shared_fragment = [&](int chunk, int r, int half) -> Fragment<Math>& {
    return resident[(((chunk - kRegisterChunks) * warps + warp) * kRowTiles * 2 + r * 2 + half) * 32 + lane];
  };
  auto weight = [&](int chunk, int r, int half) {
    const int row = (warp * kRowTiles + r) * kTileRows + half * 8 + lane_group();
    const T* start = p.w + (int64_t(direction) * H + row) * p.w_stride;
    Fragment<Math> fragment =
        load_fragment<Math>(start, chunk * kChunk<Math> + lane_in_group() * Fragment<Math>::size, row < H ? p.w_stride : 0);
    prepare(fragment);
    return fragment;
  };
  Fragment<Math> a[kRegisterChunks][kRowTiles][2];
#pragma unroll
  for (int chunk = 0; chunk < kRegisterChunks; ++chunk)
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) a[chunk][r][half] = weight(chunk, r, half);
  for (int chunk = kRegisterChunks; chunk < chunks; ++chunk)
    for (int r = 0; r < kRowTiles; ++r)
      for (int half = 0; half < 2; ++half) shared_fragment(chunk, r, half) = weight(chunk, r, half);

  carry.fill(0, p, Pass::initial(p), direction, first);
  carry.fill(1, p, nullptr, direction, first);
  __syncthreads();

  // Result i of row tile r is unit first_unit + 16 r + 8 (i >> 1) of sample first_sample + (i & 1).
  const int first_unit = warp * kRowTiles * kTileRows + lane_group(), first_sample = 2 * lane_in_group();
  const int length[2] = {length_of(p, first + first_sample), length_of(p, first + first_sample + 1)};
  typename Pass::template Inputs<T> in[kRowTiles][4] = {};
  auto fetch = [&](int s) {
    if (s >= walk.steps) return;
    const int t = walk.time(s);
#pragma unroll
    for (int which = 0; which < 2; ++which)
      if (t < length[which]) {
        const typename Pass::template Row<T> row(p, t, first + first_sample + which, direction * H + first_unit);
#pragma unroll
        for (int unit = 0; unit < kRowTiles * kTileRows; unit += 8)
          if (first_unit + unit < H) in[unit / kTileRows][unit % kTileRows / 4 + which] = row.at(unit);
      }
  };
  fetch(0);

  typename Pass::State state[kRowTiles][4];
  // One more product than there are steps gives dh0.
  for (int s = 0; s < walk.steps + Pass::backward; ++s) {
    const int now = s & 1, t = walk.time(s);
    WarpTile<Math, kRowTiles> tile;
    auto column = [&](int chunk) {
      Fragment<Math> b = carry.template fragment<Math>(now, chunk * kChunk<Math> + lane_in_group() * Fragment<Math>::size);
      prepare(b);
      return b;
    };
#pragma unroll
    for (int chunk = 0; chunk < kRegisterChunks; ++chunk)
      if (chunk < chunks) tile.multiply(a[chunk], column(chunk));
    for (int chunk = kRegisterChunks; chunk < chunks; ++chunk) {
      Fragment<Math> w[kRowTiles][2];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) w[r][half] = shared_fragment(chunk, r, half);
      tile.multiply(w, column(chunk));
    }
    tile.finish();
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const int sample = first_sample + which, n = first + sample;
      if (n >= p.shape.N) continue;
      const bool last = Pass::backward && s == walk.steps, active = t < length[which];
      T* out = last ? p.dh0 + (int64_t(direction) * p.shape.N + n) * H : Pass::carried_row(p, t, n) + direction * H;
#pragma unroll
      for (int unit = 0; unit < kRowTiles * kTileRows; unit += 8) {
        if (first_unit + unit >= H) continue;
        const int r = unit / kTileRows, i = unit % kTileRows / 4 + which;
        T value = narrow<T>(tile.sum[r][i]);
        if (!last) {
          value = active ? Pass::evaluate(p, in[r][i], tile.sum[r][i], state[r][i]) : *carry.at(now, sample, first_unit + unit);
          *carry.at(1 - now, sample, first_unit + unit) = value;
        }
        if (last || active || !p.step_offsets) out[first_unit + unit] = last || active ? value : T{};
      }
    }
    fetch(s + 1);
    __syncthreads();  // the next step reads what this one wrote, and writes what this one read
  }
}
