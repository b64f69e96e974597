// Finds races, by comparing each access to a byte with recorded earlier ones, and accesses outside of memory.
#ifdef EMULATOR_RACE
#include "shadow.h"

#include "emulator/thread.h"

#include <algorithm>
#include <cstdio>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <memory>
#include <unordered_map>

namespace emulator {
namespace {
// The moment at which an asynchronous access was issued, and a cache of epochs (see below) that happened before it, since
// neighbouring bytes often have the same epoch.
struct Issuer {
  const Moment& moment;
  mutable uint64_t ordered[8] = {};
};

// The moment of an access in one word: its clock, block, thread or actor, and whether it was atomic. 0 is no access.
struct Epoch {
  uint64_t word = 0;
  static Epoch at(uint32_t clock, uint32_t block, uint32_t thread, bool atomic) {
    return {uint64_t(clock) << 40 | uint64_t(block & 0xfffffff) << 12 | uint64_t(thread) << 1 | uint64_t(atomic)};
  }
  static Epoch now(const Thread& thread, bool atomic) {
    return at(thread.knowledge.clock, thread.block->linear, thread.linear, atomic);
  }
  uint32_t clock() const { return uint32_t(word >> 40); }
  uint32_t block() const { return uint32_t(word >> 12) & 0xfffffff; }
  uint32_t thread() const { return uint32_t(word >> 1) & kMaxActor; }
  bool atomic() const { return word & 1; }
  bool before(const Thread& self) const {
    if (block() == self.block->linear && thread() == self.linear) return true;
    return self.knowledge.known && self.knowledge.known->at(block(), thread()) >= clock();
  }
  uint32_t known_to(const Moment& self) const {  // the clock of the epoch's thread or actor at its latest moment before `self`
    if (block() == self.block && thread() == self.thread) return self.clock;
    return self.known ? self.known->at(block(), thread()) : 0;
  }
  bool before(const Issuer& self) const {
    uint64_t& ordered = self.ordered[thread() % 8];
    if (ordered == word) return true;
    if (known_to(self.moment) < clock()) return false;
    ordered = word;
    return true;
  }
};

// Only a few of the reads since the last write are kept. One recorded read is enough to find a later write that is not ordered
// after that read.
constexpr int kReaders = 3;
struct Cell {
  Epoch write, read[kReaders];
  uint32_t write_code = 0, read_code[kReaders] = {};
};
// A code says where in the source an access was made. It is the return address of the call that reported the access, as an offset
// in the shared object, or, with kReported, an index into Shadow::reported. kAsynchronous marks the accesses of TMA and of wgmma.
constexpr uint32_t kReported = 1u << 31, kAsynchronous = 1u << 30;
constexpr size_t kPageBytes = 64, kMaxPages = 1 << 16;
struct Page {
  uint64_t launch = 0;
  Cell cells[kPageBytes];
};

struct Shadow {
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
  uintptr_t last_key = ~uintptr_t(0);
  Page* last = nullptr;
  uint64_t launch = 0;
  std::map<uintptr_t, uintptr_t> allowed;  // begin -> end
  uintptr_t parameters = 0, parameters_end = 0;
  uintptr_t image = 0, image_end = 0;  // where the library with its variables, such as threadIdx, is loaded
  const char* path = "";
  std::vector<Where> reported;  // the locations of accesses that the emulator made for threads
};

int find_image(dl_phdr_info* info, size_t, void* data) {
  Shadow& shadow = *static_cast<Shadow*>(data);
  const auto here = reinterpret_cast<uintptr_t>(&find_image);
  uintptr_t begin = ~uintptr_t(0), end = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i)
    if (const auto& segment = info->dlpi_phdr[i]; segment.p_type == PT_LOAD) {
      begin = std::min(begin, uintptr_t(info->dlpi_addr + segment.p_vaddr));
      end = std::max(end, uintptr_t(info->dlpi_addr + segment.p_vaddr + segment.p_memsz));
    }
  if (here < begin || here >= end) return 0;
  shadow.image = begin, shadow.image_end = end, shadow.path = info->dlpi_name;
  return 1;
}

Shadow& shadow() {
  static Shadow* instance = [] {
    auto* created = new Shadow;
    dl_iterate_phdr(find_image, created);
    return created;
  }();
  return *instance;
}

Page& page_of(uintptr_t address) {
  Shadow& all = shadow();
  const uintptr_t key = address / kPageBytes;
  if (key != all.last_key) {
    std::unique_ptr<Page>& page = all.pages[key];
    if (!page) page = std::make_unique<Page>();
    all.last_key = key, all.last = page.get();
  }
  if (all.last->launch != all.launch) {
    *all.last = Page{};
    all.last->launch = all.launch;
  }
  return *all.last;
}

// The source line of the access with this code, such as "kernel.cuh:12". If functions are inlined there, it is the innermost line
// outside of the emulator's headers.
std::string place(uint32_t code) {
  if (code & kReported) {
    const Where& where = shadow().reported[code & ~(kReported | kAsynchronous)];
    return base_name(where.file_name()) + (":" + std::to_string(where.line()));
  }
  char command[1024];
  std::snprintf(command, sizeof command, "addr2line -e '%s' -i 0x%x 2>/dev/null", shadow().path, code - 1);
  std::string line_of_code = "unknown";
  if (FILE* pipe = popen(command, "r")) {
    char line[1024];
    while (std::fgets(line, sizeof line, pipe)) {
      std::string text(line);
      if (text.find("/tests/emulator/include/") != std::string::npos || text[0] == '?') continue;
      text = text.substr(text.rfind('/') + 1);
      line_of_code = text.substr(0, text.find_first_of(" \n"));
      break;
    }
    pclose(pipe);
  }
  return line_of_code;
}

std::string memory_name(uintptr_t address) {
  for (const Block* block : scheduler().active()) {
    const auto shared = reinterpret_cast<uintptr_t>(block->shared);
    if (address >= shared && address < shared + scheduler().request().shared_bytes) {
      const uint3 b = block->index;
      char text[128];
      std::snprintf(text, sizeof text, "byte %zu of the shared memory of block (%u,%u,%u)", size_t(address - shared), b.x, b.y,
                    b.z);
      return text;
    }
  }
  char text[128];
  std::snprintf(text, sizeof text, "global memory at %p", reinterpret_cast<void*>(address));
  for (const auto& [begin, end] : shadow().allowed)
    if (address >= begin && address < end)
      std::snprintf(text, sizeof text, "global memory, byte %zu of %zu", size_t(address - begin), size_t(end - begin));
  return text;
}

const char* verb(Access access) {
  switch (access) {
    case Access::read:
      return "reads";
    case Access::write:
      return "writes";
    case Access::atomic:
      return "changes atomically";
    case Access::atomic_read:
      return "reads atomically";
  }
  return "";
}

std::string name_of(Epoch actor) {
  const dim3 grid = gridDim, size = blockDim;
  const unsigned b = actor.block(), t = actor.thread(), threads = size.x * size.y * size.z, warps = (threads + 31) / 32;
  std::string name = "a copy by the engine in";
  if (t < threads)
    name = "thread (" + std::to_string(t % size.x) + "," + std::to_string(t / size.x % size.y) + "," +
           std::to_string(t / size.x / size.y) + ") of";
  else if (t < threads + warps)
    name = "a product of warp " + std::to_string(t - threads) + " of";
  return name + " block (" + std::to_string(b % grid.x) + "," + std::to_string(b / grid.x % grid.y) + "," +
         std::to_string(b / grid.x / grid.y) + ")";
}

[[noreturn]] void report(const char* actor, uintptr_t address, Access access, uint32_t code, Epoch other, const char* other_verb,
                         uint32_t other_code) {
  fail("race on %s\n  %s %s it at %s\n  %s %s it at %s, and nothing orders the two", memory_name(address).c_str(), actor,
       verb(access), place(code).c_str(), name_of(other).c_str(), other_verb, place(other_code).c_str());
}

// Checks an access of one byte and records it at `now`. `self` is the accessing Thread, or the Issuer of an asynchronous access.
template <class Self>
void check_byte(const char* actor, Cell& cell, uintptr_t address, Access access, uint32_t code, const Self& self, Epoch now) {
  const bool atomic = now.atomic(), writes = access == Access::write || access == Access::atomic;
  auto clashes = [&](Epoch other) { return other.word && !(atomic && other.atomic()) && !other.before(self); };
  if (clashes(cell.write))
    report(actor, address, access, code, cell.write, cell.write.atomic() ? "changed" : "wrote", cell.write_code);
  if (writes) {
    for (int i = 0; i < kReaders; ++i) {
      if (clashes(cell.read[i])) report(actor, address, access, code, cell.read[i], "read", cell.read_code[i]);
      cell.read[i] = {};
    }
    cell.write = now, cell.write_code = code;
    return;
  }
  auto superfluous = [&](Epoch other) {
    return other.word && ((other.block() == now.block() && other.thread() == now.thread()) || other.before(self)) &&
           (!atomic || other.atomic());
  };
  int slot = -1;  // replaces a superfluous read, else takes a free slot, else replaces a random read
  for (int i = 0; i < kReaders && slot < 0; ++i)
    if (superfluous(cell.read[i])) slot = i;
  for (int i = 0; i < kReaders && slot < 0; ++i)
    if (!cell.read[i].word) slot = i;
  if (slot < 0) slot = int(scheduler().random().below(kReaders));
  cell.read[slot] = now, cell.read_code[slot] = code;
}

// Whether an access must be checked for races; false for threads' stacks, the kernel's parameters and the library's own data.
// Fails the launch if the access is outside of the memory that kernels may access.
bool is_memory(uintptr_t address, size_t bytes, Access access, uint32_t code) {
  const Shadow& all = shadow();
  if (address >= all.image && address < all.image_end) return false;
  if (address >= all.parameters && address < all.parameters_end) return false;
  const void* pointer = reinterpret_cast<const void*>(address);
  if (scheduler().fibers().owns_stack_at(pointer)) return false;
  for (const Block* block :
       scheduler().current().block->cluster->blocks) {  // cluster.cpp checks whether this thread may access them
    const auto shared = reinterpret_cast<uintptr_t>(block->shared);
    if (address >= shared && address + bytes <= shared + scheduler().request().shared_bytes) return true;
  }
  if (owns_shared_memory_at(pointer))
    fail("outside of shared memory: the thread %s %zu bytes at byte %td of %u, at %s", verb(access), bytes,
         static_cast<const unsigned char*>(pointer) - scheduler().current().block->shared, scheduler().request().shared_bytes,
         place(code).c_str());
  if (all.allowed.empty()) return true;
  auto range = all.allowed.upper_bound(address);
  if (range == all.allowed.begin() || (--range, address + bytes > range->second)) {
    const long long past = range->first <= address ? (long long)(address - range->second) : 0;
    fail("outside of memory: the thread %s %zu bytes at %p (%lld past the end of the tensor before it), at %s", verb(access),
         bytes, pointer, past, place(code).c_str());
  }
  return true;
}
template <class Visit>
void for_each_cell(uintptr_t address, size_t bytes, Visit&& visit) {
  for (uintptr_t byte = address; byte < address + bytes;) {
    Page& page = page_of(byte);
    const uintptr_t end = std::min(address + bytes, (byte / kPageBytes + 1) * kPageBytes);
    for (; byte < end; ++byte) visit(page.cells[byte % kPageBytes], byte);
  }
}

uint32_t code_of(const Where& where) {
  std::vector<Where>& reported = shadow().reported;
  size_t i = 0;
  while (i < reported.size() && (reported[i].line() != where.line() || reported[i].file_name() != where.file_name())) ++i;
  if (i == reported.size()) reported.push_back(where);
  return kReported | uint32_t(i);
}

// Whether the writing thread has executed fence_proxy_async between the write and the moment `issued`.
bool fenced_for(Epoch write, const Moment& issued) {
  for (const Block* block : scheduler().active()) {
    if (block->linear != write.block()) continue;
    const std::vector<uint32_t>& fences = block->threads[write.thread()].knowledge.proxy_fences;
    const auto fence = std::lower_bound(fences.begin(), fences.end(), write.clock());
    return fence != fences.end() && *fence < write.known_to(issued);
  }
  return false;
}
}  // namespace

