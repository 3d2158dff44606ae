// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

namespace swin_fast::cuda {
namespace {

template <template <class> class Kind, class Params>
Kernels<Params> row(const char* name, Range window_area, Range head_dim) {
  return {name,
          window_area,
          head_dim,
          {Kind<Half16>::scratch_bytes, Kind<Half16>::launch},
          {Kind<BFloat16>::scratch_bytes, Kind<BFloat16>::launch}};
}

}  // namespace

const std::vector<Kernels<WindowAttentionFwdParams>>& forward_kernels() {
  static const std::vector<Kernels<WindowAttentionFwdParams>> rows = {
      row<SmallWindowsFwd, WindowAttentionFwdParams>("small_windows_fwd", {1, 64}, {32, 32}),
  };
  return rows;
}

const std::vector<Kernels<WindowAttentionBwdParams>>& backward_kernels() {
  static const std::vector<Kernels<WindowAttentionBwdParams>> rows = {};
  return rows;
}

}  // namespace swin_fast::cuda
