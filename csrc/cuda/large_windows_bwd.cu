// SPDX-License-Identifier: Apache-2.0
//
// Launches of large_windows_bwd.h, for the element type SWIN_FAST_ELEMENT.
#include "large_windows_bwd.h"
#include "launch.h"
#include "window12_bwd.h"
#include "window16_bwd.h"

namespace swin_fast::cuda {

template <class T>
size_t LargeWindowsBwd<T>::scratch_bytes(const WindowAttentionBwdParams& problem, const Gpu& gpu) {
  if constexpr (!is_float<T>) {
    if (takes_window12_bwd(problem, gpu.shared_memory)) return Window12Bwd<T>::scratch_bytes(problem, gpu);
    if (takes_window16_bwd(problem, gpu.shared_memory)) return Window16Bwd<T>::scratch_bytes(problem, gpu);
  }
  return cut_large_bwd(problem, aligned(problem), gpu.multiprocessors, gpu.shared_memory, nullptr).scratch_bytes;
}

template <class T>
void LargeWindowsBwd<T>::launch(const WindowAttentionBwdParams& problem, const Gpu& gpu, void* scratch) {
  if constexpr (!is_float<T>) {
    if (takes_window12_bwd(problem, gpu.shared_memory)) return Window12Bwd<T>::launch(problem, gpu, scratch);
    if (takes_window16_bwd(problem, gpu.shared_memory)) return Window16Bwd<T>::launch(problem, gpu, scratch);
  }
  const LargeBwdParams p = cut_large_bwd(problem, aligned(problem), gpu.multiprocessors, gpu.shared_memory, scratch);
  with_head_dim<16, 32, 64, 96, 128>(problem, [&](auto head_dim) {
    launch_large_bwd<T, decltype(head_dim)::value>(p, Launcher{"large_windows_bwd", gpu});
  });
}

template struct LargeWindowsBwd<SWIN_FAST_ELEMENT>;

}  // namespace swin_fast::cuda
