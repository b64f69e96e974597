// max_pool2d, forward: y = the best cell of each window, offsets = which cell that is (window.cuh), written only where asked for.
//
// The bytes an output must move are all that counts: at stride 2 in bf16 4 cells * 2 + 2 of y, and 1 of offset where a gradient
// will be wanted, 11; torch's own kernel moves 18, as it writes an int64 index whether wanted or not. At stride 1: 5 against 12.
//
// Variants, in the order they are tried (bytes predicted from the shapes; speed measured: not yet)
//   split      chosen where windows are 8 rows or higher and outputs too few to fill the GPU: global pooling, the maximum over
//              time. The threads of a block share each window, a slice of its rows each, and compare slices through shared
//              memory, in order. A window is read by up to 32 threads at once; 16 bytes a load where channels allow.
//   channels   chosen for channels_last when a pixel's channels come in whole 16-byte pieces, input and output aligned to them.
//              A thread owns 16 bytes of channels of one output column and a strip of FixedWindow::strip outputs below each
//              other. It reduces each input row of the strip once (3 x 3 stride 2: 9 rows for 4 outputs, not 12; stride 1: 6, not
//              12); what windows side by side share comes from L1. DRAM sees each byte once: 11 an output.
//   staged     chosen for every other dense input: contiguous, where rows of odd width begin anywhere, and channels_last with
//              odd C. A block copies a stretch of memory (whole planes when they are tiny, else a band of rows with its halo)
//              into shared memory in 16-byte pieces, walks the same strips there an element a thread, gathers y and offsets in
//              shared memory, and copies them out in 16-byte pieces: memory sees no row ends, only the ends of the stretch.
//              11 an output and the halo, (R - stride) rows of a band of about 16 KiB, which L2 serves.
//   strided    chosen for the rest (expanded and sliced inputs, rows longer than shared memory, windows above 32767 cells): a
//              thread owns one output, any strides. Also the meaning of the others in its plainest form.
// Channels and staged exist with compiled windows 2 x 2 / 2, 3 x 3 / 1 and 3 x 3 / 2 and for any geometry, the others for any
// only.
//
// y and offsets are overwritten, every element once; nothing is accumulated, no input is aliased.
#pragma once
#include "max_pool2d/dense.cuh"
#include "max_pool2d/window.cuh"

template <class T, class Offset>
struct MaxPool2dForwardParameters {
  const T* x;              // [N, C, H, W], any strides
  T* y;                    // [N, C, P, Q], dense
  Offset* offsets;         // like y; null: not wanted
  const int64_t* lengths;  // [N]: how many rows of its planes count, clamped to [0, H]; null: all. Any-window kernels only
  MaxPool2dShape shape;
  MaxPool2dDense dense;  // of y; the staged variant's x is as dense
};

__device__ inline int32_t rows_of_image(const int64_t* lengths, int64_t n, int32_t H) {
  return lengths ? int32_t(minimum(maximum(lengths[n], int64_t(0)), int64_t(H))) : H;
}

// Block and grid: x over output columns times pieces of channels, y over strips, z over images.
template <class T, class Offset, class Window>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_forward_channels_kernel(const __grid_constant__ MaxPool2dForwardParameters<T, Offset> parameters) {
  constexpr int V = 16 / sizeof(T);
  const MaxPool2dShape& shape = parameters.shape;
  const int32_t pieces = shape.C / V;
  const int32_t item = blockIdx.x * blockDim.x + threadIdx.x;
  if (item >= shape.Q * pieces) return;
  const int32_t q = item / pieces, c = item % pieces * V;
  for (int32_t n = blockIdx.z * blockDim.z + threadIdx.z; n < shape.N; n += gridDim.z * blockDim.z) {
    const T* x = parameters.x + n * shape.x_stride[0] + c;
    const int64_t y_place = n * shape.y_stride[0] + q * shape.y_stride[3] + c;
    const int32_t H = rows_of_image(parameters.lengths, n, shape.H);
    const auto load = [&](int32_t h, int32_t w) { return load_vector<V>(x + h * shape.x_stride[2] + w * shape.x_stride[3]); };
    const auto store = [&](int32_t p, const Choice<Accumulator<T>, V>& choice) {
      const int64_t place = y_place + p * shape.y_stride[2];
      store_vector(parameters.y + place, values_of<T>(choice));
      if (parameters.offsets) store_vector(parameters.offsets + place, offsets_of<Offset>(choice));
    };
    for (int32_t p = (blockIdx.y * blockDim.y + threadIdx.y) * Window::strip; p < shape.P;
         p += gridDim.y * blockDim.y * Window::strip)
      walk_windows<T, V>(Window{}, shape, H, p, q, load, store);
  }
}

