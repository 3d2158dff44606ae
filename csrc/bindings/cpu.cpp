// SPDX-License-Identifier: Apache-2.0
//
// The CPU backend as torch operators, on LibTorch's stable ABI: check, allocate, fill the params struct, launch. Boxed
// calls are matched by argument count only, so every dtype and size that the kernels rely on is checked here a second
// time (functional.py gives users the better message).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../cpu/kernels.h"
#include "../cpu/window_attention.h"

namespace swin_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// at::parallel_for, so that torch.set_num_threads is obeyed.
void torch_parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                        void* context) {
  torch::stable::parallel_for(begin, end, grain, [&](int64_t b, int64_t e) { body(b, e, context); });
}

swin_fast::ScalarType kernel_dtype(const Tensor& qkv) {
  switch (qkv.scalar_type()) {
    case ScalarType::Float: return swin_fast::ScalarType::kFloat32;
    case ScalarType::Half: return swin_fast::ScalarType::kFloat16;
    case ScalarType::BFloat16: return swin_fast::ScalarType::kBFloat16;
    default: STD_TORCH_CHECK(false, "swin_fast cpu: qkv must be float32, float16 or bfloat16");
  }
  return swin_fast::ScalarType::kFloat32;
}

void check_shape(const char* name, const Tensor& t, std::initializer_list<int64_t> wanted) {
  bool same = t.dim() == static_cast<int64_t>(wanted.size());
  int64_t d = 0;
  for (const int64_t size : wanted) same = same && t.size(d++) == size;
  STD_TORCH_CHECK(same, "swin_fast cpu: ", name, " has the wrong shape");
}

// What a call holds on to while the kernels run: contiguous copies where strides do not serve.
struct Problem {
  Tensor qkv;
  std::optional<Tensor> bias, logit_scale, pad_value;
};

Problem fill(WindowAttentionParams& p, const Tensor& qkv, const std::optional<Tensor>& bias,
             const std::optional<Tensor>& logit_scale, const std::optional<Tensor>& pad_value,
             const std::vector<int64_t>& window_size, const std::vector<int64_t>& shift_size, double scale,
             const std::string& pad_order, double mask_value) {
  STD_TORCH_CHECK(qkv.dim() == 6 && qkv.size(3) == 3, "swin_fast cpu: qkv must be (B, H, W, 3, nH, hd)");
  p.dtype = kernel_dtype(qkv);
  p.B = qkv.size(0);
  p.H = qkv.size(1);
  p.W = qkv.size(2);
  p.nH = static_cast<int32_t>(qkv.size(4));
  p.hd = static_cast<int32_t>(qkv.size(5));
  STD_TORCH_CHECK(p.H > 0 && p.W > 0 && p.nH > 0, "swin_fast cpu: qkv must have at least one token and one head");
  STD_TORCH_CHECK(qkv.size(5) > 0 && qkv.size(5) % 2 == 0 && qkv.size(5) <= cpu::kMaxHeadDim,
                  "swin_fast cpu: head_dim must be even and at most 128");
  STD_TORCH_CHECK(window_size.size() == 2 && shift_size.size() == 2,
                  "swin_fast cpu: window_size and shift_size must have two entries");
  for (size_t axis = 0; axis < 2; axis++) {
    STD_TORCH_CHECK(window_size[axis] >= 1 && window_size[axis] <= cpu::kMaxWindowArea && shift_size[axis] >= 0 &&
                        shift_size[axis] < window_size[axis],
                    "swin_fast cpu: window_size must be positive and shift_size within it");
    p.window_size[axis] = static_cast<int32_t>(window_size[axis]);
    p.shift_size[axis] = static_cast<int32_t>(shift_size[axis]);
  }
  const int64_t N = window_size[0] * window_size[1];
  STD_TORCH_CHECK(N <= cpu::kMaxWindowArea, "swin_fast cpu: window_size must hold at most 1024 tokens");
  STD_TORCH_CHECK(pad_order == "pad_roll" || pad_order == "roll_pad",
                  "swin_fast cpu: pad_order must be pad_roll or roll_pad");
  p.pad_order = pad_order == "pad_roll" ? PadOrder::kPadRoll : PadOrder::kRollPad;
  p.scale = static_cast<float>(scale);
  p.mask_value = static_cast<float>(mask_value);

  Problem held{qkv, {}, {}, {}};
  if (qkv.stride(5) != 1) held.qkv = torch::stable::contiguous(qkv);
  p.qkv = held.qkv.const_data_ptr();
  for (int64_t d = 0; d < 5; d++) p.qkv_stride[d] = held.qkv.stride(d);

  p.bias_form = BiasForm::kNone;
  p.bias = nullptr;
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->scalar_type() == ScalarType::Float, "swin_fast cpu: bias must be float32");
    STD_TORCH_CHECK(bias->dim() == 3 && bias->size(0) == p.nH, "swin_fast cpu: bias must be (nH, ., .)");
    const bool dense = bias->size(1) == N && bias->size(2) == N;
    if (!dense) check_shape("bias", *bias, {p.nH, 2 * window_size[0] - 1, 2 * window_size[1] - 1});
    held.bias = torch::stable::contiguous(*bias);
    p.bias_form = dense ? BiasForm::kDense : BiasForm::kRelative;
    p.bias = static_cast<const float*>(held.bias->const_data_ptr());
  }
  p.logit_scale = nullptr;
  if (logit_scale.has_value()) {
    STD_TORCH_CHECK(logit_scale->scalar_type() == ScalarType::Float, "swin_fast cpu: logit_scale must be float32");
    check_shape("logit_scale", *logit_scale, {p.nH});
    held.logit_scale = torch::stable::contiguous(*logit_scale);
    p.logit_scale = static_cast<const float*>(held.logit_scale->const_data_ptr());
  }
  p.pad_value = nullptr;
  if (pad_value.has_value()) {
    STD_TORCH_CHECK(pad_value->scalar_type() == qkv.scalar_type(),
                    "swin_fast cpu: pad_value must have the dtype of qkv");
    check_shape("pad_value", *pad_value, {3, p.nH, p.hd});
    held.pad_value = torch::stable::contiguous(*pad_value);
    p.pad_value = held.pad_value->const_data_ptr();
  }
  return held;
}

