// SPDX-License-Identifier: Apache-2.0
//
// The problems that the kernels are tested on.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "oracle.h"

namespace swin_fast_test {

constexpr ScalarType kTypes[] = {ScalarType::kFloat32, ScalarType::kFloat16, ScalarType::kBFloat16};
constexpr BiasForm kBiasForms[] = {BiasForm::kDense, BiasForm::kRelative, BiasForm::kNone};

// The window areas with kernels of their own, in every situation a window can be in.
inline void add_window_problems(int window, ScalarType dtype, std::vector<Problem>* problems) {
  Problem p;
  p.dtype = dtype;
  p.wh = p.ww = window;
  p.nH = 2;
  p.scale = 0.17677669f;

  p.B = 2;  // padded on both axes, shifted
  p.H = window + 3;
  p.W = 2 * window + 1;
  p.sh = p.sw = window / 2;
  p.bias_form = BiasForm::kDense;
  p.has_pad_value = true;
  problems->push_back(p);

  p.pad_order = PadOrder::kRollPad;
  p.bias_form = BiasForm::kRelative;
  p.mask_value = -2.5f;  // small enough for masked pairs to take part
  problems->push_back(p);

  p.B = 1;  // shifted on one axis, padded with zeros, cosine
  p.H = window;
  p.W = window + 2;
  p.sh = 0;
  p.bias_form = BiasForm::kNone;
  p.has_pad_value = false;
  p.cosine = true;
  problems->push_back(p);

  p.pad_order = PadOrder::kPadRoll;
  p.sh = window - 1;
  p.sw = 0;
  p.W = window - 1;
  p.bias_form = BiasForm::kDense;
  p.has_pad_value = true;
  p.degenerate_rows = true;
  problems->push_back(p);

  p.cosine = p.degenerate_rows = false;  // image smaller than the window and than the shift
  p.H = 2;
  p.W = 3;
  p.sh = window - 1;
  p.sw = window / 2;
  p.bias_form = BiasForm::kRelative;
  problems->push_back(p);
  p.pad_order = PadOrder::kRollPad;
  problems->push_back(p);

  p.H = 2 * window;  // whole windows, no shift
  p.W = window;
  p.sh = p.sw = 0;
  p.scale = -0.4f;
  problems->push_back(p);
}

// Every other window area with every head_dim: the remaining features take turns.
inline void add_generic_problems(bool quick, std::vector<Problem>* problems) {
  const int windows[][2] = {{1, 1}, {3, 5}, {5, 7}, {7, 7}, {2, 9}, {10, 10}, {1, 33}, {16, 16}};
  const int head_dims[] = {2, 6, 16, 30, 32, 48, 64, 128};
  int turn = 0;
  for (const auto& window : windows) {
    for (const int hd : head_dims) {
      for (const ScalarType dtype : kTypes) {
        ++turn;
        if (window[0] == 7 && hd == 32) continue;
        if (quick && turn % (window[0] == 16 ? 10 : 5) != 0) continue;
        Problem p;
        p.dtype = dtype;
        p.wh = window[0];
        p.ww = window[1];
        p.hd = hd;
        p.nH = turn % 3 + 1;
        p.B = turn % 2 + 1;
        p.H = p.wh + turn % 4;
        p.W = std::max(1, p.ww + turn % 5 - 2);
        if (window[0] == 16) {
          p.B = p.nH = 1;
          p.H = 15 + turn % 3;
          p.W = 9;
        }
        p.sh = turn % p.wh;
        p.sw = turn / 3 % p.ww;
        p.pad_order = turn % 4 < 2 ? PadOrder::kPadRoll : PadOrder::kRollPad;
        p.bias_form = kBiasForms[turn / 2 % 3];
        p.cosine = turn / 5 % 3 == 1;
        p.degenerate_rows = p.cosine && turn % 2 == 0;
        p.has_pad_value = turn / 7 % 2 == 0;
        p.scale = 1 / std::sqrt(static_cast<float>(hd));
        problems->push_back(p);
      }
    }
  }
}

inline void add_extreme_problems(bool quick, std::vector<Problem>* problems) {
  for (const ScalarType dtype : kTypes) {
    for (const int window : {7, 4}) {
      Problem p;
      p.dtype = dtype;
      p.wh = p.ww = window;
      p.H = p.W = 9;
      p.sh = p.sw = 2;
      p.nH = 2;
      p.bias_form = window == 7 ? BiasForm::kDense : BiasForm::kRelative;
      p.has_pad_value = true;
      for (const double amplitude : {30.0, 90.0}) {  // scores up to some 1e3 and 1e4
        p.amplitude = amplitude;
        problems->push_back(p);
      }
      p.amplitude = 1;
      for (const float mask : {-200.0f, -INFINITY, 3.0f, 0.0f, -1e30f}) {
        p.mask_value = mask;
        problems->push_back(p);
      }
      p.mask_value = -100;
      p.scale = 0;
      problems->push_back(p);
      p.cosine = true;
      p.logit_scale = 100;
      problems->push_back(p);
    }
  }
  Problem p;  // more windows than 16 bits count, tiny ones
  p.B = quick ? 7001 : 70001;
  p.H = 1;
  p.W = 3;
  p.wh = 1;
  p.ww = 2;
  p.sw = 1;
  p.hd = 2;
  p.bias_form = BiasForm::kRelative;
  p.has_pad_value = true;
  problems->push_back(p);
  p.B = 0;  // an empty batch: every gradient of a shared input is zero, and written
  p.cosine = true;
  problems->push_back(p);
  p.bias_form = BiasForm::kDense;
  p.wh = p.ww = 7;
  p.hd = 32;
  problems->push_back(p);
  if (!quick) {
    p = Problem();  // the largest window
    p.wh = p.ww = 32;
    p.H = 32;
    p.W = 20;
    p.sh = 5;
    p.hd = 30;
    p.bias_form = BiasForm::kRelative;
    problems->push_back(p);
  }
}

inline void add_random_problems(bool quick, uint64_t seed, std::vector<Problem>* problems) {
  std::mt19937_64 generator(seed * 1000003 + 17);
  const auto draw = [&generator](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(generator() % static_cast<uint64_t>(high - low + 1));
  };
  for (int n = 0; n < (quick ? 12 : 90); ++n) {
    Problem p;
    p.dtype = kTypes[draw(0, 2)];
    p.wh = static_cast<int>(draw(1, 9));
    p.ww = static_cast<int>(draw(1, 9));
    if (draw(0, 3) == 0) p.wh = p.ww = draw(0, 1) ? 7 : 8;
    p.hd = static_cast<int>(draw(0, 1) ? 32 : 2 * draw(1, 40));
    p.nH = static_cast<int>(draw(1, 4));
    p.B = draw(1, 3);
    p.H = draw(1, 2 * p.wh + 3);
    p.W = draw(1, 2 * p.ww + 3);
    p.sh = static_cast<int>(draw(0, p.wh - 1));
    p.sw = static_cast<int>(draw(0, p.ww - 1));
    p.pad_order = draw(0, 1) ? PadOrder::kPadRoll : PadOrder::kRollPad;
    p.bias_form = kBiasForms[draw(0, 2)];
    p.cosine = draw(0, 3) == 0;
    p.degenerate_rows = draw(0, 5) == 0;
    p.has_pad_value = draw(0, 1) == 0;
    p.scale = static_cast<float>(draw(1, 100)) / 100;
    p.mask_value = draw(0, 2) == 0 ? -3.0f : -100.0f;
    p.amplitude = draw(0, 4) == 0 ? 8 : 1;
    problems->push_back(p);
  }
}

// All of them; fewer of each kind, but every kind, where `quick`.
inline std::vector<Problem> make_problems(bool quick, uint64_t seed) {
  std::vector<Problem> problems;
  for (const int window : {7, 8, 12}) {
    for (const ScalarType dtype : kTypes) {
      // N = 49 leaves a column over; N = 64 makes a block of two tiles of rows.
      if (!quick || window == 7 || (window == 8 && dtype == ScalarType::kFloat32))
        add_window_problems(window, dtype, &problems);
    }
  }
  add_generic_problems(quick, &problems);
  add_extreme_problems(quick, &problems);
  add_random_problems(quick, seed, &problems);
  return problems;
}

}  // namespace swin_fast_test
