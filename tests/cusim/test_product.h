// SPDX-License-Identifier: Apache-2.0
//
// Tests of the emulator with a whole kernel: right, its result and counts are the same in every order of execution;
// with a mistake, it is found out in every order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "checks.h"
#include "product_kernel.h"

namespace cusim_test {

struct ProductData {
  static constexpr int kBlocks = 3;
  alignas(16) uint16_t a[kBlocks * kK * kM], b[kBlocks * kK * kN];
  alignas(16) float out[kBlocks * kN * kM];
  float sums[kBlocks * kM];

  template <class T>
  void draw() {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    for (uint16_t& element : a) element = from_float<T>(normal(random));
    for (uint16_t& element : b) element = from_float<T>(normal(random));
  }

  template <class T, Mistake kMistake>
  Report run(Options options) {
    options.global = {{a, sizeof(a)}, {b, sizeof(b)}, {out, sizeof(out)}, {sums, sizeof(sums)}};
    std::fill(std::begin(out), std::end(out), NAN);
    std::fill(std::begin(sums), std::end(sums), NAN);
    return cusim::launch(options, kBlocks, 128, std::max(2 * kTile, kN * kOutputRow),
                         [this] { product<T, kMistake>(a, b, out, sums); });
  }

  template <class T>
  double error() const {
    double largest = 0;
    for (int m = 0; m < kBlocks * kM; m++) {
      const int block = m / kM;
      double total = 0;
      for (int n = 0; n < kN; n++) {
        double sum = 0;
        for (int k = 0; k < kK; k++) {
          sum += static_cast<double>(to_float<T>(a[(block * kK + k) * kM + m % kM])) *
                 to_float<T>(b[(block * kK + k) * kN + n]);
        }
        const double error = std::fabs(out[(block * kN + n) * kM + m % kM] - sum);
        largest = error <= largest ? largest : error;  // NaN stays
        total += sum;
      }
      const double error = std::fabs(sums[m] - total);
      largest = error <= largest ? largest : error;
    }
    return largest;
  }
};

template <class T>
void test_product() {
  static ProductData data;
  data.draw<T>();
  const std::string name = std::string("a right kernel, ") + type_name<T>();
  for (cusim::Math math : {cusim::Math::exact, cusim::Math::hardware_like}) {
    Options options;
    options.math = math;
    const Report first = data.run<T, Mistake::none>(options);
    if (!clean(first, name)) return;
    const double error = data.error<T>();
    check(error < 2e-4, name + ": result", std::to_string(error));
    const std::vector<float> out(std::begin(data.out), std::end(data.out));
    bool same = true;
    for (uint64_t seed = 0; seed <= 12; seed++) {
      for (AsyncCopies mode : {AsyncCopies::latest, AsyncCopies::earliest}) {
        options.seed = seed;
        options.async_copies = mode;
        const Report report = data.run<T, Mistake::none>(options);
        if (!clean(report, name + ", seed " + std::to_string(seed))) return;
        same &= report.counters == first.counters && std::memcmp(data.out, out.data(), sizeof(data.out)) == 0;
      }
    }
    check(same, name + ": same result and counts for all seeds and both ways to copy, and no fault");
    const cusim::Counters& c = first.counters;
    const bool counted = c.mma == 3 * 64 && c.ldmatrix == 3 * 48 && c.ldmatrix_bank_conflicts == 0 &&
                         c.copies == 3 * 4 * 192 && c.copy_commits == 3 * 4 * 128 && c.copy_waits == 3 * 4 * 128 &&
                         c.barriers == 3 * 9 && c.shuffles == 3 * 16 && c.shared_stores == 3 * 128 * 16 &&
                         c.shared_loads == 3 * 512 && c.global_stores == 3 * (512 + 64) && c.global_loads == 0 &&
                         c.uninitialised_reads == 0;
    std::string counts;
    for (const auto& [what, count] : c.all()) counts += std::string(what) + " " + std::to_string(count) + " ";
    check(counted, name + ": counts", counts);
  }
}

// The same kernel with one barrier or wait wrong.
inline void test_product_mistakes() {
  static ProductData data;
  data.draw<BFloat16>();
  expect(FaultKind::race, "no barrier between waiting for copies and reading",
         [](const Options& options) { return data.run<BFloat16, Mistake::no_barrier_after_wait>(options); });
  expect(FaultKind::race, "no barrier before a buffer is used again",
         [](const Options& options) { return data.run<BFloat16, Mistake::no_barrier_before_reuse>(options); });
  expect(FaultKind::race, "waiting for all groups but one",
         [](const Options& options) { return data.run<BFloat16, Mistake::wait_too_weak>(options); });
  expect(FaultKind::race, "no barrier before the output is read back",
         [](const Options& options) { return data.run<BFloat16, Mistake::no_barrier_before_output>(options); });
}

}  // namespace cusim_test
