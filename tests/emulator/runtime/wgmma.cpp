// Products of a warpgroup. Each of its warps has a queue of products. Between a product and the wait for its group, D is NaN and
// the queue holds the sums. The operands are read at the wait or, sometimes, earlier.
#include "platform/wgmma.h"

#include "arithmetic.h"
#include "scheduler.h"

#include <algorithm>
#include <array>
#include <deque>
#include <list>

namespace emulator {
namespace {
constexpr uint32_t kWindow = 0x400;  // the address of a block's first shared byte, as in cluster.cpp
constexpr int kDepthBytes = 32;
// What D holds while a product is pending: a signalling NaN, so that even arithmetic on it changes its bits.
constexpr uint32_t kPending = 0xffbfffff;

struct Issue {  // one lane's call
  WgmmaType type;
  bool rows_a, rows_b;
  float* d;
  int count;
  uint64_t a, b;
  Where where;
};

// The sums of one D while products on it are pending.
struct Sums {
  std::array<float*, 32> d;
  int count;                 // of registers in a lane
  int pending = 0;           // products
  std::vector<float> value;  // the warp's 16 rows
};

struct Product {
  WgmmaType type;
  bool rows_a, rows_b;
  std::vector<uint32_t> a, b;  // the offset in shared memory of each 16-byte piece of an operand
  Sums* sums;
  Moment issued;
  Where where;
};

// What the warps of a warpgroup have issued, to check that they issue the same products.
struct Warpgroup {
  std::deque<Issue> issues;  // the products that not all warps have issued
  uint64_t dropped = 0;      // the number of products before those
  uint64_t issued[4] = {};   // the number that each warp has issued
};
}  // namespace

struct WgmmaQueue {
  std::shared_ptr<Warpgroup> group;
  unsigned warp;  // its index in the group
  const unsigned char* shared;
  std::deque<Product> products;  // those that have not been waited for
  std::deque<unsigned> groups;   // the number of products in each committed group
  unsigned uncommitted = 0;      // products since the last commit
  uint64_t multiplied = 0;       // products whose sums have been computed
  uint64_t finished = 0;         // products that have been waited for
  bool fenced = false;
  std::list<Sums> sums;
};

namespace {
[[noreturn]] void wrong(const char* what, const char* why, const Where& where) {
  fail("%s at %s:%u: %s", what, base_name(where.file_name()), unsigned(where.line()), why);
}

std::shared_ptr<WgmmaQueue>& queue_of(Block& block, unsigned warp, const char* what, const Where& where) {
  std::shared_ptr<WgmmaQueue>& queue = block.warps[warp].products;
  if (queue) return queue;
  if (warp / 4 * 4 + 4 > block.threads.size() / 32) wrong(what, "the warp is not in a whole warpgroup of four warps", where);
  queue = std::make_shared<WgmmaQueue>();
  queue->warp = warp % 4;
  queue->shared = block.shared;
  for (unsigned other = warp / 4 * 4; other < warp / 4 * 4 + 4; ++other)
    if (block.warps[other].products && block.warps[other].products->group) queue->group = block.warps[other].products->group;
  if (!queue->group) queue->group = std::make_shared<Warpgroup>();
  return queue;
}
std::shared_ptr<WgmmaQueue>& current_queue(const char* what, const Where& where) {
  Thread& self = scheduler().current();
  return queue_of(*self.block, self.linear / 32, what, where);
}
void require_whole_warp(const char* what, uint32_t lanes, const Where& where) {
  if (lanes != 0xffffffff) wrong(what, "all lanes of the warp must take part", where);
}

// The offsets in shared memory of an operand's pieces of 16 bytes, for `rows` rows from `first`. They are ordered by row or, if
// the operand is stored along rows (Major::rows), by depth.
std::vector<uint32_t> pieces(uint64_t descriptor, bool along_rows, int first, int rows, const Where& where) {
  auto field = [&](int bit) { return uint32_t(descriptor >> bit & 0x3fff) << 4; };
  const uint32_t start = field(0), leading = field(16), stride = field(32), mode = uint32_t(descriptor >> 62);
  if (descriptor & 0x3fff'c000'c000'c000 || !mode)
    wrong("wgmma", "the descriptor has no swizzle, a base offset, or a field that overflowed", where);
  const uint32_t span = 256 >> mode, atom = 8 * span;
  if (along_rows ? start % atom : start % atom % kDepthBytes || start % atom >= span)
    wrong("wgmma", "the operand starts inside of eight rows, or at a depth that is not a multiple of 32 bytes", where);
  const auto per_span = int(span / 2);  // 16-bit elements
  if (stride % atom || (along_rows && (first + rows > per_span) && leading % atom))
    wrong("wgmma", "the operand's strides are not multiples of eight rows", where);
  std::vector<uint32_t> offsets;
  auto add = [&](uint32_t address) {
    address ^= (address >> 7 & (span / 16 - 1)) << 4;
    if (address < kWindow || address + 16 > kWindow + scheduler().request().shared_bytes)
      wrong("wgmma", "the operand is not in this block's shared memory", where);
    offsets.push_back(address - kWindow);
  };
  if (along_rows) {
    for (int k = 0; k < 16; ++k)
      for (int mn = first; mn < first + rows; mn += 8)
        add(start + uint32_t(mn / per_span) * leading + uint32_t(mn % per_span) * 2 + uint32_t(k / 8) * stride +
            uint32_t(k % 8) * span);
  } else {
    for (int mn = first; mn < first + rows; ++mn)
      for (uint32_t byte = 0; byte < kDepthBytes; byte += 16)
        add(start + uint32_t(mn / 8) * stride + uint32_t(mn % 8) * span + byte);
  }
  return offsets;
}

template <WgmmaType type, bool along_rows>
void read(const unsigned char* shared, const std::vector<uint32_t>& pieces, int rows, float* to, int per_row, int per_k) {
  constexpr int kSize = type == WgmmaType::tf32 ? 4 : 2, kElements = 16 / kSize;
  auto place = [&](size_t piece, int element) -> float& {
    const int at = int(piece);
    if constexpr (along_rows) return to[at / (rows / 8) * per_k + (at % (rows / 8) * 8 + element) * per_row];
    return to[at / 2 * per_row + (at % 2 * kElements + element) * per_k];
  };
  for (size_t piece = 0; piece < pieces.size(); ++piece)
    for (int element = 0; element < kElements; ++element) {
      const unsigned char* from = shared + pieces[piece] + element * kSize;
      if constexpr (type == WgmmaType::tf32) {
        uint32_t word;
        std::memcpy(&word, from, 4);
        place(piece, element) = std::bit_cast<float>(word & ~0x1fffu);  // the GPU ignores the lowest 13 bits
      } else {
        std::conditional_t<type == WgmmaType::f16, half, bfloat16> value;
        std::memcpy(&value, from, 2);
        place(piece, element) = widen(value);
      }
    }
}

template <WgmmaType type, int kN>
void multiply(const WgmmaQueue& queue, const Product& product) {
  constexpr int kK = type == WgmmaType::tf32 ? 8 : 16;
  alignas(64) float a[16 * kK], b[kK * kN];
  if constexpr (type != WgmmaType::tf32) {
    if (product.rows_a) read<type, true>(queue.shared, product.a, 16, a, kK, 1);
    if (product.rows_b) read<type, true>(queue.shared, product.b, kN, b, 1, kN);
  }
  if (!product.rows_a) read<type, false>(queue.shared, product.a, 16, a, kK, 1);
  if (!product.rows_b) read<type, false>(queue.shared, product.b, kN, b, 1, kN);
  add_products<16, kN, kK>(product.sums->value.data(), a, b, type == WgmmaType::f16 ? -14 : -126);
}

template <WgmmaType type>
void multiply(const WgmmaQueue& queue, const Product& product) {
  switch (product.sums->count) {
    case 32:
      return multiply<type, 64>(queue, product);
    case 64:
      return multiply<type, 128>(queue, product);
    default:
      return multiply<type, 256>(queue, product);
  }
}

void multiply_until(WgmmaQueue& queue, uint64_t serial) {
  for (; queue.multiplied < serial; ++queue.multiplied) {
    const Product& product = queue.products[queue.multiplied - queue.finished];
    switch (product.type) {
      case WgmmaType::f16:
        multiply<WgmmaType::f16>(queue, product);
        break;
      case WgmmaType::bf16:
        multiply<WgmmaType::bf16>(queue, product);
        break;
      case WgmmaType::tf32:
        multiply<WgmmaType::tf32>(queue, product);
        break;
    }
  }
}

// The index in Sums::value of a lane's register i.
int index_of(int lane, int i, int count) {
  return (lane / 4 + 8 * (i / 2 % 2)) * 2 * count + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
}

void require_untouched(const Sums& sums, const Where& where) {
  for (float* d : sums.d)
    for (int i = 0; i < sums.count; ++i)
      if (std::bit_cast<uint32_t>(d[i]) != kPending) wrong("wgmma", "D was written while a product on it was pending", where);
}

// The sums of D. If no product on D is pending, they are loaded from D, which becomes NaN.
Sums& load_sums(WgmmaQueue& queue, void* const operand[32]) {
  std::array<float*, 32> d;
  for (int lane = 0; lane < 32; ++lane) d[size_t(lane)] = static_cast<Issue*>(operand[lane])->d;
  const Issue& issue = *static_cast<Issue*>(operand[0]);
  for (Sums& pending : queue.sums) {
    if (pending.d == d && pending.count == issue.count) {
      require_untouched(pending, issue.where);
      return pending;
    }
    for (size_t lane = 0; lane < 32; ++lane)
      if (d[lane] < pending.d[lane] + pending.count && pending.d[lane] < d[lane] + issue.count)
        wrong("wgmma", "D overlaps another one with a pending product", issue.where);
  }
  if (!queue.fenced) wrong("wgmma", "without wgmma_fence, which must order the warp's own accesses to D before it", issue.where);
  Sums& sums = queue.sums.emplace_back(Sums{.d = d, .count = issue.count, .value = std::vector<float>(size_t(32 * issue.count))});
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < issue.count; ++i) sums.value[size_t(index_of(lane, i, issue.count))] = d[size_t(lane)][i];
  for (float* registers : d) std::fill_n(reinterpret_cast<uint32_t*>(registers), issue.count, kPending);
  return sums;
}

void store_sums(WgmmaQueue& queue, Sums& sums, const Where& where) {
  require_untouched(sums, where);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < sums.count; ++i) sums.d[size_t(lane)][i] = sums.value[size_t(index_of(lane, i, sums.count))];
  queue.sums.remove_if([&](const Sums& pending) { return &pending == &sums; });
  queue.fenced = false;
}

bool same(const Issue& x, const Issue& y) {
  return x.type == y.type && x.rows_a == y.rows_a && x.rows_b == y.rows_b && x.count == y.count && x.a == y.a && x.b == y.b;
}

void compare_with_group(WgmmaQueue& queue, const Issue& issue) {
  Warpgroup& group = *queue.group;
  const uint64_t serial = group.issued[queue.warp]++ - group.dropped;
  if (serial == group.issues.size())
    group.issues.push_back(issue);
  else if (!same(group.issues[serial], issue))
    wrong("wgmma", "another warp of this warpgroup has issued another product instead", issue.where);
  const uint64_t least = *std::min_element(group.issued, group.issued + 4);
  for (; group.dropped < least; ++group.dropped) group.issues.pop_front();
}

void issue(void* const operand[32], uint32_t lanes) {
  const Issue& first = *static_cast<Issue*>(operand[0] ? operand[0] : operand[std::countr_zero(lanes)]);
  require_whole_warp("wgmma", lanes, first.where);
  for (int lane = 1; lane < 32; ++lane)
    if (!same(first, *static_cast<Issue*>(operand[lane])))
      wrong("wgmma", "lanes of one warp pass different descriptors", first.where);
  const std::shared_ptr<WgmmaQueue>& queue = current_queue("wgmma", first.where);
  compare_with_group(*queue, first);
  Sums& sums = load_sums(*queue, operand);
  ++sums.pending;
  queue->products.push_back({.type = first.type,
                             .rows_a = first.rows_a,
                             .rows_b = first.rows_b,
                             .a = pieces(first.a, first.rows_a, int(16 * queue->warp), 16, first.where),
                             .b = pieces(first.b, first.rows_b, 0, 2 * first.count, first.where),
                             .sums = &sums,
                             .issued = kRace ? release(scheduler().current()) : Moment{},
                             .where = first.where});
  ++queue->uncommitted;
  if (kRace || scheduler().random().below(16)) return;
  scheduler().later([weak = std::weak_ptr(queue), serial = queue->finished + queue->products.size()] {
    if (const auto live_queue = weak.lock()) multiply_until(*live_queue, serial);
  });
}

struct Wait {
  unsigned pending;
  Where where;
};

// Makes all later accesses of the warp's lanes happen after the operand reads of the products that the warp has waited for.
void acquire_in_lanes(Block& block, unsigned warp, const Moment& moment) {
  const SharedClock clock = join({moment});
  for (unsigned lane = 0; lane < 32; ++lane) acquire(block.threads[32 * warp + lane], clock);
}

void wait_for_groups(void* const operand[32], uint32_t lanes) {
  const Wait& wait = *static_cast<Wait*>(operand[std::countr_zero(lanes)]);
  require_whole_warp("wgmma_wait", lanes, wait.where);
  WgmmaQueue& queue = *current_queue("wgmma_wait", wait.where);
  Block& block = *scheduler().current().block;
  const unsigned warp = scheduler().current().linear / 32;
  Moment moment{};
  if constexpr (kRace) moment = products_moment(block, warp);
  for (; queue.groups.size() > wait.pending; queue.groups.pop_front())
    for (unsigned left = queue.groups.front(); left; --left) {
      const Product& product = queue.products.front();
      if constexpr (kRace)
        for (const auto* operand : {&product.a, &product.b})
          for (uint32_t piece : *operand)
            see_asynchronous(queue.shared + piece, 16, Access::read, product.issued, moment, "wgmma", product.where);
      multiply_until(queue, queue.finished + 1);
      if (--product.sums->pending == 0) store_sums(queue, *product.sums, product.where);
      queue.products.pop_front();
      ++queue.finished;
    }
  if constexpr (kRace) acquire_in_lanes(block, warp, moment);
  if (queue.products.empty()) queue.fenced = false;
}
}  // namespace

