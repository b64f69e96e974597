// Persistent, one block per 8 samples and direction: a whole pass over a layer in one launch, for H <= 256.
//
// W stays in registers and shared memory, and the state goes from warp to warp through shared memory, with one barrier per step.
// Blocks never wait for each other.
//
// A warp owns two row tiles (32 units) and all of K. A lane keeps its fragments of up to 8 chunks of W (6 in IEEE fp32 and fp64)
// in registers and those of the other chunks in shared memory. It owns the same 8 results at every step and fetches their inputs
// a step ahead. Each element of an output is written once; the state of a sample that is not active yet keeps its initial value.
#pragma once
#include "platform/shared_memory.h"
#include "rnn/resident_weights.cuh"
#include "rnn/state_buffer.cuh"

namespace single_block {
constexpr int kRowTiles = 2, kMaxWarps = 8;
template <class Math>
constexpr int kChunksInRegisters = 8;
template <>
constexpr int kChunksInRegisters<float> = 6;  // the sums take 32 registers in IEEE fp32
template <>
constexpr int kChunksInRegisters<double> = 6;  // a sum and an input take two registers each in fp64
static_assert(kRowTiles * kChunksInRegisters<half> * 2 * kLaneBytes / 4 == 128, "half of a thread's 255 registers");
static_assert(kMaxWarps * kRowTiles * kTileRows == 256, "the widest H");

// The eight results of a lane. Result i of row tile r is unit first_unit + 16 r + 8 (i >> 1) of sample first_sample + (i & 1).
template <class Math, class Pass>
class LaneResults {
  using T = Storage<Math>;

 public:
  __device__ LaneResults(const RnnParameters<T>& p, int direction, int first_n)
      : first_unit(int(threadIdx.x) / 32 * kRowTiles * kTileRows + lane_group()),
        first_sample(2 * lane_in_group()),
        first_n(first_n),
        direction(direction),
        length{length_of(p, first_n + first_sample), length_of(p, first_n + first_sample + 1)} {}

  // Fetches the inputs of step s, for the next call of `finish`.
  __device__ void fetch(const RnnParameters<T>& p, const TimeOrder& order, int s) {
    if (s >= order.steps) return;
    const int H = p.shape.H, t = order.time(s);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (t < length[i]) {
        const typename Pass::template Row<T> row(p, t, first_n + first_sample + i, direction * H + first_unit);
#pragma unroll
        for (int unit = 0; unit < kRowTiles * kTileRows; unit += 8)
          if (first_unit + unit < H) inputs[unit / kTileRows][unit % kTileRows / 4 + i] = row.at(unit);
      }
  }
  // Turns the product of step s into this lane's results, for the output and for the buffer that the next step reads.
  __device__ void finish(const RnnParameters<T>& p, const TimeOrder& order, int s, const WarpTile<Math, kRowTiles>& product,
                         const StateBuffers<T>& state) const {
    const int H = p.shape.H, buffer = s & 1, t = order.time(s);
    const bool after_last = Pass::backward && s == order.steps;  // the product alone is dh0
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int sample = first_sample + i, n = first_n + sample;
      if (n >= p.shape.N) continue;
      const bool active = t < length[i];
      const int64_t first_element = element_offset(p, direction, n, first_unit);
      T* out = after_last ? p.dh0 + element_offset(p, direction, n) : Pass::state_row(p, t, n) + direction * H;
#pragma unroll
      for (int unit = 0; unit < kRowTiles * kTileRows; unit += 8) {
        if (first_unit + unit >= H) continue;
        const int r = unit / kTileRows, result = unit % kTileRows / 4 + i;
        const Result at{length[i], first_element + unit};
        const Accumulator<T> received = Pass::received(p, order, s, at, product.sum[r][result]);
        T value = narrow<T>(received);
        if (!after_last) {
          value = active ? Pass::evaluate(p, inputs[r][result], received) : *state.at(buffer, sample, first_unit + unit);
          *state.at(1 - buffer, sample, first_unit + unit) = value;
          Pass::keep_last(p, order, s, at, value);
        }
        if (after_last || active || !p.step_offsets) out[first_unit + unit] = after_last || active ? value : T{};
      }
    }
  }

 private:
  const int first_unit, first_sample, first_n, direction, length[2];
  typename Pass::template Inputs<T> inputs[kRowTiles][4] = {};
};
}  // namespace single_block

template <class Math, class Pass>
__global__ void __launch_bounds__(single_block::kMaxWarps * 32)
    rnn_single_block_kernel(const __grid_constant__ RnnParameters<Storage<Math>> p) {
  using namespace single_block;
  using T = Storage<Math>;
  constexpr int kRegisterChunks = kChunksInRegisters<Math>;
  const int H = p.shape.H, chunks = (H + kChunk<Math> - 1) / kChunk<Math>;
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  const int direction = int(blockIdx.y), first_n = int(blockIdx.x) * kTileColumns;
  const int first_k = lane_in_group() * Fragment<Math>::size;
  const TimeOrder order = time_order<Pass>(p, direction);

  // Two buffers: a step reads one and writes the other.
  const StateBuffers<T> state(shared_memory<unsigned char>(), H);
  const WarpPart part{direction, warp * kRowTiles * kTileRows, first_k, kChunk<Math>};
  const ResidentWeights<Math, kRowTiles, kRegisterChunks> weights(p, part, chunks, warps, state.bytes + 2 * state.buffer_bytes());
  state.fill(0, p, Pass::initial(p), direction, first_n);
  state.fill(1, p, nullptr, direction, first_n);
  __syncthreads();

  LaneResults<Math, Pass> results(p, direction, first_n);
  results.fetch(p, order, 0);
  for (int s = 0; s < p.products; ++s) {
    WarpTile<Math, kRowTiles> product;
    auto column = [&](int chunk) {
      Fragment<Math> b = state.template fragment<Math>(s & 1, chunk * kChunk<Math> + first_k);
      prepare(b);
      return b;
    };
#pragma unroll
    for (int chunk = 0; chunk < kRegisterChunks; ++chunk)
      if (chunk < chunks) product.multiply(weights.in_registers(chunk), column(chunk));
    for (int chunk = kRegisterChunks; chunk < chunks; ++chunk) {
      Fragment<Math> rows[kRowTiles][2];
      weights.copy_from_shared(chunk, rows);
      product.multiply(rows, column(chunk));
    }
    product.finish();
    results.finish(p, order, s, product, state);
    results.fetch(p, order, s + 1);
    __syncthreads();  // the next step reads the buffer that this one wrote, and writes the one that it read
  }
}
