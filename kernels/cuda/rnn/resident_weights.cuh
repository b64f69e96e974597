// The part of W that a warp multiplies by, kept on chip for a whole pass.
#pragma once
#include "rnn/sequence.cuh"
#include "rnn/tile.cuh"

// The part of W that a warp multiplies by: rows of one direction, from `first_row` on. In the warp's chunk i of K, this lane's 16
// bytes start at element first_k + i * k_step.
struct WarpPart {
  int direction, first_row, first_k, k_step;
};

// Holds the first kInRegisters chunks of a warp's part in registers, the others in shared memory in the order in which they are
// read. A lane reads only the shared memory that it wrote itself, so no barrier is needed.
template <class Math, int kRowTiles, int kInRegisters>
class ResidentWeights {
  using T = Storage<Math>;

 public:
  using Rows = Fragment<Math>[kRowTiles][2];  // rows g and g + 8 of each row tile; g as in tile.cuh

  // Loads the `chunks` chunks of the part. `shared` has room for the chunks past kInRegisters of all `warps` warps of the block.
  __device__ ResidentWeights(const RnnParameters<T>& p, const WarpPart& part, int chunks, int warps, unsigned char* shared)
      : shared(reinterpret_cast<Fragment<Math>*>(shared)), warps(warps) {
    if (p.aligned_w)
      load_registers(p, part);
    else
      gather_registers(p, part);
    for (int chunk = kInRegisters; chunk < chunks; ++chunk)
      for (int r = 0; r < kRowTiles; ++r)
        for (int half = 0; half < 2; ++half)
          *in_shared(chunk, r, half) = p.aligned_w ? load(p, part, chunk, r, half) : gather(p, part, chunk, r, half);
  }

  // A chunk that is in registers. `chunk` must be a constant once the caller's loop is unrolled.
  __device__ const Rows& in_registers(int chunk) const { return registers[chunk]; }
  // Copies a chunk out of shared memory.
  __device__ void copy_from_shared(int chunk, Rows& rows) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) rows[r][half] = *in_shared(chunk, r, half);
  }

 private:
  static __device__ Fragment<Math> load(const RnnParameters<T>& p, const WarpPart& part, int chunk, int r, int half) {
    const RnnMatrix<T>& w = p.w[part.direction];
    const int unit = part.first_row + r * kTileRows + half * 8 + lane_group();
    Fragment<Math> fragment =
        load_fragment<Math>(w.data + unit * w.row, part.first_k + chunk * part.k_step, unit < p.shape.H ? p.shape.H : 0);
    prepare(fragment);
    return fragment;
  }
  // Like load, one element at a time. The terms are grouped so that only one address per lane is held in registers.
  static __device__ Fragment<Math> gather(const RnnParameters<T>& p, const WarpPart& part, int chunk, int r, int half) {
    const RnnMatrix<T>& w = p.w[part.direction];
    const int first_unit = part.first_row + lane_group(), k = part.first_k + chunk * part.k_step, row = r * kTileRows + half * 8;
    const T* first = w.data + first_unit * w.row + k * w.column;
    Fragment<Math> fragment =
        gather_fragment<Math>(first + row * w.row, 0, row < p.shape.H - first_unit ? p.shape.H - k : 0, w.column);
    prepare(fragment);
    return fragment;
  }
  __device__ void load_registers(const RnnParameters<T>& p, const WarpPart& part) {
#pragma unroll
    for (int chunk = 0; chunk < kInRegisters; ++chunk)
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) registers[chunk][r][half] = load(p, part, chunk, r, half);
  }
  // Loads every chunk into the place of the last one, after the others have moved forward by one: in a loop that is not
  // unrolled, the many loads of single elements need little code and few registers besides those of W.
  __device__ void gather_registers(const RnnParameters<T>& p, const WarpPart& part) {
#pragma unroll 1
    for (int chunk = 0; chunk < kInRegisters; ++chunk) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int place = 0; place + 1 < kInRegisters; ++place) registers[place][r][half] = registers[place + 1][r][half];
          registers[kInRegisters - 1][r][half] = gather(p, part, chunk, r, half);
        }
    }
  }
  __device__ Fragment<Math>* in_shared(int chunk, int r, int half) const {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    return shared + ((((chunk - kInRegisters) * warps + warp) * kRowTiles + r) * 2 + half) * 32 + lane;
  }

  Fragment<Math> registers[kInRegisters][kRowTiles][2] = {};
  Fragment<Math>* const shared;
  const int warps;
};
