// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of 16 x 16: scores, weights and their gradients, and gradients of keys and values.
#pragma once

#include <cmath>
#include <cstdint>

#include "primitives.h"
#include "row_tiles.h"
#include "window16.h"

namespace swin_fast::cuda {

// The 32 keys of a warp in a window. Scores are transposed: rows lane / 4 and that + 8 of a tile are keys, columns
// 2 * (lane % 4) and the next queries.
template <class T, bool kCosine>
struct Window16Keys : Window16Warp<T, kCosine> {
  using Base = Window16Warp<T, kCosine>;
  using Base::kHd, Base::kRows, Base::kTiles, Base::kKeyNorms, Base::kQueryNorms, Base::kWhole;
  using Base::p, Base::lane, Base::warp, Base::quad, Base::pair, Base::own, Base::memory, Base::factor;
  using Base::queries, Base::keys, Base::values, Base::norms, Base::places, Base::regions, Base::borders, Base::image;
  using typename Base::Tile;
  using Product = float[kTiles][kTiles][2][4];  // of tiles of keys and of queries
  static constexpr int kQueries = 4 * kTiles;   // that a lane has scores of

  const int stage;
  const bool border = load_shared<int>(borders(stage)) != 0;
  const OwnRows<T, kHd> k[kTiles] = {{keys(stage, own), lane}, {keys(stage, own + 16), lane}};
  const OwnRows<T, kHd> v[kTiles] = {{values(own), lane}, {values(own + 16), lane}};
  float dk[kTiles][2 * Tile::kSteps][4] = {}, dv[kTiles][2 * Tile::kSteps][4] = {};
  Product s, dp;  // scores in base 2, and then weights; dP
  static_assert(kTiles == 2, "two tiles of keys stand above");

  SWIN_FAST_DEVICE Window16Keys(const Window16BwdParams& p_, int stage_) : Base(p_), stage(stage_) {}

  // Of the eight queries of a lane, c counts pairs of columns of tiles of eight.
  SWIN_FAST_DEVICE int column(int c) const { return 8 * (c >> 1) + pair + (c & 1); }
  static SWIN_FAST_DEVICE float& of_query(Product& product, int key_tile, int half, int c) {
    return product[key_tile][c / 4][c / 2 % 2][2 * half + c % 2];
  }

  // Sums of the warp's keys, for all of its steps but two, that are seen by all.
  SWIN_FAST_DEVICE char* sums(int step, int of_warp) const {
    return memory + Window16::kAtSums + ((step & 1) * Window16::kWarps + of_warp) * Window16::kSums;
  }
  SWIN_FAST_DEVICE char* shares(int of_warp) const { return memory + Window16::kAtShares + of_warp * Window16::kSums; }

  // Products of own rows with a tile of those of a step: four that do not wait for one another before those that do.
  SWIN_FAST_DEVICE void multiply(Product& product, const OwnRows<T, kHd> (&own_rows)[kTiles], const char* rows,
                                 int r) const {
    const OtherRows<T, kHd> others(rows + Tile::sixteen(16 * r), lane);
    SWIN_FAST_UNROLL
    for (int e = 0; e < 8 * kTiles; ++e) product[e >> 3][r][(e >> 2) & 1][e & 3] = 0.0f;
    SWIN_FAST_UNROLL
    for (int channels = 0; channels < Tile::kSteps; ++channels) {
      SWIN_FAST_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        uint32_t a[4];
        own_rows[m].fragment(a, channels);
        mma_m16n8k16<T>(product[m][r][0], a, others.b[channels][0], others.b[channels][1]);
        mma_m16n8k16<T>(product[m][r][1], a, others.b[channels][2], others.b[channels][3]);
      }
    }
  }

