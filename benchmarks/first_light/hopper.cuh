// PTX instructions that the programs of first light use: clocks, mbarriers, clusters, bulk copies, wgmma. A wait for an mbarrier
// gives up after PATIENCE, so bytes that never arrive lead to a wrong dump or a reported timeout rather than a hang.
#pragma once
#include "platform/memory.h"
#include "platform/mma.h"

__device__ inline uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

// ---- clocks
__device__ inline long long cycles() {
  long long value;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(value)::"memory");
  return value;
}
__device__ inline unsigned long long nanoseconds() {
  unsigned long long value;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value)::"memory");
  return value;
}
constexpr long long PATIENCE = 400'000'000;  // cycles after which a wait gives up

// ---- mbarriers (8 bytes of shared memory each)
__device__ inline void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ inline void barrier_init_visible() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void barrier_arrive_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ inline bool barrier_try_wait(uint64_t* barrier, int parity) {
  uint32_t done;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return done;
}
// Returns false if the phase does not complete within PATIENCE.
__device__ inline bool barrier_wait(uint64_t* barrier, int parity) {
  const long long started = cycles();
  while (!barrier_try_wait(barrier, parity))
    if (cycles() - started > PATIENCE) return false;
  return true;
}

// ---- clusters
__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline uint32_t cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
__device__ inline uint32_t remote(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
__device__ inline void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Stores 16 bytes to the shared memory of a block of the cluster, whose mbarrier counts them. Both addresses are from `remote`.
__device__ inline void store_async(uint32_t to, float4 value, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(to), "f"(value.x),
               "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier)
               : "memory");
}

// ---- bulk copies
struct alignas(64) TensorMap {
  char bytes[128];
};
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async;" ::: "memory"); }
__device__ inline void copy_multicast(uint32_t to, const void* from, int bytes, uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "h"(blocks)
      : "memory");
}
// `start` holds the coordinates c, w, h, n.
__device__ inline void copy_im2col(uint32_t to, const TensorMap* map, uint32_t barrier, int4 start, uint16_t offset_w,
                                   uint16_t offset_h) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3,%4,%5}], [%6], "
      "{%7,%8};" ::"r"(to),
      "l"(map), "r"(start.x), "r"(start.y), "r"(start.z), "r"(start.w), "r"(barrier), "h"(offset_w), "h"(offset_h)
      : "memory");
}
__device__ inline void copy_tiled(uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3}], [%4];" ::"r"(to),
               "l"(map), "r"(column), "r"(row), "r"(barrier)
               : "memory");
}
// `start` holds the coordinates c, w, h, n.
__device__ inline void copy_tiled(uint32_t to, const TensorMap* map, uint32_t barrier, int4 start) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3,%4,%5}], [%6];" ::"r"(to),
      "l"(map), "r"(start.x), "r"(start.y), "r"(start.z), "r"(start.w), "r"(barrier)
      : "memory");
}

// ---- wgmma: D (64 x N, fp32) = A (64 x 16) B (16 x N), added to D if `accumulate` is set. A and B are bf16. In shared
// memory, an operand is K-major, or MN-major if its parameter TransposedA or TransposedB is 1.
enum Swizzle : int { NO_SWIZZLE = 0, SWIZZLE_128 = 1, SWIZZLE_64 = 2, SWIZZLE_32 = 3 };  // the encoding in descriptors
__host__ __device__ inline uint64_t matrix_descriptor(uint32_t start, uint32_t leading, uint32_t stride, Swizzle swizzle) {
  auto field = [](uint32_t bytes) { return uint64_t((bytes & 0x3FFFF) >> 4); };
  return field(start) | field(leading) << 16 | field(stride) << 32 | uint64_t(swizzle) << 62;
}
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

#define REGISTERS_4 "%0,%1,%2,%3"
#define REGISTERS_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define REGISTERS_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define REGISTERS_32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define REGISTERS_64                                                                                                             \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"       \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62," \
  "%63"
#define REGISTERS_128                                                                                                            \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"       \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62," \
  "%63,"                                                                                                                         \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94," \
  "%95,"                                                                                                                         \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%"   \
  "121,%122,%123,%124,%125,%126,%127"
#define OUT4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OUT8(i) OUT4(i), OUT4(i + 4)
#define OUT16(i) OUT8(i), OUT8(i + 8)
#define OUT32(i) OUT16(i), OUT16(i + 16)
#define OUT64(i) OUT32(i), OUT32(i + 32)
#define OUT128(i) OUT64(i), OUT64(i + 64)

// R is N / 2, the number of a thread's registers of D. They are operands 0 ... R - 1 of the asm statement, and I0, I1, ... are
// the numbers R, R + 1, ... of the operands after them.
#define WGMMA_BF16(N, R, I0, I1, I2, I3, I4, I5)                                                                         \
  template <int TransposedA, int TransposedB>                                                                            \
  __device__ inline void wgmma(float (&d)[R], uint64_t a, uint64_t b, int accumulate) {                                  \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #I2 ", 0; wgmma.mma_async.sync.aligned.m64n" #N                      \
                 "k16.f32.bf16.bf16 {" REGISTERS_##R "}, %" #I0 ", %" #I1 ", p, 1, 1, %" #I3 ", %" #I4 "; }"             \
                 : OUT##R(0)                                                                                             \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(TransposedA), "n"(TransposedB));                                 \
  }                                                                                                                      \
  __device__ inline void wgmma(float (&d)[R], const uint32_t (&a)[4], uint64_t b, int accumulate) {                      \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #I5 ", 0; wgmma.mma_async.sync.aligned.m64n" #N                      \
                 "k16.f32.bf16.bf16 {" REGISTERS_##R "}, {%" #I0 ",%" #I1 ",%" #I2 ",%" #I3 "}, %" #I4 ", p, 1, 1, 0; }" \
                 : OUT##R(0)                                                                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));                                 \
  }
WGMMA_BF16(8, 4, 4, 5, 6, 7, 8, 9)
WGMMA_BF16(16, 8, 8, 9, 10, 11, 12, 13)
WGMMA_BF16(32, 16, 16, 17, 18, 19, 20, 21)
WGMMA_BF16(64, 32, 32, 33, 34, 35, 36, 37)
WGMMA_BF16(128, 64, 64, 65, 66, 67, 68, 69)
WGMMA_BF16(256, 128, 128, 129, 130, 131, 132, 133)

// D (64 x N) = A (64 x 8) B (8 x N) in TF32, for which both A and B must be K-major.
#define WGMMA_TF32(N, R, I0, I1, I2)                                                                \
  __device__ inline void wgmma_tf32(float (&d)[R], uint64_t a, uint64_t b, int accumulate) {        \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #I2 ", 0; wgmma.mma_async.sync.aligned.m64n" #N \
                 "k8.f32.tf32.tf32 {" REGISTERS_##R "}, %" #I0 ", %" #I1 ", p, 1, 1; }"             \
                 : OUT##R(0)                                                                        \
                 : "l"(a), "l"(b), "r"(accumulate));                                                \
  }
WGMMA_TF32(64, 32, 32, 33, 34)
WGMMA_TF32(256, 128, 128, 129, 130)
