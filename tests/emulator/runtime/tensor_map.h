// What the copy engine is told of a tensor, and the order in which it walks through a box of it.
#pragma once
#include "platform/encode.h"

#include <array>
#include <string>

namespace emulator {
// What of it the driver's encoders do not take, empty if nothing. They take a box without swizzle, which ours are not.
std::string refused_by_driver(const TensorMapSpec& spec);
// Writes the 128 bytes, or returns why not.
std::string encode_tensor_map(const TensorMapSpec& spec, void* map);
// False if the 128 bytes are not what encode_tensor_map wrote.
bool decode_tensor_map(const void* map, TensorMapSpec& spec);

// A row of the box in the tensor: `count` elements from `from` on, ahead of which `before` lie outside of the tensor.
struct BoxRow {
  const unsigned char* from;
  int before, count;
};

// One copy: the rows of a box one after the other, and where they go.
class Box {
 public:
  // `offset` (W, H) is null for a tiled copy.
  Box(const TensorMapSpec& spec, const int32_t (&start)[4], const int32_t* offset);
  std::string wrong_start() const;  // empty if a copy may start there

  int rows() const { return rows_; }
  int element_bytes() const { return spec_.type == 2 ? 4 : 2; }
  int row_bytes() const { return row_elements_ * element_bytes(); }
  int pitch() const { return spec_.swizzle ? spec_.swizzle : row_bytes(); }
  int payload() const { return rows_ * row_bytes(); }
  BoxRow next();
  // Where 16 bytes of a row go, in bytes from a multiple of 1024, of which the box begins at `to`.
  uint32_t place(uint32_t to, int row, int piece) const;
  // Copies it all; `memory` is the multiple of 1024.
  void copy(unsigned char* memory, uint32_t to);

 private:
  void step();
  TensorMapSpec spec_;
  std::array<int64_t, 4> start_{}, at_{};
  std::array<int, 4> offset_{}, index_{}, count_{};  // count_: of coordinates in a tiled box
  int rows_ = 1, row_elements_;
};
}  // namespace emulator
