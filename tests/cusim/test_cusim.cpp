// SPDX-License-Identifier: Apache-2.0
//
// Tests of the emulator: the primitives against their definitions in plain loops, a kernel that is right in every order
// of execution, and kernels with one mistake each, all of which must be noticed and named.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/cuda/primitives.h"
#include "checks.h"
#include "numerics.h"
#include "test_mistakes.h"
#include "test_product.h"

namespace {

using namespace swin_fast::cuda;  // NOLINT: the kernels below are written as real ones are
using namespace cusim_test;       // NOLINT

// ---------------------------------------------------------------------------------------------------------------------
// Formats, against the definition by the list of all values

template <class T>
double value_of(uint16_t element) {
  const int fraction_bits = is_half<T> ? 10 : 7;
  const int bias = is_half<T> ? 15 : 127;
  const int exponent = (element & 0x7fff) >> fraction_bits;
  const double fraction = std::ldexp(element & ((1 << fraction_bits) - 1), -fraction_bits);
  const double magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bias)
                                         : std::ldexp(1 + fraction, exponent - bias);  // inf: the next power
  return element & 0x8000 ? -magnitude : magnitude;
}

template <class T>
uint16_t nearest_even(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(value));
  const uint16_t infinity = is_half<T> ? 0x7c00 : 0x7f80;
  if (std::isinf(value)) return sign | infinity;
  uint16_t low = 0;  // the largest that is not greater; magnitudes are ordered as their encodings
  for (int bit = 14; bit >= 0; bit--) {
    const uint16_t next = low | static_cast<uint16_t>(1 << bit);
    if (next <= infinity && value_of<T>(next) <= magnitude) low = next;
  }
  if (low == infinity) return sign | infinity;
  const double below = magnitude - value_of<T>(low);
  const double above = value_of<T>(low + 1) - magnitude;
  return sign | static_cast<uint16_t>(below < above || (below == above && low % 2 == 0) ? low : low + 1);
}

template <class T>
void test_formats() {
  const std::string name = type_name<T>();
  bool exact = true;
  std::vector<float> values = {0.f, -0.f, INFINITY, -INFINITY, NAN, -NAN, 65504.f, 65519.9f, 65520.f, 3.4e38f, 1e-45f};
  for (uint32_t e = 0; e < 65536; e++) {
    const uint16_t element = static_cast<uint16_t>(e);
    const uint16_t magnitude = element & 0x7fff;
    const uint16_t infinity = is_half<T> ? 0x7c00 : 0x7f80;
    const float got = to_float<T>(element);
    if (magnitude > infinity) {
      exact &= std::isnan(got) && from_float<T>(got) == 0x7fff;
      continue;
    }
    const double want = magnitude == infinity ? (element & 0x8000 ? -INFINITY : INFINITY) : value_of<T>(element);
    exact &= static_cast<double>(got) == want && std::signbit(got) == std::signbit(want);
    exact &= from_float<T>(got) == element;
    if (magnitude == infinity) continue;
    // The midpoint to the next value, and the floats beside it.
    const float middle = static_cast<float>((value_of<T>(element) + value_of<T>(element + 1)) / 2);
    values.insert(values.end(), {middle, std::nextafterf(middle, 0.f), std::nextafterf(middle, 2 * middle)});
  }
  check(exact, name + ": all 65536 encodings to float and back");

  std::mt19937 random(1);
  for (int i = 0; i < 300000; i++) values.push_back(cusim::float_of(static_cast<uint32_t>(random())));
  bool rounded = true;
  for (size_t i = 0; i + 1 < values.size(); i++) {
    const uint32_t want = nearest_even<T>(values[i]) | static_cast<uint32_t>(nearest_even<T>(values[i + 1])) << 16;
    const uint32_t got = pack<T>(values[i], values[i + 1]);
    if (got != want && rounded) std::printf("pack(%a, %a): 0x%08x, not 0x%08x\n", values[i], values[i + 1], got, want);
    rounded &= got == want;
    const Float2 pair = unpack<T>(got);
    const float low = to_float<T>(static_cast<uint16_t>(want)), high = to_float<T>(static_cast<uint16_t>(want >> 16));
    rounded &= std::memcmp(&pair.x, &low, 4) == 0 && std::memcmp(&pair.y, &high, 4) == 0;
  }
  check(rounded, name + ": pack rounds to nearest even, with midpoints, subnormals, infinity and NaN");
}

