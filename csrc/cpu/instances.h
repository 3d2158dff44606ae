// SPDX-License-Identifier: Apache-2.0
//
// The instances of one path: compile-time N = 49, 64, 144 at hd = 32, and one for every other size. Included last by
// each kernels_*.cpp, which names its operands and its table.
#pragma once

#include "window_attention_bwd.h"

namespace swin_fast::cpu {
namespace {

// Calls f with the Sizes instance of a problem.
template <class Operands, class F>
SWIN_FAST_INLINE auto with_sizes(const WindowAttentionParams& p, const F& f) {
  [[maybe_unused]] const int n = p.window_area();
#ifndef SWIN_FAST_ISA_SCALAR  // known sizes gain it nothing (N = 49 is a quarter slower) and cost a minute to compile
  if (p.hd == 32 && n == 49) return f(Sizes<Operands, 49, 32>(n, 32));
  if (p.hd == 32 && n == 64) return f(Sizes<Operands, 64, 32>(n, 32));
  if (p.hd == 32 && n == 144) return f(Sizes<Operands, 144, 32>(n, 32));
#endif
  return f(Sizes<Operands, 0, 0>(n, p.hd));
}

template <class Operands>
struct Path {
  static size_t fwd_scratch_bytes(const FwdTask& task) {
    return with_sizes<Operands>(*task.params, [&](auto size) { return fwd_bytes<Operands, decltype(size)>(task); });
  }
  static void fwd(const FwdTask& task, int64_t begin, int64_t end, void* scratch) {
    with_sizes<Operands>(*task.params,
                         [&](auto size) { fwd_strips<Operands, decltype(size)>(task, begin, end, scratch); });
  }
  static size_t bwd_scratch_bytes(const BwdTask& task) {
    return with_sizes<Operands>(*task.params, [&](auto size) { return bwd_bytes<Operands, decltype(size)>(task); });
  }
  static void bwd(const BwdTask& task, int64_t begin, int64_t end, const BwdSums& sums, void* scratch) {
    with_sizes<Operands>(*task.params,
                         [&](auto size) { bwd_strips<Operands, decltype(size)>(task, begin, end, sums, scratch); });
  }
  static void store(ScalarType dtype, const float* src, int64_t count, void* dst, int64_t at) {
    for (int64_t i = 0; i < count; i += kWidth) {
      const vf x[1] = {loadf(src + i)};
      Operands::store_image(dtype, dst, at, static_cast<int>(i), static_cast<int>(count), x, set1(1.f));
    }
  }
  static constexpr Kernels table(const char* name) {
    return {name, fwd_scratch_bytes, fwd, bwd_scratch_bytes, bwd, store};
  }
};

}  // namespace
}  // namespace swin_fast::cpu
