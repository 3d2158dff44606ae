// SPDX-License-Identifier: Apache-2.0
//
// What the bindings of all native backends share, on LibTorch's stable ABI: check, allocate, fill the params struct.
// Boxed calls are matched by argument count only, so every dtype, size and device that the kernels rely on is checked
// here a second time (functional.py gives users the better message).
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../window_attention.h"

namespace swin_fast {

using Tensor = torch::stable::Tensor;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // dqkv, dbias, dlogit_scale, dpad_value

// The arguments of the forward op, which follow grad_out in the backward op; `backend` stands in messages.
struct Arguments {
  const char* backend;
  Tensor qkv;
  std::optional<Tensor> bias, logit_scale, pad_value;
  std::vector<int64_t> window_size, shift_size;
  double scale;
  std::string pad_order;
  double mask_value;

  template <class... Words>
  void check(bool condition, const Words&... words) const {
    STD_TORCH_CHECK(condition, "swin_fast ", backend, ": ", words...);
  }

  ScalarType kernel_dtype() const {
    using torch::headeronly::ScalarType;
    switch (qkv.scalar_type()) {
      case ScalarType::Float: return swin_fast::ScalarType::kFloat32;
      case ScalarType::Half: return swin_fast::ScalarType::kFloat16;
      case ScalarType::BFloat16: return swin_fast::ScalarType::kBFloat16;
      default: check(false, "qkv must be float32, float16 or bfloat16");
    }
    return swin_fast::ScalarType::kFloat32;
  }

  void check_tensor(const char* name, const Tensor& t, torch::headeronly::ScalarType dtype,
                    const char* dtype_in_words) const {
    check(t.scalar_type() == dtype, name, " must ", dtype_in_words);
    check(t.is_cuda() == qkv.is_cuda() && t.get_device_index() == qkv.get_device_index(), name,
          " must be on the device of qkv");
  }

  void check_shape(const char* name, const Tensor& t, std::initializer_list<int64_t> wanted) const {
    bool same = t.dim() == static_cast<int64_t>(wanted.size());
    int64_t d = 0;
    for (const int64_t size : wanted) same = same && t.size(d++) == size;
    check(same, name, " has the wrong shape");
  }

  // Checks everything and fills p. What p points at is kept here: contiguous copies where strides do not serve.
  void fill(WindowAttentionParams& p) {
    using torch::headeronly::ScalarType;
    check(qkv.dim() == 6 && qkv.size(3) == 3, "qkv must be (B, H, W, 3, nH, hd)");
    p.dtype = kernel_dtype();
    p.B = qkv.size(0);
    p.H = qkv.size(1);
    p.W = qkv.size(2);
    p.nH = static_cast<int32_t>(qkv.size(4));
    p.hd = static_cast<int32_t>(qkv.size(5));
    check(p.H > 0 && p.W > 0 && p.nH > 0, "qkv must have at least one token and one head");
    check(qkv.size(5) > 0 && qkv.size(5) % 2 == 0 && qkv.size(5) <= kMaxHeadDim,
          "head_dim must be even and at most 128");
    check(window_size.size() == 2 && shift_size.size() == 2, "window_size and shift_size must have two entries");
    for (size_t axis = 0; axis < 2; axis++) {
      check(window_size[axis] >= 1 && window_size[axis] <= kMaxWindowArea && shift_size[axis] >= 0 &&
                shift_size[axis] < window_size[axis],
            "window_size must be positive and shift_size within it");
      p.window_size[axis] = static_cast<int32_t>(window_size[axis]);
      p.shift_size[axis] = static_cast<int32_t>(shift_size[axis]);
    }
    const int64_t N = window_size[0] * window_size[1];
    check(N <= kMaxWindowArea, "window_size must hold at most 1024 tokens");
    check(pad_order == "pad_roll" || pad_order == "roll_pad", "pad_order must be pad_roll or roll_pad");
    p.pad_order = pad_order == "pad_roll" ? PadOrder::kPadRoll : PadOrder::kRollPad;
    p.scale = static_cast<float>(scale);
    p.mask_value = static_cast<float>(mask_value);

    if (qkv.stride(5) != 1) qkv = torch::stable::contiguous(qkv);
    p.qkv = qkv.const_data_ptr();
    for (int64_t d = 0; d < 5; d++) p.qkv_stride[d] = qkv.stride(d);

    p.bias_form = BiasForm::kNone;
    p.bias = nullptr;
    if (bias.has_value()) {
      check_tensor("bias", *bias, ScalarType::Float, "be float32");
      check(bias->dim() == 3 && bias->size(0) == p.nH, "bias must be (nH, ., .)");
      const bool dense = bias->size(1) == N && bias->size(2) == N;
      if (!dense) check_shape("bias", *bias, {p.nH, 2 * window_size[0] - 1, 2 * window_size[1] - 1});
      bias = torch::stable::contiguous(*bias);
      p.bias_form = dense ? BiasForm::kDense : BiasForm::kRelative;
      p.bias = static_cast<const float*>(bias->const_data_ptr());
    }
    p.logit_scale = nullptr;
    if (logit_scale.has_value()) {
      check_tensor("logit_scale", *logit_scale, ScalarType::Float, "be float32");
      check_shape("logit_scale", *logit_scale, {p.nH});
      logit_scale = torch::stable::contiguous(*logit_scale);
      p.logit_scale = static_cast<const float*>(logit_scale->const_data_ptr());
    }
    p.pad_value = nullptr;
    if (pad_value.has_value()) {
      check_tensor("pad_value", *pad_value, qkv.scalar_type(), "have the dtype of qkv");
      check_shape("pad_value", *pad_value, {3, p.nH, p.hd});
      pad_value = torch::stable::contiguous(*pad_value);
      p.pad_value = pad_value->const_data_ptr();
    }
  }

  // The forward op; launch(p) computes.
  template <class Launch>
  Tensor forward(const Launch& launch) {
    WindowAttentionFwdParams p;
    fill(p);
    Tensor out = torch::stable::new_empty(qkv, {p.B, p.H, p.W, static_cast<int64_t>(p.nH) * p.hd});
    p.out = out.mutable_data_ptr();
    launch(p);
    return out;
  }

  // The backward op; launch(p) computes.
  template <class Launch>
  Gradients backward(Tensor grad_out, const Launch& launch) {
    using torch::headeronly::ScalarType;
    WindowAttentionBwdParams p;
    fill(p);
    check_tensor("grad_out", grad_out, qkv.scalar_type(), "have the dtype of qkv");
    check_shape("grad_out", grad_out, {p.B, p.H, p.W, static_cast<int64_t>(p.nH) * p.hd});
    if (grad_out.stride(3) != 1) grad_out = torch::stable::contiguous(grad_out);
    p.grad_out = grad_out.const_data_ptr();
    for (int64_t d = 0; d < 3; d++) p.grad_out_stride[d] = grad_out.stride(d);

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
    launch(p);
    return {dqkv, dbias, dlogit_scale, dpad_value};
  }
};

}  // namespace swin_fast
