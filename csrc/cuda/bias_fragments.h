// SPDX-License-Identifier: Apache-2.0
//
// The bias of large windows, as kernels read it: in the order of accumulators, 16 bytes a lane, times a factor such as
// log2(e), and -inf for keys that do not exist. A kernel of its own arranges it, once a call. Of a backward whose rows
// are keys it is transposed; what is said of queries here goes for keys then.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "primitives.h"
#include "windows.h"

namespace swin_fast::cuda {

// Fragments of 16 queries x 8 keys, 512 bytes each.
//
// All of them, row_tiles x key_tiles, the latter fastest; or, of a relative bias, one of each kind. Where a panel of
// 16 * panel queries makes up whole rows of the window, and so do as many keys, the fragments of two panels that are
// as many panels apart are equal: 2 * row_tiles / panel - 1 panels stand for all. Of N = 144 (panels of 48 x 48, four
// rows of the window) 46,080 bytes a head of 82,944, of N = 256 (16 x 16) 31,744 of 262,144.
struct BiasFragments {
  static constexpr int kBytes = 512;

  int32_t row_tiles, key_tiles;
  int32_t panel;  // 0: all of them
  int32_t heads;  // 1 without a bias

  // Of a whole window, by panels where there are any: what is read again and again then fits the first cache.
  static BiasFragments of(const WindowAttentionParams& problem) {
    const int tokens = problem.window_area(), columns = problem.window_size[1];
    const auto row_tiles = static_cast<int32_t>(ceil_div(tokens, 16));
    BiasFragments made{row_tiles, 2 * row_tiles, 1, problem.bias_form == BiasForm::kNone ? 1 : problem.nH};
    while (16 * made.panel % columns != 0 && made.panel <= row_tiles) ++made.panel;
    const bool equal = problem.bias_form != BiasForm::kDense && tokens % (16 * made.panel) == 0;
    if (!equal) made.panel = 0;
    return made;
  }

  SWIN_FAST_HOST_DEVICE int32_t count() const {
    return panel == 0 ? row_tiles * key_tiles : (2 * (row_tiles / panel) - 1) * 2 * panel * panel;
  }
  int64_t bytes() const { return int64_t{heads} * count() * kBytes; }
  // The first one of a head.
  SWIN_FAST_DEVICE const char* of_head(const void* fragments, int head) const {
    return static_cast<const char*>(fragments) + (heads == 1 ? 0 : int64_t{head} * count() * kBytes);
  }
  // Of panels that are equal, the one in the first row or column.
  SWIN_FAST_DEVICE void place(int index, int* row_tile, int* key_tile) const {
    if (panel == 0) {
      *row_tile = index / key_tiles;
      *key_tile = index % key_tiles;
      return;
    }
    const int within = index % (2 * panel * panel);
    const int apart = index / (2 * panel * panel) - (row_tiles / panel - 1);
    *row_tile = (apart > 0 ? apart : 0) * panel + within / (2 * panel);
    *key_tile = (apart < 0 ? -apart : 0) * 2 * panel + within % (2 * panel);
  }
};

// A lane's fragments of one row tile and two key tiles after the other, from the first one on.
struct BiasWalk {
  const char *first, *at;
  const int32_t back, panel;  // at the end of a panel: to the first fragment of the next
  int32_t left;               // pairs of key tiles in this panel

  SWIN_FAST_DEVICE BiasWalk(const BiasFragments& layout, const void* fragments, int head, int row_tile, int lane)
      : back((2 * layout.panel * layout.panel + 2 * layout.panel) * BiasFragments::kBytes),
        panel(layout.panel),
        left(layout.panel) {
    int32_t index = row_tile * layout.key_tiles;
    if (panel != 0) {
      const int32_t along = row_tile / panel;
      index = ((along + layout.row_tiles / panel - 1) * panel + row_tile - along * panel) * 2 * panel;
    }
    first = at = layout.of_head(fragments, head) + int64_t{index} * BiasFragments::kBytes + lane * 16;
  }

  SWIN_FAST_DEVICE void restart() {
    at = first;
    left = panel;
  }

  SWIN_FAST_DEVICE Float4 fragment(int key_tile) const {
    return load_global<Float4>(at + key_tile * BiasFragments::kBytes);
  }
  SWIN_FAST_DEVICE void advance() {
    at += 2 * BiasFragments::kBytes;
    if (--left != 0) return;  // without panels it is below 0 and never is
    left = panel;
    at -= back;
  }
};

struct ArrangeParams {
  WindowAttentionParams problem;
  BiasFragments layout;
  void* fragments;  // layout.bytes() of them, aligned to 16 bytes
  float factor = kLog2E;
  bool transposed = false;

  int64_t blocks(int threads) const { return std::min(ceil_div(layout.bytes(), 16 * threads), int64_t{4096}); }
};

// Computes: the fragments of all heads' bias.
// Grid:     any, of kThreads; a thread writes 16 bytes at a time.
// Memory:   reads the bias, relative or dense, and writes layout.bytes().
// Numerics: each entry times the factor, rounded once.
// Source:   written for this project.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) arrange_bias(const ArrangeParams p) {
  const int tokens = p.problem.window_area(), columns = p.problem.window_size[1];
  const int64_t all = int64_t{p.layout.heads} * p.layout.count() * 32;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < all; i += int64_t{gridDim.x} * kThreads) {
    const int lane = static_cast<int>(i & 31), of_all = static_cast<int>(i >> 5);
    const int head = of_all / p.layout.count();
    int row_tile, key_tile;
    p.layout.place(of_all - head * p.layout.count(), &row_tile, &key_tile);
    float value[4];
    for (int e = 0; e < 4; ++e) {
      const int row = row_tile * 16 + lane / 4 + (e >> 1) * 8, key = key_tile * 8 + lane % 4 * 2 + (e & 1);
      value[e] = key < tokens ? 0.0f : -INFINITY;
      if (key >= tokens || row >= tokens) continue;
      const int query = p.transposed ? key : row, other = p.transposed ? row : key;
      const float entry = bias_of(p.problem, head, query, other, columns);
      value[e] = p.factor == 1.0f ? entry : limited(entry) * p.factor;
    }
    store_global(static_cast<char*>(p.fragments) + i * 16, Float4{value[0], value[1], value[2], value[3]});
  }
}

}  // namespace swin_fast::cuda
