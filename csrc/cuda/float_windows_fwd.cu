// SPDX-License-Identifier: Apache-2.0
//
// Launches of float_windows_fwd.h.
#include "float_windows_fwd.h"
#include "launch.h"

namespace swin_fast::cuda {
namespace {

// Calls f(head_dim, plan), of which the first is a constant.
template <class F>
void with_plan(const WindowAttentionFwdParams& problem, const Gpu& gpu, const F& f) {
  with_head_dim<16, 32, 64, 96, 128>(problem, [&](auto head_dim) {
    f(head_dim, cut_float_fwd<decltype(head_dim)::value>(problem, gpu.multiprocessors));
  });
}

}  // namespace

size_t FloatWindowsFwd::scratch_bytes(const WindowAttentionFwdParams& problem, const Gpu& gpu) {
  size_t bytes = 0;
  with_plan(problem, gpu, [&](auto, const FloatFwdPlan& plan) { bytes = static_cast<size_t>(plan.workspace_bytes()); });
  return bytes;
}

void FloatWindowsFwd::launch(const WindowAttentionFwdParams& problem, const Gpu& gpu, void* scratch) {
  const Launcher launcher{"float_windows_fwd", gpu};
  with_plan(problem, gpu, [&](auto head_dim, FloatFwdPlan plan) {
    constexpr int kHd = decltype(head_dim)::value;
    plan.arrange.fragments = scratch;
    plan.params.fragments = scratch;
    if (plan.workspace_bytes() > 0) launcher(arrange_bias<256>, plan.arrange.blocks(256), 256, 0, plan.arrange);
    with_constant(problem.logit_scale != nullptr, [&](auto cosine) {
      with_constant(aligned(problem), [&](auto chunks) {
        launcher(float_windows_fwd<kHd, decltype(cosine)::value, decltype(chunks)::value>, plan.params.blocks,
                 plan.threads, plan.shared_bytes, plan.params);
      });
    });
  });
}

}  // namespace swin_fast::cuda
