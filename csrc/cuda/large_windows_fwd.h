// SPDX-License-Identifier: Apache-2.0
//
// The forward kernels of all that small_windows_fwd.h does not take, in float16 and bfloat16: windows of up to 1,024
// tokens with head dimensions 16, 32, 64, 96 and 128; and faster ones of windows of 12 x 12 and 16 x 16 at 32. How they
// are launched.
#pragma once

#include <algorithm>
#include <cstdint>

#include "square_windows_fwd.h"
#include "stream_windows_fwd.h"

namespace swin_fast::cuda {

// The side of the square windows that have a kernel of their own, or 0.
inline int large_fwd_window(const WindowAttentionParams& p) {
  const bool square = p.hd == 32 && p.window_size[0] == p.window_size[1];
  return square && (p.window_size[0] == 12 || p.window_size[0] == 16) ? p.window_size[0] : 0;
}

// How a call runs: first arrange_bias(arrange) with any grid, for instance arrange.blocks(256) of 256 threads, after
// arrange.fragments and params.fragments were set to workspace_bytes() bytes, aligned to 16. Then
//   square_windows_fwd<T, kWindow, kCosine, kAligned, kCompact>(params)  for a window that is not 0,
//   stream_windows_fwd<T, kHd, kCosine, kAligned>(params)                otherwise,
// with grid params.blocks, `threads` and `shared_bytes`. Nothing is to be launched where params.all.of_all is 0.
struct LargeFwdPlan {
  LargeFwdParams params;
  ArrangeParams arrange;
  bool compact = false;
  int threads = 0;
  size_t shared_bytes = 0;

  int64_t workspace_bytes() const { return arrange.layout.bytes(); }
};

// How the work of a problem is cut for a GPU of so many multiprocessors with room for so much shared memory a block.
// kWindow as of large_fwd_window(); kHd the head dimension.
template <int kWindow, int kHd>
LargeFwdPlan cut_large_fwd(const WindowAttentionFwdParams& problem, int multiprocessors, size_t shared_memory) {
  const int heads_with_bias = problem.bias_form == BiasForm::kNone ? 1 : problem.nH;
  LargeFwdPlan plan{{problem,
                     Windows(problem),
                     static_cast<uint32_t>(2 * problem.qkv_stride[1]),
                     static_cast<uint32_t>(2 * problem.qkv_stride[2]),
                     {}},
                    {problem, {}, nullptr}};
  LargeFwdParams& p = plan.params;
  p.problem.mask_value = limited(problem.mask_value);
  const int64_t units = p.all.of_all * problem.nH;
  if constexpr (kWindow != 0) {
    using Sizes = SquareSizes<kWindow>;
    static_assert(kHd == Sizes::kHd, "square windows have head dimension 32");
    plan.compact = problem.bias_form != BiasForm::kDense;
    p.bias = {Sizes::kRowTiles, 2 * Sizes::kRowTiles, plan.compact ? Sizes::kPanel : 0, heads_with_bias};
    const int64_t wanted = std::min(int64_t{Sizes::kMostWindows}, ceil_div(units, multiprocessors));
    while (p.windows < wanted && Sizes::shared_bytes(plan.compact, p.windows + 1) <= shared_memory) ++p.windows;
    p.warps = Sizes::kTeam * p.windows;
    p.rounds = static_cast<int32_t>(ceil_div(p.all.of_all, p.windows));
    p.blocks = static_cast<int32_t>(std::min(int64_t{multiprocessors}, int64_t{problem.nH} * p.rounds));
    plan.shared_bytes = Sizes::shared_bytes(plan.compact, p.windows);
  } else {
    using Sizes = StreamSizes<kHd>;
    const int tokens = problem.window_area();
    p.bias = Sizes::bias(tokens, heads_with_bias);
    p.warps = std::min(Sizes::kMostWarps, Sizes::groups(tokens));
    p.blocks = static_cast<int32_t>(std::min(units, int64_t{16} * multiprocessors));
    plan.shared_bytes = Sizes::shared_bytes(tokens, p.warps);
  }
  plan.threads = 32 * p.warps;
  plan.arrange.layout = p.bias;
  return plan;
}

}  // namespace swin_fast::cuda
