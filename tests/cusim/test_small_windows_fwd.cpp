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
  Launcher{schedule}(small_windows_fwd<T, kWindow, kCosine, kAligned>, problem.nH * p.blocks, 32 * kSmallFwdWarps,
                     SmallFwdSizes<kWindow>::shared_bytes(p.windows), p);
}

void small_windows(const swin_fast::WindowAttentionFwdParams& p, bool aligned, const Schedule& schedule) {
  with_element(p.dtype, [&](auto element) {
    const auto run = [&](auto window, auto cosine, auto chunks) {
      launch<decltype(element), window(), cosine(), chunks()>(p, schedule);
    };
    if (swin_fast::cuda::divides_by_scale(p)) {
      with_small_instance(p, aligned, run);
    } else {
      swin_fast::cuda::with_constant(
          aligned, [&](auto chunks) { run(std::integral_constant<int, 0>{}, std::false_type{}, chunks); });
    }
  });
}

size_t test_all(bool quick) {
  const std::vector<Problem> problems = problems_for(quick, quick ? std::vector<int>{7} : std::vector<int>{7, 8},
                                                     [](const Problem& p) { return p.hd == 32 && p.area() <= 64; });
  test_forward(small_windows, problems, quick);
  uint64_t seed = problems.size() + 1;
  // More windows than places, of which one has nothing to do: the next window of a place is of another row and image.
  Problem many;
  many.B = 7;
  many.H = 21;
  many.W = 14;
  many.sh = many.sw = 3;
  many.dtype = ScalarType::kBFloat16;
  test_forward(small_windows, many, seed++);
  Problem turned;  // a scale that nothing can be divided by
  turned.bias_form = BiasForm::kRelative;
  turned.scale = -0.25f;
  turned.dtype = ScalarType::kBFloat16;
  test_forward(small_windows, turned, seed++);
  turned.scale = 0.0f;
  test_forward(small_windows, turned, seed++);
  Problem dead;
  dead.dtype = ScalarType::kBFloat16;
  dead.bias_form = BiasForm::kDense;
  test_dead_row(small_windows, dead);
  dead.sh = 3;
  for (const float scale : {0.25f, 4.0f, -0.25f}) {
    dead.scale = scale;
    test_vast_bias(small_windows, dead);
  }
  return problems.size();
}

}  // namespace
}  // namespace swin_fast_test

int main(int argc, char** argv) { return swin_fast_test::run_driver(argc, argv, swin_fast_test::test_all); }
