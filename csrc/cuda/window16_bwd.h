// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of 16 x 16 tokens at head_dim 32, in float16 and bfloat16: one pass for each window and head.
#pragma once

#include <cstddef>
#include <cstdint>

#include "one_pass_bwd.h"
#include "primitives.h"
#include "window16.h"
#include "window16_keys.h"
#include "window16_queries.h"

namespace swin_fast::cuda {

// Computes: dqkv of windows of 256 tokens, and the parts of dbias, dlogit_scale and dpad_value.
// Grid:     nH * owners of kThreads, heads fastest, which run at the same time and share cache lines. Each of eight
//           warps has 32 keys, their rows and sums of dk and dv in registers, and all go over the queries in steps of
//           32. One barrier a step: of a step there are scores before it and weights behind, beside dq of the one
//           before.
// Memory:   reads 4 and writes 3 rows of 64 bytes for each token and head, 16 bytes at a time, of dq 8. Scores are the
//           transposed ones, so that P and dS are left sides of dv and dk as they stand; for dq alone dS goes through
//           shared memory, in the dtype of the rows.
// Numerics: products in the input dtype with float32 accumulators; scores, softmax and sums over windows in float32; P
//           and dS rounded for their products, with cosine attention dS times the norms of both of its rows. Weights
//           are exp(score) where the sum of each row of a step is between 2^-90 and 2^60, so that float32 is as exact
//           as relative to the largest score, which they are else. Nothing of dqkv depends on owners.
// Source:   as large_queries_bwd; fragments as in the PTX manual, mma.m16n8k16.
template <class T, bool kCosine>
__global__ void __launch_bounds__(Window16::kThreads, 1) window16_bwd(const Window16BwdParams p) {
  constexpr int kReach = Window16::kReach, kSteps = Window16::kSteps;
  const WindowAttentionBwdParams& problem = p.problem;
  const OnePassWork work(problem, p.all, p.parts);
  const auto thread = static_cast<int>(threadIdx.x);
  char* const memory = shared_memory();
  for (int i = thread; i < kReach * kReach; i += Window16::kThreads) {
    const float* const bias = problem.bias + (int64_t{work.head} * kReach * kReach + i);
    store_shared(memory + Window16::kAtTable + 4 * i,
                 problem.bias != nullptr ? limited(load_global<float>(bias)) * kLog2E : 0.0f);
  }
  for (int i = thread; i < Window16::kApart * Window16::kPairs / 8; i += Window16::kThreads) {
    store_shared(memory + Window16::kAtBiasSums + 8 * i, Float2{0.0f, 0.0f});
  }

  Window16Queries<T, kCosine> queries(p);
  Windows::Place place = p.all.place(work.first);
  int64_t b = place.b;
  int stage = 0;
  queries.fetch(b, place, stage);
  queries.receive(stage);
  sync_threads();
  for (int i = 0; i < work.windows; ++i) {
    Window16Keys<T, kCosine> keys(p, stage);
    const bool goes_on = i + 1 < work.windows;
    SWIN_FAST_NO_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      keys.weigh(step);
      // All see sums of weights of this step, dS of the one before and halves of dq of the one before that, and are
      // done with those of the one before each.
      sync_threads();
      if (i > 0 || step > 1) queries.leave(step > 1 ? stage : 1 - stage, (step + kSteps - 2) % kSteps);
      if (i > 0 || step > 0) queries.multiply(step == 0);
      if (step == 2 && goes_on) {  // where the window before has been left
        b += p.all.advance(&place);
        queries.fetch(b, place, 1 - stage);
      }
      if (step == kSteps - 2 && goes_on) queries.receive(1 - stage);
      keys.differentiate(step);
    }
    keys.leave();
    stage = 1 - stage;
  }
  sync_threads();
  queries.leave(1 - stage, kSteps - 2);
  queries.multiply(true);
  sync_threads();
  queries.leave(1 - stage, kSteps - 1);
  queries.leave_part();
  sync_threads();

  leave_sums_of_warps<Window16, kCosine>(problem, p.parts, work.part, Window16::kWarps, Window16::kWarps);
  for (int i = thread; i < kReach * kReach && p.parts.dbias != nullptr; i += Window16::kThreads) {
    const int dy = i / kReach - (Window16::kSide - 1), dx = i % kReach - (Window16::kSide - 1);
    float sum = 0.0f;
    for (int of_lane = 0; of_lane < 64; ++of_lane) {  // either of its two entries
      const int columns = dx - Window16::columns_apart(of_lane / 2) - (of_lane & 1);
      if (columns % 8 != 0 || columns < -8 || columns > 8) continue;
      for (int rows = -1; rows <= 1; ++rows) {
        const int apart = (dy - rows) / 2 + Window16::kWarps - 1;
        if ((dy - rows) % 2 != 0 || apart < 0 || apart >= Window16::kApart) continue;
        const char* const pairs = memory + Window16::kAtBiasSums + apart * Window16::kPairs;
        sum += load_shared<float>(pairs + ((rows + 1) * 3 + columns / 8 + 1) * 256 + 4 * of_lane);
      }
    }
    store_global(p.parts.dbias + work.part * p.parts.bias_size + i, sum);
  }
}

// Gives the kernels to launch(kernel, blocks, threads, bytes of shared memory, params), each behind the one before.
template <class T, class Launch>
void launch_window16_bwd(const Window16BwdParams& p, Launch launch) {
  launch_one_pass<T, Window16>(p.problem.logit_scale != nullptr ? window16_bwd<T, true> : window16_bwd<T, false>, p,
                               launch);
}

}  // namespace swin_fast::cuda
