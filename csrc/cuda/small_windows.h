// SPDX-License-Identifier: Apache-2.0
//
// What the kernels of windows of up to 64 tokens share, at head_dim 32, in float16 and bfloat16: rows and biases in
// shared memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "primitives.h"
#include "windows.h"

namespace swin_fast::cuda {

// Rows of 64 bytes in shared memory, as four chunks of 16. ldmatrix reads one chunk of eight rows at once: the chunk is
// turned by the pair that a row belongs to, so that the eight lie in eight different groups of banks.
constexpr int kHeadDim = 32;
constexpr int kRowBytes = 2 * kHeadDim;
SWIN_FAST_HOST_DEVICE inline int swizzled(int row, int chunk) { return ((chunk ^ (row >> 1)) & 3) * 16; }

// Sizes that follow from a window, of which kWindow is the side, or 0 where only the call knows it.
template <int kWindow>
struct SmallSizes {
  static constexpr int kTokens = kWindow == 0 ? 64 : kWindow * kWindow;  // at most
  static constexpr int kRowTiles = (kTokens + 15) / 16;                  // of 16 queries
  static constexpr int kKeyTiles = (kTokens + 7) / 8;                    // of 8 keys
  static constexpr int kKeySteps = (kTokens + 15) / 16;                  // of 16 keys, where they are summed over
  static constexpr int kBiasFloats = kRowTiles * kKeyTiles * 32 * 4;     // of a head, as fragments
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

// The rows of a head in one image, at the chunk of this lane.
struct QkvRows {
  const uint16_t *q, *padding;
  int64_t stride;  // from q to k, and to v
  int32_t padding_stride;

  SWIN_FAST_DEVICE QkvRows(const WindowAttentionParams& problem, int64_t b, int head, int chunk)
      : q(static_cast<const uint16_t*>(problem.qkv) + b * problem.qkv_stride[0] + head * problem.qkv_stride[4] +
          chunk * 8),
        padding(static_cast<const uint16_t*>(problem.pad_value)),
        stride(problem.qkv_stride[3]),
        padding_stride(problem.nH * kHeadDim) {
    if (padding != nullptr) padding += head * kHeadDim + chunk * 8;
  }

  // Begins to bring a chunk of q, k or v of a token to shared memory; `offset` is that of its pixel. Padding takes its
  // row of pad_value; a padded query is zero.
  template <bool kAligned>
  SWIN_FAST_DEVICE void fetch(int which, char* to, bool real, int64_t offset) const {
    const bool valid = real || (which > 0 && padding != nullptr);
    const uint16_t* const from = real || !valid ? q + which * stride : padding + which * padding_stride;
    fetch_chunk<kAligned>(to, real ? from + offset : from, valid);
  }
};

// Where a window is cut into shift regions: which keys of a lane, of those whose scores it holds in accumulators, lie
// in another one than a query. Bit 2 * j + i is key i of the two that it has in tile j of 8.
template <int kWindow>
struct Border {
  const SmallGrid<kWindow>& grid;
  int row, column;
  uint32_t behind_row = 0, behind_column = 0;

  SWIN_FAST_DEVICE Border(const SmallGrid<kWindow>& grid_, int border_row, int border_column, int pair)
      : grid(grid_), row(border_row), column(border_column) {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * SmallSizes<kWindow>::kKeyTiles; ++i) {
      const int key = (i >> 1) * 8 + pair + (i & 1);
      behind_row |= static_cast<uint32_t>(grid.row(key) >= row) << i;
      behind_column |= static_cast<uint32_t>(grid.column(key) >= column) << i;
    }
  }

  SWIN_FAST_DEVICE uint32_t apart_from(int query) const {
    return (grid.row(query) >= row ? ~behind_row : behind_row) |
           (grid.column(query) >= column ? ~behind_column : behind_column);
  }
};

// Whether a lane's element e of the accumulators of tile j is of a key that is apart.
SWIN_FAST_DEVICE bool is_apart(uint32_t apart, int j, int e) { return (apart >> (2 * j + (e & 1)) & 1) != 0; }

// Of the first kRows of the two rows of scores that a lane has a part of: exponentials of the scores times `factor`, to
// base 2, in place of the scores, relative to the largest one of a row; and the reciprocal of their sum, or 0 where
// every score is -inf. A row that does not exist is zeros.
template <int kRows = 2, int kKeyTiles>
SWIN_FAST_DEVICE void exponentials(float (&s)[kKeyTiles][4], int pair, int tokens, float (&share)[2],
                                   float factor = kLog2E) {
  float top[kRows], sum[kRows];
  SWIN_FAST_UNROLL
  for (int i = 0; i < kRows; ++i) top[i] = -INFINITY;
  SWIN_FAST_UNROLL
  for (int j = 0; j < kKeyTiles; ++j) {
    SWIN_FAST_UNROLL
    for (int e = 0; e < 2 * kRows; ++e) {
      if (j * 8 + pair + (e & 1) >= tokens) s[j][e] = -INFINITY;
      top[e >> 1] = fmaxf(top[e >> 1], s[j][e]);
    }
  }
  SWIN_FAST_UNROLL
  for (int i = 0; i < kRows; ++i) {
    top[i] = fmaxf(top[i], shuffle_xor(top[i], 1));
    top[i] = fmaxf(top[i], shuffle_xor(top[i], 2));
    // Rounded, but the same for the whole row, where it cancels: only differences of scores are told apart.
    top[i] = top[i] == -INFINITY ? 0.0f : top[i] * factor;
    sum[i] = 0.0f;
  }
  SWIN_FAST_UNROLL
  for (int j = 0; j < kKeyTiles; ++j) {
    SWIN_FAST_UNROLL
    for (int e = 0; e < 2 * kRows; ++e) {
      s[j][e] = exp2_approx(fmaf(s[j][e], factor, -top[e >> 1]));
      sum[e >> 1] += s[j][e];
    }
    if (kRows == 1) s[j][2] = s[j][3] = 0.0f;
  }
  share[1] = 0.0f;
  SWIN_FAST_UNROLL
  for (int i = 0; i < kRows; ++i) {
    sum[i] += shuffle_xor(sum[i], 1);
    sum[i] += shuffle_xor(sum[i], 2);
    share[i] = sum[i] == 0.0f ? 0.0f : reciprocal_approx(sum[i]);
  }
}

}  // namespace swin_fast::cuda
