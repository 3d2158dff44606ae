// SPDX-License-Identifier: Apache-2.0
//
// The forward kernel of windows of 12 x 12 and 16 x 16 tokens at head dimension 32: all of k and v lies in shared
// memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "large_fwd_rows.h"

namespace swin_fast::cuda {

// Sizes of windows of kWindow x kWindow tokens. A team of warps shares a window. Each warp has kTiles tiles of 16
// tokens that follow each other: it brings their rows, and has their queries and results. So many queries share each
// fragment of k and v, for else shared memory were the limit. Block b of keys is the b-th tile of every warp.
template <int kWindow>
struct SquareSizes {
  static_assert(kWindow == 12 || kWindow == 16, "windows of 12 x 12 and 16 x 16");
  static constexpr int kHd = 32;
  static constexpr int kTokens = kWindow * kWindow;
  static constexpr int kRowTiles = kTokens / 16;
  static constexpr int kTiles = kWindow == 12 ? 3 : 2;
  static constexpr int kOwn = 16 * kTiles;  // tokens of a warp
  static constexpr int kTeam = kRowTiles / kTiles;
  static constexpr int kBlocks = kTiles;
  static constexpr int kPanel = kWindow == 12 ? 3 : 1;  // row tiles that make up whole rows of the window
  // Twelve warps of 168 registers, sixteen of 128.
  static constexpr int kMostWindows = kWindow == 12 ? 4 : 2;
  static constexpr int kMostThreads = 32 * kTeam * kMostWindows;

  static constexpr int kTileBytes = 16 * KeyRows<kHd>::kBytes;
  static constexpr int kRowsBytes = kRowTiles * kTileBytes;  // of k, or v
  // Of a team: k, v, norms of keys, and twice, for this window and the next, pixels and regions.
  static constexpr int kNorms = 2 * kRowsBytes, kPixels = kNorms + kTokens * 4;
  static constexpr int kPixelBytes = kTokens * static_cast<int>(sizeof(Pixel));
  static constexpr int kRegions = kPixels + 2 * kPixelBytes, kRegionBytes = kTokens * 2;
  static constexpr int kTeamBytes = kRegions + 2 * kRegionBytes;
  // Of a warp: queries of the next window, results on their way, and twice, what else is known of a window.
  static constexpr int kStaging = kTiles * kTileBytes, kRecords = kStaging + kTileBytes, kRecordBytes = 64;
  static constexpr int kWarpBytes = kRecords + 2 * kRecordBytes;
  static constexpr int kBiasBytes = (2 * kRowTiles / kPanel - 1) * 2 * kPanel * kPanel * BiasFragments::kBytes;
  static constexpr size_t shared_bytes(bool compact, int windows) {
    return kPixelBytes + (compact ? kBiasBytes : 0) + size_t{kTeamBytes + kTeam * kWarpBytes} * windows;
  }