// ---------------------------------------------------------------------------------------------------------------------
// Matrices, against the tables of the PTX manual: for each entry of a matrix the lane and register that hold it

uint32_t element_in(uint32_t pair, int half) { return half == 0 ? pair & 0xffff : pair >> 16; }

void put(uint32_t* pair, int half, uint16_t element) { *pair |= static_cast<uint32_t>(element) << (16 * half); }

template <class T, int kDepth>
double largest_mma_error(cusim::Math math, uint32_t seed, float spread) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  double a[16][16], b[16][8], c[16][8];
  uint32_t a_registers[32][4] = {}, b_registers[32][2] = {};
  float d_registers[32][4];
  const auto draw = [&](double* value) {
    const uint16_t element = from_float<T>(normal(random) * std::exp2(spread * normal(random)));
    *value = to_float<T>(element);
    return element;
  };
  for (int row = 0; row < 16; row++) {
    for (int column = 0; column < kDepth; column++) {  // A: row-major halves of 8 x 8, the rows first
      const int lane = row % 8 * 4 + column % 8 / 2;
      put(&a_registers[lane][row / 8 + 2 * (column / 8)], column % 2, draw(&a[row][column]));
    }
  }
  for (int k = 0; k < kDepth; k++) {
    for (int n = 0; n < 8; n++) put(&b_registers[n * 4 + k % 8 / 2][k / 8], k % 2, draw(&b[k][n]));
  }
  for (int row = 0; row < 16; row++) {
    for (int column = 0; column < 8; column++) {
      const float value = normal(random);
      d_registers[row % 8 * 4 + column / 2][2 * (row / 8) + column % 2] = value;
      c[row][column] = value;
    }
  }
  Options options;
  options.math = math;
  options.seed = seed;
  const Report report = cusim::launch(options, 1, 32, 0, [&] {
    const unsigned lane = threadIdx.x;
    if constexpr (kDepth == 16) {
      mma_m16n8k16<T>(d_registers[lane], a_registers[lane], b_registers[lane][0], b_registers[lane][1]);
    } else {
      mma_m16n8k8<T>(d_registers[lane], a_registers[lane][0], a_registers[lane][1], b_registers[lane][0]);
    }
  });
  if (!report.faults.empty() || report.counters.mma != 1) return INFINITY;
  double largest = 0;
  for (int row = 0; row < 16; row++) {
    for (int column = 0; column < 8; column++) {
      double sum = c[row][column];
      double greatest = std::fabs(sum);
      for (int k = 0; k < kDepth; k++) {
        sum += a[row][k] * b[k][column];
        greatest = std::max(greatest, std::fabs(a[row][k] * b[k][column]));
      }
      const double got = d_registers[row % 8 * 4 + column / 2][2 * (row / 8) + column % 2];
      largest = std::max(largest, std::fabs(got - sum) / greatest);
    }
  }
  return largest;
}

template <class T, int kDepth>
void test_mma() {
  double exact = 0, hardware = 0;
  for (uint32_t seed = 1; seed <= 40; seed++) {
    const float spread = is_half<T> ? 1.f : 4.f;
    exact = std::max(exact, largest_mma_error<T, kDepth>(cusim::Math::exact, seed, spread));
    hardware = std::max(hardware, largest_mma_error<T, kDepth>(cusim::Math::hardware_like, seed, spread));
  }
  const std::string name = std::string(type_name<T>()) + ", of " + std::to_string(kDepth);
  check(exact < 1e-6, "mma " + name + ", exact", std::to_string(exact));
  // Each of 18 terms may lose one unit of the largest, whose exponent may be one off, and so may two sums.
  check(hardware < 6e-6 && hardware > 2 * exact, "mma " + name + ", hardware-like: off, but not far",
        std::to_string(hardware));
}

