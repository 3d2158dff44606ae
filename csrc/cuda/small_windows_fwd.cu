// SPDX-License-Identifier: Apache-2.0
//
// Launches of small_windows_fwd.h, for the element type SWIN_FAST_ELEMENT.
#include "launch.h"
#include "small_windows_fwd.h"

namespace swin_fast::cuda {

template <class T>
size_t SmallWindowsFwd<T>::scratch_bytes(const WindowAttentionFwdParams&, const Gpu&) {
  return 0;
}

template <class T>
void SmallWindowsFwd<T>::launch(const WindowAttentionFwdParams& problem, const Gpu& gpu, void*) {
  const Launcher launcher{"small_windows_fwd", gpu};
  const auto run = [&](auto window) {
    with_constant(problem.logit_scale != nullptr, [&](auto cosine) {
      with_constant(aligned(problem), [&](auto chunks) {
        constexpr int kWindow = decltype(window)::value;
        const SmallFwdParams p = cut_small_fwd<kWindow>(problem, gpu.multiprocessors, gpu.shared_memory);
        launcher(small_windows_fwd<T, kWindow, decltype(cosine)::value, decltype(chunks)::value>,
                 int64_t{problem.nH} * p.blocks, 32 * kSmallFwdWarps, SmallFwdSizes<kWindow>::shared_bytes(p.windows),
                 p);
      });
    });
  };
  if (divides_by_scale(problem)) {
    with_window<7, 8>(problem, run);
  } else {
    run(std::integral_constant<int, 0>{});
  }
}

template struct SmallWindowsFwd<SWIN_FAST_ELEMENT>;

}  // namespace swin_fast::cuda
