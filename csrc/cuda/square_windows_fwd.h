// SPDX-License-Identifier: Apache-2.0
//
// The forward kernel of windows of 12 x 12 and 16 x 16 tokens at head dimension 32: all of k and v lies in shared
// memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "large_fwd_rows.h"

namespace swin_fast::cuda {

// Sizes of windows of kWindow x kWindow tokens. Groups of row tiles and blocks of key tiles go with each other: so many
// row tiles share each fragment of k and v, for else shared memory were the limit.
template <int kWindow>
struct SquareSizes {
  static_assert(kWindow == 12 || kWindow == 16, "windows of 12 x 12 and 16 x 16");
  static constexpr int kHd = 32;
  static constexpr int kTokens = kWindow * kWindow;
  static constexpr int kTiles = kWindow == 12 ? 3 : 2;     // of 16 queries, in a group
  static constexpr int kKeyTiles = kWindow == 12 ? 6 : 8;  // of 8 keys, in a block
  static constexpr int kGroups = kTokens / (16 * kTiles);
  static constexpr int kBlocks = kTokens / (8 * kKeyTiles);
  static constexpr int kPanel = kWindow == 12 ? 3 : 1;  // row tiles that make up whole rows of the window
  static constexpr int kRowTiles = kTokens / 16;

  static constexpr int kRowsBytes = kTokens * KeyRows<kHd>::kBytes;  // of k, or v
  static constexpr int kTableBytes = kTokens * sizeof(Pixel) + 48;  // behind the pixels, what else is known of a window
  static constexpr int kRegionBytes = kTokens * 2;
  static constexpr int kNormBytes = kTokens * 4;
  // Two tables: this window's and the next one's.
  static constexpr int kWarpBytes = 2 * kTableBytes + kNormBytes + kRegionBytes + 1024;
  static constexpr int kBiasBytes = (2 * kRowTiles / kPanel - 1) * 2 * kPanel * kPanel * BiasFragments::kBytes;
  static constexpr size_t shared_bytes(bool compact, int team, int windows) {
    return (compact ? kBiasBytes : 0) + size_t{2 * kRowsBytes} * windows + size_t{kWarpBytes} * team * windows;
  }