// The largest error of products of numbers of float32, which know 11 significant bits of each; without `cuts`, as if
// they knew them all.
double largest_float_mma_error(cusim::Math math, uint32_t seed, bool cuts) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const auto known = [cuts](float value) -> double { return cuts ? cusim::cut_to_tf32(value) : value; };
  float a[16][8], b[8][8], c[16][8], d[32][4];
  for (auto& row : a) std::generate(std::begin(row), std::end(row), [&] { return normal(random); });
  for (auto& row : b) std::generate(std::begin(row), std::end(row), [&] { return normal(random); });
  for (auto& row : c) std::generate(std::begin(row), std::end(row), [&] { return normal(random); });
  Options options;
  options.math = math;
  options.seed = seed;
  const Report report = cusim::launch(options, 1, 32, 0, [&] {
    const unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; i++) d[lane][i] = c[g + 8 * (i / 2)][2 * t + i % 2];
    mma_m16n8k8_tf32(d[lane], {a[g][t], a[g + 8][t], a[g][t + 4], a[g + 8][t + 4]}, b[t][g], b[t + 4][g]);
  });
  if (!report.faults.empty() || report.counters.mma != 1) return INFINITY;
  double largest = 0;
  for (int row = 0; row < 16; row++) {
    for (int column = 0; column < 8; column++) {
      double sum = c[row][column], greatest = std::fabs(sum);
      for (int k = 0; k < 8; k++) {
        sum += known(a[row][k]) * known(b[k][column]);
        greatest = std::max(greatest, std::fabs(known(a[row][k]) * known(b[k][column])));
      }
      const double got = d[row % 8 * 4 + column / 2][2 * (row / 8) + column % 2];
      largest = std::max(largest, std::fabs(got - sum) / greatest);
    }
  }
  return largest;
}

void test_float_mma() {
  double exact = 0, hardware = 0, whole = 0;
  for (uint32_t seed = 1; seed <= 40; seed++) {
    exact = std::max(exact, largest_float_mma_error(cusim::Math::exact, seed, true));
    hardware = std::max(hardware, largest_float_mma_error(cusim::Math::hardware_like, seed, true));
    whole = std::max(whole, largest_float_mma_error(cusim::Math::exact, seed, false));
  }
  check(exact < 1e-6, "mma of float32, exact", std::to_string(exact));
  check(hardware < 3e-6 && hardware > 2 * exact, "mma of float32, hardware-like: off, but not far",
        std::to_string(hardware));
  check(whole > 0x1p-11, "mma of float32 does not look at the lowest bits", std::to_string(whole));
  check(cusim::cut_to_tf32(INFINITY) == INFINITY && cusim::cut_to_tf32(-1.f - 0x1p-11f) == -1.f, "towards zero");
}

void test_mma_alignment() {
  // 1 + 2^-24 + ... + 2^-24: each small term is dropped on its own, not rounded, and not summed first.
  const uint32_t one = pack<BFloat16>(1.f, 0.f), small = pack<BFloat16>(0x1p-12f, 0x1p-12f);
  float exact = 0, hardware = 0, infinite = 0;
  for (float* result : {&exact, &hardware, &infinite}) {
    Options options;
    options.math = result == &exact ? cusim::Math::exact : cusim::Math::hardware_like;
    cusim::launch(options, 1, 32, 0, [&] {
      float d[4] = {result == &infinite ? INFINITY : 1.f, 0.f, 0.f, 0.f};
      const uint32_t a[4] = {small, one, small, one};
      mma_m16n8k16<BFloat16>(d, a, small, small);
      if (threadIdx.x == 0) *result = d[0];
    });
  }
  check(exact == 1.f + 0x1p-20f && hardware == 1.f && std::isinf(infinite), "mma drops what lies below the largest");
}

