// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of 12 x 12 tokens at head_dim 32, in float16 and bfloat16: one pass for each window and head.
#pragma once

#include <cstddef>
#include <cstdint>

#include "one_pass_bwd.h"
#include "primitives.h"
#include "window12.h"
#include "window12_results.h"
#include "window12_scores.h"

namespace swin_fast::cuda {

// Computes: dqkv of windows of 144 tokens, and the parts of dbias, dlogit_scale and dpad_value.
// Grid:     nH * owners of kThreads, heads fastest, which run at the same time and share cache lines. Nine warps have
//           the scores of a strip of queries and one of keys each: a fragment of k or v serves three tiles of queries;
//           before that a tile of dq of the window before. Three, for which nine leave room in the register file, have
//           a strip of its dk and dv each, and then bring one of the rows of the window behind.
// Memory:   reads 4 and writes 3 rows of 64 bytes for each token and head, 16 bytes at a time. P and dS go through
//           shared memory in the dtype of the rows, where a warp keeps its 22 sums of dbias a lane as well.
// Numerics: products in the input dtype with float32 accumulators; scores, softmax and sums over windows in float32; P
//           and dS rounded for their products, with cosine attention dS times the norms of both of its rows. Weights
//           are exp(score) where the sum of each row of a strip is between 2^-90 and 2^60, so that float32 is as exact
//           as relative to the largest score, which they are else. Nothing of dqkv depends on owners.
// Source:   as large_queries_bwd; fragments as in the PTX manual, mma.m16n8k16.
template <class T, bool kCosine>
__global__ void __launch_bounds__(Window12::kThreads, 1) window12_bwd(const Window12BwdParams p) {
  constexpr int kEntries = Window12::kEntries, kStrips = Window12::kStrips;
  const WindowAttentionBwdParams& problem = p.problem;
  const OnePassWork work(problem, p.all, p.parts);
  char* const table = shared_memory() + Window12::kAtTable;
  for (int i = threadIdx.x; i < (2 * kStrips - 1) * Window12::kPairs / 4; i += blockDim.x) {
    const int lane = i / 2 % 32, entries = i / 64 % kEntries, strips = i / 64 / kEntries - (kStrips - 1);
    const int row = Window12::rows_apart(lane, entries) + Window12::kSide - 1;
    const int column = Window12::columns_apart(lane, strips, i & 1) + Window12::kSide - 1;
    const int64_t entry = (int64_t{work.head} * Window12::kReach + row) * Window12::kReach + column;
    store_shared(table + 4 * i,
                 problem.bias != nullptr ? limited(load_global<float>(problem.bias + entry)) * kLog2E : 0.0f);
  }
  const bool has_scores = threadIdx.x < 32 * Window12::kScoreWarps;
  int stage = 0;  // where the rows of a window lie
  // In turn: all see the rows of a window, and P and dS of the one before; all see the sums of rows, and are done with
  // P, dS and the rows of the window before.
  const auto wait_for_all = [] { sync_threads(); };
  if (has_scores) {
    Window12Scores<T, kCosine> scores(p);
    for (int i = 0;; ++i) {
      wait_for_all();
      if (i > 0) scores.compute_queries(1 - stage);
      if (i == work.windows) break;
      scores.weigh(stage);
      wait_for_all();
      scores.differentiate_rows(stage);
      stage = 1 - stage;
    }
    scores.leave_parts();
    wait_for_all();  // and see sums over windows
  } else {
    Window12Results<T, kCosine> results(p);
    Windows::Place place = p.all.place(work.first);
    int64_t b = place.b;
    results.find(b, place);
    results.fetch(b, place, 0);
    for (int i = 0;; ++i) {
      if (i < work.windows) results.receive(stage);
      wait_for_all();
      if (i > 0) results.compute(1 - stage);
      if (i == work.windows) break;
      const bool goes_on = i + 1 < work.windows;
      if (goes_on) {
        b += p.all.advance(&place);
        results.find(b, place);
      }
      wait_for_all();
      stage = 1 - stage;
      if (goes_on) results.fetch(b, place, stage);
      if (i > 0) results.leave_queries();
    }
    wait_for_all();
    results.leave_queries();
  }

  const int thread = threadIdx.x;
  leave_sums_of_warps<Window12, kCosine>(problem, p.parts, work.part, Window12::kScoreWarps, kStrips);
  for (int i = thread; i < Window12::kReach * Window12::kReach && p.parts.dbias != nullptr; i += blockDim.x) {
    const int dy = i / Window12::kReach - (Window12::kSide - 1), dx = i % Window12::kReach - (Window12::kSide - 1);
    float sum = 0.0f;
    for (int of_lane = 0; of_lane < 64; ++of_lane) {  // either of its two entries
      const int rows = dy - Window12::rows_apart(of_lane / 2, kEntries / 2);
      const int columns = dx - Window12::columns_apart(of_lane / 2, 0, of_lane & 1);
      const int entries = rows / 2 + kEntries / 2, strips = columns / Window12::kPatch;
      if (rows % 2 != 0 || columns % Window12::kPatch != 0 || entries < 0 || entries >= kEntries) continue;
      for (int query = 0; query < kStrips; ++query) {
        const int key = query - strips;
        if (key < 0 || key >= kStrips) continue;
        const char* const pairs = shared_memory() + Window12::kAtBiasSums + (query * kStrips + key) * Window12::kPairs;
        sum += load_shared<float>(pairs + entries * 256 + 4 * of_lane);
      }
    }
    store_global(p.parts.dbias + work.part * p.parts.bias_size + i, sum);
  }
}

// Gives the kernels to launch(kernel, blocks, threads, bytes of shared memory, params), each behind the one before.
template <class T, class Launch>
void launch_window12_bwd(const Window12BwdParams& p, Launch launch) {
  launch_one_pass<T, Window12>(p.problem.logit_scale != nullptr ? window12_bwd<T, true> : window12_bwd<T, false>, p,
                               launch);
}

}  // namespace swin_fast::cuda
