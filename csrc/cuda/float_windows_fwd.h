// SPDX-License-Identifier: Apache-2.0
//
// The forward of windows of up to 1,024 tokens in float32, at head dimensions 16, 32, 64, 96 and 128.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "bias_fragments.h"
#include "float_rows.h"
#include "primitives.h"
#include "row_tiles.h"
#include "windows.h"

namespace swin_fast::cuda {

struct FloatFwdParams {
  WindowAttentionFwdParams problem;
  Windows all;
  BiasFragments bias;
  const void* fragments;  // what arrange_bias() has made of the bias; not read without one
  int32_t warps, blocks;
};

template <int kHd>
struct FloatFwdSizes {
  using Tile = RowTile<2 * kHd>;
  static constexpr int kKeys = kHd <= 64 ? 32 : 16;                // brought at once
  static constexpr int kStageBytes = 2 * kKeys * Tile::kRowBytes;  // of k and v
  static constexpr int kMostWarps = 4;
  // At least, of a multiprocessor.
  static constexpr int kBlocks = kHd == 16 ? 4 : kHd == 32 ? 3 : 2;

  static constexpr int kTokenBytes = 8 + 4 + 2;  // its row of q, its pixel and its region

  static SWIN_FAST_HOST_DEVICE int rows(int tokens) { return (tokens + kKeys - 1) / kKeys * kKeys; }
  static size_t shared_bytes(int tokens, int warps) {
    return 2 * kStageBytes + size_t{16} * warps * Tile::kRowBytes + 2 * kKeys * sizeof(float) +
           size_t{kTokenBytes} * rows(tokens);
  }
};

// A tile of 16 queries of a warp, whose softmax goes along with the keys.
template <int kHd, bool kCosine>
struct FloatQueries {
  using Tile = RowTile<2 * kHd>;
  // By less it is not worth to shrink what was summed: weights of up to e^5 are as exact.
  static constexpr float kLag = 5.0f;

  const OwnRows<Float32, kHd> q;
  float o[kHd / 8][4];
  float top[2];  // what weights are relative to: no score so far is more than kLag larger
  float sum[2];  // of this lane's weights
  float of_row[2];
  int lane;

  SWIN_FAST_DEVICE FloatQueries(const char* rows, float factor, int lane_) : q(rows, lane_), lane(lane_) {
    float inverse[2] = {1.0f, 1.0f};
    if (kCosine) q.inverse_norms(inverse);
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      top[i] = -FLT_MAX;  // and not -inf: differences to it are numbers
      sum[i] = 0.0f;
      of_row[i] = factor * inverse[i];
    }
    SWIN_FAST_UNROLL
    for (int c = 0; c < kHd / 8; ++c) o[c][0] = o[c][1] = o[c][2] = o[c][3] = 0.0f;
  }

  // The tops become those of all lanes; what has been summed relative to the tops before shrinks by the difference.
  SWIN_FAST_DEVICE void raise(float (&largest)[2]) {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      largest[i] = fmaxf(largest[i], shuffle_xor(largest[i], 1));
      largest[i] = fmaxf(largest[i], shuffle_xor(largest[i], 2));
      const float shrunk = weight_of(top[i], largest[i]);
      top[i] = largest[i];
      sum[i] *= shrunk;
      SWIN_FAST_UNROLL
      for (int c = 0; c < kHd / 8; ++c) {
        o[c][2 * i] *= shrunk;
        o[c][2 * i + 1] *= shrunk;
      }
    }
  }

  // Scores of 16 keys, with rows of k and v: their weights and values are added.
  SWIN_FAST_DEVICE void attend(float (&s)[2][4], const char* values) {
    float largest[2];
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      largest[i] = fmaxf(fmaxf(s[0][2 * i], s[0][2 * i + 1]), fmaxf(s[1][2 * i], s[1][2 * i + 1]));
      largest[i] = fmaxf(top[i], largest[i]);
    }
    if (any_lane(largest[0] > top[0] + kLag || largest[1] > top[1] + kLag)) raise(largest);
    SWIN_FAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) {
        s[j][e] = weight_of(s[j][e], top[e >> 1]);
        sum[e >> 1] += s[j][e];
      }
    }
    add_weighted_rows<Float32, kHd, true>(o, s, values, lane);
  }

  // Divides by the sums. 0 where every score was -inf.
  SWIN_FAST_DEVICE void finish() {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      sum[i] += shuffle_xor(sum[i], 1);
      sum[i] += shuffle_xor(sum[i], 2);
      const float share = reciprocal<Float32>(sum[i]);
      SWIN_FAST_UNROLL
      for (int c = 0; c < kHd / 8; ++c) {
        SWIN_FAST_UNROLL
        for (int e = 2 * i; e < 2 * i + 2; ++e) o[c][e] = sum[i] == 0.0f ? 0.0f : o[c][e] * share;
      }
    }
  }
};