Tensor window_attention_fwd(const Tensor& qkv, const std::optional<Tensor>& bias,
                            const std::optional<Tensor>& logit_scale, const std::optional<Tensor>& pad_value,
                            std::vector<int64_t> window_size, std::vector<int64_t> shift_size, double scale,
                            std::string pad_order, double mask_value) {
  WindowAttentionFwdParams p;
  const Problem held =
      fill(p, qkv, bias, logit_scale, pad_value, window_size, shift_size, scale, pad_order, mask_value);
  Tensor out = torch::stable::new_empty(qkv, {p.B, p.H, p.W, static_cast<int64_t>(p.nH) * p.hd});
  p.out = out.mutable_data_ptr();
  cpu::window_attention_fwd(p, torch_parallel_for);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> window_attention_bwd(
    const Tensor& grad_out, const Tensor& qkv, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& logit_scale, const std::optional<Tensor>& pad_value, std::vector<int64_t> window_size,
    std::vector<int64_t> shift_size, double scale, std::string pad_order, double mask_value) {
  WindowAttentionBwdParams p;
  const Problem held =
      fill(p, qkv, bias, logit_scale, pad_value, window_size, shift_size, scale, pad_order, mask_value);
  STD_TORCH_CHECK(grad_out.scalar_type() == qkv.scalar_type(), "swin_fast cpu: grad_out must have the dtype of qkv");
  check_shape("grad_out", grad_out, {p.B, p.H, p.W, static_cast<int64_t>(p.nH) * p.hd});
  const Tensor dout = grad_out.stride(3) == 1 ? grad_out : torch::stable::contiguous(grad_out);
  p.grad_out = dout.const_data_ptr();
  for (int64_t d = 0; d < 3; d++) p.grad_out_stride[d] = dout.stride(d);

  Tensor dqkv = torch::stable::new_empty(qkv, {p.B, p.H, p.W, 3, p.nH, p.hd});
  p.dqkv = dqkv.mutable_data_ptr();
  const auto like = [&](const std::optional<Tensor>& t, ScalarType dtype) {
    if (!t.has_value()) return torch::stable::new_empty(qkv, {0}, dtype);
    std::vector<int64_t> sizes;
    for (int64_t d = 0; d < t->dim(); d++) sizes.push_back(t->size(d));
    return torch::stable::new_empty(qkv, sizes, dtype);
  };
  Tensor dbias = like(bias, ScalarType::Float);
  Tensor dlogit_scale = like(logit_scale, ScalarType::Float);
  Tensor dpad_value = like(pad_value, qkv.scalar_type());
  p.dbias = bias.has_value() ? static_cast<float*>(dbias.mutable_data_ptr()) : nullptr;
  p.dlogit_scale = logit_scale.has_value() ? static_cast<float*>(dlogit_scale.mutable_data_ptr()) : nullptr;
  p.dpad_value = pad_value.has_value() ? dpad_value.mutable_data_ptr() : nullptr;
  cpu::window_attention_bwd(p, torch_parallel_for);
  return {dqkv, dbias, dlogit_scale, dpad_value};
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
