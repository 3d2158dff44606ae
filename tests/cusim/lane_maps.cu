// SPDX-License-Identifier: Apache-2.0
//
// What each primitive of csrc/cuda/primitives.h does with the registers of a warp, found out by asking: which element
// comes to which lane, where products go, how numbers are rounded. One source: nvcc makes it ask a GPU, and g++ with
// -x c++ -DSWIN_FAST_CUSIM the emulator. It prints one JSON object, and the two must be equal but for "device".
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/cuda/primitives.h"

#ifdef SWIN_FAST_CUSIM
#include "cusim.h"
#else
#include <cuda_runtime.h>
#endif

namespace {

using namespace swin_fast::cuda;

constexpr int kSlotsA = 32 * 4 * 2, kSlotsB = 32 * 2 * 2;  // elements of a and b: lane, register, half
constexpr int kSamples = 40;

// What the kernel writes, in words. A slot of d is 4 * lane + register.
struct Answers {
  uint32_t ldmatrix_x4[32][4], ldmatrix_x4_trans[32][4], ldmatrix_x2[32][2], ldmatrix_x2_trans[32][2];
  uint32_t shuffle_xor[5][32], shuffle[32], shuffle_float[32], any_lane[3][32];
  struct OfType {
    uint32_t kept[32][4];                // d, where a and b are zeros
    uint32_t product[kSlotsA][kSlotsB];  // 1 + the slot of d that the product of two slots goes to
    uint32_t packed[kSamples], rounded[kSamples], widened[kSamples];
  } half, bfloat16;
  struct OfFloats {
    uint32_t kept[32][4];
    uint32_t product[32 * 4][32 * 2];  // as above, of registers
    uint32_t taken[kSamples];          // the product of a sample and 1, as the bits of float32; of NaN 0
  } floats;
};

// Bits of float32; the upper and the lower 16 of them are samples of the narrow types, too.
constexpr uint32_t kSampled[kSamples] = {
    0x00000000, 0x80000000, 0x3f800000, 0xbf800000, 0x3f801000, 0x3f801001, 0x3f803000, 0x3f802fff,  // ties in float16
    0x3f808000, 0x3f808001, 0x3f818000, 0x3f817fff, 0xbf808000, 0xbf818000,                          // and in bfloat16
    0x477fe000, 0x477fefff, 0x477ff000, 0x477fffff, 0xc77ff000, 0x47800000,  // the largest float16, and beyond
    0x38800000, 0x387fc000, 0x387fe000, 0x387fffff, 0x33800000, 0x33000000, 0x33000001, 0x32ffffff,  // subnormal
    0x7f7fffff, 0x7f7f8000, 0x7f7f7fff, 0xff7fffff, 0x00800000, 0x00000001, 0x007f8000, 0x80007fff,
    0x7f800000, 0xff800000, 0x7fc00000, 0xff812345};

template <class T>
SWIN_FAST_DEVICE void ask_type(const uint32_t* samples, Answers::OfType* of) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const uint32_t one = pack<T>(1.0f, 0.0f);
  {
    float d[4];
    for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(4 * lane + i);
    const uint32_t zeros[4] = {0, 0, 0, 0};
    mma_m16n8k16<T>(d, zeros, 0, 0);
    for (int i = 0; i < 4; ++i) store_global(&of->kept[lane][i], static_cast<uint32_t>(d[i]));
  }
  for (int slot_a = 0; slot_a < kSlotsA; ++slot_a) {
    uint32_t a[4];
    for (int i = 0; i < 4; ++i) a[i] = slot_a >> 1 == 4 * lane + i ? one << 16 * (slot_a & 1) : 0;
    for (int slot_b = 0; slot_b < kSlotsB; ++slot_b) {
      uint32_t b[2];
      for (int i = 0; i < 2; ++i) b[i] = slot_b >> 1 == 2 * lane + i ? one << 16 * (slot_b & 1) : 0;
      float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      mma_m16n8k16<T>(d, a, b[0], b[1]);
      for (int i = 0; i < 4; ++i) {
        if (d[i] != 0.0f) store_global(&of->product[slot_a][slot_b], static_cast<uint32_t>(1 + 4 * lane + i));
      }
    }
  }
  for (int i = lane; i < kSamples; i += 32) {
    const float value = load_global<float>(samples + i), next = load_global<float>(samples + (i + 1) % kSamples);
    const auto bits = load_global<uint32_t>(samples + i);
    store_global(&of->packed[i], pack<T>(value, next));
    store_global(&of->rounded[i], uint32_t{from_float<T>(value)});
    store_global(&of->widened[i], to_float<T>(static_cast<uint16_t>(bits >> (i % 2 == 0 ? 16 : 8) & 0xffff)));
  }
}

