// SPDX-License-Identifier: Apache-2.0
//
// Runs the CPU kernels on guarded memory, in a chosen layout and cutting of the parallel loop, and judges the results.
#pragma once

#include <algorithm>
#include <thread>

#include "../../csrc/cpu/window_attention.h"
#include "harness.h"

namespace swin_fast_test {

// How a ParallelFor cuts its range. Threads: every piece on one of its own.
struct Cutting {
  int pieces = 1;
  bool reversed = false, threads = false;
};

inline Cutting& current_cutting() {
  static Cutting cutting;
  return cutting;
}

inline void cutting_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                        void* context) {
  const Cutting cutting = current_cutting();
  if (begin >= end) return;
  const int64_t length = end - begin;
  const int64_t piece = std::max({int64_t{1}, grain, (length + cutting.pieces - 1) / cutting.pieces});
  std::vector<std::thread> threads;
  const int64_t count = (length + piece - 1) / piece;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t first = begin + (cutting.reversed ? count - 1 - n : n) * piece;
    const int64_t last = std::min(first + piece, end);
    if (cutting.threads) {
      threads.emplace_back(body, first, last, context);
    } else {
      body(first, last, context);
    }
  }
  for (std::thread& thread : threads) thread.join();
}

// The axes in another order: (3, nH, B, W, H, hd) and (B, W, H, C).
inline Layout permuted_layout(const Problem& p) {
  const int64_t plane = p.H * p.W * p.hd, C = int64_t{p.nH} * p.hd;
  return {{plane, p.hd, p.H * p.hd, p.nH * p.B * plane, p.B * plane}, {p.H * p.W * C, C, p.H * C}};
}

// Forward and backward on guarded outputs, from qkv and grad_out (null: forward only) given as the caller laid them
// out.
inline Outputs run_on(const Problem& p, const EncodedInputs& in, const Layout& layout, const void* qkv,
                      const void* grad_out, GuardSide side) {
  const auto bias = constant_input(in.bias, side);
  const auto logit_scale = constant_input(in.logit_scale, side);
  const auto pad_value = constant_input(in.pad_value, side);
  swin_fast::WindowAttentionParams params = make_params(p, layout);
  params.qkv = qkv;
  params.bias = p.bias_form == BiasForm::kNone ? nullptr : reinterpret_cast<const float*>(bias->data());
  params.logit_scale = p.cosine ? reinterpret_cast<const float*>(logit_scale->data()) : nullptr;
  params.pad_value = p.has_pad_value ? pad_value->data() : nullptr;

  Outputs outputs;
  const auto out = output_buffer(p.out_size(), p.dtype, side);
  swin_fast::WindowAttentionFwdParams fwd{};
  static_cast<swin_fast::WindowAttentionParams&>(fwd) = params;
  fwd.out = out->data();
  swin_fast::cpu::window_attention_fwd(fwd, cutting_for);
  outputs.out = take(out.get(), p.dtype);
  if (grad_out == nullptr) return outputs;

  const auto dqkv = output_buffer(p.qkv_size(), p.dtype, side);
  const auto dbias = output_buffer(p.bias_size(), ScalarType::kFloat32, side);
  const auto dlogit_scale = output_buffer(p.logit_scale_size(), ScalarType::kFloat32, side);
  const auto dpad_value = output_buffer(p.pad_size(), p.dtype, side);
  swin_fast::WindowAttentionBwdParams bwd{};
  static_cast<swin_fast::WindowAttentionParams&>(bwd) = params;
  bwd.grad_out = grad_out;
  std::copy(layout.grad_out, layout.grad_out + 3, bwd.grad_out_stride);
  bwd.dqkv = dqkv->data();
  bwd.dbias = params.bias ? reinterpret_cast<float*>(dbias->data()) : nullptr;
  bwd.dlogit_scale = params.logit_scale ? reinterpret_cast<float*>(dlogit_scale->data()) : nullptr;
  bwd.dpad_value = params.pad_value ? dpad_value->data() : nullptr;
  swin_fast::cpu::window_attention_bwd(bwd, cutting_for);
  outputs.dqkv = take(dqkv.get(), p.dtype);
  outputs.dbias = take(dbias.get(), ScalarType::kFloat32);
  outputs.dlogit_scale = take(dlogit_scale.get(), ScalarType::kFloat32);
  outputs.dpad_value = take(dpad_value.get(), p.dtype);
  return outputs;
}

// The same with guarded inputs too. The room between the rows of a strided input holds NaN.
inline Outputs run_kernels(const Problem& p, const EncodedInputs& in, const Layout& layout, GuardSide side,
                           const Cutting& cutting) {
  current_cutting() = cutting;
  const auto nothing = [](int64_t, int64_t) {};
  const auto qkv = output_buffer(qkv_extent(p, layout), p.dtype, side);
  place_qkv(p, layout, in, qkv->data(), nothing);
  qkv->make_read_only();
  const auto grad_out = output_buffer(grad_out_extent(p, layout), p.dtype, side);
  place_grad_out(p, layout, in, grad_out->data(), nothing);
  grad_out->make_read_only();
  return run_on(p, in, layout, qkv->data(), grad_out->data(), side);
}

inline void check_against(const Problem& p, const Outputs& outputs, const Results& results, const std::string& path) {
  const char* const types[] = {"float32", "float16", "bfloat16"};
  // All other paths widen 16-bit inputs to float32, which is exact, and round the result alone.
  const bool rounds_operands = p.dtype == ScalarType::kBFloat16 && path == "avx512_bf16";
  for (const NamedTensor& tensor : kTensors) {
    const Tensor& got = outputs.*tensor.got;
    const Expected& expected = results.*tensor.expected;
    const int64_t size = static_cast<int64_t>(expected.value.size());
    double& worst = report().worst[path + " " + types[static_cast<int>(p.dtype)] + " " + tensor.name];
    double here = 0;
    int64_t bad = 0, at = 0;
    for (int64_t i = 0; i < size; ++i) {
      const double ratio = judge(p, rounds_operands, got, expected, i);
      bad += ratio > 1;
      if (ratio > here) {
        here = ratio;
        at = i;
      }
    }
    worst = std::max(worst, here);
    report().num_checks += size;
    if (bad > 0) {
      char text[256];
      std::snprintf(text, sizeof text,
                    "%s: %lld of %lld elements wrong; element %lld is %.9g, exact %.9g, %.3g x tolerance", tensor.name,
                    static_cast<long long>(bad), static_cast<long long>(size), static_cast<long long>(at), got[at],
                    expected.value[at], here);
      report().fail(text);
    }
  }
  // The query part of a padded position has no gradient at all, not a small one.
  for (int64_t i = 0; i < outputs.dpad_value.size() / 3; ++i) {
    report().check(outputs.dpad_value[i] == 0, "dpad_value: the q part is not exactly 0");
  }
}

}  // namespace swin_fast_test
