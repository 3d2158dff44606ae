// SPDX-License-Identifier: Apache-2.0
//
// What the backward kernels of windows of 12 x 12 and 16 x 16 are put through: those of one pass for each window and
// head, for which weights are exp(score) as long as sums of them are exact, and which take no dense bias.
#pragma once

#include "kernel_checks.h"

namespace swin_fast_test {

// The two kernels of a driver, and the window they are for.
struct OnePass {
  Backward kernel;
  int side;
  bool (*takes)(const swin_fast::WindowAttentionParams&, size_t shared_memory);
};

size_t test_one_pass(const OnePass& tested, bool quick);

}  // namespace swin_fast_test
