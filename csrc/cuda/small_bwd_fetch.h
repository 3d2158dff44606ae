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

// Brings rows to shared memory, four lanes a row: those of kCount tokens to a lane, 8 apart. Where it has come to
// stands in shared memory, once for each warp that fetches: beside scores there are no registers for it.
template <class T, int kWindow, bool kAligned, int kCount>
struct SmallBwdFetch {
  using Sizes = SmallBwdSizes<kWindow>;
  struct alignas(16) Place {
    Windows::Place window;
    int32_t head;
  };
  struct alignas(16) Rows {  // of the head, in the image: bytes from the beginning
    int64_t qkv, grad_out;
  };

  const SmallBwdParams& p;
  int first, tokens;
  SmallGrid<kWindow> grid;

  SWIN_FAST_DEVICE SmallBwdFetch(const SmallBwdParams& params, int first_, int tokens_)
      : p(params), first(first_), tokens(tokens_), grid(params.problem) {}

  SWIN_FAST_DEVICE static char* state() { return shared_memory() + Sizes::kStates + threadIdx.x / 32 * 32; }

  SWIN_FAST_DEVICE void begin(const Windows::Place& window, int head) const {
    const WindowAttentionBwdParams& problem = p.problem;
    bring({window, head},
          {2 * (window.b * problem.qkv_stride[0] + head * problem.qkv_stride[4]),
           2 * (window.b * problem.grad_out_stride[0] + head * kHeadDim)},
          0, false);
  }

  // Goes on to the window behind. By whole warps.
  SWIN_FAST_DEVICE void next(int set) const {
    auto place = load_shared<Place>(state());
    auto rows = load_shared<Rows>(state() + sizeof(Place));
    const bool next_image = p.all.advance(&place.window);
    if (next_image) {
      rows.qkv += 2 * p.problem.qkv_stride[0];
      rows.grad_out += 2 * p.problem.grad_out_stride[0];
    }
    sync_warp();  // all have read it
    bring(place, rows, set, next_image);
  }

 private:
  SWIN_FAST_DEVICE static void bring_chunk(char* to, const char* from, bool valid) {
    fetch_chunk<kAligned>(to, reinterpret_cast<const uint16_t*>(from), valid);
  }

  // Begins to bring a window to a set of rows, and leaves the pixels of its tokens there, and the news.
  SWIN_FAST_DEVICE void bring(const Place& place, const Rows& from, int set, bool is_of_next_image) const {
    const WindowAttentionBwdParams& problem = p.problem;
    if (threadIdx.x % 32 == 0) {
      store_shared(state(), place);
      store_shared(state() + sizeof(Place), from);
    }
    const int part = threadIdx.x & 3;
    char* const to = shared_memory() + ((first * Sizes::kTokenBytes + Sizes::chunk(first, part)) ^ set);
    const char* const qkv = static_cast<const char*>(problem.qkv) + from.qkv + part * 16;
    const char* const grad_out = static_cast<const char*>(problem.grad_out) + from.grad_out + part * 16;
    const auto* const padding = static_cast<const char*>(problem.pad_value);
    const int64_t stride = 2 * problem.qkv_stride[3];
    int pixels[kCount];
    const auto bring_token = [&](int i, int y, int x, bool real) {
      pixels[i] = real ? y * static_cast<int32_t>(problem.W) + x : kPadding;
      char* const at = to + i * 8 * Sizes::kTokenBytes;
      const auto row = static_cast<uint32_t>(y), column = static_cast<uint32_t>(x);
      const char* token = qkv + uint64_t{row} * p.stride_y + uint64_t{column} * p.stride_x;
      SWIN_FAST_UNROLL
      for (int which = 0; which < 3; ++which, token += stride) {
        const bool padded = !real && which > 0 && padding != nullptr;  // a padded query is zero
        const char* const padded_from = padding + ((which * problem.nH + place.head) * kRowBytes + part * 16);
        bring_chunk(at + which * Sizes::kTileBytes, real ? token : padded ? padded_from : qkv, real || padded);
      }
      token = grad_out + uint64_t{row} * p.grad_stride_y + uint64_t{column} * p.grad_stride_x;
      bring_chunk(at + Sizes::kGradOut, real ? token : grad_out, real);
    };
    const bool whole = grid.template visit<kCount, kAligned>(p.all, place.window, first, tokens, bring_token);
    copy_async_commit();
    if (part != 0) return;
    SWIN_FAST_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const int token = first + i * 8;
      if (token < tokens) store_shared(shared_memory() + Sizes::kPixels + set * 4 + token * 4, pixels[i]);
    }
    if (first != 0) return;
    const int border = whole ? 0 : p.all.border_row(place.window) << 8 | p.all.border_column(place.window);
    store_shared(shared_memory() + Sizes::kNews + set / 16, border + (is_of_next_image ? kNextImage : 0));
  }
};

}  // namespace swin_fast::cuda
