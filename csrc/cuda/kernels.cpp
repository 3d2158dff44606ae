// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

#include <utility>

namespace swin_fast::cuda {
namespace {

template <class Kind, class Params>
constexpr Launches<Params> launches{Kind::scratch_bytes, Kind::launch};

// Of float16 and bfloat16.
template <template <class> class Kind, class Params>
Kernels<Params> row(const char* name, int32_t least_area, int32_t most_area, std::vector<int32_t> head_dims) {
  return {name,
          least_area,
          most_area,
          std::move(head_dims),
          {},
          launches<Kind<Half16>, Params>,
          launches<Kind<BFloat16>, Params>};
}

// Of float32.
template <class Kind, class Params>
Kernels<Params> float_row(const char* name, int32_t most_area, std::vector<int32_t> head_dims) {
  return {name, 1, most_area, std::move(head_dims), launches<Kind, Params>, {}, {}};
}

}  // namespace

const std::vector<Kernels<WindowAttentionFwdParams>>& forward_kernels() {
  using Params = WindowAttentionFwdParams;
  static const std::vector<Kernels<Params>> rows = {
      row<SmallWindowsFwd, Params>("small_windows_fwd", 1, 64, {32}),
      row<LargeWindowsFwd, Params>("large_windows_fwd", 1, kMaxWindowArea, {16, 32, 64, 96, 128}),
      float_row<FloatWindowsFwd, Params>("float_windows_fwd", kMaxWindowArea, {16, 32, 64, 96, 128}),
  };
  return rows;
}

const std::vector<Kernels<WindowAttentionBwdParams>>& backward_kernels() {
  using Params = WindowAttentionBwdParams;
  static const std::vector<Kernels<Params>> rows = {
      row<SmallWindowsBwd, Params>("small_windows_bwd", 1, 64, {32}),
      row<LargeWindowsBwd, Params>("large_windows_bwd", 1, large_bwd_most_area(2 * 96), {16, 32, 64, 96}),
      row<LargeWindowsBwd, Params>("large_windows_bwd", 1, large_bwd_most_area(2 * 128), {128}),
      float_row<LargeWindowsBwd<Float32>, Params>("large_windows_bwd", large_bwd_most_area(4 * 32), {16, 32}),
      float_row<LargeWindowsBwd<Float32>, Params>("large_windows_bwd", large_bwd_most_area(4 * 64), {64}),
      float_row<LargeWindowsBwd<Float32>, Params>("large_windows_bwd", large_bwd_most_area(4 * 96), {96}),
      float_row<LargeWindowsBwd<Float32>, Params>("large_windows_bwd", large_bwd_most_area(4 * 128), {128}),
  };
  return rows;
}

}  // namespace swin_fast::cuda
