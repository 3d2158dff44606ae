// SPDX-License-Identifier: Apache-2.0
//
// What the tests of the emulator report with: one line a check.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include "../../csrc/cuda/primitives.h"

namespace cusim_test {

using cusim::AsyncCopies;
using cusim::FaultKind;
using cusim::Options;
using cusim::Report;

inline int num_checks = 0;
inline int num_failures = 0;

inline void check(bool ok, const std::string& what, const std::string& detail = "") {
  num_checks++;
  if (!ok) num_failures++;
  std::printf("%s %s%s%s\n", ok ? "ok    " : "FAILED", what.c_str(), ok || detail.empty() ? "" : ": ",
              ok ? "" : detail.c_str());
}

inline bool clean(const Report& report, const std::string& what) {
  if (report.faults.empty()) return true;
  check(false, what, report.faults[0].message);
  return false;
}

template <class T>
const char* type_name() {
  return swin_fast::cuda::is_half<T> ? "half" : "bfloat16";
}

// The kernel must be found faulty in every order of execution and with either kind of copies.
template <class Run>
void expect(FaultKind kind, const std::string& what, const Run& run) {
  std::string wrong;
  std::string message;
  for (uint64_t seed = 0; seed <= 4; seed++) {
    for (AsyncCopies mode : {AsyncCopies::latest, AsyncCopies::earliest}) {
      Options options;
      options.seed = seed;
      options.async_copies = mode;
      const Report report = run(options);
      message = report.faults.empty() ? "no fault" : report.faults[0].message;
      if (report.faults.size() != 1 || report.faults[0].kind != kind)
        wrong = "seed " + std::to_string(seed) + ": " + message;
    }
  }
  check(wrong.empty(), std::string(cusim::name_of(kind)) + ": " + what, wrong);
  if (wrong.empty()) std::printf("         %s\n", message.c_str());
}

template <class Kernel>
void mistake(FaultKind kind, const std::string& what, const Kernel& kernel) {
  expect(kind, what, [&](const Options& options) { return cusim::launch(options, 2, 64, 2048, kernel); });
}

}  // namespace cusim_test