SWIN_FAST_DEVICE void ask_floats(const uint32_t* samples, Answers::OfFloats* of) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const float zeros[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  {
    float d[4];
    for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(4 * lane + i);
    mma_m16n8k8_tf32(d, zeros, 0.0f, 0.0f);
    for (int i = 0; i < 4; ++i) store_global(&of->kept[lane][i], static_cast<uint32_t>(d[i]));
  }
  for (int slot_a = 0; slot_a < 32 * 4; ++slot_a) {
    float a[4];
    for (int i = 0; i < 4; ++i) a[i] = slot_a == 4 * lane + i ? 1.0f : 0.0f;
    for (int slot_b = 0; slot_b < 32 * 2; ++slot_b) {
      float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      mma_m16n8k8_tf32(d, a, slot_b == 2 * lane ? 1.0f : 0.0f, slot_b == 2 * lane + 1 ? 1.0f : 0.0f);
      for (int i = 0; i < 4; ++i) {
        if (d[i] != 0.0f) store_global(&of->product[slot_a][slot_b], static_cast<uint32_t>(1 + 4 * lane + i));
      }
    }
  }
  for (int i = 0; i < kSamples; ++i) {
    const float value = load_global<float>(samples + i);
    const float a[4] = {lane == 0 && value == value ? value : 0.0f, 0.0f, 0.0f, 0.0f};
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma_m16n8k8_tf32(d, a, lane == 0 ? 1.0f : 0.0f, 0.0f);
    if (lane == 0) store_global(&of->taken[i], d[0]);
  }
}

// Computes: the answers, but for rows of product that stay zero.
// Grid:     one warp.
// Memory:   1,024 bytes of shared memory: element e of matrix i, row j is the number 64 * i + 8 * j + e.
// Numerics: as they are; that is the question.
// Source:   written for this project.
__global__ void __launch_bounds__(32) ask(const uint32_t* samples, Answers* answers) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  char* const row = shared_memory() + 16 * lane;
  for (int i = 0; i < 8; ++i) store_shared(row + 2 * i, static_cast<uint16_t>(8 * lane + i));
  for (int i = 0; i < 8; ++i) store_shared(row + 512 + 2 * i, static_cast<uint16_t>(0xffff));
  sync_warp();
  uint32_t four[4], two[2];
  ldmatrix_x4(four, row);
  for (int i = 0; i < 4; ++i) store_global(&answers->ldmatrix_x4[lane][i], four[i]);
  ldmatrix_x4_trans(four, row);
  for (int i = 0; i < 4; ++i) store_global(&answers->ldmatrix_x4_trans[lane][i], four[i]);
  ldmatrix_x2(two, lane < 16 ? row : row + 512);  // addresses of the upper lanes are not used
  for (int i = 0; i < 2; ++i) store_global(&answers->ldmatrix_x2[lane][i], two[i]);
  ldmatrix_x2_trans(two, lane < 16 ? row : row + 512);
  for (int i = 0; i < 2; ++i) store_global(&answers->ldmatrix_x2_trans[lane][i], two[i]);

  const auto own = static_cast<uint32_t>(lane);
  for (int i = 0; i < 5; ++i) store_global(&answers->shuffle_xor[i][lane], shuffle_xor(own, 1 << i));
  const int other = (7 * lane + 3) % 32;
  store_global(&answers->shuffle[lane], shuffle(own, other));
  store_global(&answers->shuffle_float[lane], static_cast<uint32_t>(shuffle(static_cast<float>(lane), other)));
  store_global(&answers->any_lane[0][lane], uint32_t{any_lane(false)});
  store_global(&answers->any_lane[1][lane], uint32_t{any_lane(lane == 17)});
  store_global(&answers->any_lane[2][lane], uint32_t{any_lane(true)});
  ask_type<Half16>(samples, &answers->half);
  ask_type<BFloat16>(samples, &answers->bfloat16);
  ask_floats(samples, &answers->floats);
}

