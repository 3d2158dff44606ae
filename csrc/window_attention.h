// SPDX-License-Identifier: Apache-2.0
//
// The problem that every native kernel is given: raw pointers, strides and sizes. No torch here, nor in any kernel.
// Letters: B batch, H, W image tokens, Wh, Ww window, N = Wh*Ww, nH heads, hd head_dim.
#pragma once

#include <cstdint>

#include "window.h"

namespace swin_fast {

constexpr int kMaxWindowArea = 1024;
constexpr int kMaxHeadDim = 128;

enum class ScalarType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

SWIN_FAST_HOST_DEVICE constexpr int element_bytes(ScalarType dtype) { return dtype == ScalarType::kFloat32 ? 4 : 2; }

enum class BiasForm : int32_t {
  kNone = 0,
  kDense = 1,     // (nH, N, N)
  kRelative = 2,  // (nH, 2Wh-1, 2Ww-1), entry [dy+Wh-1, dx+Ww-1] for query minus key = (dy, dx)
};

struct WindowAttentionParams {
  int64_t B, H, W;
  int32_t nH, hd;          // hd even, <= kMaxHeadDim
  int32_t window_size[2];  // (Wh, Ww), Wh*Ww <= kMaxWindowArea
  int32_t shift_size[2];   // (sh, sw)
  PadOrder pad_order;
  ScalarType dtype;  // of qkv, pad_value, out, grad_out, dqkv, dpad_value
  BiasForm bias_form;
  float scale;  // of q.k; unused when logit_scale is given
  float mask_value;

  const void* qkv;           // (B, H, W, 3, nH, hd)
  int64_t qkv_stride[5];     // elements, of B, H, W, 3, nH; hd is contiguous
  const float* bias;         // contiguous, form as told by bias_form; null for kNone
  const float* logit_scale;  // (nH) contiguous: cosine attention; null: scaled dot product
  const void* pad_value;     // (3, nH, hd) contiguous; null: zeros

  WindowAxis axis_y() const { return {H, window_size[0], shift_size[0], pad_order}; }
  WindowAxis axis_x() const { return {W, window_size[1], shift_size[1], pad_order}; }
  SWIN_FAST_HOST_DEVICE int32_t window_area() const { return window_size[0] * window_size[1]; }
};

struct WindowAttentionFwdParams : WindowAttentionParams {
  void* out;  // (B, H, W, nH*hd) contiguous; every element is written
};

struct WindowAttentionBwdParams : WindowAttentionParams {
  const void* grad_out;        // (B, H, W, nH*hd)
  int64_t grad_out_stride[3];  // elements, of B, H, W; the last dimension is contiguous
  void* dqkv;                  // (B, H, W, 3, nH, hd) contiguous; every element is written
  float* dbias;                // contiguous, in the form of bias; null iff bias_form is kNone
  float* dlogit_scale;         // (nH); null iff logit_scale is null
  void* dpad_value;            // (3, nH, hd) contiguous; null iff pad_value is null
};

// Runs body over [begin, end), in pieces of at least `grain`, on as many threads as the caller's thread pool allows.
using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain,
                             void (*body)(int64_t begin, int64_t end, void* context), void* context);

}  // namespace swin_fast
