// SPDX-License-Identifier: Apache-2.0
//
// What becomes of a launch through the emulated runtime.
#include "emulated_runtime.h"

#include <cstdlib>
#include <cstring>
#include <fstream>

namespace cusim {
namespace {

void tell(const char* name, const Counters& counters) {
  const char* const path = std::getenv("SWIN_FAST_CUSIM_COUNTERS");
  if (path == nullptr) return;
  std::ofstream out(path, std::ios::app);
  out << "{\"launch\": \"" << name << '"';
  for (const auto& [what, count] : counters.all()) out << ", \"" << what << "\": " << count;
  out << "}\n";
}

}  // namespace

Math chosen_math() {
  const char* const name = std::getenv("SWIN_FAST_CUSIM_MATH");
  if (name == nullptr || std::strcmp(name, "exact") == 0) return Math::exact;
  if (std::strcmp(name, "hardware_like") == 0) return Math::hardware_like;
  throw std::runtime_error(std::string("SWIN_FAST_CUSIM_MATH: no model is called ") + name);
}

void judge_launch(const char* name, const Report& report) {
  if (report.faults.empty()) return tell(name, report.counters);
  const Fault& fault = report.faults.front();
  throw std::runtime_error(std::string(name) + ": " + name_of(fault.kind) + " at " + fault.site.text() + ": " +
                           fault.message);
}

}  // namespace cusim
