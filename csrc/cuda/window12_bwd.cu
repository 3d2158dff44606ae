// SPDX-License-Identifier: Apache-2.0
//
// Launches of window12_bwd.h, for the element type SWIN_FAST_ELEMENT.
#include "launch.h"
#include "window12_bwd.h"

namespace swin_fast::cuda {

template <class T>
size_t Window12Bwd<T>::scratch_bytes(const WindowAttentionBwdParams& problem, const Gpu& gpu) {
  return cut_window12_bwd(problem, aligned(problem), gpu.multiprocessors, nullptr).parts.bytes;
}

template <class T>
void Window12Bwd<T>::launch(const WindowAttentionBwdParams& problem, const Gpu& gpu, void* scratch) {
  launch_window12_bwd<T>(cut_window12_bwd(problem, aligned(problem), gpu.multiprocessors, scratch),
                         Launcher{"window12_bwd", gpu});
}

template struct Window12Bwd<SWIN_FAST_ELEMENT>;

}  // namespace swin_fast::cuda
