// SPDX-License-Identifier: Apache-2.0
//
// The CPU backend as torch operators.
#include "../cpu/window_attention.h"
#include "problem.h"

namespace swin_fast {
namespace {

// at::parallel_for, so that torch.set_num_threads is obeyed.
void torch_parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                        void* context) {
  torch::stable::parallel_for(begin, end, grain, [&](int64_t b, int64_t e) { body(b, e, context); });
}

Tensor window_attention_fwd(const Tensor& qkv, const std::optional<Tensor>& bias,
                            const std::optional<Tensor>& logit_scale, const std::optional<Tensor>& pad_value,
                            std::vector<int64_t> window_size, std::vector<int64_t> shift_size, double scale,
                            std::string pad_order, double mask_value) {
  Arguments given{"cpu", qkv, bias, logit_scale, pad_value, window_size, shift_size, scale, pad_order, mask_value};
  return given.forward([](const WindowAttentionFwdParams& p) { cpu::window_attention_fwd(p, torch_parallel_for); });
}

Gradients window_attention_bwd(const Tensor& grad_out, const Tensor& qkv, const std::optional<Tensor>& bias,
                               const std::optional<Tensor>& logit_scale, const std::optional<Tensor>& pad_value,
                               std::vector<int64_t> window_size, std::vector<int64_t> shift_size, double scale,
                               std::string pad_order, double mask_value) {
  Arguments given{"cpu", qkv, bias, logit_scale, pad_value, window_size, shift_size, scale, pad_order, mask_value};
  return given.backward(grad_out,
                        [](const WindowAttentionBwdParams& p) { cpu::window_attention_bwd(p, torch_parallel_for); });
}

}  // namespace
}  // namespace swin_fast

STABLE_TORCH_LIBRARY_IMPL(swin_fast, CPU, m) {
  m.impl("window_attention_fwd.cpu", TORCH_BOX(&swin_fast::window_attention_fwd));
  m.impl("window_attention_bwd.cpu", TORCH_BOX(&swin_fast::window_attention_bwd));
}

// Read by ctypes: this library holds no Python symbol.
#define SWIN_FAST_EXPORT extern "C" __attribute__((visibility("default")))
SWIN_FAST_EXPORT const char* swin_fast_cpu_build_info() { return swin_fast::cpu::build_info(); }
SWIN_FAST_EXPORT const char* swin_fast_cpu_isa() { return swin_fast::cpu::isa(); }
SWIN_FAST_EXPORT int swin_fast_cpu_select_isa(const char* name) { return swin_fast::cpu::select_isa(name) ? 1 : 0; }