// The rows of a head of an image in global memory, found by where that of q of a token begins, in bytes: or kPadding or
// kNoToken.
struct FloatHeadRows {
  const char *q, *padding;  // padding: of k; null: zeros
  int64_t k, v, padding_v;  // from the row of q to those of k and v, and from padding of k to that of v

  SWIN_FAST_DEVICE FloatHeadRows(const WindowAttentionParams& problem, int64_t b, int head)
      : q(static_cast<const char*>(problem.qkv) + 4 * (b * problem.qkv_stride[0] + head * problem.qkv_stride[4])),
        padding(problem.pad_value == nullptr
                    ? nullptr
                    : static_cast<const char*>(problem.pad_value) + int64_t{4} * (problem.nH + head) * problem.hd),
        k(4 * problem.qkv_stride[3]),
        v(8 * problem.qkv_stride[3]),
        padding_v(int64_t{4} * problem.nH * problem.hd) {}

  // Begin to bring a piece of 16 bytes: of k and v, and of q.
  template <bool kAligned>
  SWIN_FAST_DEVICE void fetch_key(char* to_k, char* to_v, int64_t token, int piece) const {
    const bool padded = token == kPadding && padding != nullptr, valid = padded || token >= 0;
    const char* const from = (padded ? padding : q + (token >= 0 ? token + k : 0)) + piece * 16;
    fetch<kAligned>(to_k, from, valid);
    fetch<kAligned>(to_v, from + (padded ? padding_v : token >= 0 ? v - k : 0), valid);
  }
  template <bool kAligned>
  SWIN_FAST_DEVICE void fetch_query(char* to, int64_t token, int piece) const {
    fetch<kAligned>(to, q + (token >= 0 ? token : 0) + piece * 16, token >= 0);
  }

 private:
  template <bool kAligned>
  static SWIN_FAST_DEVICE void fetch(char* to, const char* from, bool valid) {
    if constexpr (kAligned) {
      copy_async_16(to, from, valid);
    } else {
      Float4 four{0.0f, 0.0f, 0.0f, 0.0f};
      if (valid) {
        four = {load_global<float>(from), load_global<float>(from + 4), load_global<float>(from + 8),
                load_global<float>(from + 12)};
      }
      store_shared(to, four);
    }
  }
};

