// SPDX-License-Identifier: Apache-2.0
//
// Launches of small_windows_bwd.h, for the element type SWIN_FAST_ELEMENT.
#include "launch.h"
#include "small_windows_bwd.h"

namespace swin_fast::cuda {

template <class T>
size_t SmallWindowsBwd<T>::scratch_bytes(const WindowAttentionBwdParams& problem, const Gpu& gpu) {
  size_t bytes = 0;
  with_window<7, 8>(problem, [&](auto window) {
    bytes = cut_small_bwd<decltype(window)::value>(problem, gpu.multiprocessors, gpu.shared_memory).parts.bytes;
  });
  return bytes;
}

template <class T>
void SmallWindowsBwd<T>::launch(const WindowAttentionBwdParams& problem, const Gpu& gpu, void* scratch) {
  const Launcher launcher{"small_windows_bwd", gpu};
  with_window<7, 8>(problem, [&](auto window) {
    constexpr int kWindow = decltype(window)::value;
    SmallBwdParams p = cut_small_bwd<kWindow>(problem, gpu.multiprocessors, gpu.shared_memory);
    p.parts = Parts::at(scratch, problem, p.parts.owners, PartOfBias::kReady);
    with_constant(problem.logit_scale != nullptr, [&](auto cosine) {
      with_constant(aligned(problem), [&](auto chunks) {
        launcher(small_windows_bwd<T, kWindow, decltype(cosine)::value, decltype(chunks)::value>,
                 int64_t{problem.nH} * p.parts.owners, kSmallBwdThreads, SmallBwdSizes<kWindow>::kBytes, p);
      });
    });
    fold_all<T>(problem, p.parts, launcher);
  });
}

template struct SmallWindowsBwd<SWIN_FAST_ELEMENT>;

}  // namespace swin_fast::cuda
