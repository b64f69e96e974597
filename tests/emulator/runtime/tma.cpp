// Copies of boxes by tensor maps (TMA). A whole copy, including the reads of its source, is executed at a random moment between
// its issue and the end of the mbarrier's phase. Until then its destination is NaN.
#include "platform/mbarrier.h"
#include "platform/tensor_map.h"
#include "scheduler.h"
#include "tensor_map.h"

namespace emulator {
namespace {
[[noreturn]] void wrong(const char* what, const std::string& why, const Where& where) {
  fail("%s at %s:%u: %s", what, base_name(where.file_name()), unsigned(where.line()), why.c_str());
}

TensorMapSpec read_map(const void* map, const char* what, const Where& where) {
  const LaunchRequest& request = scheduler().request();
  const auto* parameters = static_cast<const unsigned char*>(request.parameters);
  const auto* byte = static_cast<const unsigned char*>(map);
  if (byte < parameters || byte + sizeof(TensorMap) > parameters + request.parameter_bytes)
    wrong(what, "the map is not in the kernel's parameters: the engine cannot read a local copy", where);
  TensorMapSpec spec;
  if (!decode_tensor_map(map, spec)) wrong(what, "the map has not been encoded", where);
  return spec;
}
}  // namespace

void prefetch_tensor_map(const void* map, const Where& where) { read_map(map, "prefetch_tensor_map", where); }

void copy_box(void* shared, const void* map, const int32_t (&start)[4], const int32_t* offset, uint64_t* barrier,
              const Where& where) {
  preempt();
  const char* what = offset ? "copy_im2col" : "copy_tiled";
  const TensorMapSpec spec = read_map(map, what, where);
  if (bool(spec.im2col) != bool(offset)) wrong(what, std::string("the map is ") + (offset ? "tiled" : "an im2col one"), where);
  Box box(spec, start, offset);
  if (const std::string start_is = box.wrong_start(); !start_is.empty()) wrong(what, start_is, where);
  // The PTX manual does not define an im2col copy that starts at an image outside of the tensor, so the launch fails. A box may
  // end after the last image and start at any channel.
  if (offset && (start[3] < 0 || uint64_t(start[3]) >= spec.extent[3]))
    wrong(what, "N = " + std::to_string(start[3]) + " is not within 0 and " + std::to_string(spec.extent[3] - 1), where);
  Block* block = scheduler().current().block;
  if (!is_shared(shared, size_t(box.rows() * box.pitch())))
    wrong(what, "the destination's " + std::to_string(box.rows() * box.pitch()) + " bytes are not in this block's shared memory",
          where);
  const auto to = uint32_t(static_cast<unsigned char*>(shared) - block->shared);
  if (to % unsigned(8 * box.pitch()))
    wrong(what, "the destination is not a multiple of " + std::to_string(8 * box.pitch()) + " bytes, 8 rows", where);
  if (!is_shared(barrier, 8)) wrong(what, "the mbarrier is not in this block's shared memory", where);
  mbarrier_require(barrier, where);

  Moment issued{}, moment{};
  if constexpr (kRace) issued = release(scheduler().current()), moment = copies_moment(*block, barrier);
  Box rows = box;
  for (int row = 0; row < box.rows(); ++row) {
    const BoxRow from = rows.next();
    if (from.count)
      see_asynchronous(from.from, size_t(from.count * box.element_bytes()), Access::read, issued, moment, what, where);
    for (int piece = 0; piece < box.row_bytes() / 16; ++piece) {
      unsigned char* place = block->shared + box.place(to, row, piece);
      see_asynchronous(place, 16, Access::write, issued, moment, what, where);
      std::memset(place, 0xff, 16);
    }
  }
  ++block->pending_copies;
  scheduler().later([=, moment = std::move(moment)]() mutable {
    box.copy(block->shared, to);
    --block->pending_copies;
    mbarrier_complete(barrier, box.payload(), moment, where);
  });
}

#ifndef EMULATOR_RACE
void fence_proxy_async() {}
#endif
}  // namespace emulator