  // The fragment of a group and a block, and from there to that of their tiles r and j.
  template <bool kCompact>
  SWIN_FAST_DEVICE static int fragment(int group, int block) {
    if (!kCompact) return group * kTiles * 2 * kRowTiles + block * kKeyTiles;
    const int apart = group * (kTiles / kPanel) - block * (kKeyTiles / (2 * kPanel));
    return (apart + kRowTiles / kPanel - 1) * 2 * kPanel * kPanel;
  }
  template <bool kCompact>
  SWIN_FAST_DEVICE static constexpr int to_fragment(int r, int j) {
    if (!kCompact) return r * 2 * kRowTiles + j;
    return ((r / kPanel - j / (2 * kPanel)) * kPanel + r % kPanel) * 2 * kPanel + j % (2 * kPanel);
  }
};

// Computes: out of windows of 12 x 12 or 16 x 16 tokens at head_dim 32.
// Grid:     p.blocks, of p.team * p.windows warps. A team of warps has one head of a window at a time, whose k and v
//           lie in shared memory; its warps take groups of row tiles in turns. With their last groups, each block of
//           keys makes room for that of the team's next window. The bias lies in shared memory, if kCompact.
// Memory:   reads 3 and writes 1 rows of 64 bytes for each token and head, 16 bytes at a time; k and v once.
// Numerics: products in the input dtype with float32 accumulators; scores in base 2, their softmax over one block of
//           keys after the other, and its sums in float32. Weights are rounded for the product with v and summed as
//           they are then. They are relative to a score of their row that is at most 8 less than the largest so far:
//           what was summed is shrunk only when it is more. Nothing depends on teams, windows or blocks. sm_90,
//           N = 144: 6,480 warp instructions a window and head without a border, of the 7,944 that an H200 has time
//           for while its memory moves the rows. Not yet run on a GPU.
// Source:   written for this project; fragments as in the PTX manual, mma.m16n8k16; shrinking only when it matters as
//           in FlashAttention 4.
template <class T, int kWindow, bool kCosine, bool kAligned, bool kCompact>
__global__ void __launch_bounds__(256) square_windows_fwd(const LargeFwdParams p) {
  using Sizes = SquareSizes<kWindow>;
  using Rows = KeyRows<Sizes::kHd>;
  const WindowAttentionFwdParams& problem = p.problem;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int member = warp % p.team, slot = warp / p.team;
  char* const resident = shared_memory();
  char* const k = resident + (kCompact ? Sizes::kBiasBytes : 0) + slot * (2 * Sizes::kRowsBytes);
  char* const v = k + Sizes::kRowsBytes;
  char* const own =
      resident + (kCompact ? Sizes::kBiasBytes : 0) + p.windows * (2 * Sizes::kRowsBytes) + warp * Sizes::kWarpBytes;
  char *table = own, *next_table = own + Sizes::kTableBytes;
  char* const norms = own + 2 * Sizes::kTableBytes;
  char* const regions = norms + Sizes::kNormBytes;
  char* const staging = regions + Sizes::kRegionBytes;

  // What is known of a window besides its pixels lies behind them: in registers, there were not enough.
  constexpr int kQkv = Sizes::kTokens * static_cast<int>(sizeof(Pixel)), kOut = kQkv + 8, kPlace = kQkv + 16;
  constexpr int kHead = kQkv + 24, kFlags = kQkv + 28, kOfHead = kQkv + 32, kLeft = kQkv + 36;
  constexpr uint32_t kExists = 1, kBorder = 2, kPadded = 4;
  // A round, number `of_head` of its head, from which on `left` rounds are to be done.
  const auto tabulate_round = [&](int head, int of_head, int left, char* to) {
    const int64_t window = int64_t{of_head} * p.windows + slot;
    const bool exists = left > 0 && window < p.all.of_all;
    const Windows::Place at = p.all.place(exists ? window : 0);
    const bool padded = exists && tabulate(p, at, Sizes::kTokens, Sizes::kTokens, kWindow, lane, 32, to);
    const bool any_padded = any_lane(padded);
    if (lane == 0) {
      const HeadRows rows = rows_of_head(p, at.b, head);
      store_shared(to + kQkv, rows.qkv);
      store_shared(to + kOut, rows.out);
      store_shared(to + kPlace, Pixel{at.y, at.x});
      store_shared(to + kHead, head);
      store_shared(to + kFlags,
                   exists ? kExists | (p.all.has_border(at) ? kBorder : 0) | (any_padded ? kPadded : 0) : 0);
      store_shared(to + kOfHead, of_head);
      store_shared(to + kLeft, left);
    }
    sync_warp();
  };
  const auto flags_of = [&](const char* window) { return load_shared<uint32_t>(window + kFlags); };
  const auto rows_of = [&](const char* window) {
    return HeadRows{load_shared<int64_t>(window + kQkv), load_shared<int64_t>(window + kOut),
                    load_shared<int32_t>(window + kHead)};
  };
  const auto fetch = [&](const char* window, int block) {
    const uint32_t flags = flags_of(window);
    if (!(flags & kExists)) return;
    const HeadRows from = rows_of(window);
    const int row = lane >> 2, chunk = lane & 3, place = Rows::at(row, chunk);
    const auto fetch_tile = [&](int i, auto padded) {
      const int tile = block * Sizes::kKeyTiles + i;
      char* const to_k = k + tile * 8 * Rows::kBytes + place;
      from.template fetch<kAligned, decltype(padded)::value>(p, pixel_of(window, tile * 8 + row), chunk, to_k,
                                                             to_k + Sizes::kRowsBytes, true);
    };
    if (p.team == 1 && !(flags & kPadded)) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < Sizes::kKeyTiles; ++i) fetch_tile(i, std::false_type{});
    } else {
      for (int i = member; i < Sizes::kKeyTiles; i += p.team) fetch_tile(i, std::true_type{});
    }
  };
  const auto sync_team = [&] {
    if (p.team == 1) {
      sync_warp();
    } else {
      sync_threads();
    }
  };

  {
    const int64_t first = p.first_round(blockIdx.x), end = p.first_round(int64_t{blockIdx.x} + 1);
    tabulate_round(static_cast<int>(first / p.rounds), static_cast<int>(first % p.rounds),
                   static_cast<int>(end - first), table);
  }
  for (int block = 0; block < Sizes::kBlocks; ++block) {
    fetch(table, block);
    copy_async_commit();
  }
  bool new_head = true;
  while (load_shared<int32_t>(table + kLeft) > 0) {
    if (kCompact && new_head) {
      sync_threads();
      const char* const fragments = p.bias.of_head(p.fragments, rows_of(table).head);
      for (int i = threadIdx.x * 16; i < Sizes::kBiasBytes; i += blockDim.x * 16) {
        store_shared(resident + i, load_global<Float4>(fragments + i));
      }
      sync_threads();
    }
    const bool exists = (flags_of(table) & kExists) != 0, border = (flags_of(table) & kBorder) != 0;
    if (border) {
      const auto at = load_shared<Pixel>(table + kPlace);
      tabulate_regions(p, {0, at.y, at.x}, Sizes::kTokens, Sizes::kTokens, kWindow, lane, 32, regions);
      sync_warp();
    }
    for (int group = member; group < Sizes::kGroups; group += p.team) {
      const bool is_first = group == member, is_last = group + p.team >= Sizes::kGroups;
      if (is_last) {
        sync_warp();  // the results of the window before have been stored
        const int head = load_shared<int32_t>(table + kHead), of_head = load_shared<int32_t>(table + kOfHead) + 1;
        const bool was_last = of_head == p.rounds;
        tabulate_round(was_last ? head + 1 : head, was_last ? 0 : of_head, load_shared<int32_t>(table + kLeft) - 1,
                       next_table);
      }
      const int first = group * (16 * Sizes::kTiles);
      RowTiles<T, Sizes::kHd, Sizes::kTiles, Sizes::kKeyTiles, kCosine> rows(lane);
      if (exists) {
        const HeadRows from = rows_of(table);
        load_queries<kAligned>(p, &rows, from, table, first);
        rows.begin((kCosine ? load_global<float>(problem.logit_scale + from.head) : problem.scale) * kLog2E);
      }
      for (int block = 0; block < Sizes::kBlocks; ++block) {
        if (is_first) {
          copy_async_wait<Sizes::kBlocks - 1>();
          sync_team();
        }
        if (exists) {
          const int key = block * (8 * Sizes::kKeyTiles);
          const int fragment = Sizes::template fragment<kCompact>(group, block) * BiasFragments::kBytes + lane * 16;
          const char* const fragments =
              (kCompact ? resident : p.bias.of_head(p.fragments, rows_of(table).head)) + fragment;
          const auto bias = [&](int r, int j) {
            const char* const from = fragments + Sizes::template to_fragment<kCompact>(r, j) * BiasFragments::kBytes;
            return kCompact ? load_shared<Float4>(from) : load_global<Float4>(from);
          };
          const char *const k_rows = k + key * Rows::kBytes, *const v_rows = v + key * Rows::kBytes;
          if (kCosine && is_first) rows.invert_norms(k_rows, norms + key * 4);
          if (border) {
            rows.template attend<true>(k_rows, v_rows, norms + key * 4, bias, regions + key * 2, regions + first * 2,
                                       problem.mask_value * kLog2E);
          } else {
            rows.template attend<false>(k_rows, v_rows, norms + key * 4, bias, nullptr, nullptr, 0.0f);
          }
        }
        if (is_last) {
          sync_team();  // all have read this block of keys
          fetch(next_table, block);
        }
        // One each time, so that kBlocks - 1 are newer than what is waited for.
        if (is_first || is_last) copy_async_commit();
      }
      if (exists) {
        rows.finish();
        store_results(p, rows, rows_of(table), staging, table, first);
      }
    }
    char* const other = table;
    table = next_table;
    next_table = other;
    new_head = load_shared<int32_t>(table + kOfHead) == 0;
  }
}

}  // namespace swin_fast::cuda
