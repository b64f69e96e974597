// Packs an image or a filter for the kernels that fetch pieces of 16 bytes: channels become innermost, and those of each group
// are padded with zeros to a multiple of the piece.
//
// A block owns 32 pixels by 32 channels of one image and one group. It reads along whichever of the two lies closer together in
// the source, transposes the tile in shared memory and writes along channels. Lines of 33 elements spread the elements of a
// column over the banks.
#pragma once
#include "conv2d/parameters.cuh"
#include "platform/shared_memory.h"

constexpr int kPackTile = 32, kPackRows = 8;  // a thread moves 4 elements

template <class T>
__global__ void __launch_bounds__(kPackTile* kPackRows)
    pack_channels_kernel(const __grid_constant__ PackChannelsParameters<T> parameters) {
  T* tile = shared_memory<T>();  // (pixel, channel), lines of 33
  const int across = int(threadIdx.x) % kPackTile, down = int(threadIdx.x) / kPackTile;
  const int32_t plane = parameters.H * parameters.W;
  const int32_t pixel_tiles = (plane + kPackTile - 1) / kPackTile,
                channel_tiles = (parameters.padded + kPackTile - 1) / kPackTile;
  int32_t rest = int32_t(blockIdx.x);
  const int32_t first_pixel = rest % pixel_tiles * kPackTile;
  rest /= pixel_tiles;
  const int32_t first_channel = rest % channel_tiles * kPackTile;
  rest /= channel_tiles;
  const int32_t group = rest % parameters.groups, n = rest / parameters.groups;

  const int32_t image = n % parameters.padded_images, from_n = n / parameters.padded_images * parameters.images + image;

  for (int i = down; i < kPackTile; i += kPackRows) {
    const int pixel = parameters.pixels_first ? across : i, channel = parameters.pixels_first ? i : across;
    const int32_t p = first_pixel + pixel, c = first_channel + channel;
    T value{};
    if (p < plane && c < parameters.channels && image < parameters.images)
      value = parameters.from[from_n * parameters.stride[0] + (int64_t(group) * parameters.channels + c) * parameters.stride[1] +
                              p / parameters.W * parameters.stride[2] + p % parameters.W * parameters.stride[3]];
    tile[pixel * (kPackTile + 1) + channel] = value;
  }
  __syncthreads();  // the tile is transposed: threads write what others have read
  for (int i = down; i < kPackTile; i += kPackRows) {
    const int32_t p = first_pixel + i, c = first_channel + across;
    if (p < plane && c < parameters.padded)
      parameters.to[((int64_t(n) * plane + p) * parameters.groups + group) * parameters.padded + c] =
          tile[i * (kPackTile + 1) + across];
  }
}
