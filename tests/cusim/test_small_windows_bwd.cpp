// SPDX-License-Identifier: Apache-2.0
//
// csrc/cuda/small_windows_bwd.h in the emulator.
#include "../../csrc/cuda/small_windows_bwd.h"
#include "kernel_checks.h"

namespace swin_fast_test {
namespace {

template <class T, int kWindow, bool kCosine, bool kAligned>
void launch(const swin_fast::WindowAttentionBwdParams& problem, const Schedule& schedule) {
  using namespace swin_fast::cuda;
  SmallBwdParams p = cut_small_bwd<kWindow>(problem, schedule.multiprocessors, kSharedMemory);
  const auto scratch = output_buffer(static_cast<int64_t>(p.parts.bytes / 4), ScalarType::kFloat32, schedule.side());
  p.parts = Parts::at(scratch->data(), problem, p.parts.owners, PartOfBias::kReady);
  const Launcher run{schedule};
  run(small_windows_bwd<T, kWindow, kCosine, kAligned>, problem.nH * p.parts.owners, kSmallBwdThreads,
      SmallBwdSizes<kWindow>::kBytes, p);
  fold_all<T>(problem, p.parts, run);
}

void small_windows(const swin_fast::WindowAttentionBwdParams& p, bool aligned, const Schedule& schedule) {
  with_element(p.dtype, [&](auto element) {
    with_small_instance(p, aligned, [&](auto window, auto cosine, auto chunks) {
      launch<decltype(element), window(), cosine(), chunks()>(p, schedule);
    });
  });
}

size_t test_all(bool quick) {
  const std::vector<Problem> problems = problems_for(quick, quick ? std::vector<int>{7} : std::vector<int>{7, 8},
                                                     [](const Problem& p) { return p.hd == 32 && p.area() <= 64; });
  test_backward(small_windows, problems, quick);
  Problem other;
  other.dtype = ScalarType::kBFloat16;
  other.bias_form = BiasForm::kDense;
  test_dead_row(small_windows, other);
  test_clamped_norms(small_windows, other);
  other.sh = 3;
  test_vast_bias(small_windows, other);
  other.B = 3;
  other.H = 10;
  other.nH = 2;
  other.has_pad_value = true;
  test_isolation(small_windows, other);
  return problems.size();
}

}  // namespace
}  // namespace swin_fast_test

int main(int argc, char** argv) { return swin_fast_test::run_driver(argc, argv, swin_fast_test::test_all); }
