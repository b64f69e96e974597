#ifdef EMULATOR_RACE
#include "shadow.h"

#include "emulator/thread.h"

#include <cstdio>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <memory>
#include <unordered_map>

namespace emulator {
namespace {
// The moment of an access: clock, block, thread, and whether it was atomic, in one word; 0 is none.
struct Epoch {
  uint64_t word = 0;
  static Epoch of(const Thread& thread, bool atomic) {
    return {uint64_t(thread.knowledge.clock) << 40 | uint64_t(thread.block->linear & 0x1fffffff) << 11 |
            uint64_t(thread.linear) << 1 | uint64_t(atomic)};
  }
  uint32_t clock() const { return uint32_t(word >> 40); }
  uint32_t block() const { return uint32_t(word >> 11) & 0x1fffffff; }
  uint32_t thread() const { return uint32_t(word >> 1) & 0x3ff; }
  bool atomic() const { return word & 1; }
  bool before(const Thread& self) const {
    if (block() == self.block->linear && thread() == self.linear) return true;
    return self.knowledge.known && self.knowledge.known->at(block(), thread()) >= clock();
  }
};

// Of the readers that no write has followed only a few are kept: any one of them betrays a write that did not wait.
constexpr int kReaders = 3;
struct Cell {
  Epoch write, read[kReaders];
  uint32_t write_code = 0, read_code[kReaders] = {};  // where: offsets in the object, or what a stand-in told
};
constexpr uint32_t kTold = 1u << 31;
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
    const Where& where = shadow().told[code & ~kTold];
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

[[noreturn]] void report(uintptr_t address, Access access, uint32_t code, Epoch other, const char* other_verb,
                         uint32_t other_code) {
  const dim3 grid = gridDim, size = blockDim;
  const unsigned b = other.block(), t = other.thread();
  fail("race on %s\n  this thread %s it at %s\n  thread (%u,%u,%u) of block (%u,%u,%u) %s it at %s, and nothing orders the two",
       memory_name(address).c_str(), verb(access), place(code).c_str(), t % size.x, t / size.x % size.y, t / size.x / size.y,
       b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y, other_verb, place(other_code).c_str());
}

void check_byte(Cell& cell, uintptr_t address, Access access, uint32_t code, Thread& self) {
  const bool atomic = access == Access::atomic || access == Access::atomic_read;
  const bool writes = access == Access::write || access == Access::atomic;
  const Epoch now = Epoch::of(self, atomic);
  auto clashes = [&](Epoch other) { return other.word && !(atomic && other.atomic()) && !other.before(self); };
  if (clashes(cell.write)) report(address, access, code, cell.write, cell.write.atomic() ? "changed" : "wrote", cell.write_code);
  if (writes) {
    for (int i = 0; i < kReaders; ++i) {
      if (clashes(cell.read[i])) report(address, access, code, cell.read[i], "read", cell.read_code[i]);
      cell.read[i] = {};
    }
    cell.write = now, cell.write_code = code;
    return;
  }
  int slot = -1;  // of an earlier read that this one makes superfluous, else a free one, else any
  for (int i = 0; i < kReaders && slot < 0; ++i)
    if (cell.read[i].word && cell.read[i].before(self) && (!atomic || cell.read[i].atomic())) slot = i;
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
}  // namespace

void check_access(const void* pointer, size_t bytes, Access access, uint32_t offset) {
  if (!scheduler().running()) return;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (!is_memory(address, bytes, access, offset)) return;
  Thread& self = scheduler().current();
  for (uintptr_t byte = address; byte < address + bytes;) {
    Page& page = page_of(byte);
    const uintptr_t end = std::min(address + bytes, (byte / kPageBytes + 1) * kPageBytes);
    for (; byte < end; ++byte) check_byte(page.cells[byte % kPageBytes], byte, access, offset, self);
  }
}

void check_access(const void* pointer, size_t bytes, Access access, const void* code) {
  check_access(pointer, bytes, access, uint32_t(reinterpret_cast<uintptr_t>(code) - shadow().image));
}

void see(const void* address, size_t bytes, Access access, const Where& where) {
  std::vector<Where>& told = shadow().told;
  size_t i = 0;
  while (i < told.size() && (told[i].line() != where.line() || told[i].file_name() != where.file_name())) ++i;
  if (i == told.size()) told.push_back(where);
  check_access(address, bytes, access, kTold | uint32_t(i));
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
