// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of up to 64 tokens: rows of a window on their way into shared memory.
#pragma once

#include <cstdint>

#include "small_bwd_cut.h"

namespace swin_fast::cuda {

// Brings the rows of the warp's tokens to shared memory, four lanes a row: those of two tokens to a lane.
template <class T, int kWindow, bool kAligned>
struct SmallBwdFetch {
  using Sizes = SmallBwdSizes<kWindow>;
  const SmallBwdParams& p;
  QkvRows rows;              // of an image
  const uint16_t* grad_out;  // of the image, at the chunk of this lane
  int tokens;
  SmallGrid<kWindow> grid;
  int to;  // where a chunk of the first token goes, in the set of rows that is next

  SWIN_FAST_DEVICE SmallBwdFetch(const SmallBwdParams& params, int64_t b, int lane, int first, int head, int tokens_)
      : p(params),
        rows(params.problem, b, head, lane & 3),
        grad_out(static_cast<const uint16_t*>(params.problem.grad_out) + b * params.problem.grad_out_stride[0] +
                 head * kHeadDim + (lane & 3) * 8),
        tokens(tokens_),
        grid(params.problem),
        to(Sizes::kRows + first * kRowBytes + swizzled(first, lane & 3)) {}

  SWIN_FAST_DEVICE void next_image() {
    rows.q = reinterpret_cast<const uint16_t*>(reinterpret_cast<const char*>(rows.q) + p.qkv_image_bytes);
    grad_out = reinterpret_cast<const uint16_t*>(reinterpret_cast<const char*>(grad_out) + p.grad_image_bytes);
  }

  // Begins to bring one window of the image, and leaves the pixels of the tokens. Gives the row (times 256) and column
  // that another shift region begins with, or 0 where none does.
  SWIN_FAST_DEVICE int operator()(const Windows::Place& window) {
    // Tokens, rows and columns are made from what changes from window to window, or they were kept in registers.
    const int first = to >> 6 & 63, set = to & Sizes::kSetBytes;
    char* const rows_of_set = shared_memory() + to;
    char* const pixels = shared_memory() + Sizes::kPixels + set / (Sizes::kSetBytes / 256) + first * 4;
    const auto bring = [&](int half, int y, int x, bool real) {
      if ((threadIdx.x & 3) == 0) {
        store_shared(pixels + half * 32, real ? y * static_cast<int32_t>(p.problem.W) + x : kPadding);
      }
      char* const at = rows_of_set + half * 8 * kRowBytes;
      const int64_t offset = int64_t{y} * p.stride_y + int64_t{x} * p.stride_x;
      SWIN_FAST_UNROLL
      for (int which = 0; which < 3; ++which) {
        rows.template fetch<kAligned>(which, at + which * Sizes::kTileBytes, real, offset);
      }
      const int64_t grad_offset = int64_t{y} * p.grad_stride_y + int64_t{x} * p.grad_stride_x;
      fetch_chunk<kAligned>(at + 3 * Sizes::kTileBytes, real ? grad_out + grad_offset : grad_out, real);
    };
    const bool whole = grid.template visit<2, kAligned>(p.all, window, first, tokens, bring);
    copy_async_commit();
    to ^= Sizes::kSetBytes;
    return whole ? 0 : p.all.border_row(window) << 8 | p.all.border_column(window);
  }
};

}  // namespace swin_fast::cuda