void check_access(const void* pointer, size_t bytes, Access access, uint32_t offset) {
  if (!scheduler().running()) return;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (!is_memory(address, bytes, access, offset)) return;
  const Thread& self = scheduler().current();
  const Epoch now = Epoch::now(self, access == Access::atomic || access == Access::atomic_read);
  for_each_cell(address, bytes,
                [&](Cell& cell, uintptr_t byte) { check_byte("this thread", cell, byte, access, offset, self, now); });
}

void check_access(const void* pointer, size_t bytes, Access access, const void* code) {
  check_access(pointer, bytes, access, uint32_t(reinterpret_cast<uintptr_t>(code) - shadow().image));
}

void see(const void* address, size_t bytes, Access access, const Where& where) {
  check_access(address, bytes, access, code_of(where));
}

void see_asynchronous(const void* pointer, size_t bytes, Access access, const Moment& issued, const Moment& actor,
                      const char* what, const Where& where) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const uint32_t code = code_of(where) | kAsynchronous;
  if (!is_memory(address, bytes, access, code)) return;
  const Epoch now = Epoch::at(actor.clock, actor.block, actor.thread, false);
  const Issuer issuer{issued};
  Epoch fenced;  // the last write for which a fence was found
  for_each_cell(address, bytes, [&](Cell& cell, uintptr_t byte) {
    const Epoch write = cell.write;
    const bool through_another_proxy = write.word && write.word != fenced.word && !(cell.write_code & kAsynchronous);
    const uint32_t write_code = cell.write_code;
    check_byte(what, cell, byte, access, code, issuer, now);
    if (!through_another_proxy) return;
    if (!owns_shared_memory_at(pointer))
      fail(
          "%s at %s %s through the async proxy what %s wrote at %s: fence_proxy_async is for shared memory; in global "
          "memory "
          "only a new launch orders accesses through different proxies",
          what, place(code).c_str(), verb(access), name_of(write).c_str(), place(write_code).c_str());
    if (!fenced_for(write, issued))
      fail("%s at %s %s through the async proxy what %s wrote at %s: fence_proxy_async is missing there, after the write", what,
           place(code).c_str(), verb(access), name_of(write).c_str(), place(write_code).c_str());
    fenced = write;
  });
}

void race_launch_started(const void* parameters, size_t parameter_bytes) {
  Shadow& all = shadow();
  all.parameters = reinterpret_cast<uintptr_t>(parameters), all.parameters_end = all.parameters + parameter_bytes;
  ++all.launch;
  forget_locations();
  if (all.pages.size() > kMaxPages) all.pages.clear(), all.last_key = ~uintptr_t(0);
}

void race_block_started(Block& block) {
  for (Thread& thread : block.threads) thread.knowledge = {};
  block.actors.clocks.assign(block.warps.size(), 0);
  block.actors.barriers.clear();
  for (Barrier& barrier : block.barriers) barrier.arrivals.clear();  // left by threads that exited after a block's last barrier
  forget_shadow(block.shared, scheduler().request().shared_bytes);
}

void forget_shadow(const void* pointer, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  for (uintptr_t key = address / kPageBytes; key * kPageBytes < address + bytes; ++key)
    if (const auto page = shadow().pages.find(key); page != shadow().pages.end()) page->second->launch = 0;
}

void allow_memory(const void* pointer, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  uintptr_t& end = shadow().allowed[address];
  end = std::max(end, address + bytes);
}
void forget_memory() { shadow().allowed.clear(); }
}  // namespace emulator
#endif
