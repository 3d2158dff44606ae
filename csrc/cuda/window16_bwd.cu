// SPDX-License-Identifier: Apache-2.0
//
// Launches of window16_bwd.h, for the element type SWIN_FAST_ELEMENT.
#include "launch.h"
#include "window16_bwd.h"

namespace swin_fast::cuda {

template <class T>
size_t Window16Bwd<T>::scratch_bytes(const WindowAttentionBwdParams& problem, const Gpu& gpu) {
  return cut_window16_bwd(problem, aligned(problem), gpu.multiprocessors, nullptr).parts.bytes;
}

template <class T>
void Window16Bwd<T>::launch(const WindowAttentionBwdParams& problem, const Gpu& gpu, void* scratch) {
  launch_window16_bwd<T>(cut_window16_bwd(problem, aligned(problem), gpu.multiprocessors, scratch),
                         Launcher{"window16_bwd", gpu});
}

template struct Window16Bwd<SWIN_FAST_ELEMENT>;

}  // namespace swin_fast::cuda