  // Scores from products of k and q.
  SWIN_FAST_DEVICE void score(int step) {
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) multiply(s, k, queries(stage, step * kRows), r);
    const char* const entries = memory + Window16::kAtTable +
                                4 * ((2 * (step - warp) + Window16::kSide - 1) * Window16::kReach +
                                     Window16::columns_apart(lane) + Window16::kSide - 1);
    const auto entry = [&](int rows, int columns) {
      return load_shared<float>(entries + 4 * (rows * Window16::kReach + columns));
    };
    float of_key[kTiles][2];
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * kTiles; ++i) {
      of_key[i / 2][i % 2] = factor * kLog2E;
      if (kCosine) of_key[i / 2][i % 2] *= load_shared<float>(norms(stage) + kKeyNorms + 4 * (own + 8 * i + quad));
    }
    float bias[Window16::kEntries][2];
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * Window16::kEntries; ++i) {
      bias[i / 2][i % 2] = entry(i / 2 / 3 - 1, (i / 2 % 3 - 1) * 8 + i % 2);
    }
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      SWIN_FAST_UNROLL
      for (int j = 0; j < 2; ++j) {
        Float2 of_queries = {1.0f, 1.0f};
        if (kCosine) {
          of_queries = load_shared<Float2>(norms(stage) + kQueryNorms + 4 * (step * kRows + 16 * r + 8 * j + pair));
        }
        SWIN_FAST_UNROLL
        for (int i = 0; i < 2 * kTiles; ++i) {
          const int m = i / 2, half = i % 2;
          float &first = s[m][r][j][2 * half], &second = s[m][r][j][2 * half + 1];
          const float (&two)[2] = bias[Window16::entries(m, r, half, j)];
          first = first * (kCosine ? of_key[m][half] * of_queries.x : of_key[m][half]) + two[0];
          second = second * (kCosine ? of_key[m][half] * of_queries.y : of_key[m][half]) + two[1];
        }
      }
    }
    if (border) mask(step);
  }

  SWIN_FAST_DEVICE void mask(int step) {
    const float added = p.problem.mask_value * kLog2E;
    uint32_t of_key[kTiles][2];
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * kTiles; ++i) {
      of_key[i / 2][i % 2] = load_shared<uint16_t>(regions(stage) + 2 * (own + 8 * i + quad));
    }
    SWIN_FAST_UNROLL
    for (int c = 0; c < kQueries; c += 2) {
      const auto two = load_shared<uint32_t>(regions(stage) + 2 * (step * kRows + 4 * c + pair));
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2 * kTiles; ++i) {
        const uint32_t region = of_key[i / 2][i % 2];
        if ((two & 0xffffu) != region) of_query(s, i / 2, i % 2, c) += added;
        if (two >> 16 != region) of_query(s, i / 2, i % 2, c + 1) += added;
      }
    }
  }

  // Weights of a tile of queries, relative to their tops.
  SWIN_FAST_DEVICE void exponentiate(int r, const float (&top)[kQueries]) {
    SWIN_FAST_UNROLL
    for (int c = 4 * r; c < 4 * r + 4; ++c) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2 * kTiles; ++i) {
        float& weight = of_query(s, i / 2, i % 2, c);
        weight = exp2_approx_here(weight - top[c]);
      }
    }
  }

  // What weights of own keys add up to, and their products with dP, for all warps.
  SWIN_FAST_DEVICE void leave_sums(int step) {
    float both[2][kQueries];
    SWIN_FAST_UNROLL
    for (int c = 0; c < kQueries; ++c) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2 * kTiles; ++i) {
        const float weight = of_query(s, i / 2, i % 2, c), with_dp = weight * of_query(dp, i / 2, i % 2, c);
        both[0][c] = i == 0 ? weight : both[0][c] + weight;
        both[1][c] = i == 0 ? with_dp : both[1][c] + with_dp;
      }
    }
    // Eight lanes have parts of the sums of eight queries: each gets those of one query whole.
    SWIN_FAST_UNROLL
    for (int level = 2; level >= 0; --level) {
      const int count = 1 << level;
      const bool upper = (lane & 4 * count) != 0;
      SWIN_FAST_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        if (i >= 2 * count) continue;
        float &low = both[i / count][i % count], &high = both[i / count][i % count + count];
        low = (upper ? high : low) + shuffle_xor(upper ? low : high, 4 * count);
      }
    }
    store_shared(sums(step, warp) + 8 * column(quad), Float2{both[0][0], both[1][0]});
  }

  SWIN_FAST_DEVICE void weigh(int step) {
    score(step);
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      multiply(dp, v, queries(stage, step * kRows) + Tile::kSecond, r);
      exponentiate(r, {});  // 256 cycles of a quarter of a multiprocessor for a step, beside 100 of these products
    }
    leave_sums(step);
  }

  // 1 / the sum of weights of each query, and delta, to this warp's shares; true where that is exact.
  SWIN_FAST_DEVICE bool add_sums(int step) const {
    constexpr float kLeast = 0x1p-90f, kMost = 0x1p60f;  // that a sum of weights may be
    Float2 all = {0.0f, 0.0f};
    SWIN_FAST_UNROLL
    for (int of_warp = 0; of_warp < Window16::kWarps; ++of_warp) {
      const auto two = load_shared<Float2>(sums(step, of_warp) + 8 * lane);
      all = of_warp == 0 ? two : Float2{all.x + two.x, all.y + two.y};
    }
    const float share = all.x == 0.0f ? 0.0f : reciprocal_approx(all.x);
    store_shared(shares(warp) + 8 * lane, Float2{share, all.x == 0.0f ? 0.0f : all.y * share});
    sync_warp();
    return !any_lane(!(all.x >= kLeast && all.x <= kMost));
  }

  // The same relative to the largest scores of queries, as do all warps.
  SWIN_FAST_DEVICE void weigh_exactly(int step) {
    float top[kQueries];
    score(step);
    SWIN_FAST_UNROLL
    for (int c = 0; c < kQueries; ++c) {
      top[c] = -INFINITY;
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2 * kTiles; ++i) top[c] = fmaxf(top[c], of_query(s, i / 2, i % 2, c));
      SWIN_FAST_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) top[c] = fmaxf(top[c], shuffle_xor(top[c], mask));
      if (quad == 0) store_shared(shares(warp) + 4 * column(c), top[c]);
    }
    sync_threads();
    float of_all = -INFINITY;
    SWIN_FAST_UNROLL
    for (int of_warp = 0; of_warp < Window16::kWarps; ++of_warp) {
      of_all = fmaxf(of_all, load_shared<float>(shares(of_warp) + 4 * lane));
    }
    if (of_all == -INFINITY) of_all = 0.0f;
    char* const tops = shares(warp) + kRows * 4;
    store_shared(tops + 4 * lane, of_all);
    sync_warp();
    SWIN_FAST_UNROLL
    for (int c = 0; c < kQueries; ++c) top[c] = load_shared<float>(tops + 4 * column(c));
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) exponentiate(r, top);
    leave_sums(step);
    sync_threads();
    add_sums(step);
    // A query that may attend to nothing weighs nothing, and not 0 * NaN.
    SWIN_FAST_UNROLL
    for (int c = 0; c < kQueries; ++c) {
      if (load_shared<float>(shares(warp) + 8 * column(c)) != 0.0f) continue;
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2 * kTiles; ++i) of_query(dp, i / 2, i % 2, c) = 0.0f;
    }
  }

  // From the sums of all warps: P and dS, for dq to shared memory, and what they add to dk, dv and dbias.
  SWIN_FAST_DEVICE void differentiate(int step) {
    if (!add_sums(step)) weigh_exactly(step);
    char* const dbias = memory + Window16::kAtBiasSums + (step - warp + Window16::kWarps - 1) * Window16::kPairs +
                        lane * static_cast<int>(sizeof(Float2));
    char* const ds_tiles = memory + Window16::kAtWeights + (step & 1) * Tile::kSecond + Tile::sixteen(own);
    const char* const rows = queries(stage, step * kRows);
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      Float4 share[2];  // of two queries each: 1 / sum, delta
      SWIN_FAST_UNROLL
      for (int j = 0; j < 2; ++j) share[j] = load_shared<Float4>(shares(warp) + 8 * (16 * r + 8 * j + pair));
      uint32_t weight[kTiles][4], ds[kTiles][4];
      SWIN_FAST_UNROLL
      for (int m = kTiles - 1; m >= 0; --m) {
        float to_bias[3][2];
        SWIN_FAST_UNROLL
        for (int i = 0; i < 3; ++i) {
          const auto two = load_shared<Float2>(dbias + ((r - m + 1) * 3 + i) * 256);
          to_bias[i][0] = two.x;
          to_bias[i][1] = two.y;
        }
        SWIN_FAST_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int j = i >> 1, half = i & 1;
          const float two[2] = {s[m][r][j][2 * half] * share[j].x, s[m][r][j][2 * half + 1] * share[j].z};
          float gradient[2] = {two[0] * (dp[m][r][j][2 * half] - share[j].y),
                               two[1] * (dp[m][r][j][2 * half + 1] - share[j].w)};
          to_bias[Window16::entries(0, -1, half, j)][0] += gradient[0];
          to_bias[Window16::entries(0, -1, half, j)][1] += gradient[1];
          if (kCosine) {
            const auto of_key = load_shared<float>(norms(stage) + kKeyNorms + 4 * (own + 16 * m + 8 * half + quad));
            const auto of_queries =
                load_shared<Float2>(norms(stage) + kQueryNorms + 4 * (step * kRows + 16 * r + 8 * j + pair));
            gradient[0] *= of_key * of_queries.x;
            gradient[1] *= of_key * of_queries.y;
          }
          weight[m][i] = pack<T>(two[0], two[1]);
          ds[m][i] = pack<T>(gradient[0], gradient[1]);
        }
        SWIN_FAST_UNROLL
        for (int i = 0; i < 3; ++i) {
          store_shared(dbias + ((r - m + 1) * 3 + i) * 256, Float2{to_bias[i][0], to_bias[i][1]});
        }
        stmatrix(ds_tiles + Tile::sixteen(16 * m) + Tile::offset(lane & 15, 2 * r + (lane >> 4)), ds[m]);
      }
      add_tiles_times<T, kHd>(dv, weight, rows + Tile::sixteen(16 * r) + Tile::kSecond, lane);
      add_tiles_times<T, kHd>(dk, ds, rows + Tile::sixteen(16 * r), lane);
    }
  }

  // dk and dv to dqkv.
  SWIN_FAST_DEVICE void leave() {
    SWIN_FAST_UNROLL
    for (int m = 0; m < kTiles; ++m) {
      const int row = own + 16 * m;
      if (kCosine) {
        float radial[2];
        through_both_norms(dk[m], k[m], norms(stage) + kKeyNorms + 4 * (row + quad), kWhole, factor, radial);
      } else {
        scale_rows<kHd>(dk[m], factor);
      }
      leave<1>(dk[m], row);
      leave<2>(dv[m], row);
    }
  }

 private:
  template <int kWhich>
  SWIN_FAST_DEVICE void leave(const float (&sums)[2 * Tile::kSteps][4], int row) const {
    const char* const of_rows = places(stage) + 4 * (row + quad);
    const int place[2] = {load_shared<int>(of_rows), load_shared<int>(of_rows + 32)};
    if (p.problem.pad_value != nullptr) {
      const bool padding[2] = {place[0] < 0, place[1] < 0};
      if (any_lane(padding[0] || padding[1])) {
        add_rows_of<kHd>(this->pad_sums() + (kWhich - 1) * 4 * kHd, sums, padding, lane);
      }
    }
    char* const tile = memory + Window16::kAtResults + warp * 16 * Tile::kRowBytes;
    sync_warp();  // what was there has been read
    RoundedRows<T, kHd>(sums).stage(tile, lane);
    uint16_t* const to = static_cast<uint16_t*>(p.problem.dqkv) + load_shared<int64_t>(image(stage)) +
                         kWhich * p.problem.nH * kHd + (lane & 3) * 8;
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (place[i] < 0) continue;
      store_global(to + place[i] * int64_t{3 * p.problem.nH * kHd},
                   load_shared<UInt4>(tile + Tile::offset(quad + 8 * i, lane & 3)));
    }
  }
};

}  // namespace swin_fast::cuda