// Computes: out of windows of up to 1,024 tokens in float32, at head dimension kHd.
// Grid:     p.blocks, of p.warps warps; a block has one head of a window at a time. Its warps have a tile of 16 queries
//           each, and go through the keys together: while they are at some, the next are on their way. Then they have
//           the next tiles.
// Memory:   reads the rows of q once and those of k and v once for each p.warps tiles; writes 1; and the bias once for
//           each window, as fragments.
// Numerics: products of float32 as three of tensor cores, see float_rows.h; scores, softmax and sums in float32.
// Source:   written for this project; three products: CUTLASS, example 27; fragments as in the PTX manual, mma.m16n8k8.
template <int kHd, bool kCosine, bool kAligned>
__global__ void __launch_bounds__(32 * FloatFwdSizes<kHd>::kMostWarps, FloatFwdSizes<kHd>::kBlocks)
    float_windows_fwd(const FloatFwdParams p) {
  using Sizes = FloatFwdSizes<kHd>;
  using Tile = RowTile<2 * kHd>;
  using Sums = FloatSums<kHd>;
  const WindowAttentionFwdParams& problem = p.problem;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, threads = 32 * p.warps;
  const int tokens = problem.window_area(), columns = problem.window_size[1];
  const int rows = Sizes::rows(tokens), tiles = (tokens + 15) / 16;
  char* const stages = shared_memory();
  char* const queries = stages + 2 * Sizes::kStageBytes + warp * 16 * Tile::kRowBytes;
  char* const norms = stages + 2 * Sizes::kStageBytes + p.warps * 16 * Tile::kRowBytes;
  char* const places = norms + 2 * Sizes::kKeys * 4;
  char* const pixels = places + 8 * rows;
  char* const regions = pixels + 4 * rows;

  for (int32_t turn = 0;; ++turn) {
    const int64_t unit = blockIdx.x + int64_t{turn} * p.blocks;
    if (unit >= p.all.of_all * problem.nH) return;
    const int64_t window = unit / problem.nH;
    const int head = static_cast<int>(unit - window * problem.nH);
    const Windows::Place at = p.all.place(window);
    const bool border = p.all.has_border(at);
    const FloatHeadRows from(problem, at.b, head);
    const float factor = kCosine ? load_global<float>(problem.logit_scale + head) : problem.scale;
    sync_threads();  // nobody reads pixels and rows of the window before any more
    for (int token = threadIdx.x; token < rows; token += threads) {
      const int y = token / columns, x = token - y * columns;
      Pixel pixel{0, 0};
      const bool real = token < tokens && p.all.pixel(at, y, x, &pixel.y, &pixel.x);
      const int64_t place = pixel.y * problem.qkv_stride[1] + pixel.x * problem.qkv_stride[2];
      store_shared(places + 8 * token, real ? 4 * place : int64_t{token < tokens ? kPadding : kNoToken});
      store_shared(pixels + 4 * token, real ? pixel.y * static_cast<int32_t>(problem.W) + pixel.x : kPadding);
      if (border) store_shared(regions + 2 * token, static_cast<uint16_t>(p.all.region(at, y, x)));
    }
    sync_threads();
    const auto fetch = [&](int first_key, int stage) {
      char* const to = stages + stage * Sizes::kStageBytes;
      for (int i = threadIdx.x; i < Sizes::kKeys * Tile::kPieces; i += threads) {
        const int row = i / Tile::kPieces, piece = i % Tile::kPieces;
        const auto token = load_shared<int64_t>(places + 8 * (first_key + row));
        char* const at_row = to + Tile::offset(row, piece);
        from.fetch_key<kAligned>(at_row, at_row + Tile::kSecond, token, piece);
      }
      copy_async_commit();
    };
    int stage = 0;
    fetch(0, 0);
    for (int round = 0; round < tiles; round += p.warps) {
      const int tile = round + warp, first = tile * 16;
      const bool has_rows = tile < tiles;
      sync_warp();  // the queries before have been read
      for (int i = lane; i < 16 * Tile::kPieces && has_rows; i += 32) {
        const int row = i / Tile::kPieces, piece = i % Tile::kPieces;
        const auto token = load_shared<int64_t>(places + 8 * (first + row));
        from.fetch_query<kAligned>(queries + Tile::offset(row, piece), token, piece);
      }
      copy_async_commit();
      copy_async_wait<0>();
      sync_warp();  // rows that other lanes fetched
      FloatQueries<kHd, kCosine> own(queries, factor, lane);
      const char* const fragments = static_cast<const char*>(p.bias.of_head(p.fragments, head)) +
                                    (int64_t{tile} * p.bias.key_tiles * 32 + lane) * 16;
      char* const own_regions = regions + 2 * (first + (lane >> 2));
      for (int chunk = 0; chunk < rows; chunk += Sizes::kKeys) {
        copy_async_wait<0>();
        sync_threads();  // these keys have landed, and all have read the ones before
        if (chunk + Sizes::kKeys < rows) {
          fetch(chunk + Sizes::kKeys, stage ^ 1);
        } else if (round + p.warps < tiles) {
          fetch(0, stage ^ 1);
        }
        char* const keys = stages + stage * Sizes::kStageBytes;
        char* const key_norms = norms + stage * Sizes::kKeys * 4;
        if (kCosine) {
          for (int row = warp * 8 + (lane >> 2); row < Sizes::kKeys; row += p.warps * 8) {
            prepare_norm<Float32, kHd>(keys, row, key_norms + 4 * row, lane);
          }
          sync_threads();
        }
        stage ^= 1;
        for (int row = 0; row < Sizes::kKeys && chunk + row < tokens && has_rows; row += 16) {
          const int key = chunk + row + (lane & 3) * 2;  // this lane's first, of four: the next, and both + 8
          const char* const sixteen = keys + Tile::sixteen(row);
          float s[2][4];
          own.q.times(s, sixteen);
          SWIN_FAST_UNROLL
          for (int j = 0; j < 2; ++j) {
            float of_key[2] = {1.0f, 1.0f};
            if (kCosine) {
              const auto two = load_shared<Float2>(key_norms + 4 * (row + 8 * j + (lane & 3) * 2));
              of_key[0] = two.x;
              of_key[1] = two.y;
            }
            Float4 four{0.0f, 0.0f, 0.0f, 0.0f};
            if (problem.bias_form != BiasForm::kNone) {
              four = load_global<Float4>(fragments + ((chunk + row) / 8 + j) * BiasFragments::kBytes);
            }
            const float bias[4] = {four.x, four.y, four.z, four.w};
            SWIN_FAST_UNROLL
            for (int e = 0; e < 4; ++e) {
              if (kCosine) s[j][e] *= of_key[e & 1];
              s[j][e] = fmaf(s[j][e], own.of_row[e >> 1], bias[e]);
            }
            if (border) {
              const auto two = load_shared<uint32_t>(regions + 2 * (key + 8 * j));
              SWIN_FAST_UNROLL
              for (int e = 0; e < 4; ++e) {
                const uint32_t other = (e & 1) != 0 ? two >> 16 : two & 0xffffu;
                if (other != load_shared<uint16_t>(own_regions + 16 * (e >> 1))) s[j][e] += problem.mask_value;
              }
            }
            if (chunk + row + 16 > tokens) {
              SWIN_FAST_UNROLL
              for (int e = 0; e < 4; ++e) {
                if (key + 8 * j + (e & 1) >= tokens) s[j][e] = -INFINITY;
              }
            }
          }
          own.attend(s, sixteen + Tile::kSecond);
        }
      }
      if (!has_rows) continue;
      own.finish();
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        const auto pixel = load_shared<int32_t>(pixels + 4 * (first + (lane >> 2) + 8 * i));
        if (pixel < 0) continue;
        const int64_t row = (at.b * problem.H * problem.W + pixel) * problem.nH + head;
        float* const out = static_cast<float*>(problem.out) + row * kHd;
        SWIN_FAST_UNROLL
        for (int slab = 0; slab < Sums::kSlabs; ++slab) {
          SWIN_FAST_UNROLL
          for (int half = 0; half < Sums::kHalves; ++half) {
            store_global(out + Sums::piece_of(slab, half, lane) * 4, Sums::piece(own.o, slab, half, i));
          }
        }
      }
    }
  }
}