void test_ldmatrix() {
  uint16_t matrices[4][8][8];
  for (int e = 0; e < 256; e++) matrices[e / 64][e / 8 % 8][e % 8] = static_cast<uint16_t>(1000 + e);
  uint32_t plain[32][4], transposed[32][4], two[32][2], two_transposed[32][2];
  // Rows stand in shuffled places, 16 bytes each.
  const auto place = [](int row) { return shared_memory() + row * 11 % 32 * 16; };
  const Report report = cusim::launch({}, 1, 32, 512, [&] {
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = 0; i < 8; i++) store_shared<uint16_t>(place(lane) + 2 * i, matrices[lane / 8][lane % 8][i]);
    sync_warp();
    ldmatrix_x4(plain[lane], place(lane));
    ldmatrix_x4_trans(transposed[lane], place(lane));
    ldmatrix_x2(two[lane], lane < 16 ? place(lane) : nullptr);
    ldmatrix_x2_trans(two_transposed[lane], lane < 16 ? place(lane) : nullptr);
  });
  if (!clean(report, "ldmatrix")) return;
  bool ok = true;
  for (int m = 0; m < 4; m++) {
    for (int row = 0; row < 8; row++) {
      for (int column = 0; column < 8; column++) {
        const uint32_t want = matrices[m][row][column];
        const int lane = row * 4 + column / 2, transposed_lane = column * 4 + row / 2;
        ok &= element_in(plain[lane][m], column % 2) == want;
        ok &= element_in(transposed[transposed_lane][m], row % 2) == want;
        if (m >= 2) continue;
        ok &= element_in(two[lane][m], column % 2) == want;
        ok &= element_in(two_transposed[transposed_lane][m], row % 2) == want;
      }
    }
  }
  check(ok && report.counters.ldmatrix == 4, "ldmatrix, of two and of four, transposed and not");

  const auto conflicts = [](int stride) {
    return cusim::launch({}, 1, 32, 4096,
                         [&] {
                           uint32_t r[4];
                           ldmatrix_x4(r, shared_memory() + threadIdx.x * static_cast<unsigned>(stride));
                         })
        .counters.ldmatrix_bank_conflicts;
  };
  check(conflicts(16) == 0 && conflicts(32) == 4 && conflicts(64) == 12 && conflicts(128) == 28 && conflicts(0) == 0 &&
            conflicts(112) == 0,
        "bank conflicts of rows 16, 32, 64, 128, 0 and 112 bytes apart");
}

// What is stored comes back, from rows in shuffled places; and two rows in the same banks are a conflict.
template <int kMatrices>
void test_stmatrix() {
  uint32_t back[32][4] = {};
  const auto place = [](int row) { return shared_memory() + row * 11 % 32 * 16; };
  const Report report = cusim::launch({}, 1, 32, 1024, [&] {
    const int lane = static_cast<int>(threadIdx.x);
    store_shared(place(lane), UInt4{});
    sync_warp();
    uint32_t own[kMatrices];
    for (int i = 0; i < kMatrices; i++) own[i] = static_cast<uint32_t>(1000 + 32 * i + lane);
    stmatrix(lane < 8 * kMatrices ? place(lane) : nullptr, own);
    sync_warp();
    ldmatrix_x4(back[lane], place(lane));
    if (kMatrices == 1) stmatrix(shared_memory() + 512 + lane % 4 * 128 + lane / 4 % 2 * 64, own);
  });
  if (!clean(report, "stmatrix")) return;
  bool ok = report.counters.ldmatrix_bank_conflicts == (kMatrices == 1 ? 3 : 0);
  for (int lane = 0; lane < 32; lane++) {
    for (int i = 0; i < 4; i++)
      ok &= back[lane][i] == (i < kMatrices ? static_cast<uint32_t>(1000 + 32 * i + lane) : 0);
  }
  check(ok, "stmatrix of " + std::to_string(kMatrices));
}

void test_exchange() {
  bool ok = true;
  const Report report = cusim::launch({}, 2, 64, 0, [&] {
    const unsigned thread = threadIdx.x, lane = thread % 32;
    const float mine = static_cast<float>(thread) + 100.f * static_cast<float>(blockIdx.x);
    for (int mask : {1, 2, 16, 31}) {
      ok &= shuffle_xor(mine, mask) == mine - static_cast<float>(lane) + static_cast<float>(lane ^ mask);
    }
    ok &= shuffle(thread, static_cast<int>((lane + 5) % 32)) == thread / 32 * 32 + (lane + 5) % 32;
    ok &= shuffle(mine, 7) == mine - static_cast<float>(lane) + 7.f && shuffle_xor(lane, 3) == (lane ^ 3);
    ok &= any_lane(thread == 40) == (thread >= 32) && !any_lane(false);
    ok &= blockDim.x == 64 && gridDim.x == 2;
  });
  if (clean(report, "shuffles")) check(ok && report.counters.votes == 8, "shuffles, votes and indices");
}