  // The fragment of the first tiles of a warp and of a block of keys, and from there to that of row tile r of the warp
  // and of the j-th 8 keys of the block's tile of warp `step`.
  template <bool kCompact>
  SWIN_FAST_DEVICE static int fragment(int member, int block) {
    if (!kCompact) return member * kTiles * 2 * kRowTiles + 2 * block;
    const int apart = member * (kTiles / kPanel) - block / kPanel;
    return (apart + kRowTiles / kPanel - 1) * 2 * kPanel * kPanel + 2 * (block % kPanel);
  }
  template <bool kCompact>
  SWIN_FAST_DEVICE static constexpr int to_fragment(int r, int step, int j) {
    if (!kCompact) return r * 2 * kRowTiles + 2 * kTiles * step + j;
    return ((r / kPanel - step * (kTiles / kPanel)) * kPanel + r % kPanel) * 2 * kPanel + j;
  }
};

// Computes: out of windows of 12 x 12 or 16 x 16 tokens at head_dim 32.
// Grid:     p.blocks, of p.windows teams of warps. A team has one head of a window at a time, whose k and v lie in
//           shared memory. While it is at one block of keys, the one before makes room for that of the team's next
//           window, whose queries are on their way from the beginning. The bias lies in shared memory, if kCompact.
// Memory:   reads 3 and writes 1 rows of 64 bytes for each token and head, 16 bytes at a time.
// Numerics: products in the input dtype with float32 accumulators; scores in base 2, their softmax over 16 keys after
//           the other, and its sums in float32. Weights are rounded for the product with v and summed as they are then.
//           In bfloat16 they are relative to a score of 0. Rows whose sum of weights is not between 2^-64 and 2^64
//           then, and float16: relative to a score of their row that is at most 8 less than the largest so far; what
//           was summed is shrunk only when it is more. Nothing depends on windows or blocks.
// Source:   written for this project; fragments as in the PTX manual, mma.m16n8k16; shrinking only when it matters as
//           in FlashAttention 4.
template <class T, int kWindow, bool kCosine, bool kAligned, bool kCompact>
__global__ void __launch_bounds__(SquareSizes<kWindow>::kMostThreads) square_windows_fwd(const LargeFwdParams p) {
  using Sizes = SquareSizes<kWindow>;
  using Rows = KeyRows<Sizes::kHd>;
  constexpr bool kOnline = is_half<T>;  // it has no room for weights of any size
  const WindowAttentionFwdParams& problem = p.problem;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int member = warp % Sizes::kTeam, slot = warp / Sizes::kTeam;
  char* const whole = shared_memory();  // places of tokens in their window
  char* const resident = whole + Sizes::kPixelBytes;
  char* const teams = resident + (kCompact ? Sizes::kBiasBytes : 0);
  char* const k = teams + slot * Sizes::kTeamBytes;
  char* const v = k + Sizes::kRowsBytes;
  char* const norms = k + Sizes::kNorms;
  char* const queries = teams + p.windows * Sizes::kTeamBytes + warp * Sizes::kWarpBytes;
  char* const staging = queries + Sizes::kStaging;
  const int first = member * Sizes::kOwn;           // token of this warp
  const int place = Rows::at(lane >> 2, lane & 3);  // of the chunk that this lane brings, in eight rows
  const auto sync = [&] { sync_team(slot, 32 * Sizes::kTeam); };

  // What is known of a window, and whether it is this one or the next, 0 and 1 in turns.
  constexpr int kQ = 0, kOut = 8, kImageQ = 16, kImageOut = 24, kPlace = 32, kImage = 40, kHead = 44, kFlags = 48,
                kOfHead = 52, kLeft = 56;
  constexpr uint32_t kExists = 1, kBorder = 2, kPadded = 4, kWhole = 8;
  const auto record_of = [&](int which) { return queries + Sizes::kRecords + which * Sizes::kRecordBytes; };
  const auto flags_of = [&](int which) { return load_shared<uint32_t>(record_of(which) + kFlags); };
  const auto regions_of = [&](int which) { return k + Sizes::kRegions + which * Sizes::kRegionBytes; };
  // The pixels of tokens, counted from the first one of a window that is whole, else from that of the image.
  const auto pixels_of = [&](int which) {
    return flags_of(which) & kWhole ? whole : k + Sizes::kPixels + which * Sizes::kPixelBytes;
  };
  // A window, of round number `of_head` of its head, from which on `left` rounds are to be done; `behind` the other one
  // that is known. All this lies in shared memory: in registers, there were not enough.
  const auto tabulate_window = [&](int head, int of_head, int left, bool behind, int which) {
    const char* const before = record_of(which ^ 1);
    Windows::Place at;
    HeadRows image;  // the rows of its image
    bool same_image = false;
    if (behind) {
      const auto place_before = load_shared<Pixel>(before + kPlace);
      at = {load_shared<int32_t>(before + kImage), place_before.y, place_before.x};
      same_image = !p.all.advance(&at);
    } else {
      at = p.all.place(static_cast<uint32_t>(slot * p.rounds + of_head));
    }
    const bool exists = left > 0 && at.b < problem.B;
    if (same_image) {
      image = {load_shared<const char*>(before + kImageQ), load_shared<char*>(before + kImageOut), head};
    } else {
      image = rows_of_head(p, at.b, head);
    }
    uint32_t flags = exists ? kExists : 0;
    HeadRows rows = image;
    if (exists && p.all.is_whole(at)) {
      flags |= kWhole;
      const Pixel corner = {at.y * kWindow + static_cast<int32_t>(p.all.y.roll),
                            at.x * kWindow + static_cast<int32_t>(p.all.x.roll)};
      rows.q = HeadRows::at(p, rows.q, corner);
      rows.out = HeadRows::result(p, rows.out, corner);
    } else if (exists) {
      const bool padded = tabulate(p, at, Sizes::kTokens, first + Sizes::kOwn, kWindow, first + lane, 32,
                                   k + Sizes::kPixels + which * Sizes::kPixelBytes);
      if (any_lane(padded)) flags |= kPadded;
    }
    if (exists && p.all.has_border(at)) {
      flags |= kBorder;
      tabulate_regions(p, at, Sizes::kTokens, first + Sizes::kOwn, kWindow, first + lane, 32, regions_of(which));
    }
    if (lane == 0) {
      char* const record = record_of(which);
      store_shared(record + kQ, rows.q);
      store_shared(record + kOut, rows.out);
      store_shared(record + kImageQ, image.q);
      store_shared(record + kImageOut, image.out);
      store_shared(record + kPlace, Pixel{at.y, at.x});
      store_shared(record + kImage, at.b);
      store_shared(record + kHead, head);
      store_shared(record + kFlags, flags);
      store_shared(record + kOfHead, of_head);
      store_shared(record + kLeft, left);
    }
    sync_warp();
  };
  const auto head_of = [&](int which) { return load_shared<int32_t>(record_of(which) + kHead); };
  const auto of_head_of = [&](int which) { return load_shared<int32_t>(record_of(which) + kOfHead); };
  const auto left_of = [&](int which) { return load_shared<int32_t>(record_of(which) + kLeft); };
  const auto rows_of = [&](int which) {
    const char* const record = record_of(which);
    return HeadRows{load_shared<const char*>(record + kQ), load_shared<char*>(record + kOut), head_of(which)};
  };
  const auto with_padding = [&](int which, const auto& call) {
    const uint32_t flags = flags_of(which);
    if (flags & kPadded) {
      call(std::true_type{});
    } else if (flags & kExists) {
      call(std::false_type{});
    }
  };
  // The rows of k and v of this warp's tile of a block of keys.
  const auto fetch_block = [&](int which, int block) {
    with_padding(which, [&](auto padded) {
      const HeadRows from = rows_of(which);
      const char* const pixels =
          pixels_of(which) + (first + block * 16 + (lane >> 2)) * static_cast<int>(sizeof(Pixel));
      char* const to = k + (first + block * 16) * Rows::kBytes + place;
      HeadRows::Keys keys[2];  // all addresses first: ptxas guards each run of copies with three instructions
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        keys[i] = from.template keys<decltype(padded)::value>(p, pixel_of(pixels, i * 8), lane & 3);
      }
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        char* const to_k = to + i * 8 * Rows::kBytes;
        fetch_keys<kAligned>(keys[i], to_k, to_k + Sizes::kRowsBytes, true);
      }
    });
  };
  // All queries of this warp.
  const auto fetch_queries = [&](int which) {
    with_padding(which, [&](auto padded) {
      const char* const origin = load_shared<const char*>(record_of(which) + kQ) + (lane & 3) * 16;
      const char* const pixels = pixels_of(which) + (first + (lane >> 2)) * static_cast<int>(sizeof(Pixel));
      const char* row[2 * Sizes::kTiles];
      bool real[2 * Sizes::kTiles];
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2 * Sizes::kTiles; ++i) {
        const Pixel at = pixel_of(pixels, i * 8);
        real[i] = !decltype(padded)::value || at.y >= 0;
        row[i] = real[i] ? HeadRows::at(p, origin, at) : origin;
      }
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2 * Sizes::kTiles; ++i) {
        fetch_chunk<kAligned>(queries + i * 8 * Rows::kBytes + place, reinterpret_cast<const uint16_t*>(row[i]),
                              real[i]);
      }
    });
  };
  // Norms of the keys that this warp has brought: a lane reads what it has brought itself.
  const auto invert_norms = [&](int block) {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int token = first + block * 16 + i * 8;
      const auto chunk = load_shared<UInt4>(k + token * Rows::kBytes + place);
      const float inverse =
          inverse_norm(squares<T>(chunk.x) + squares<T>(chunk.y) + squares<T>(chunk.z) + squares<T>(chunk.w));
      if ((lane & 3) == 0) store_shared(norms + (token + (lane >> 2)) * 4, inverse);
    }
  };

  for (int token = threadIdx.x; token < Sizes::kTokens; token += blockDim.x) {
    store_shared(whole + token * static_cast<int>(sizeof(Pixel)), Pixel{token / kWindow, token % kWindow});
  }
  {
    const int64_t begin = p.first_round(blockIdx.x), end = p.first_round(int64_t{blockIdx.x} + 1);
    tabulate_window(static_cast<int>(begin / p.rounds), static_cast<int>(begin % p.rounds),
                    static_cast<int>(end - begin), false, 0);
  }
  sync_threads();
  fetch_queries(0);
  for (int block = 0; block < Sizes::kBlocks - 1; ++block) {
    fetch_block(0, block);
    copy_async_commit();
  }
  using Tiles = RowTiles<T, Sizes::kHd, Sizes::kTiles, 2, kCosine, true>;
  Tiles rows(lane);
  const auto fetch_bias = [&](int which) {
    if (!kCompact) return;
    const char* const fragments = p.bias.of_head(p.fragments, head_of(which));
    for (int i = threadIdx.x * 16; i < Sizes::kBiasBytes; i += blockDim.x * 16) {
      copy_async_16(resident + i, fragments + i, true);
    }
    copy_async_commit();
    copy_async_wait<0>();
    sync_threads();
  };
  fetch_bias(0);
  for (int now = 0; left_of(now) > 0; now ^= 1) {
    const bool exists = (flags_of(now) & kExists) != 0, border = (flags_of(now) & kBorder) != 0;
    const auto begin_rows = [&] {
      rows.begin((kCosine ? load_global<float>(problem.logit_scale + head_of(now)) : problem.scale) * kLog2E);
    };
    // The tile of a block of keys that warp `step` of the team has brought.
    const auto attend = [&](auto with_border, auto online, int block, int step, const char* k_tile, const char* v_tile,
                            const char* key_norms, const typename Tiles::Regions& row_regions) {
      const char* const fragments = (kCompact ? resident : p.bias.of_head(p.fragments, head_of(now))) +
                                    Sizes::template fragment<kCompact>(member, block) * BiasFragments::kBytes +
                                    lane * 16;
      const auto bias = [&](int r, int j) {
        const char* const own = fragments + Sizes::template to_fragment<kCompact>(r, step, j) * BiasFragments::kBytes;
        return kCompact ? load_shared<Float4>(own) : load_global<Float4>(own);
      };
      rows.template attend<decltype(with_border)::value, decltype(online)::value>(
          k_tile, v_tile, key_norms, bias, regions_of(now) + (step * Sizes::kTiles + block) * 32, row_regions,
          problem.mask_value * kLog2E);
    };
    const auto with_regions = [&](const auto& call) {
      typename Tiles::Regions row_regions = {};
      if (border) {
        rows.load_regions(regions_of(now) + first * 2, row_regions);
        call(std::true_type{}, row_regions);
      } else {
        call(std::false_type{}, row_regions);
      }
    };

    copy_async_wait<Sizes::kBlocks - 2>();
    if (kCosine && exists) invert_norms(0);
    sync();  // the first block and the queries have landed, and all have read the last block of the window before
    if (exists) rows.set_queries(queries);
    fetch_block(now, Sizes::kBlocks - 1);
    {
      const int of_head = of_head_of(now) + 1;
      const bool was_last = of_head == p.rounds;
      tabulate_window(head_of(now) + was_last, was_last ? 0 : of_head, left_of(now) - 1, !was_last, now ^ 1);
    }
    // Now all lanes have their queries.
    fetch_queries(now ^ 1);
    copy_async_commit();
    begin_rows();
    for (int block = 0; block < Sizes::kBlocks; ++block) {
      if (block > 0) {
        copy_async_wait<Sizes::kBlocks - 2>();
        if (kCosine && exists) invert_norms(block);
        sync();  // this block has landed, and all have read the one before
        fetch_block(now ^ 1, block - 1);
        copy_async_commit();
      }
      if (!exists) continue;
      with_regions([&](auto with_border, const auto& row_regions) {
        SWIN_FAST_UNROLL_4  // of eight all had no registers for what else is known
            for (int step = 0; step < Sizes::kTeam; ++step) {
          const int tile = step * Sizes::kTiles + block;
          attend(with_border, std::integral_constant<bool, kOnline>{}, block, step, k + tile * Sizes::kTileBytes,
                 v + tile * Sizes::kTileBytes, norms + tile * 64, row_regions);
        }
      });
    }
    if (exists) {
      if (!kOnline && any_lane(!rows.sums_in_range())) {
        // Once more, with the rows of k and v from memory, where the queries of the next window are, which have landed
        // with the last block of keys: these come again.
        begin_rows();
        SWIN_FAST_NO_UNROLL
        for (int tile = 0; tile < Sizes::kRowTiles; ++tile) {
          sync_warp();  // what lay there has been read
          SWIN_FAST_NO_UNROLL
          for (int i = 0; i < 2; ++i) {
            char* const to_k = queries + i * 8 * Rows::kBytes + place;
            const Pixel at = pixel_of(pixels_of(now), tile * 16 + i * 8 + (lane >> 2));
            fetch_keys<kAligned>(rows_of(now).template keys<true>(p, at, lane & 3), to_k, to_k + Sizes::kTileBytes,
                                 true);
          }
          copy_async_commit();
          copy_async_wait<0>();
          sync_warp();
          if (kCosine) rows.invert_norms(queries, staging);
          with_regions([&](auto with_border, const auto& row_regions) {
            attend(with_border, std::true_type{}, tile % Sizes::kTiles, tile / Sizes::kTiles, queries,
                   queries + Sizes::kTileBytes, staging, row_regions);
          });
        }
        sync_warp();  // the last rows have been read
        fetch_queries(now ^ 1);
        copy_async_commit();
        copy_async_wait<0>();
      }
      rows.finish();
      with_padding(now, [&](auto padded) {
        store_results<decltype(padded)::value>(p, rows, rows_of(now), staging, pixels_of(now), first);
      });
    }
    if (left_of(now ^ 1) > 0 && of_head_of(now ^ 1) == 0) {
      sync_threads();  // all have read the bias
      fetch_bias(now ^ 1);
    }
  }
}

}  // namespace swin_fast::cuda
