// SPDX-License-Identifier: Apache-2.0
//
// What the kernels of windows of up to 64 tokens share, at head_dim 32, in float16 and bfloat16: how many tiles a
// window is, where its tokens stand, and which of them a border keeps apart.
#pragma once

#include <cstdint>

#include "primitives.h"
#include "windows.h"

namespace swin_fast::cuda {

constexpr int kHeadDim = 32;
constexpr int kRowBytes = 2 * kHeadDim;

// Sizes that follow from a window, of which kWindow is the side, or 0 where only the call knows it.
template <int kWindow>
struct SmallSizes {
  static constexpr int kTokens = kWindow == 0 ? 64 : kWindow * kWindow;  // at most
  static constexpr int kRowTiles = (kTokens + 15) / 16;                  // of 16 queries
  static constexpr int kKeyTiles = (kTokens + 7) / 8;                    // of 8 keys
  static constexpr int kKeySteps = (kTokens + 15) / 16;                  // of 16 keys, where they are summed over
};

// The rows and columns of a window's tokens. For numbers below 64 a product does, where the compiler makes nine
// instructions of a division by 7. Where it does not know the side, it would make the products of all tokens in advance
// and keep them: 88 bytes spilled on sm_120, and none with divisions.
template <int kWindow>
struct SmallGrid {
  int columns;

  SWIN_FAST_DEVICE explicit SmallGrid(const WindowAttentionParams& problem)
      : columns(kWindow == 0 ? problem.window_size[1] : kWindow) {}

  SWIN_FAST_DEVICE int row(int token) const {
    if constexpr (kWindow == 0) {
      return token / columns;
    } else if constexpr (kWindow == 8) {
      return token >> 3;
    } else {
      return static_cast<int>(static_cast<uint32_t>(token) * (65536 / kWindow + 1) >> 16);
    }
  }
  SWIN_FAST_DEVICE int column(int token) const { return token - row(token) * columns; }

  // Calls visit(i, y, x, whether there is a pixel) for each token first + 8 * i below `tokens`, i < kCount. True where
  // the window is whole: its pixels then lie as its tokens do, which saves most of the work, and it has no border.
  // Where not kShort, that is not looked for: where registers are too few for both ways.
  template <int kCount, bool kShort, class Visit>
  SWIN_FAST_DEVICE bool visit(const Windows& all, const Windows::Place& window, int first, int tokens,
                              const Visit& visit) const {
    const bool whole = kShort && all.is_whole(window);
    if (whole) {
      const int y = window.y * all.y.window + static_cast<int32_t>(all.y.roll);
      const int x = window.x * all.x.window + static_cast<int32_t>(all.x.roll);
      SWIN_FAST_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const int token = first + i * 8;
        if (token < tokens) visit(i, y + row(token), x + column(token), true);
      }
    } else {
      SWIN_FAST_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const int token = first + i * 8;
        int y, x;
        const bool real = all.pixel(window, row(token), column(token), &y, &x);
        if (token < tokens) visit(i, y, x, real);
      }
    }
    return whole;
  }
};

// Where a window is cut into shift regions: which keys of a lane, of those whose scores it holds in accumulators, lie
// behind the border, along each axis. Bit 2 * j + i is key i of the two that it has in tile j of 8.
template <int kWindow>
struct Border {
  uint32_t behind_row = 0, behind_column = 0;

  SWIN_FAST_DEVICE Border(const SmallGrid<kWindow>& grid, int row, int column, int pair) {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * SmallSizes<kWindow>::kKeyTiles; ++i) {
      const int key = (i >> 1) * 8 + pair + (i & 1);
      behind_row |= static_cast<uint32_t>(grid.row(key) >= row) << i;
      behind_column |= static_cast<uint32_t>(grid.column(key) >= column) << i;
    }
  }
};

// Whether a lane's element e of the accumulators of tile j is of a key that is apart.
SWIN_FAST_DEVICE bool is_apart(uint32_t apart, int j, int e) { return (apart >> (2 * j + (e & 1)) & 1) != 0; }

}  // namespace swin_fast::cuda