uint64_t matrix_descriptor(const void* shared, uint32_t leading, uint32_t stride, uint32_t span, const Where& where) {
  check_aligned(shared, 16, "matrix_descriptor", where);
  if (!is_shared(shared, 16)) wrong("matrix_descriptor", "the operand is not in this block's shared memory", where);
  if (span != 32 && span != 64 && span != 128) wrong("matrix_descriptor", "the span is not 32, 64 or 128 bytes", where);
  if ((leading | stride) & ~0x3fff0u) wrong("matrix_descriptor", "strides are multiples of 16 below 2^18", where);
  const uint64_t start = kWindow + uint64_t(static_cast<const unsigned char*>(shared) - shared_memory());
  return start >> 4 | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 |
         uint64_t(span == 128  ? 1
                  : span == 64 ? 2
                               : 3)
             << 62;
}

void wgmma_fence(const Where& where) {
  auto fence = [](void* const*, uint32_t) { current_queue("wgmma_fence", Where::current())->fenced = true; };
  current_queue("wgmma_fence", where);
  warp_collective(0xffffffff, "wgmma_fence", nullptr, fence, where);
}

void wgmma(WgmmaType type, bool rows_a, bool rows_b, float* d, int count, uint64_t a, uint64_t b, const Where& where) {
  Issue mine{.type = type, .rows_a = rows_a, .rows_b = rows_b, .d = d, .count = count, .a = a, .b = b, .where = where};
  warp_collective(0xffffffff, "wgmma", &mine, issue, where);
}

void wgmma_commit(const Where& where) {
  auto commit = [](void* const*, uint32_t) {
    WgmmaQueue& queue = *current_queue("wgmma_commit", Where::current());
    queue.groups.push_back(queue.uncommitted);
    queue.uncommitted = 0;
  };
  current_queue("wgmma_commit", where);
  warp_collective(0xffffffff, "wgmma_commit", nullptr, commit, where);
}

void wgmma_wait(int pending, const Where& where) {
  current_queue("wgmma_wait", where);
  Wait mine{unsigned(pending), where};
  warp_collective(0xffffffff, "wgmma_wait", &mine, wait_for_groups, where);
}

void finish_products(const Warp& warp) {
  const WgmmaQueue& queue = *warp.products;
  if (queue.uncommitted)
    wrong("wgmma", "the thread ends, and no wgmma_commit has closed the product's group", queue.products.back().where);
  if (!queue.products.empty())
    wrong("wgmma", "the thread ends, and no wgmma_wait has waited for the product", queue.products.front().where);
}
}  // namespace emulator
