// Matrix products of a warpgroup, D += A B (wgmma, sm_90a). Four consecutive warps, the first with an index that is a multiple of
// four, multiply 64 rows by kN columns over 32 bytes of depth, with both operands in shared memory. Products are asynchronous:
// from a product until the wait for its group, only other products may access D, and nothing may write the operands.
//
//   wgmma_written(d);  wgmma_fence();  wgmma<T, ...>(d, a, b); ...  wgmma_commit();  wgmma_wait<0>(d);
//
// In lane l of warp w of the warpgroup, d[i] is row 16 w + l / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (l % 4) + i % 2.
//
// Operands have the layout in which TMA writes them, in lines whose length is the swizzle span (32, 64 or 128 bytes):
//   Major::depth  A line holds consecutive depths of one row of A (one column of B). Eight lines form an atom, and atoms are
//                 `stride` bytes apart. Within a line, the next product along the depth starts 32 bytes later.
//   Major::rows   A line holds consecutive rows of A (columns of B) at one depth. Lines that continue each other along the rows
//                 are `leading` bytes apart, groups of eight depths are `stride` bytes apart. For 16-bit types only.
#pragma once
#include "platform/types.h"

enum class Major : int { depth, rows };

// Describes an operand to wgmma. The address of `shared` is a multiple of 1024 bytes, plus any number of whole groups of eight
// lines. For Major::depth, it may also be 32, 64 or 96 bytes into a line.
__device__ inline uint64_t matrix_descriptor(const void* shared, uint32_t leading, uint32_t stride, uint32_t span) {
  const auto field = [](uint32_t bytes) { return uint64_t((bytes & 0x3ffff) >> 4); };
  const uint64_t swizzle = span == 128 ? 1 : span == 64 ? 2 : 3;
  return field(uint32_t(__cvta_generic_to_shared(shared))) | field(leading) << 16 | field(stride) << 32 | swizzle << 62;
}
// The descriptor of the operand that starts `bytes` later.
__device__ inline uint64_t advance(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

// Returns the value, hidden from the optimiser: expressions that use it are computed again instead of being kept in registers.
__device__ inline int32_t computed_again(int32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Compiler barrier: writes to d are not moved past this point. Emits no instruction.
template <int kCount>
__device__ inline void wgmma_written(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// Required before the first product, and before a product whose D ordinary code has accessed; wgmma_written precedes the fence.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Closes the group of this warpgroup's products since the last commit.
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kPending of the latest groups are still incomplete. The overload with d waits for all groups and keeps the
// compiler from moving uses of d ahead of the wait.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kPending, int kCount>
__device__ inline void wgmma_wait(float (&d)[kCount]) {
  static_assert(kPending == 0, "D may not be used while a product on it is incomplete");
  wgmma_wait<0>();
  wgmma_written(d);
}

// T is half or bfloat16, with a depth of 16, or float, with a depth of 8; of a float, the hardware reads the 19 bits of TF32.
template <class T, int kN, Major kMajorA, Major kMajorB>
struct Wgmma;

#define WGMMA_D8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_D32(i) WGMMA_D8(i), WGMMA_D8(i + 8), WGMMA_D8(i + 16), WGMMA_D8(i + 24)
#define WGMMA_D64(i) WGMMA_D32(i), WGMMA_D32(i + 32)
#define WGMMA_D128(i) WGMMA_D64(i), WGMMA_D64(i + 64)
#define WGMMA_REGISTERS32                                                                                          \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
  "%30,%31"
#define WGMMA_REGISTERS64                                                                                          \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
  "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"   \
  "%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_REGISTERS128                                                                                         \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
  "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"   \
  "%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,"   \
  "%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,"  \
  "%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// kCount is the number of D's registers in a lane, half of kN. kA, kB, kMA and kMB number the asm operands after D.
#define WGMMA_16_BIT(type, name, kN, kCount, kA, kB, kMA, kMB)                                                   \
  template <Major kMajorA, Major kMajorB>                                                                        \
  struct Wgmma<type, kN, kMajorA, kMajorB> {                                                                     \
    __device__ static void multiply(float (&d)[kCount], uint64_t a, uint64_t b) {                                \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #kN "k16.f32." name "." name " {" WGMMA_REGISTERS##kCount \
                   "}, %" #kA ", %" #kB ", 1, 1, 1, %" #kMA ", %" #kMB ";"                                       \
                   : WGMMA_D##kCount(0)                                                                          \
                   : "l"(a), "l"(b), "n"(int(kMajorA)), "n"(int(kMajorB)));                                      \
    }                                                                                                            \
  };
#define WGMMA_TF32(kN, kCount, kA, kB)                                                                                       \
  template <>                                                                                                                \
  struct Wgmma<float, kN, Major::depth, Major::depth> {                                                                      \
    __device__ static void multiply(float (&d)[kCount], uint64_t a, uint64_t b) {                                            \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #kN "k8.f32.tf32.tf32 {" WGMMA_REGISTERS##kCount "}, %" #kA ", %" #kB \
                                                                                                        ", 1, 1, 1;"         \
                   : WGMMA_D##kCount(0)                                                                                      \
                   : "l"(a), "l"(b));                                                                                        \
    }                                                                                                                        \
  };
WGMMA_16_BIT(half, "f16", 64, 32, 32, 33, 34, 35)
WGMMA_16_BIT(half, "f16", 128, 64, 64, 65, 66, 67)
WGMMA_16_BIT(half, "f16", 256, 128, 128, 129, 130, 131)
WGMMA_16_BIT(bfloat16, "bf16", 64, 32, 32, 33, 34, 35)
WGMMA_16_BIT(bfloat16, "bf16", 128, 64, 64, 65, 66, 67)
WGMMA_16_BIT(bfloat16, "bf16", 256, 128, 128, 129, 130, 131)
WGMMA_TF32(64, 32, 32, 33)
WGMMA_TF32(128, 64, 64, 65)
WGMMA_TF32(256, 128, 128, 129)

template <class T, Major kMajorA, Major kMajorB, int kCount>
__device__ inline void wgmma(float (&d)[kCount], uint64_t a, uint64_t b) {
  Wgmma<T, 2 * kCount, kMajorA, kMajorB>::multiply(d, a, b);
}
