// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of up to 64 tokens: rows of a window on their way into shared memory.
#pragma once

#include <cstdint>

#include "small_bwd_cut.h"

namespace swin_fast::cuda {

// What a window's warps are told by the one that fetched it: 256 times the row, and the column, that another shift
// region begins with, or 0 where none does; and whether the window is the first of another image.
constexpr int kNextImage = 1 << 16;

// Brings rows to shared memory, four lanes a row: those of kCount tokens to a lane, 8 apart.
template <class T, int kWindow, bool kAligned, int kCount>
struct SmallBwdFetch {
  using Sizes = SmallBwdSizes<kWindow>;
  const SmallBwdParams& p;
  QkvRows rows;              // of an image
  const uint16_t* grad_out;  // of the image, at the chunk of this lane
  int first, tokens;
  SmallGrid<kWindow> grid;

  SWIN_FAST_DEVICE SmallBwdFetch(const SmallBwdParams& params, int64_t b, int lane, int first_, int head, int tokens_)
      : p(params),
        rows(params.problem, b, head, lane & 3),
        grad_out(static_cast<const uint16_t*>(params.problem.grad_out) + b * params.problem.grad_out_stride[0] +
                 head * kHeadDim + (lane & 3) * 8),
        first(first_),
        tokens(tokens_),
        grid(params.problem) {}

  SWIN_FAST_DEVICE void next_image() {
    rows.q = reinterpret_cast<const uint16_t*>(reinterpret_cast<const char*>(rows.q) + p.qkv_image_bytes);
    grad_out = reinterpret_cast<const uint16_t*>(reinterpret_cast<const char*>(grad_out) + p.grad_image_bytes);
  }

  // Begins to bring one window of the image to a set of rows, and leaves the pixels of the tokens there, and the news.
  SWIN_FAST_DEVICE void operator()(const Windows::Place& window, int set, bool is_of_next_image) {
    char* const to = shared_memory() + ((first * Sizes::kTokenBytes + Sizes::chunk(first, threadIdx.x & 3)) ^ set);
    char* const pixels = shared_memory() + Sizes::kPixels + set * 4 + first * 4;
    const auto bring = [&](int i, int y, int x, bool real) {
      if ((threadIdx.x & 3) == 0) {
        store_shared(pixels + i * 32, real ? y * static_cast<int32_t>(p.problem.W) + x : kPadding);
      }
      char* const at = to + i * 8 * Sizes::kTokenBytes;
      const int64_t offset = int64_t{y} * p.stride_y + int64_t{x} * p.stride_x;
      SWIN_FAST_UNROLL
      for (int which = 0; which < 3; ++which) {
        rows.template fetch<kAligned>(which, at + which * Sizes::kTileBytes, real, offset);
      }
      const int64_t grad_offset = int64_t{y} * p.grad_stride_y + int64_t{x} * p.grad_stride_x;
      fetch_chunk<kAligned>(at + Sizes::kGradOut, real ? grad_out + grad_offset : grad_out, real);
    };
    const bool whole = grid.template visit<kCount, kAligned>(p.all, window, first, tokens, bring);
    copy_async_commit();
    if (first != 0 || (threadIdx.x & 3) != 0) return;
    const int border = whole ? 0 : p.all.border_row(window) << 8 | p.all.border_column(window);
    store_shared(shared_memory() + Sizes::kNews + set / 16, border + (is_of_next_image ? kNextImage : 0));
  }
};

}  // namespace swin_fast::cuda