#ifdef SWIN_FAST_CUSIM
std::string run(Answers* answers) {
  const cusim::Report report = cusim::launch({}, 1, 32, 1024, [&] { ask(kSampled, answers); });
  for (const cusim::Fault& fault : report.faults) std::fprintf(stderr, "%s\n", fault.message.c_str());
  if (!report.faults.empty()) std::exit(EXIT_FAILURE);
  return "emulator";
}
#else
void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(EXIT_FAILURE);
}

std::string run(Answers* answers) {
  cudaDeviceProp device;
  must(cudaGetDeviceProperties(&device, 0), "no device");
  uint32_t* samples;
  Answers* there;
  must(cudaMalloc(&samples, sizeof(kSampled)), "memory");
  must(cudaMalloc(&there, sizeof(Answers)), "memory");
  must(cudaMemcpy(samples, kSampled, sizeof(kSampled), cudaMemcpyHostToDevice), "copy");
  must(cudaMemset(there, 0, sizeof(Answers)), "zeros");
  ask<<<1, 32, 1024>>>(samples, there);
  must(cudaGetLastError(), "launch");
  must(cudaMemcpy(answers, there, sizeof(Answers), cudaMemcpyDeviceToHost), "run");
  return std::string(device.name) + ", sm_" + std::to_string(10 * device.major + device.minor);
}
#endif

void print(const char* name, const std::vector<uint32_t>& numbers, const char* end = ",") {
  std::printf("\"%s\": [", name);
  for (size_t i = 0; i < numbers.size(); ++i) std::printf(i == 0 ? "%u" : ", %u", numbers[i]);
  std::printf("]%s\n", end);
}

template <class Array>
void print_all(const char* name, const Array& array, const char* end = ",") {
  std::vector<uint32_t> numbers(sizeof(array) / 4);
  std::memcpy(numbers.data(), &array, sizeof(array));
  print(name, numbers, end);
}

// Of the pairs of slots those whose product is not zero: slot of a, slot of b, slot of d.
template <size_t kA, size_t kB>
void print_products(const uint32_t (&product)[kA][kB]) {
  std::vector<uint32_t> products;
  for (uint32_t a = 0; a < kA; ++a) {
    for (uint32_t b = 0; b < kB; ++b) {
      if (product[a][b] != 0) products.insert(products.end(), {a, b, product[a][b] - 1});
    }
  }
  print("products", products);
}

void print_type(const char* name, const Answers::OfType& of, const char* end) {
  std::printf("\"%s\": {\n", name);
  print_all("kept", of.kept);
  print_products(of.product);
  print_all("packed", of.packed);
  print_all("rounded", of.rounded);
  print_all("widened", of.widened, "");
  std::printf("}%s\n", end);
}

}  // namespace

int main() {
  static Answers answers;
  const std::string device = run(&answers);
  std::printf("{\n\"device\": \"%s\",\n", device.c_str());
  print_all("ldmatrix_x4", answers.ldmatrix_x4);
  print_all("ldmatrix_x4_trans", answers.ldmatrix_x4_trans);
  print_all("ldmatrix_x2", answers.ldmatrix_x2);
  print_all("ldmatrix_x2_trans", answers.ldmatrix_x2_trans);
  print_all("shuffle_xor", answers.shuffle_xor);
  print_all("shuffle", answers.shuffle);
  print_all("shuffle_float", answers.shuffle_float);
  print_all("any_lane", answers.any_lane);
  print_type("float16", answers.half, ",");
  print_type("bfloat16", answers.bfloat16, ",");
  std::printf("\"float32\": {\n");
  print_all("kept", answers.floats.kept);
  print_products(answers.floats.product);
  print_all("taken", answers.floats.taken, "");
  std::printf("}\n");
  std::printf("}\n");
}
