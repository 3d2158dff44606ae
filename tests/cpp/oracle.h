// SPDX-License-Identifier: Apache-2.0
//
// Window attention by its definition, forward and backward, in double and without csrc/window.h: the padded and rolled
// grid and the region map are built as arrays, the way the papers' code does it. Next to every result stand two
// measures of how far a kernel may be off:
//   accumulation  the sum of the magnitudes that went into it, each weighted by how much its own float32 computation
//                 may amplify errors: a sound float32 kernel is within a small multiple of 2^-24 of this;
//   operand       the same for paths that round P and dS to 16 bits before they are multiplied, where P is off by a
//                 small share of such a rounding to begin with, the exponential being no more exact.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../../csrc/window_attention.h"

namespace swin_fast_test {

using swin_fast::BiasForm;
using swin_fast::PadOrder;
using swin_fast::ScalarType;

struct Problem {
  int64_t B = 1, H = 7, W = 7;
  int nH = 1, hd = 32;
  int wh = 7, ww = 7, sh = 0, sw = 0;
  PadOrder pad_order = PadOrder::kPadRoll;
  ScalarType dtype = ScalarType::kFloat32;
  BiasForm bias_form = BiasForm::kNone;
  bool cosine = false, has_pad_value = false;
  float scale = 0.25f, mask_value = -100.0f;
  double amplitude = 1.0;        // of q and k
  double logit_scale = 5.0;      // cosine: the largest one
  bool degenerate_rows = false;  // some rows of q and k are zero or shorter than the clamp of the norm

  int64_t area() const { return int64_t{wh} * ww; }
  int64_t tokens() const { return B * H * W; }
  int64_t qkv_size() const { return tokens() * 3 * nH * hd; }
  int64_t out_size() const { return tokens() * nH * hd; }
  int64_t bias_size() const {
    if (bias_form == BiasForm::kNone) return 0;
    return nH * (bias_form == BiasForm::kDense ? area() * area() : int64_t{2 * wh - 1} * (2 * ww - 1));
  }
  int64_t logit_scale_size() const { return cosine ? nH : 0; }
  int64_t pad_size() const { return has_pad_value ? int64_t{3} * nH * hd : 0; }

  std::string name() const;
};

// Contiguous, in the layouts of WindowAttentionParams; qkv, pad_value and grad_out are already rounded to the dtype.
struct Inputs {
  std::vector<double> qkv, bias, logit_scale, pad_value, grad_out;
};

struct Expected {
  std::vector<double> value, accumulation, operand;
  void resize(int64_t size);
  void add(int64_t index, double v, double a, double o);
  // Adds  factor * row  at [at, at + size), where the factor has measures of its own.
  void add_row(int64_t at, int64_t size, double factor, double a, double o, const double* row);
};

struct Results {
  Expected out, dqkv, dbias, dlogit_scale, dpad_value;
};

// The padded and rolled grid: pixel number y * W + x at every position, -1 for padding, and the shift region.
struct Grid {
  int64_t rows, columns;
  std::vector<int64_t> pixel, region;
};

Grid make_grid(const Problem& p);

Results oracle(const Problem& p, const Inputs& in);

}  // namespace swin_fast_test
