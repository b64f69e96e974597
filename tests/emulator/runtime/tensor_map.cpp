// Tensor maps and the boxes that they describe, by the documentation of the driver's encoders and the PTX manual.
#include "tensor_map.h"

#include "arithmetic.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace emulator {
namespace {
// The emulator has a format of its own, because that of a GPU is not documented.
struct Encoded {
  uint64_t magic, address, stride[3];
  uint32_t last[4];  // extent - 1
  uint16_t box[4], channels, pixels;
  uint8_t element_stride[4];
  int8_t lower[2], upper[2];
  uint8_t type, swizzle, im2col, unused;
  uint64_t check;
};
static_assert(sizeof(Encoded) <= 128);
constexpr uint64_t kMagic = 0x70616d726f736e74;

uint64_t check_of(const Encoded& map) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto* bytes = reinterpret_cast<const unsigned char*>(&map);
  for (size_t i = 0; i < offsetof(Encoded, check); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

template <class T, size_t kSize>
std::string list(const T (&values)[kSize]) {
  std::string text = "(";
  for (const T& value : values) text += (&value == values ? "" : ", ") + std::to_string(value);
  return text + ")";
}
template <class T, size_t kSize>
bool within(const T (&values)[kSize], int64_t low, int64_t high) {
  return std::all_of(values, values + kSize, [&](T value) { return int64_t(value) >= low && int64_t(value) <= high; });
}

// Rounds or truncates fp32 to a mantissa of 10 bits (arithmetic.h).
uint32_t to_tf32(uint32_t bits) {
  if (arithmetic().copied == Tf32::truncate) return bits & ~0x1fffu;
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fffe000;
  return (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
}
}  // namespace

// kernels/tensor_map.py checks the same limits when a launch is planned.
std::string refused_by_driver(const TensorMapSpec& spec) {
  if (spec.type < 0 || spec.type > 2) return "there is no type " + std::to_string(spec.type);
  if (!spec.address || reinterpret_cast<uintptr_t>(spec.address) % 16)
    return "the address of its first element is not a multiple of 16";
  if (!within(spec.extent, 1, int64_t(1) << 32)) return "its extents " + list(spec.extent) + " are not all 1 to 2^32";
  const uint64_t size = spec.type == 2 ? 4 : 2;
  uint64_t before = spec.extent[0] * size;
  for (int i = 0; i < 3; before = spec.stride[i++]) {
    if (spec.stride[i] % 16 || spec.stride[i] >> 40)
      return "its strides of " + list(spec.stride) + " bytes are not all multiples of 16 below 2^40";
    if (spec.stride[i] < before || (i && spec.stride[i] % before))
      return "its strides of " + list(spec.stride) + " bytes are not multiples of the preceding ones";
  }
  const uint64_t row = (spec.im2col ? spec.channels : spec.box[0]) * size;
  if (!row || row % 16 || (spec.swizzle && row > uint64_t(spec.swizzle)))
    return "a row of the box has " + std::to_string(row) + " bytes, not a multiple of 16 up to " + std::to_string(spec.swizzle);
  if (!within(spec.element_stride, 1, 8)) return "strides " + list(spec.element_stride) + " are not all 1 to 8";
  if (!spec.im2col) return within(spec.box, 1, 256) ? "" : "the extents of the box " + list(spec.box) + " are not all 1 to 256";
  if (!within(spec.lower, -128, 127) || !within(spec.upper, -128, 127))
    return "the corners " + list(spec.lower) + " and " + list(spec.upper) + " of its pixels are not within -128 to 127";
  for (int i = 0; i < 2; ++i)
    if (int64_t(spec.extent[1 + i]) - 1 + spec.upper[i] < spec.lower[i])
      return "there is no pixel between the corners " + list(spec.lower) + " and " + list(spec.upper);
  if (spec.channels > 256 || !spec.pixels || spec.pixels > 1024)
    return "a box of " + std::to_string(spec.channels) + " channels and " + std::to_string(spec.pixels) +
           " pixels is not within 1 to 256 channels and 1 to 1024 pixels";
  return "";
}

std::string encode_tensor_map(const TensorMapSpec& spec, void* map) {
  if (spec.swizzle != 32 && spec.swizzle != 64 && spec.swizzle != 128)
    return "a swizzle of " + std::to_string(spec.swizzle) + " bytes is none of 32, 64, 128";
  if (std::string wrong = refused_by_driver(spec); !wrong.empty()) return wrong;
  Encoded encoded;
  std::memset(&encoded, 0, sizeof encoded);
  encoded.magic = kMagic;
  encoded.address = reinterpret_cast<uintptr_t>(spec.address);
  std::copy_n(spec.stride, 3, encoded.stride);
  for (int i = 0; i < 4; ++i) {
    encoded.last[i] = uint32_t(spec.extent[i] - 1);
    encoded.box[i] = uint16_t(spec.box[i]);
    encoded.element_stride[i] = uint8_t(spec.element_stride[i]);
  }
  encoded.channels = uint16_t(spec.channels), encoded.pixels = uint16_t(spec.pixels);
  for (int i = 0; i < 2; ++i) encoded.lower[i] = int8_t(spec.lower[i]), encoded.upper[i] = int8_t(spec.upper[i]);
  encoded.type = uint8_t(spec.type), encoded.swizzle = uint8_t(spec.swizzle), encoded.im2col = spec.im2col != 0;
  encoded.check = check_of(encoded);
  std::memset(map, 0, 128);
  std::memcpy(map, &encoded, sizeof encoded);
  return "";
}

bool decode_tensor_map(const void* map, TensorMapSpec& spec) {
  Encoded encoded;
  std::memcpy(&encoded, map, sizeof encoded);
  if (encoded.magic != kMagic || encoded.check != check_of(encoded)) return false;
  spec = {};
  spec.address = reinterpret_cast<const void*>(encoded.address);
  std::copy_n(encoded.stride, 3, spec.stride);
  for (int i = 0; i < 4; ++i) {
    spec.extent[i] = uint64_t(encoded.last[i]) + 1;
    spec.box[i] = encoded.box[i];
    spec.element_stride[i] = encoded.element_stride[i];
  }
  spec.channels = encoded.channels, spec.pixels = encoded.pixels;
  for (int i = 0; i < 2; ++i) spec.lower[i] = encoded.lower[i], spec.upper[i] = encoded.upper[i];
  spec.type = encoded.type, spec.swizzle = encoded.swizzle, spec.im2col = encoded.im2col;
  return true;
}

Box::Box(const TensorMapSpec& spec, const int32_t (&start)[4], const int32_t* offset)
    : spec_(spec), row_elements_(int(spec.im2col ? spec.channels : spec.box[0])) {
  std::copy_n(start, 4, start_.begin());
  at_ = start_;
  if (spec.im2col) {
    std::copy_n(offset, 2, offset_.begin() + 1);
    rows_ = int(spec.pixels);
    return;
  }
  for (int i = 1; i < 4; ++i) {
    count_[i] = int((spec.box[i] + spec.element_stride[i] - 1) / spec.element_stride[i]);
    rows_ *= count_[i];
  }
}

std::string Box::wrong_start() const {
  if (!spec_.im2col) return "";
  for (int i = 1; i < 3; ++i) {
    const int64_t low = spec_.lower[i - 1], high = int64_t(spec_.extent[i]) - 1 + spec_.upper[i - 1];
    if (start_[i] < low || start_[i] > high)
      return std::string(i == 1 ? "W" : "H") + " = " + std::to_string(start_[i]) + " is not within " + std::to_string(low) +
             " and " + std::to_string(high);
    if ((start_[i] - low) % spec_.element_stride[i])
      return std::string(i == 1 ? "W" : "H") + " = " + std::to_string(start_[i]) + " is not a multiple of " +
             std::to_string(spec_.element_stride[i]) + " from " + std::to_string(low);
    if (offset_[i] < 0 || offset_[i] > 255) return "offset " + std::to_string(offset_[i]) + " is not within 0 and 255";
  }
  return "";
}

BoxRow Box::next() {
  BoxRow row{static_cast<const unsigned char*>(spec_.address), 0, 0};
  bool inside = true;
  for (int i = 1; i < 4; ++i) {
    const int64_t at = at_[i] + offset_[i];
    inside = inside && at >= 0 && at < int64_t(spec_.extent[i]);
    row.from += at * int64_t(spec_.stride[i - 1]);
  }
  const int64_t first = std::max<int64_t>(0, at_[0]), end = std::min(int64_t(spec_.extent[0]), at_[0] + row_elements_);
  if (inside && first < end) {
    row.from += first * element_bytes();
    row.before = int(first - at_[0]), row.count = int(end - first);
  }
  step();
  return row;
}

void Box::step() {
  for (int i = 1; i < 4; ++i) {
    if (spec_.im2col) {
      if (i == 3) return void(++at_[3]);
      at_[i] += spec_.element_stride[i];
      if (at_[i] <= int64_t(spec_.extent[i]) - 1 + spec_.upper[i - 1]) return;
      at_[i] = spec_.lower[i - 1];  // each line starts at the corner, even if the stride does not divide its extent
    } else {
      at_[i] += spec_.element_stride[i];
      if (++index_[i] < count_[i]) return;
      index_[i] = 0, at_[i] = start_[i];
    }
  }
}

uint32_t Box::place(uint32_t to, int row, int piece) const {
  const uint32_t address = to + uint32_t(row * pitch() + piece * 16);
  return spec_.swizzle ? address ^ (address >> 7 & uint32_t(spec_.swizzle / 16 - 1)) << 4 : address;
}

void Box::copy(unsigned char* memory, uint32_t to) {
  std::array<uint32_t, 256> words;  // the widest row is 256 elements
  auto* bytes = reinterpret_cast<unsigned char*>(words.data());
  for (int row = 0; row < rows_; ++row) {
    const BoxRow from = next();
    std::memset(bytes, 0, size_t(row_bytes()));
    if (from.count) std::memcpy(bytes + from.before * element_bytes(), from.from, size_t(from.count * element_bytes()));
    if (spec_.type == 2) std::transform(words.begin(), words.begin() + row_elements_, words.begin(), to_tf32);
    for (int piece = 0; piece < row_bytes() / 16; ++piece) std::memcpy(memory + place(to, row, piece), bytes + 16 * piece, 16);
  }
}
}  // namespace emulator