// One block a share; shared memory: the input rows of the share, then its y, then its offsets, each 16 bytes above its size.
template <class T, class Offset, class Window>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_forward_staged_kernel(const __grid_constant__ MaxPool2dForwardParameters<T, Offset> parameters) {
  const MaxPool2dShape& shape = parameters.shape;
  const Share share = share_of_block(parameters.dense, shape.P);
  const int32_t inner = parameters.dense.inner, x_row = shape.W * inner, y_row = shape.Q * inner;
  const int64_t last = int64_t(share.end - 1) * shape.stride_h - shape.pad_h + int64_t(shape.R - 1) * shape.dilation_h;
  const int32_t h_begin = share.planes > 1 ? 0 : minimum(maximum(0, share.begin * shape.stride_h - shape.pad_h), shape.H);
  const int32_t h_end = share.planes > 1 ? shape.H : maximum(h_begin, int32_t(minimum(last + 1, int64_t(shape.H))));
  const int32_t x_count = ((share.planes - 1) * shape.H + h_end - h_begin) * x_row;
  const int32_t y_count = ((share.planes - 1) * shape.P + share.end - share.begin) * y_row;
  const T* x_global = parameters.x + (share.plane * shape.H + h_begin) * x_row;
  const int64_t y_place = (share.plane * shape.P + share.begin) * y_row;

  unsigned char* region = shared_memory<unsigned char>();
  T* x_staged = staged_at(region, x_global);
  region = region_behind<T>(region, x_count);
  T* y_staged = staged_at(region, parameters.y + y_place);
  region = region_behind<T>(region, y_count);
  Offset* offsets_staged = staged_at(region, parameters.offsets + y_place);

  fetch_stretch(x_staged, x_global, x_count);
  finish_fetches();

  const int32_t strips = (share.end - share.begin + Window::strip - 1) / Window::strip;
  for (int32_t item = threadIdx.x; item < share.planes * strips * y_row; item += blockDim.x) {
    const int32_t strip = item / y_row, column = item % y_row;
    const int32_t plane = strip / strips, q = column / inner, i = column % inner;
    const T* x = x_staged + plane * shape.H * x_row + i;
    const int32_t y = plane * shape.P * y_row + column;
    const auto load = [&](int32_t h, int32_t w) { return load_vector<1>(x + (h - h_begin) * x_row + w * inner); };
    const auto store = [&](int32_t p, const Choice<Accumulator<T>, 1>& choice) {
      const int32_t place = y + (p - share.begin) * y_row;
      y_staged[place] = narrow<T>(choice.value[0]);
      if (parameters.offsets) offsets_staged[place] = Offset(choice.offset[0]);
    };
    walk_windows<T, 1>(Window{}, shape, shape.H, share.begin + strip % strips * Window::strip, q, load, store);
  }
  __syncthreads();

  write_stretch(parameters.y + y_place, y_staged, y_count);
  if (parameters.offsets) write_stretch(parameters.offsets + y_place, offsets_staged, y_count);
}

