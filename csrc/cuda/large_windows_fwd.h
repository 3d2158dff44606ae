// SPDX-License-Identifier: Apache-2.0
//
// The forward kernels of all that small_windows_fwd.h does not take, in float16 and bfloat16: windows of up to 1,024
// tokens with head dimensions 16, 32, 64, 96 and 128; and faster ones of windows of 12 x 12 and 16 x 16 at 32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "bias_fragments.h"
#include "primitives.h"
#include "query_tiles.h"
#include "windows.h"

namespace swin_fast::cuda {

// What the kernels are told: the problem, and how its work is cut.
struct LargeFwdParams {
  WindowAttentionFwdParams problem;
  Windows all;
  uint32_t stride_y, stride_x;  // of qkv, in bytes
  BiasFragments bias;
  const void* fragments = nullptr;  // what arrange_bias() has made of the bias
  int32_t warps = 1;                // of a block
  int32_t team = 1;                 // square windows: warps that share a window, and
  int32_t windows = 1;              // windows that a block has in work at a time
  int32_t blocks = 1;

  int32_t rounds = 0;  // square windows: of a head, see below

  // Square windows: a round is one head of as many windows as a block has in work. Rounds of one head follow each
  // other, and a block does successive ones: it has one or two heads, and all heads of a window are in work at the
  // same time, for their rows share cache lines.
  SWIN_FAST_HOST_DEVICE int64_t first_round(int64_t block) const {
    return int64_t{problem.nH} * rounds * block / blocks;
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Rows from and to global memory

// The rows of a head of an image, from where its first pixel has them: bytes from the beginning of qkv and of out.
// Offsets of pixels are products of two unsigned numbers of 32 bits, one instruction each.
struct HeadRows {
  int64_t qkv, out;
  int head;

  SWIN_FAST_DEVICE const char* q(const LargeFwdParams& p) const {
    return static_cast<const char*>(p.problem.qkv) + qkv;
  }
  SWIN_FAST_DEVICE uint64_t offset(const LargeFwdParams& p, Pixel at) const {
    return uint64_t{static_cast<uint32_t>(at.y)} * p.stride_y + uint64_t{static_cast<uint32_t>(at.x)} * p.stride_x;
  }
  SWIN_FAST_DEVICE uint64_t result(const LargeFwdParams& p, Pixel at) const {
    const uint32_t pixel =
        static_cast<uint32_t>(at.y) * static_cast<uint32_t>(p.problem.W) + static_cast<uint32_t>(at.x);
    return uint64_t{pixel} * static_cast<uint32_t>(2 * p.problem.nH * p.problem.hd);
  }

  // Begins to bring a chunk of the rows of k and v of a token to shared memory; of v zeros where not `exists`. Without
  // kPadded the token is a pixel.
  template <bool kAligned, bool kPadded>
  SWIN_FAST_DEVICE void fetch(const LargeFwdParams& p, Pixel at, int chunk, char* k, char* v, bool exists) const {
    int64_t to_v = 2 * p.problem.qkv_stride[3];
    const char* from = q(p) + to_v + chunk * 16 + offset(p, at);  // of k
    bool valid = true;
    if (kPadded && at.y < 0) {
      valid = p.problem.pad_value != nullptr;
      to_v = valid ? int64_t{2} * p.problem.nH * p.problem.hd : 0;
      from = valid ? static_cast<const char*>(p.problem.pad_value) + to_v + 2 * head * p.problem.hd + chunk * 16 : q(p);
    }
    fetch_chunk<kAligned>(k, reinterpret_cast<const uint16_t*>(from), valid);
    fetch_chunk<kAligned>(v, reinterpret_cast<const uint16_t*>(from + to_v), valid && exists);
  }
};

SWIN_FAST_DEVICE HeadRows rows_of_head(const LargeFwdParams& p, int64_t b, int head) {
  const WindowAttentionFwdParams& problem = p.problem;
  return {2 * (b * problem.qkv_stride[0] + head * problem.qkv_stride[4]),
          2 * (b * problem.H * problem.W * problem.nH + head) * problem.hd, head};
}

// The pixels of tokens first, first + step and so on of a window, to a table in shared memory; like padding from
// `tokens` to `end`. Gives whether one of them is padding.
SWIN_FAST_DEVICE bool tabulate(const LargeFwdParams& p, const Windows::Place& window, int tokens, int end, int columns,
                               int first, int step, char* table) {
  bool padded = false;
  for (int token = first; token < end; token += step) {
    const int row = token / columns;
    Pixel at;
    if (token >= tokens || !p.all.pixel(window, row, token - row * columns, &at.y, &at.x)) {
      at = {-1, -1};
      padded = true;
    }
    store_shared(table + token * static_cast<int>(sizeof(Pixel)), at);
  }
  return padded;
}

SWIN_FAST_DEVICE Pixel pixel_of(const char* table, int token) {
  return load_shared<Pixel>(table + token * static_cast<int>(sizeof(Pixel)));
}

// Their regions, 16 bits each; 0 from `tokens` to `end`.
SWIN_FAST_DEVICE void tabulate_regions(const LargeFwdParams& p, const Windows::Place& window, int tokens, int end,
                                       int columns, int first, int step, char* table) {
  for (int token = first; token < end; token += step) {
    const int row = token / columns;
    const int region = token < tokens ? p.all.region(window, row, token - row * columns) : 0;
    store_shared(table + token * 2, static_cast<uint16_t>(region));
  }
}

// The queries of tokens from `first` on; zeros where there is none.
template <bool kAligned, class T, int kHd, int kTiles, int kKeyTiles, bool kCosine>
SWIN_FAST_DEVICE void load_queries(const LargeFwdParams& p, RowTiles<T, kHd, kTiles, kKeyTiles, kCosine>* rows,
                                   const HeadRows& from, const char* table, int first) {
  const int lane = rows->lane;
  const char* const origin = from.q(p) + (lane & 3) * 16;
  SWIN_FAST_UNROLL
  for (int i = 0; i < 2 * kTiles; ++i) {
    const Pixel at = pixel_of(table, first + i * 8 + (lane >> 2));
    const bool real = at.y >= 0 && (kHd != 16 || (lane & 3) < 2);
    const char* const row = real ? origin + from.offset(p, at) : from.q(p);
    SWIN_FAST_UNROLL
    for (int slab = 0; slab < KeyRows<kHd>::kSlabs; ++slab) {
      // Read in any case and then selected: nvcc leaves four words that come from one load in four neighbouring
      // registers, from where it took 118 moves a block of keys to those where mma wants them.
      const UInt4 chunk = load_chunk<kAligned>(reinterpret_cast<const uint16_t*>(row + slab * 64));
      rows->set_query(i >> 1, i & 1, slab,
                      {real ? chunk.x : 0, real ? chunk.y : 0, real ? chunk.z : 0, real ? chunk.w : 0});
    }
  }
}

template <class T, int kHd, int kTiles, int kKeyTiles, bool kCosine>
SWIN_FAST_DEVICE void store_results(const LargeFwdParams& p, const RowTiles<T, kHd, kTiles, kKeyTiles, kCosine>& rows,
                                    const HeadRows& to, char* staging, const char* table, int first) {
  const int lane = rows.lane;
  char* const origin = static_cast<char*>(p.problem.out) + to.out + (lane & 3) * 16;
  SWIN_FAST_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    SWIN_FAST_UNROLL
    for (int slab = 0; slab < KeyRows<kHd>::kSlabs; ++slab) {
      UInt4 chunk[2];
      rows.results(staging, tile, slab, chunk);
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        const Pixel at = pixel_of(table, first + tile * 16 + i * 8 + (lane >> 2));
        char* const row = origin + to.result(p, at) + slab * 64;
        if (at.y >= 0 && (kHd != 16 || (lane & 3) < 2)) store_global(row, chunk[i]);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Square windows: all of k and v in shared memory

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
  static constexpr int kTableBytes = kTokens * sizeof(Pixel) + 32;  // behind the pixels, what else is known of a window
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
// Grid:     p.blocks, of p.team * p.windows warps. A team of warps has one head of a window at a time, whose k and v lie
//           in shared memory; its warps take groups of row tiles in turns. With their last groups, each block of keys
//           makes room for that of the team's next window. The bias lies in shared memory, if kCompact.
// Memory:   reads 3 and writes 1 rows of 64 bytes for each token and head, 16 bytes at a time; k and v once.
// Numerics: products in the input dtype with float32 accumulators; scores in base 2, softmax over one block of keys
//           after the other, and its sums in float32; weights rounded for the product with v, which is divided by their
//           sum. Nothing depends on teams, windows or blocks. Not yet run on a GPU.
// Source:   written for this project; fragments as in the PTX manual, mma.m16n8k16.
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
  constexpr int kPlace = Sizes::kTokens * static_cast<int>(sizeof(Pixel));
  constexpr uint32_t kExists = 1, kBorder = 2, kPadded = 4;
  const auto tabulate_window = [&](int head, int of_head, bool in_work, char* to) {
    const int64_t window = int64_t{of_head} * p.windows + slot;
    const bool exists = in_work && window < p.all.of_all;
    const Windows::Place at = p.all.place(exists ? window : 0);
    const bool padded = exists && tabulate(p, at, Sizes::kTokens, Sizes::kTokens, kWindow, lane, 32, to);
    const bool any_padded = any_lane(padded);
    if (lane == 0) {
      const HeadRows rows = rows_of_head(p, at.b, head);
      store_shared(to + kPlace, rows.qkv);
      store_shared(to + kPlace + 8, rows.out);
      store_shared(to + kPlace + 16, Pixel{at.y, at.x});
      store_shared(to + kPlace + 24, rows.head);
      store_shared(to + kPlace + 28,
                   exists ? kExists | (p.all.has_border(at) ? kBorder : 0) | (any_padded ? kPadded : 0) : 0);
    }
    sync_warp();
  };
  const auto flags_of = [&](const char* window) { return load_shared<uint32_t>(window + kPlace + 28); };
  const auto rows_of = [&](const char* window) {
    return HeadRows{load_shared<int64_t>(window + kPlace), load_shared<int64_t>(window + kPlace + 8),
                    load_shared<int32_t>(window + kPlace + 24)};
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

  const int64_t first_round = p.first_round(blockIdx.x);
  auto rounds = static_cast<int>(p.first_round(int64_t{blockIdx.x} + 1) - first_round);  // left
  auto head = static_cast<int>(first_round / p.rounds), of_head = static_cast<int>(first_round % p.rounds);
  tabulate_window(head, of_head, rounds > 0, table);
  for (int block = 0; block < Sizes::kBlocks; ++block) {
    fetch(table, block);
    copy_async_commit();
  }
  for (bool new_head = true; rounds > 0; --rounds) {
    if (kCompact && new_head) {
      sync_threads();
      const char* const fragments = p.bias.of_head(p.fragments, head);
      for (int i = threadIdx.x * 16; i < Sizes::kBiasBytes; i += blockDim.x * 16) {
        store_shared(resident + i, load_global<Float4>(fragments + i));
      }
      sync_threads();
    }
    const bool exists = (flags_of(table) & kExists) != 0, border = (flags_of(table) & kBorder) != 0;
    if (border) {
      const auto at = load_shared<Pixel>(table + kPlace + 16);
      tabulate_regions(p, {0, at.y, at.x}, Sizes::kTokens, Sizes::kTokens, kWindow, lane, 32, regions);
      sync_warp();
    }
    new_head = ++of_head == p.rounds;
    if (new_head) {
      of_head = 0;
      ++head;
    }
    for (int group = member; group < Sizes::kGroups; group += p.team) {
      const bool is_first = group == member, is_last = group + p.team >= Sizes::kGroups;
      if (is_last) {
        sync_warp();  // the results of the window before have been stored
        tabulate_window(head, of_head, rounds > 1, next_table);
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
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Any window: k and v by blocks of keys

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
        from.template fetch<kAligned, true>(p, pixel_of(table, real), chunk, k + Rows::at(row, chunk),
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
          if (border) {
            rows.template attend<true>(k, v, staging, bias, regions + block * Sizes::kKeys * 2, regions + first * 2,
                                       problem.mask_value * kLog2E);
          } else {
            rows.template attend<false>(k, v, staging, bias, nullptr, nullptr, 0.0f);
          }
        }
        stage ^= 1;
      }
      if (has_rows) {
        rows.finish();
        store_results(p, rows, from, staging, table, first);
      }
    }
    sync_threads();  // before the next window's table and rows
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// What to launch

// Whether kernels of this header take a problem. Strides of an image are kept as 32 bits of bytes.
inline bool large_fwd_takes(const WindowAttentionParams& p) {
  const bool head_dim = p.hd == 16 || p.hd == 32 || p.hd == 64 || p.hd == 96 || p.hd == 128;
  const auto narrow = [](int64_t size, int64_t stride) {
    return size <= 1 || (stride >= 0 && stride < int64_t{1} << 31);
  };
  return p.dtype != ScalarType::kFloat32 && head_dim && p.window_area() <= 1024 && p.H * p.W < int64_t{1} << 31 &&
         narrow(p.H, p.qkv_stride[1]) && narrow(p.W, p.qkv_stride[2]);
}

// The side of the square windows that have a kernel of their own, or 0.
inline int large_fwd_window(const WindowAttentionParams& p) {
  const bool square = p.hd == 32 && p.window_size[0] == p.window_size[1];
  return square && (p.window_size[0] == 12 || p.window_size[0] == 16) ? p.window_size[0] : 0;
}

// How a call runs: first arrange_bias(arrange) with any grid, for instance arrange_blocks() of 256 threads, after
// arrange.fragments and params.fragments were set to workspace_bytes() bytes, aligned to 16. Then
//   square_windows_fwd<T, kWindow, kCosine, kAligned, kCompact>(params)  for a window that is not 0,
//   stream_windows_fwd<T, kHd, kCosine, kAligned>(params)                otherwise,
// with grid params.blocks, `threads` and `shared_bytes`. Nothing is to be launched where params.all.of_all is 0.
struct LargeFwdPlan {
  LargeFwdParams params;
  ArrangeParams arrange;
  bool compact = false;
  int threads = 0;
  size_t shared_bytes = 0;

  int64_t workspace_bytes() const { return arrange.layout.bytes(); }
  int arrange_blocks() const {
    return static_cast<int>(std::min(ceil_div(workspace_bytes(), 16 * 256), int64_t{4096}));
  }
};

// How the work of a problem is cut for a GPU of so many multiprocessors with room for so much shared memory a block.
// kWindow as of large_fwd_window(); kHd the head dimension.
template <int kWindow, int kHd>
LargeFwdPlan cut_large_fwd(const WindowAttentionFwdParams& problem, int multiprocessors, size_t shared_memory) {
  const int heads_with_bias = problem.bias_form == BiasForm::kNone ? 1 : problem.nH;
  LargeFwdPlan plan{{problem,
                     Windows(problem),
                     static_cast<uint32_t>(2 * problem.qkv_stride[1]),
                     static_cast<uint32_t>(2 * problem.qkv_stride[2]),
                     {}},
                    {problem, {}, nullptr}};
  LargeFwdParams& p = plan.params;
  const int64_t units = p.all.of_all * problem.nH;
  if constexpr (kWindow != 0) {
    using Sizes = SquareSizes<kWindow>;
    static_assert(kHd == Sizes::kHd, "square windows have head dimension 32");
    plan.compact = problem.bias_form != BiasForm::kDense;
    p.bias = {Sizes::kRowTiles, 2 * Sizes::kRowTiles, plan.compact ? Sizes::kPanel : 0, heads_with_bias};
    // Warps: eight at most, for that many registers there are. The smallest team that leaves none out.
    const int64_t wanted = std::max(int64_t{1}, ceil_div(units, multiprocessors));
    int most = 0;
    for (int team = 1; team <= std::min(8, Sizes::kGroups); ++team) {
      if (Sizes::kGroups % team != 0) continue;
      int windows = 0;
      while (windows < wanted && (windows + 1) * team <= 8 &&
             Sizes::shared_bytes(plan.compact, team, windows + 1) <= shared_memory) {
        ++windows;
      }
      if (windows * team <= most) continue;
      most = windows * team;
      p.team = team;
      p.windows = windows;
    }
    p.warps = p.team * p.windows;
    p.rounds = static_cast<int32_t>(ceil_div(p.all.of_all, p.windows));
    p.blocks = static_cast<int32_t>(std::min(int64_t{multiprocessors}, int64_t{problem.nH} * p.rounds));
    plan.shared_bytes = Sizes::shared_bytes(plan.compact, p.team, p.windows);
  } else {
    using Sizes = StreamSizes<kHd>;
    const int tokens = problem.window_area();
    p.bias = Sizes::bias(tokens, heads_with_bias);
    p.warps = std::min(Sizes::kMostWarps, Sizes::groups(tokens));
    p.blocks = static_cast<int32_t>(std::min(units, int64_t{16} * multiprocessors));
    plan.shared_bytes = Sizes::shared_bytes(tokens, p.warps);
  }
  plan.threads = 32 * p.warps;
  plan.arrange.layout = p.bias;
  return plan;
}

}  // namespace swin_fast::cuda
