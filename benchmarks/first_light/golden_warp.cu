// Golden data for the emulator: the fragments of mma.sync, ldmatrix and stmatrix as each lane's registers hold them, and the
// rounding to TF32. In measurement `mma`, the operands are small integers, so the sums are exact in any order.
#include "common.cuh"
#include "hopper.cuh"

// ---- mma.sync
enum Type { HALF, BFLOAT16, TF32 };

__global__ void multiply(Type type, const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = int(threadIdx.x);
  uint32_t a_lane[4], b_lane[2];
  float d_lane[4];
  for (int i = 0; i < 4; ++i) a_lane[i] = a[lane * 4 + i], d_lane[i] = d[lane * 4 + i];
  for (int i = 0; i < 2; ++i) b_lane[i] = b[lane * 2 + i];
  if (type == HALF) mma_m16n8k16<half>(d_lane, a_lane, b_lane);
  if (type == BFLOAT16) mma_m16n8k16<bfloat16>(d_lane, a_lane, b_lane);
  if (type == TF32) mma_m16n8k8_tf32(d_lane, a_lane, b_lane);
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = d_lane[i];
}

uint32_t word(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
// A register that holds random integers from -8 to 7 as floating-point values: two of 16 bits, or one of 32 bits.
uint32_t operand(Type type, Sequence& random) {
  auto fp16 = [](int value) {
    const uint32_t bits = word(float(value));
    return value ? (bits >> 16 & 0x8000) | ((bits >> 23 & 255) - 112) << 10 | (bits >> 13 & 0x3FF) : 0u;
  };
  const int low = random.below(16) - 8, high = random.below(16) - 8;
  if (type == TF32) return word(float(low));
  if (type == HALF) return fp16(low) | fp16(high) << 16;
  return word(float(low)) >> 16 | (word(float(high)) & 0xFFFF0000);
}

void mma() {
  const char* names[] = {"m16n8k16 f16", "m16n8k16 bf16", "m16n8k8 tf32"};
  Sequence random(3);
  for (const Type type : {HALF, BFLOAT16, TF32})
    for (int round = 0; round < 3; ++round) {
      std::vector<uint32_t> a(128), b(64), c(128);
      for (uint32_t& bits : a) bits = operand(type, random);
      for (uint32_t& bits : b) bits = operand(type, random);
      for (uint32_t& bits : c) bits = word(float(random.below(64)));
      DeviceArray<uint32_t> a_device(128), b_device(64), d_device(128);
      a_device.set(a), b_device.set(b), d_device.set(c);
      launch({.block = 32}, multiply, type, a_device.data, b_device.data, reinterpret_cast<float*>(d_device.data));
      CHECK(cudaDeviceSynchronize());
      emit("golden_mma", "\"instruction\": \"%s\", \"a\": \"%s\", \"b\": \"%s\", \"c\": \"%s\", \"d\": \"%s\"", names[type],
           hex(a).c_str(), hex(b).c_str(), hex(c).c_str(), hex(d_device.get()).c_str());
    }
}

// ---- ldmatrix and stmatrix on 64 rows of 16 bytes, whose 16-bit elements are their own indices or, before stmatrix, 0xFFFF
template <int Matrices, bool Transposed>
__global__ void load(const int* row_of_lane, uint32_t* registers) {
  __shared__ alignas(16) uint16_t memory[64 * 8];
  for (int i = int(threadIdx.x); i < 64 * 8; i += 32) memory[i] = uint16_t(i);
  __syncthreads();
  uint32_t matrix[Matrices];
  const uint16_t* row = memory + row_of_lane[threadIdx.x] * 8;
  if constexpr (Transposed)
    ldmatrix_transposed(matrix, row);
  else
    ldmatrix(matrix, row);
  for (int i = 0; i < Matrices; ++i) registers[threadIdx.x * Matrices + i] = matrix[i];
}

template <int Matrices>
__global__ void store(const int* row_of_lane, const uint32_t* registers, uint16_t* dump) {
  __shared__ alignas(16) uint16_t memory[64 * 8];
  for (int i = int(threadIdx.x); i < 64 * 8; i += 32) memory[i] = 0xFFFF;
  __syncthreads();
  uint32_t matrix[Matrices];
  for (int i = 0; i < Matrices; ++i) matrix[i] = registers[threadIdx.x * Matrices + i];
  stmatrix(memory + row_of_lane[threadIdx.x] * 8, matrix);
  __syncthreads();
  for (int i = int(threadIdx.x); i < 64 * 8; i += 32) dump[i] = memory[i];
}

template <int Matrices>
void move(Sequence& random) {
  std::vector<int> rows(64);
  for (int i = 0; i < 64; ++i) rows[i] = i;
  for (int i = 63; i > 0; --i) std::swap(rows[i], rows[random.below(i + 1)]);
  rows.resize(32);
  std::vector<uint32_t> stored(32 * Matrices);
  for (size_t i = 0; i < stored.size(); ++i) stored[i] = uint32_t(2 * i) | uint32_t(2 * i + 1) << 16;
  std::string row_text;
  for (int row : rows) row_text += (row_text.empty() ? "" : ", ") + std::to_string(row);
  DeviceArray<int> row_of_lane(32);
  row_of_lane.set(rows);
  DeviceArray<uint32_t> registers(32 * Matrices);
  for (const bool transposed : {false, true}) {
    launch({.block = 32}, transposed ? load<Matrices, true> : load<Matrices, false>, row_of_lane.data, registers.data);
    CHECK(cudaDeviceSynchronize());
    emit("golden_ldmatrix", "\"matrices\": %d, \"transposed\": %s, \"rows\": [%s], \"registers\": \"%s\"", Matrices,
         transposed ? "true" : "false", row_text.c_str(), hex(registers.get()).c_str());
  }
  DeviceArray<uint16_t> dump(64 * 8);
  registers.set(stored);
  launch({.block = 32}, store<Matrices>, row_of_lane.data, registers.data, dump.data);
  CHECK(cudaDeviceSynchronize());
  emit("golden_stmatrix", "\"matrices\": %d, \"rows\": [%s], \"registers\": \"%s\", \"shared\": \"%s\"", Matrices,
       row_text.c_str(), hex(stored).c_str(), hex(dump.get()).c_str());
}

void matrices() {
  Sequence random(4);
  move<1>(random), move<2>(random), move<4>(random);
}

// ---- TF32: the value rounded by cvt.rna, and the product of the unrounded value with 1 by mma.sync, in lane 0
__global__ void round_and_multiply(const uint32_t* values, int count, uint32_t* rounded, float* products) {
  for (int i = 0; i < count; ++i) {
    const bool first = threadIdx.x == 0;
    const uint32_t a[4] = {first ? values[i] : 0, 0, 0, 0}, b[2] = {first ? __float_as_uint(1.f) : 0, 0};
    float d[4] = {};
    mma_m16n8k8_tf32(d, a, b);
    if (first) rounded[i] = round_tf32(__uint_as_float(values[i])), products[i] = d[0];
  }
}

void tf32() {
  constexpr int COUNT = 1024;
  Sequence random(5);
  std::vector<uint32_t> values(COUNT);
  for (uint32_t& value : values) value = random.next() << 1 | random.next() >> 30;
  const uint32_t edges[] = {0x3F801000, 0x3F801001, 0x3F800FFF, 0x3F803000, 0xBF801000, 0x7F7FFFFF, 0x7F800000,
                            0xFF800000, 0x7FC00001, 0x7F800001, 0x00000001, 0x00001000, 0x007FFFFF, 0x80000000};
  std::copy(std::begin(edges), std::end(edges), values.begin());
  DeviceArray<uint32_t> from(COUNT), rounded(COUNT), products(COUNT);
  from.set(values);
  launch({.block = 32}, round_and_multiply, from.data, COUNT, rounded.data, reinterpret_cast<float*>(products.data));
  CHECK(cudaDeviceSynchronize());
  emit("golden_tf32", "\"from\": \"%s\", \"rounded\": \"%s\", \"product\": \"%s\"", hex(values).c_str(),
       hex(rounded.get()).c_str(), hex(products.get()).c_str());
}

int main(int argc, char** argv) { return run_measurements(argc, argv, {{"mma", mma}, {"matrices", matrices}, {"tf32", tf32}}); }
