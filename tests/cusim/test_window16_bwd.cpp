// SPDX-License-Identifier: Apache-2.0
//
// csrc/cuda/window16_bwd.h in the emulator.
#include "../../csrc/cuda/window16_bwd.h"
#include "one_pass_checks.h"

namespace swin_fast_test {
namespace {

void window16(const swin_fast::WindowAttentionBwdParams& problem, bool aligned, const Schedule& schedule) {
  using namespace swin_fast::cuda;
  report().check(takes_window16_bwd(problem, kSharedMemory), "a problem is not taken");
  const auto cut = [&](void* scratch) { return cut_window16_bwd(problem, aligned, schedule.multiprocessors, scratch); };
  const auto scratch =
      output_buffer(static_cast<int64_t>(cut(nullptr).parts.bytes) / 4, ScalarType::kFloat32, schedule.side());
  with_element(problem.dtype,
               [&](auto element) { launch_window16_bwd<decltype(element)>(cut(scratch->data()), Launcher{schedule}); });
  report().check(scratch->rest_is_untouched(), "write outside the scratch memory");
}

size_t test_all(bool quick) { return test_one_pass({window16, 16, swin_fast::cuda::takes_window16_bwd}, quick); }

}  // namespace
}  // namespace swin_fast_test

int main(int argc, char** argv) { return swin_fast_test::run_driver(argc, argv, swin_fast_test::test_all); }
