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
// What the issuer of an asynchronous access knew, and some epochs that this is known to comprise: neighbours have the same.
struct Issuer {
  const Moment& moment;
  mutable uint64_t ordered[8] = {};
};

// The moment of an access: clock, block, thread or another actor, and whether it was atomic, in one word; 0 is none.
struct Epoch {
  uint64_t word = 0;
  static Epoch of(uint32_t clock, uint32_t block, uint32_t thread, bool atomic) {
    return {uint64_t(clock) << 40 | uint64_t(block & 0xfffffff) << 12 | uint64_t(thread) << 1 | uint64_t(atomic)};
  }
  static Epoch of(const Thread& thread, bool atomic) {
    return of(thread.knowledge.clock, thread.block->linear, thread.linear, atomic);
  }
  uint32_t clock() const { return uint32_t(word >> 40); }
  uint32_t block() const { return uint32_t(word >> 12) & 0xfffffff; }
  uint32_t thread() const { return uint32_t(word >> 1) & kMaxActor; }
  bool atomic() const { return word & 1; }
  bool before(const Thread& self) const {
    if (block() == self.block->linear && thread() == self.linear) return true;
    return self.knowledge.known && self.knowledge.known->at(block(), thread()) >= clock();
  }
  uint32_t known_to(const Moment& self) const {  // the last moment of its thread that is
    if (block() == self.block && thread() == self.thread) return self.clock;
    return self.known ? self.known->at(block(), thread()) : 0;
  }
  bool before(const Issuer& self) const {
    uint64_t& ordered = self.ordered[thread() % 8];
    if (ordered == word) return true;
    const bool found = known_to(self.moment) >= clock();
    if (found) ordered = word;
    return found;
  }
};

// Of the readers that no write has followed only a few are kept: any one of them betrays a write that did not wait.
constexpr int kReaders = 3;
struct Cell {
  Epoch write, read[kReaders];
  uint32_t write_code = 0, read_code[kReaders] = {};  // where: offsets in the object, or what a stand-in told
};
constexpr uint32_t kTold = 1u << 31, kAsynchronous = 1u << 30;
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
  uintptr_t image = 0, image_end = 0;  // of this object: its tables, and threadIdx
  const char* path = "";
  std::vector<Where> told;
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
    auto* made = new Shadow;
    dl_iterate_phdr(find_image, made);
    return made;
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

