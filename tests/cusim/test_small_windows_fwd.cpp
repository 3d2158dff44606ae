// SPDX-License-Identifier: Apache-2.0
//
// csrc/cuda/small_windows_fwd.h in the emulator.
#include "../../csrc/cuda/small_windows_fwd.h"
#include "kernel_checks.h"

namespace swin_fast_test {
namespace {

using swin_fast::cuda::SmallFwdSizes;

template <class T, int kWindow, bool kCosine, bool kAligned>
void launch(const swin_fast::WindowAttentionFwdParams& problem, const Schedule& schedule) {
  using namespace swin_fast::cuda;
  const SmallFwdParams p = cut_small_fwd<kWindow>(problem, schedule.multiprocessors, kSharedMemory);
  judge_report(cusim::launch(schedule.options(), static_cast<unsigned>(p.groups * p.blocks),
                             static_cast<unsigned>(32 * p.heads * p.windows),
                             SmallFwdSizes<kWindow>::shared_bytes(p.heads, p.windows),
                             [&] { small_windows_fwd<T, kWindow, kCosine, kAligned>(p); }));
}

void small_windows(const swin_fast::WindowAttentionFwdParams& p, bool aligned, const Schedule& schedule) {
  with_element(p.dtype, [&](auto element) {
    with_small_instance(p, aligned, [&](auto window, auto cosine, auto chunks) {
      launch<decltype(element), window(), cosine(), chunks()>(p, schedule);
    });
  });
}

size_t test_all(bool quick) {
  const std::vector<Problem> problems = problems_for(quick, quick ? std::vector<int>{7} : std::vector<int>{7, 8},
                                                     [](const Problem& p) { return p.hd == 32 && p.area() <= 64; });
  uint64_t seed = 1;
  for (const Problem& problem : problems) test_forward(small_windows, problem, seed++);
  Problem dead;
  dead.dtype = ScalarType::kBFloat16;
  dead.bias_form = BiasForm::kDense;
  test_dead_row(small_windows, dead);
  return problems.size();
}

}  // namespace
}  // namespace swin_fast_test

int main(int argc, char** argv) { return swin_fast_test::run_driver(argc, argv, swin_fast_test::test_all); }
