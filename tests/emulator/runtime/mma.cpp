// Matrix products, loads and stores of a warp, by the fragment tables of the PTX manual, which kernels/cuda/platform/mma.h
// repeats. g = lane / 4 and t = lane % 4.
#include "platform/mma.h"

#include "arithmetic.h"

#include <cstring>

namespace emulator {
namespace {
struct Operands {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

void require_whole_warp(const char* what, uint32_t lanes) {
  if (lanes != 0xffffffff) fail("%s by lanes %08x: all lanes of the warp must take part", what, lanes);
}

template <Product product>
float element(uint32_t word, int half_index) {
  if constexpr (product == Product::tf32) return std::bit_cast<float>(word & ~0x1fffu);  // the GPU ignores the lowest 13 bits
  const uint16_t bits = uint16_t(word >> 16 * half_index);
  if constexpr (product == Product::f16) return widen(half{bits});
  return widen(bfloat16{bits});
}

// A register holds two 16-bit elements, adjacent along k, or one of TF32.
template <Product product>
void multiply(void* const operand[32], uint32_t lanes) {
  require_whole_warp("mma", lanes);
  constexpr int kPerWord = product == Product::tf32 ? 1 : 2, kHalf = 4 * kPerWord, kK = 2 * kHalf;
  float a[16][kK], b[kK][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& registers = *static_cast<Operands*>(operand[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int j = 0; j < 4; ++j)
      for (int e = 0; e < kPerWord; ++e)
        a[g + 8 * (j & 1)][kPerWord * t + e + kHalf * (j >> 1)] = element<product>(registers.a[j], e);
    for (int j = 0; j < 2; ++j)
      for (int e = 0; e < kPerWord; ++e) b[kPerWord * t + e + kHalf * j][g] = element<product>(registers.b[j], e);
    for (int i = 0; i < 4; ++i) d[g + 8 * (i >> 1)][2 * t + (i & 1)] = registers.d[i];
  }
  add_products<16, 8, kK>(*d, *a, *b, product == Product::f16 ? -14 : -126);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      static_cast<Operands*>(operand[lane])->d[i] = d[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)];
}

struct Rows {
  uint32_t* matrix;
  unsigned char* row;
  int matrices;
};
uint16_t& element_at(void* const operand[32], int matrix, int row, int column) {
  return reinterpret_cast<uint16_t*>(static_cast<Rows*>(operand[8 * matrix + row])->row)[column];
}
void check_row(const void* row, const char* what, const Where& where) {
  check_aligned(row, 16, what, where);
  if (!is_shared(row, 16))
    fail("%s at %s:%u: the row is not in shared memory", what, base_name(where.file_name()), unsigned(where.line()));
}

template <bool transposed>
void load(void* const operand[32], uint32_t lanes) {
  require_whole_warp("ldmatrix", lanes);
  for (int lane = 0; lane < 32; ++lane) {
    const auto& rows = *static_cast<Rows*>(operand[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int j = 0; j < rows.matrices; ++j) {
      const uint32_t low = transposed ? element_at(operand, j, 2 * t, g) : element_at(operand, j, g, 2 * t);
      const uint32_t high = transposed ? element_at(operand, j, 2 * t + 1, g) : element_at(operand, j, g, 2 * t + 1);
      rows.matrix[j] = high << 16 | low;
    }
  }
}
}  // namespace

void mma(Product product, float* d, const uint32_t* a, const uint32_t* b, const Where& where) {
  Operands operands{d, a, b};
  switch (product) {
    case Product::f16:
      return warp_collective(0xffffffff, "mma f16", &operands, multiply<Product::f16>, where);
    case Product::bf16:
      return warp_collective(0xffffffff, "mma bf16", &operands, multiply<Product::bf16>, where);
    case Product::tf32:
      return warp_collective(0xffffffff, "mma tf32", &operands, multiply<Product::tf32>, where);
  }
}

void mma_f64(double* d, double a, double b, const Where& where) {
  struct Operand {
    double* d;
    double a, b;
  } mine{d, a, b};
  auto combine = [](void* const operand[32], uint32_t lanes) {
    require_whole_warp("mma f64", lanes);
    auto lane = [&](int i) { return static_cast<Operand*>(operand[i]); };
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 4; ++k)
          lane(l)->d[i] = __builtin_fma(lane(l / 4 * 4 + k)->a, lane((2 * (l % 4) + i) * 4 + k)->b, lane(l)->d[i]);
  };
  warp_collective(0xffffffff, "mma f64", &mine, combine, where);
}

void ldmatrix(uint32_t* matrix, int matrices, const void* row, bool transposed, const Where& where) {
  Rows mine{matrix, static_cast<unsigned char*>(const_cast<void*>(row)), matrices};
  if (lane() < unsigned(8 * matrices)) {
    check_row(row, "ldmatrix", where);
    see(row, 16, Access::read, where);
  }
  warp_collective(0xffffffff, transposed ? "ldmatrix_transposed" : "ldmatrix", &mine, transposed ? load<true> : load<false>,
                  where);
}

void stmatrix(void* row, int matrices, const uint32_t* matrix, const Where& where) {
  Rows mine{const_cast<uint32_t*>(matrix), static_cast<unsigned char*>(row), matrices};
  if (lane() < unsigned(8 * matrices)) {
    check_row(row, "stmatrix", where);
    see(row, 16, Access::write, where);
  }
  auto store = [](void* const operand[32], uint32_t lanes) {
    require_whole_warp("stmatrix", lanes);
    for (int l = 0; l < 32; ++l) {
      const auto& rows = *static_cast<Rows*>(operand[l]);
      for (int j = 0; j < rows.matrices; ++j)
        for (int e = 0; e < 2; ++e) element_at(operand, j, l / 4, 2 * (l % 4) + e) = uint16_t(rows.matrix[j] >> 16 * e);
    }
  };
  warp_collective(0xffffffff, "stmatrix", &mine, store, where);
}
}  // namespace emulator