void test_copies() {
  alignas(16) float source[64];
  for (int i = 0; i < 64; i++) source[i] = static_cast<float>(i + 1);
  for (AsyncCopies mode : {AsyncCopies::latest, AsyncCopies::earliest}) {
    bool ok = true;
    Options options;
    options.async_copies = mode;
    options.global = {{source, sizeof(source) - 64}};
    const Report report = cusim::launch(options, 1, 32, 512, [&] {
      char* mine = shared_memory() + 16 * threadIdx.x;
      const bool valid = threadIdx.x < 12;
      copy_async_16(mine, source + 4 * (threadIdx.x % 16), valid);
      copy_async_commit();
      copy_async_wait<0>();
      const Float4 got = load_shared<Float4>(mine);
      const float first = valid ? static_cast<float>(4 * threadIdx.x + 1) : 0.f;
      ok &= got.x == first && got.w == (valid ? first + 3.f : 0.f);
    });
    if (clean(report, "copies")) check(ok && report.counters.copies == 32, "copies, and zeros where not valid");
  }
}

// Global memory that changes between the call and the wait shows when a copy lands.
void test_copy_times() {
  for (AsyncCopies mode : {AsyncCopies::latest, AsyncCopies::earliest}) {
    alignas(16) float source[4] = {1.f, 1.f, 1.f, 1.f};
    float got = 0.f;
    Options options;
    options.async_copies = mode;
    cusim::launch(options, 1, 32, 16, [&] {
      if (threadIdx.x != 0) return;
      copy_async_16(shared_memory(), source, true);
      copy_async_commit();
      store_global(source, 2.f);
      copy_async_wait<0>();
      got = load_shared<float>(shared_memory());
    });
    const bool late = mode == AsyncCopies::latest;
    check(got == (late ? 2.f : 1.f), late ? "late copies land at the wait" : "early copies land at once");
  }
}

void test_orders() {
  const auto order = [](uint64_t seed) {
    std::vector<unsigned> threads;
    Options options;
    options.seed = seed;
    cusim::launch(options, 8, 32, 0, [&] {
      threads.push_back(32 * blockIdx.x + threadIdx.x);
      sync_threads();
      threads.push_back(32 * blockIdx.x + threadIdx.x);
    });
    return threads;
  };
  // Those that waited go on only after the one that arrived last, in either order.
  std::vector<unsigned> natural = order(0);
  check(natural[0] == 0 && natural[31] == 31 && natural[32] == 31 && natural[33] == 0 && natural[64] == 32,
        "without a seed, threads and blocks run as they are numbered");
  std::vector<unsigned> one = order(1), two = order(2);
  bool shuffled = one != natural && two != natural && one != two && one[0] / 32 + two[0] / 32 != 0;
  shuffled &= !std::equal(one.begin(), one.begin() + 31, one.begin() + 33);  // the second round has an order of its own
  for (std::vector<unsigned>* threads : {&natural, &one, &two}) std::sort(threads->begin(), threads->end());
  check(shuffled && one == natural && two == natural, "seeds shuffle threads and blocks, and leave none out");
}

