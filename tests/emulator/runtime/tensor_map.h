// The emulator's format of a tensor map, and the order in which TMA reads a box.
#pragma once
#include "platform/encode.h"

#include <array>
#include <string>

namespace emulator {
// Why the driver's encoders would refuse the map; empty if they accept it. They also accept maps without swizzle, which the
// kernels do not use.
std::string refused_by_driver(const TensorMapSpec& spec);
// Writes the 128 bytes of a map and returns an empty string, or returns why the map cannot be encoded.
std::string encode_tensor_map(const TensorMapSpec& spec, void* map);
// Returns false if encode_tensor_map did not write the 128 bytes.
bool decode_tensor_map(const void* map, TensorMapSpec& spec);

// A row of the box: `before` elements that lie outside of the tensor, then `count` elements from `from`; the rest lies outside.
struct BoxRow {
  const unsigned char* from;
  int before, count;
};

// One copy: yields the rows of its box in order, and their destinations.
class Box {
 public:
  // `offset` (W, H) is null for a tiled copy.
  Box(const TensorMapSpec& spec, const int32_t (&start)[4], const int32_t* offset);
  std::string wrong_start() const;  // why a copy may not have this start or offset; empty if it may

  int rows() const { return rows_; }
  int element_bytes() const { return spec_.type == 2 ? 4 : 2; }
  int row_bytes() const { return row_elements_ * element_bytes(); }
  int pitch() const { return spec_.swizzle ? spec_.swizzle : row_bytes(); }
  int payload() const { return rows_ * row_bytes(); }
  BoxRow next();
  // The destination of a 16-byte piece of a row. It and `to`, the destination of the box, are offsets in bytes from an address
  // that is a multiple of 1024.
  uint32_t place(uint32_t to, int row, int piece) const;
  // Copies the whole box. `memory` represents the address that is a multiple of 1024, from which `to` is an offset.
  void copy(unsigned char* memory, uint32_t to);

 private:
  void step();
  TensorMapSpec spec_;
  std::array<int64_t, 4> start_{}, at_{};
  std::array<int, 4> offset_{}, index_{}, count_{};  // count_: how many coordinates a tiled box has in each dimension
  int rows_ = 1, row_elements_;
};
}  // namespace emulator