// One thread an output, in the order of y's memory.
template <class T, class Offset>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_forward_strided_kernel(const __grid_constant__ MaxPool2dForwardParameters<T, Offset> parameters) {
  const MaxPool2dShape& shape = parameters.shape;
  const int64_t flat = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (flat >= parameters.dense.planes * shape.P * shape.Q * parameters.dense.inner) return;
  const Place place = place_of(parameters.dense, flat, shape.P, shape.Q);
  const int64_t image_channel = place.plane * parameters.dense.inner + place.inner;
  const int64_t n = image_channel / shape.C, c = image_channel % shape.C;
  const T* x = parameters.x + n * shape.x_stride[0] + c * shape.x_stride[1];
  const auto load = [&](int32_t h, int32_t w) { return load_vector<1>(x + h * shape.x_stride[2] + w * shape.x_stride[3]); };
  const auto store = [&](int32_t, const Choice<Accumulator<T>, 1>& choice) {
    parameters.y[flat] = narrow<T>(choice.value[0]);
    if (parameters.offsets) parameters.offsets[flat] = Offset(choice.offset[0]);
  };
  walk_windows<T, 1>(AnyWindow{}, shape, rows_of_image(parameters.lengths, n, shape.H), place.row, place.column, load, store);
}

// Block: x over output columns times pieces of V channels, y over slices of the window's rows; grid: stretches of columns, output
// rows, images. Shared memory: the value and the offset each slice chose, for each output of the block.
template <class T, class Offset, int V>
__global__ void __launch_bounds__(256, 2)
    max_pool2d_forward_split_kernel(const __grid_constant__ MaxPool2dForwardParameters<T, Offset> parameters) {
  const MaxPool2dShape& shape = parameters.shape;
  const int32_t pieces = shape.C / V, items = shape.Q * pieces, stretches = (items + blockDim.x - 1) / blockDim.x;
  const int32_t row = blockIdx.x / stretches, n = row / shape.P, p = row % shape.P;
  const int32_t first = blockIdx.x % stretches * blockDim.x, item = first + threadIdx.x;
  const int64_t R = shape.R, slice = (R + blockDim.y - 1) / blockDim.y, r_begin = minimum(threadIdx.y * slice, R);
  const int32_t outputs = blockDim.x * V;
  auto* values = shared_memory<Accumulator<T>>();
  auto* offsets = reinterpret_cast<int32_t*>(values + outputs * blockDim.y);

  if (item < items) {
    const int32_t q = item / pieces, c = item % pieces * V;
    const T* x = parameters.x + n * shape.x_stride[0] + c * shape.x_stride[1];
    const int32_t H = rows_of_image(parameters.lengths, n, shape.H);
    const auto load = [&](int32_t h, int32_t w) { return load_vector<V>(x + h * shape.x_stride[2] + w * shape.x_stride[3]); };
    const auto choice = choose_in_rows<T, V>(shape, H, p, q, r_begin, minimum(r_begin + slice, R), load);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      values[threadIdx.y * outputs + threadIdx.x * V + v] = choice.value[v];
      offsets[threadIdx.y * outputs + threadIdx.x * V + v] = choice.offset[v];
    }
  }
  __syncthreads();

  for (int32_t o = threadIdx.y * blockDim.x + threadIdx.x; o < outputs; o += blockDim.x * blockDim.y) {
    const int32_t place = first + o / V;
    if (place >= items) return;
    Accumulator<T> value = values[o];
    int32_t offset = offsets[o];
    for (int32_t i = o + outputs; i < outputs * int32_t(blockDim.y); i += outputs)
      if (wins(values[i], value) || offset < 0) {
        value = values[i];
        offset = offsets[i];
      }
    const int32_t q = place / pieces, c = place % pieces * V + o % V;
    const int64_t y = n * shape.y_stride[0] + c * shape.y_stride[1] + p * shape.y_stride[2] + q * shape.y_stride[3];
    parameters.y[y] = narrow<T>(value);
    if (parameters.offsets) parameters.offsets[y] = Offset(offset);
  }
}