void test_functions() {
  double largest[2] = {};
  bool special = true;
  for (cusim::Math math : {cusim::Math::exact, cusim::Math::hardware_like}) {
    Options options;
    options.math = math;
    cusim::launch(options, 1, 32, 0, [&] {
      for (int i = 0; i < 2000; i++) {
        const float x = -60.f + 0.03f * static_cast<float>(i) + 0.001f * static_cast<float>(threadIdx.x);
        const double errors[] = {exp2_approx(x) / std::exp2(static_cast<double>(x)) - 1,
                                 reciprocal_approx(x) * static_cast<double>(x) - 1,
                                 rsqrt_approx(-x) * std::sqrt(static_cast<double>(-x)) - 1};
        for (double error : errors) {
          if (x < 0) largest[static_cast<int>(math)] = std::max(largest[static_cast<int>(math)], std::fabs(error));
        }
      }
      special &= exp2_approx(-INFINITY) == 0.f && exp2_approx(0.f) == 1.f && std::isnan(exp2_approx(NAN)) &&
                 exp2_approx(200.f) == INFINITY && reciprocal_approx(0.f) == INFINITY &&
                 reciprocal_approx(INFINITY) == 0.f && rsqrt_approx(0.f) == INFINITY && std::isnan(rsqrt_approx(-1.f));
      special &= (exp2_approx(-130.f) == 0.f) == (math == cusim::Math::hardware_like);
    });
  }
  check(special, "fast functions: special values, and subnormals flushed in one model");
  check(largest[0] < 0x1p-23 && largest[1] > 0x1.1p-23 && largest[1] < 0x1.5p-22,
        "fast functions: 2 ulp off in one model", std::to_string(largest[1] * 0x1p23));
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory that is not written, and order

void test_poison() {
  bool poisoned = true;
  alignas(16) static const uint16_t global[8] = {};
  const Report report = cusim::launch({}, 2, 32, 1024, [&] {
    char* mine = shared_memory() + 16 * threadIdx.x;
    poisoned &= std::isnan(load_shared<float>(mine));
    const Float2 pair = unpack<Half16>(load_shared<uint32_t>(mine));
    poisoned &= std::isnan(pair.x) && std::isnan(pair.y) && std::isnan(to_float<BFloat16>(load_shared<uint16_t>(mine)));
    uint32_t r[4];
    ldmatrix_x4(r, mine);
    float d[4] = {};
    mma_m16n8k16<BFloat16>(d, r, 0, 0);
    poisoned &= std::isnan(d[0]) && std::isnan(d[3]);
    sync_warp();
    store_shared(mine, 2.f);
    float plain;  // not through a primitive, so it does not see what was stored
    std::memcpy(&plain, mine, sizeof(plain));
    poisoned &= std::isnan(plain) && load_shared<float>(mine) == 2.f;
    copy_async_16(mine, global, true);
    copy_async_commit();
    copy_async_wait<0>();
  });
  if (!clean(report, "poison")) return;
  // By each lane two words, half a word and 8 elements of matrices, in both blocks.
  check(poisoned, "memory that was never written, or is read past the primitives, is NaN in all formats");
  check(report.counters.uninitialised_reads == 2 * 32 * (2 + 2 + 1 + 8), "reads of such memory are counted",
        std::to_string(report.counters.uninitialised_reads));
}

// What looks like a race, but is none.
void test_ordered() {
  const Report report = cusim::launch({}, 2, 64, 2048, [&] {
    char* mine = shared_memory() + 4 * threadIdx.x;
    char* next = shared_memory() + 4 * (threadIdx.x ^ 1);
    store_shared(shared_memory() + 1800 + 2 * threadIdx.x, uint16_t{1});  // two threads, but two halves of a word
    for (int i = 0; i < 3; i++) {
      store_shared(mine, i);
      sync_warp();
      load_shared<int>(next);
      sync_warp();
    }
    sync_threads();
    load_shared<int>(shared_memory());
    load_shared<int>(shared_memory());
    sync_threads();
    if (threadIdx.x == 63) store_shared(shared_memory(), 7);
    sync_threads();
    for (int i = 0; i < 3; i++) {  // in teams of both warps
      load_shared<int>(shared_memory() + 4 * (threadIdx.x ^ 32));
      sync_team(0, 64);
      store_shared(mine, i);
      sync_team(0, 64);
    }
    sync_threads();
    if (threadIdx.x == 63) store_shared(shared_memory(), 7);
    sync_threads();
    if (threadIdx.x < 32) any_lane(load_shared<int>(shared_memory()) == 7);  // whole warps may go apart
    copy_async_commit();                                                     // an empty group
    // Of each matrix a lane gets the word that it has written itself.
    char* matrices = shared_memory() + 512 * (1 + threadIdx.x / 32);
    uint32_t r[4];
    for (unsigned m = 0; m < 4; m++) store_shared(matrices + 128 * m + 4 * (threadIdx.x % 32), m);
    ldmatrix_x4(r, matrices + 16 * (threadIdx.x % 32));
  });
  if (clean(report, "ordered accesses")) check(true, "accesses ordered by barriers of warp or block are no race");
}

}  // namespace

int main() {
  const auto start = std::chrono::steady_clock::now();
  test_formats<Half16>();
  test_formats<BFloat16>();
  test_mma<Half16, 16>();
  test_mma<Half16, 8>();
  test_mma<BFloat16, 16>();
  test_mma<BFloat16, 8>();
  test_float_mma();
  test_mma_alignment();
  test_ldmatrix();
  test_stmatrix<1>();
  test_stmatrix<2>();
  test_stmatrix<4>();
  test_exchange();
  test_copies();
  test_copy_times();
  test_orders();
  test_functions();
  test_product<Half16>();
  test_product<BFloat16>();
  test_ordered();
  test_poison();
  test_product_mistakes();
  test_races();
  test_collectives();
  test_addresses();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%d of %d checks failed, %.1f s\n", num_failures, num_checks, seconds);
  return num_failures == 0 ? 0 : 1;
}
