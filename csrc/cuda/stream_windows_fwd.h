// SPDX-License-Identifier: Apache-2.0
//
// The forward kernel of windows of up to 1,024 tokens: k and v come by blocks of keys.
#pragma once

#include <cstdint>

#include "large_fwd_rows.h"

namespace swin_fast::cuda {

template <int kHd>
struct StreamSizes {
  static constexpr int kTiles = kHd <= 32 ? 2 : 1;  // of 16 queries, of a warp
  static constexpr int kKeyTiles = 4;               // of 8 keys, in a block
  static constexpr int kKeys = 8 * kKeyTiles;
  static constexpr int kMostWarps = 4;
  // At least, so that it takes the registers it needs: nvcc else spills some to have room for one block more.
  static constexpr int kBlocksPerMultiprocessor = kHd == 16 || kHd == 64 ? 3 : 2;
  static constexpr int kStageBytes = 2 * kKeys * KeyRows<kHd>::kBytes;  // k and v of a block

  static int groups(int tokens) { return static_cast<int>(ceil_div(tokens, 16 * kTiles)); }
  static BiasFragments bias(int tokens, int heads) {
    return {groups(tokens) * kTiles, static_cast<int>(ceil_div(tokens, kKeys)) * kKeyTiles, 0, heads};
  }
  static size_t shared_bytes(int tokens, int warps) {
    const size_t keys = static_cast<size_t>(ceil_div(tokens, kKeys)) * kKeys;
    return 2 * kStageBytes + keys * (sizeof(Pixel) + 2) + size_t{1024} * warps;
  }
};

// Computes: out of windows of up to 1,024 tokens, at head dimension kHd.
// Grid:     p.blocks, of p.warps warps; a block has one head of a window at a time. Its warps have a group of row tiles
//           each, and go through the keys together: while they are at one block of keys, the next is on its way. Then
//           they have the next groups.
// Memory:   reads the rows of q once and those of k and v once for each p.warps groups; writes 1; and the bias once,
//           as fragments.
// Numerics: as of square_windows_fwd.
// Source:   written for this project; fragments as in the PTX manual, mma.m16n8k16.
template <class T, int kHd, bool kCosine, bool kAligned>
__global__ void __launch_bounds__(128, StreamSizes<kHd>::kBlocksPerMultiprocessor)
    stream_windows_fwd(const LargeFwdParams p) {
  using Sizes = StreamSizes<kHd>;
  using Rows = KeyRows<kHd>;
  const WindowAttentionFwdParams& problem = p.problem;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, threads = 32 * p.warps;
  const int tokens = problem.window_area(), columns = problem.window_size[1];
  const int key_blocks = p.bias.key_tiles / Sizes::kKeyTiles, groups = p.bias.row_tiles / Sizes::kTiles;
  char* const stages = shared_memory();
  char* const table = stages + 2 * Sizes::kStageBytes;
  char* const regions = table + key_blocks * Sizes::kKeys * static_cast<int>(sizeof(Pixel));
  char* const staging = regions + key_blocks * Sizes::kKeys * 2 + warp * 1024;

  for (int64_t unit = blockIdx.x; unit < p.all.of_all * problem.nH; unit += p.blocks) {
    const int64_t window = unit / problem.nH;
    const int head = static_cast<int>(unit - window * problem.nH);
    const Windows::Place at = p.all.place(window);
    const bool border = p.all.has_border(at);
    const HeadRows from = rows_of_head(p, at.b, head);
    tabulate(p, at, tokens, key_blocks * Sizes::kKeys, columns, threadIdx.x, threads, table);
    if (border) {
      tabulate_regions(p, at, tokens, key_blocks * Sizes::kKeys, columns, threadIdx.x, threads, regions);
    }
    sync_threads();
    const auto fetch = [&](int block, int stage) {
      char* const k = stages + stage * Sizes::kStageBytes;
      char* const v = k + Sizes::kStageBytes / 2;
      for (int i = threadIdx.x; i < Sizes::kKeys * Rows::kChunks; i += threads) {
        const int row = i / Rows::kChunks, chunk = i % Rows::kChunks, token = block * Sizes::kKeys + row;
        // Behind the window its last key, whose score is added -inf: so the sum is -inf, or what the row has anyway.
        const int real = token < tokens ? token : tokens - 1;
        fetch_keys<kAligned>(from.template keys<true>(p, pixel_of(table, real), chunk), k + Rows::at(row, chunk),
                             v + Rows::at(row, chunk), token < tokens);
      }
      copy_async_commit();
    };
    const float factor = (kCosine ? load_global<float>(problem.logit_scale + head) : problem.scale) * kLog2E;
    int stage = 0;
    fetch(0, 0);
    for (int round = 0; round < groups; round += p.warps) {
      const int group = round + warp, first = group * (16 * Sizes::kTiles);
      const bool has_rows = group < groups;
      RowTiles<T, kHd, Sizes::kTiles, Sizes::kKeyTiles, kCosine> rows(lane);
      if (has_rows) {
        load_queries<kAligned>(p, &rows, from, table, first);
        rows.begin(factor);
      }
      for (int block = 0; block < key_blocks; ++block) {
        copy_async_wait<0>();
        sync_threads();  // this block has landed, and all have read the one before
        if (block + 1 < key_blocks) {
          fetch(block + 1, stage ^ 1);
        } else if (round + p.warps < groups) {
          fetch(0, stage ^ 1);
        }
        if (has_rows) {
          const char* const k = stages + stage * Sizes::kStageBytes;
          const char* const v = k + Sizes::kStageBytes / 2;
          const char* const fragments =
              p.bias.of_head(p.fragments, head) + lane * 16 +
              (int64_t{group * Sizes::kTiles} * p.bias.key_tiles + block * Sizes::kKeyTiles) * BiasFragments::kBytes;
          const auto bias = [&](int r, int j) {
            return load_global<Float4>(fragments + (r * p.bias.key_tiles + j) * BiasFragments::kBytes);
          };
          if (kCosine) rows.invert_norms(k, staging);
          typename decltype(rows)::Regions row_regions = {};
          if (border) {
            rows.load_regions(regions + first * 2, row_regions);
            rows.template attend<true, true>(k, v, staging, bias, regions + block * Sizes::kKeys * 2, row_regions,
                                             problem.mask_value * kLog2E);
          } else {
            rows.template attend<false, true>(k, v, staging, bias, nullptr, row_regions, 0.0f);
          }
        }
        stage ^= 1;
      }
      if (has_rows) {
        rows.finish();
        store_results<true>(p, rows, from, staging, table, first);
      }
    }
    sync_threads();  // before the next window's table and rows
  }
}

}  // namespace swin_fast::cuda
