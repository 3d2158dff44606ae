// SPDX-License-Identifier: Apache-2.0
//
// Launches of large_windows_fwd.h, for the element type SWIN_FAST_ELEMENT.
#include "large_windows_fwd.h"
#include "launch.h"

namespace swin_fast::cuda {
namespace {

// Calls f(window, head_dim, plan), of which the first two are constants.
template <class F>
void with_plan(const WindowAttentionFwdParams& problem, const Gpu& gpu, const F& f) {
  with_head_dim<16, 32, 64, 96, 128>(problem, [&](auto head_dim) {
    constexpr int kHd = decltype(head_dim)::value;
    const auto cut = [&](auto window) {
      f(window, head_dim, cut_large_fwd<decltype(window)::value, kHd>(problem, gpu.multiprocessors, gpu.shared_memory));
    };
    if constexpr (kHd == 32) {
      with_window<12, 16>(problem, cut);
    } else {
      cut(std::integral_constant<int, 0>{});
    }
  });
}

}  // namespace

template <class T>
size_t LargeWindowsFwd<T>::scratch_bytes(const WindowAttentionFwdParams& problem, const Gpu& gpu) {
  size_t bytes = 0;
  with_plan(problem, gpu,
            [&](auto, auto, const LargeFwdPlan& plan) { bytes = static_cast<size_t>(plan.workspace_bytes()); });
  return bytes;
}

template <class T>
void LargeWindowsFwd<T>::launch(const WindowAttentionFwdParams& problem, const Gpu& gpu, void* scratch) {
  const Launcher launcher{"large_windows_fwd", gpu};
  with_plan(problem, gpu, [&](auto window, auto head_dim, LargeFwdPlan plan) {
    constexpr int kWindow = decltype(window)::value, kHd = decltype(head_dim)::value;
    plan.arrange.fragments = scratch;
    plan.params.fragments = scratch;
    launcher(arrange_bias<256>, plan.arrange.blocks(256), 256, 0, plan.arrange);
    with_constant(problem.logit_scale != nullptr, [&](auto cosine) {
      with_constant(aligned(problem), [&](auto chunks) {
        constexpr bool kCosine = decltype(cosine)::value, kAligned = decltype(chunks)::value;
        const auto run = [&](auto* kernel) {
          launcher(kernel, plan.params.blocks, plan.threads, plan.shared_bytes, plan.params);
        };
        if constexpr (kWindow == 0) {
          run(stream_windows_fwd<T, kHd, kCosine, kAligned>);
        } else {
          with_constant(plan.compact, [&](auto compact) {
            run(square_windows_fwd<T, kWindow, kCosine, kAligned, decltype(compact)::value>);
          });
        }
      });
    });
  });
}

template struct LargeWindowsFwd<SWIN_FAST_ELEMENT>;

}  // namespace swin_fast::cuda