// "kernel.cuh:12", the innermost place outside the stand-in headers; from the object's line table by addr2line.
std::string place(uint32_t code) {
  if (code & kTold) {
    const Where& where = shadow().told[code & ~(kTold | kAsynchronous)];
    return base_name(where.file_name()) + (":" + std::to_string(where.line()));
  }
  char command[1024];
  std::snprintf(command, sizeof command, "addr2line -e '%s' -i 0x%x 2>/dev/null", shadow().path, code - 1);
  std::string found = "unknown";
  if (FILE* pipe = popen(command, "r")) {
    char line[1024];
    while (std::fgets(line, sizeof line, pipe)) {
      std::string text(line);
      if (text.find("/tests/emulator/include/") != std::string::npos || text[0] == '?') continue;
      text = text.substr(text.rfind('/') + 1);
      found = text.substr(0, text.find_first_of(" \n"));
      break;
    }
    pclose(pipe);
  }
  return found;
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

[[noreturn]] void report(const char* who, uintptr_t address, Access access, uint32_t code, Epoch other, const char* other_verb,
                         uint32_t other_code) {
  fail("race on %s\n  %s %s it at %s\n  %s %s it at %s, and nothing orders the two", memory_name(address).c_str(), who,
       verb(access), place(code).c_str(), name_of(other).c_str(), other_verb, place(other_code).c_str());
}

// Checks an access of one byte by `self`, a thread or what a thread knew, and remembers it as of `now`.
template <class Self>
void check_byte(const char* who, Cell& cell, uintptr_t address, Access access, uint32_t code, const Self& self, Epoch now) {
  const bool atomic = now.atomic(), writes = access == Access::write || access == Access::atomic;
  auto clashes = [&](Epoch other) { return other.word && !(atomic && other.atomic()) && !other.before(self); };
  if (clashes(cell.write))
    report(who, address, access, code, cell.write, cell.write.atomic() ? "changed" : "wrote", cell.write_code);
  if (writes) {
    for (int i = 0; i < kReaders; ++i) {
      if (clashes(cell.read[i])) report(who, address, access, code, cell.read[i], "read", cell.read_code[i]);
      cell.read[i] = {};
    }
    cell.write = now, cell.write_code = code;
    return;
  }
  auto superfluous = [&](Epoch other) {
    return other.word && ((other.block() == now.block() && other.thread() == now.thread()) || other.before(self)) &&
           (!atomic || other.atomic());
  };
  int slot = -1;  // of an earlier read that this one makes superfluous, else a free one, else any
  for (int i = 0; i < kReaders && slot < 0; ++i)
    if (superfluous(cell.read[i])) slot = i;
  for (int i = 0; i < kReaders && slot < 0; ++i)
    if (!cell.read[i].word) slot = i;
  if (slot < 0) slot = int(scheduler().random().below(kReaders));
  cell.read[slot] = now, cell.read_code[slot] = code;
}

// Whether the access concerns anybody: not a thread's own variables, parameters, or the object's tables.
bool is_memory(uintptr_t address, size_t bytes, Access access, uint32_t code) {
  const Shadow& all = shadow();
  if (address >= all.image && address < all.image_end) return false;
  if (address >= all.parameters && address < all.parameters_end) return false;
  const void* pointer = reinterpret_cast<const void*>(address);
  if (scheduler().fibers().owns_stack_at(pointer)) return false;
  for (const Block* block : scheduler().current().block->cluster->blocks) {  // which of them may be reached, cluster.cpp checks
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
template <class Each>
void for_each_cell(uintptr_t address, size_t bytes, Each&& each) {
  for (uintptr_t byte = address; byte < address + bytes;) {
    Page& page = page_of(byte);
    const uintptr_t end = std::min(address + bytes, (byte / kPageBytes + 1) * kPageBytes);
    for (; byte < end; ++byte) each(page.cells[byte % kPageBytes], byte);
  }
}

uint32_t code_of(const Where& where) {
  std::vector<Where>& told = shadow().told;
  size_t i = 0;
  while (i < told.size() && (told[i].line() != where.line() || told[i].file_name() != where.file_name())) ++i;
  if (i == told.size()) told.push_back(where);
  return kTold | uint32_t(i);
}

// Whether its thread has executed fence_proxy_async after the write, and who issued an asynchronous access knows that.
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
  const Epoch now = Epoch::of(self, access == Access::atomic || access == Access::atomic_read);
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
  const Epoch now = Epoch::of(actor.clock, actor.block, actor.thread, false);
  const Issuer issuer{issued};
  Epoch fenced;  // a write that is
  for_each_cell(address, bytes, [&](Cell& cell, uintptr_t byte) {
    const Epoch write = cell.write;
    const bool through_another_proxy = write.word && write.word != fenced.word && !(cell.write_code & kAsynchronous);
    const uint32_t write_code = cell.write_code;
    check_byte(what, cell, byte, access, code, issuer, now);
    if (!through_another_proxy) return;
    if (!owns_shared_memory_at(pointer))
      fail(
          "%s at %s %s through the copy engine's proxy what %s wrote at %s: fence_proxy_async is for shared memory, only a "
          "launch "
          "is between the two proxies' accesses to global memory",
          what, place(code).c_str(), verb(access), name_of(write).c_str(), place(write_code).c_str());
    if (!fenced_for(write, issued))
      fail("%s at %s %s through the copy engine's proxy what %s wrote at %s: fence_proxy_async is missing there, after the write",
           what, place(code).c_str(), verb(access), name_of(write).c_str(), place(write_code).c_str());
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
  for (Barrier& barrier : block.barriers) barrier.arrivals.clear();  // threads that exited arrived at what nobody met at again
  forget_shadow(block.shared, scheduler().request().shared_bytes);
}

void forget_shadow(const void* pointer, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  for (uintptr_t key = address / kPageBytes; key * kPageBytes < address + bytes; ++key)
    if (const auto found = shadow().pages.find(key); found != shadow().pages.end()) found->second->launch = 0;
}

void allow_memory(const void* pointer, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  uintptr_t& end = shadow().allowed[address];
  end = std::max(end, address + bytes);
}
void forget_memory() { shadow().allowed.clear(); }
}  // namespace emulator
#endif
