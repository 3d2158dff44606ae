// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

#include <utility>

namespace swin_fast::cuda {
namespace {

template <template <class> class Kind, class Params>
Kernels<Params> row(const char* name, int32_t least_area, int32_t most_area, std::vector<int32_t> head_dims) {
  return {name,
          least_area,
          most_area,
          std::move(head_dims),
          {Kind<Half16>::scratch_bytes, Kind<Half16>::launch},
          {Kind<BFloat16>::scratch_bytes, Kind<BFloat16>::launch}};
}

}  // namespace

const std::vector<Kernels<WindowAttentionFwdParams>>& forward_kernels() {
  static const std::vector<Kernels<WindowAttentionFwdParams>> rows = {
      row<SmallWindowsFwd, WindowAttentionFwdParams>("small_windows_fwd", 1, 64, {32}),
      row<LargeWindowsFwd, WindowAttentionFwdParams>("large_windows_fwd", 1, kMaxWindowArea, {16, 32, 64, 96, 128}),
  };
  return rows;
}

const std::vector<Kernels<WindowAttentionBwdParams>>& backward_kernels() {
  static const std::vector<Kernels<WindowAttentionBwdParams>> rows = {
      row<SmallWindowsBwd, WindowAttentionBwdParams>("small_windows_bwd", 1, 64, {32}),
      row<LargeWindowsBwd, WindowAttentionBwdParams>("large_windows_bwd", 1, large_bwd_most_area(96), {16, 32, 64, 96}),
      row<LargeWindowsBwd, WindowAttentionBwdParams>("large_windows_bwd", 1, large_bwd_most_area(128), {128}),
  };
  return rows;
}

}  // namespace swin_fast::cuda