// How a call runs: with a bias first arrange_bias(arrange) with any grid, for instance arrange.blocks(256) of 256
// threads, after arrange.fragments and params.fragments were set to workspace_bytes() bytes, aligned to 16. Then
//   float_windows_fwd<kHd, kCosine, kAligned>(params)
// with grid params.blocks, `threads` and `shared_bytes`. Nothing is to be launched where params.all.of_all is 0.
struct FloatFwdPlan {
  FloatFwdParams params;
  ArrangeParams arrange;
  int threads = 0;
  size_t shared_bytes = 0;

  int64_t workspace_bytes() const { return params.problem.bias_form == BiasForm::kNone ? 0 : arrange.layout.bytes(); }
};

template <int kHd>
FloatFwdPlan cut_float_fwd(const WindowAttentionFwdParams& problem, int multiprocessors) {
  using Sizes = FloatFwdSizes<kHd>;
  const int tokens = problem.window_area(), tiles = static_cast<int>(ceil_div(tokens, 16));
  const BiasFragments bias{tiles, 2 * tiles, 0, problem.nH};
  FloatFwdPlan plan{{problem, Windows(problem), bias, nullptr, 1, 1}, {problem, bias, nullptr, 1.0f}};
  FloatFwdParams& p = plan.params;
  const int64_t rounds = ceil_div(tiles, Sizes::kMostWarps);
  p.warps = static_cast<int32_t>(ceil_div(tiles, rounds));
  // As many as run at a time: 16 a multiprocessor would take 5.3 rounds of three, and two thirds of the last be idle.
  p.blocks = static_cast<int32_t>(std::min(p.all.of_all * problem.nH, int64_t{Sizes::kBlocks} * multiprocessors));
  plan.threads = 32 * p.warps;
  plan.shared_bytes = Sizes::shared_bytes(tokens, p.warps);
  return plan;
}

}  // namespace swin_fast::cuda
