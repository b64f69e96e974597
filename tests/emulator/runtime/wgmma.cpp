// Products of a warpgroup. Each of its warps has a queue of its own: a product waits there, with D's true sums beside it and NaN
// in D, until the warp waits for its group; the operands are read then, now and then earlier.
#include "platform/wgmma.h"

#include "arithmetic.h"
#include "scheduler.h"

#include <algorithm>
#include <array>
#include <deque>
#include <list>

namespace emulator {
namespace {
constexpr uint32_t kWindow = 0x400;  // of the block's own shared memory, as in cluster.cpp
constexpr int kDepthBytes = 32;
constexpr uint32_t kUnderWay = 0xffbfffff;  // D's words: a signalling NaN, so that arithmetic on it leaves another one

struct Issue {  // one lane's call
  WgmmaType type;
  bool rows_a, rows_b;
  float* d;
  int count;
  uint64_t a, b;
  Where where;
};

// The sums of one D while products on it are under way; D itself is NaN.
struct Sums {
  std::array<float*, 32> d;
  int count;  // registers of a lane
  int under_way = 0;
  std::vector<float> value;  // 16 rows
};

struct Product {
  WgmmaType type;
  bool rows_a, rows_b;
  std::vector<uint32_t> a, b;  // where their pieces of 16 bytes lie in shared memory
  Sums* sums;
  Moment issued;
  Where where;
};

// What a warpgroup's warps multiply: all the same.
struct Warpgroup {
  std::deque<Issue> issues;  // that not every warp has issued
  uint64_t forgotten = 0, issued[4] = {};
};
}  // namespace

struct WgmmaQueue {
  std::shared_ptr<Warpgroup> group;
  unsigned warp;  // of the group
  const unsigned char* shared;
  std::deque<Product> products;  // not waited for
  std::deque<unsigned> groups;   // committed ones: how many products each
  unsigned open = 0;             // products since the last commit
  uint64_t multiplied = 0, over = 0;
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
  if (warp / 4 * 4 + 4 > block.threads.size() / 32) wrong(what, "the warp is of no whole warpgroup, four warps", where);
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
  if (lanes != 0xffffffff) wrong(what, "every lane of the warp takes part", where);
}

// Where the operand's rows from `first` on lie: for depth row by row, each 32 bytes of depth; else depth by depth.
std::vector<uint32_t> pieces(uint64_t descriptor, bool along_rows, int first, int rows, const Where& where) {
  auto field = [&](int bit) { return uint32_t(descriptor >> bit & 0x3fff) << 4; };
  const uint32_t start = field(0), leading = field(16), stride = field(32), mode = uint32_t(descriptor >> 62);
  if (descriptor & 0x3fff'c000'c000'c000 || !mode)
    wrong("wgmma", "the descriptor has bits that none of ours has: no swizzle, a base offset, or a sum that overflowed", where);
  const uint32_t span = 256 >> mode, atom = 8 * span;
  if (along_rows ? start % atom : start % atom % kDepthBytes || start % atom >= span)
    wrong("wgmma", "the operand starts inside of eight rows, or not on 32 bytes of the depth", where);
  const auto per_span = int(span / 2);  // 16-bit elements
  if (stride % atom || (along_rows && (first + rows > per_span) && leading % atom))
    wrong("wgmma", "the operand's strides are no multiples of eight rows", where);
  std::vector<uint32_t> found;
  auto add = [&](uint32_t address) {
    address ^= (address >> 7 & (span / 16 - 1)) << 4;
    if (address < kWindow || address + 16 > kWindow + scheduler().request().shared_bytes)
      wrong("wgmma", "the operand is not in this block's shared memory", where);
    found.push_back(address - kWindow);
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
  return found;
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
        place(piece, element) = std::bit_cast<float>(word & ~0x1fffu);  // the hardware reads no further
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
    const Product& product = queue.products[queue.multiplied - queue.over];
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

// D's element i of a lane among the warp's 16 rows.
int index_of(int lane, int i, int count) {
  return (lane / 4 + 8 * (i / 2 % 2)) * 2 * count + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
}

void require_untouched(const Sums& sums, const Where& where) {
  for (float* d : sums.d)
    for (int i = 0; i < sums.count; ++i)
      if (std::bit_cast<uint32_t>(d[i]) != kUnderWay) wrong("wgmma", "D was written while a product on it was under way", where);
}

// D's sums, taken from D if nothing is under way on it.
Sums& take_sums(WgmmaQueue& queue, void* const operand[32]) {
  std::array<float*, 32> d;
  for (int lane = 0; lane < 32; ++lane) d[size_t(lane)] = static_cast<Issue*>(operand[lane])->d;
  const Issue& issue = *static_cast<Issue*>(operand[0]);
  for (Sums& each : queue.sums) {
    if (each.d == d && each.count == issue.count) {
      require_untouched(each, issue.where);
      return each;
    }
    for (size_t lane = 0; lane < 32; ++lane)
      if (d[lane] < each.d[lane] + each.count && each.d[lane] < d[lane] + issue.count)
        wrong("wgmma", "D is part of another one that a product is under way on", issue.where);
  }
  if (!queue.fenced)
    wrong("wgmma", "without wgmma_fence since the warp last had D, or since the start: it orders what was done to D",
          issue.where);
  Sums& sums = queue.sums.emplace_back(Sums{d, issue.count, 0, std::vector<float>(size_t(32 * issue.count))});
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < issue.count; ++i) sums.value[size_t(index_of(lane, i, issue.count))] = d[size_t(lane)][i];
  for (float* each : d) std::fill_n(reinterpret_cast<uint32_t*>(each), issue.count, kUnderWay);
  return sums;
}

void give_back(WgmmaQueue& queue, Sums& sums, const Where& where) {
  require_untouched(sums, where);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < sums.count; ++i) sums.d[size_t(lane)][i] = sums.value[size_t(index_of(lane, i, sums.count))];
  queue.sums.remove_if([&](const Sums& each) { return &each == &sums; });
  queue.fenced = false;
}

bool same(const Issue& x, const Issue& y) {
  return x.type == y.type && x.rows_a == y.rows_a && x.rows_b == y.rows_b && x.count == y.count && x.a == y.a && x.b == y.b;
}

void compare_with_group(WgmmaQueue& queue, const Issue& issue) {
  Warpgroup& group = *queue.group;
  const uint64_t serial = group.issued[queue.warp]++ - group.forgotten;
  if (serial == group.issues.size())
    group.issues.push_back(issue);
  else if (!same(group.issues[serial], issue))
    wrong("wgmma", "another warp of this warpgroup has issued another product instead", issue.where);
  const uint64_t least = *std::min_element(group.issued, group.issued + 4);
  for (; group.forgotten < least; ++group.forgotten) group.issues.pop_front();
}

void issue(void* const operand[32], uint32_t lanes) {
  const Issue& first = *static_cast<Issue*>(operand[0] ? operand[0] : operand[std::countr_zero(lanes)]);
  require_whole_warp("wgmma", lanes, first.where);
  for (int lane = 1; lane < 32; ++lane)
    if (!same(first, *static_cast<Issue*>(operand[lane])))
      wrong("wgmma", "lanes of one warp give different descriptors", first.where);
  const std::shared_ptr<WgmmaQueue>& queue = current_queue("wgmma", first.where);
  compare_with_group(*queue, first);
  Sums& sums = take_sums(*queue, operand);
  ++sums.under_way;
  queue->products.push_back({first.type, first.rows_a, first.rows_b,
                             pieces(first.a, first.rows_a, int(16 * queue->warp), 16, first.where),
                             pieces(first.b, first.rows_b, 0, 2 * first.count, first.where), &sums,
                             kRace ? release(scheduler().current()) : Moment{}, first.where});
  ++queue->open;
  if (kRace || scheduler().random().below(16)) return;
  scheduler().later([weak = std::weak_ptr(queue), serial = queue->over + queue->products.size()] {
    if (const auto found = weak.lock()) multiply_until(*found, serial);
  });
}

struct Wait {
  unsigned pending;
  Where where;
};

// What the products of a group have read is over for every lane, and nothing else is.
void tell_lanes(Block& block, unsigned warp, const Moment& moment) {
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
      multiply_until(queue, queue.over + 1);
      if (--product.sums->under_way == 0) give_back(queue, *product.sums, product.where);
      queue.products.pop_front();
      ++queue.over;
    }
  if constexpr (kRace) tell_lanes(block, warp, moment);
  if (queue.products.empty()) queue.fenced = false;
}
}  // namespace

uint64_t matrix_descriptor(const void* shared, uint32_t leading, uint32_t stride, uint32_t span, const Where& where) {
  check_aligned(shared, 16, "matrix_descriptor", where);
  if (!is_shared(shared, 16)) wrong("matrix_descriptor", "the operand is not in this block's shared memory", where);
  if (span != 32 && span != 64 && span != 128) wrong("matrix_descriptor", "the span is none of 32, 64, 128 bytes", where);
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
  Issue mine{type, rows_a, rows_b, d, count, a, b, where};
  warp_collective(0xffffffff, "wgmma", &mine, issue, where);
}

void wgmma_commit(const Where& where) {
  auto commit = [](void* const*, uint32_t) {
    WgmmaQueue& queue = *current_queue("wgmma_commit", Where::current());
    queue.groups.push_back(queue.open);
    queue.open = 0;
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
  if (queue.open)
    wrong("wgmma", "the thread ends, and no wgmma_commit has closed the product's group", queue.products.back().where);
  if (!queue.products.empty())
    wrong("wgmma", "the thread ends, and no wgmma_wait has waited for the product", queue.products.front().where);
}
}  // namespace emulator
