// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of 12 x 12: scores, weights and their gradients, and gradients of queries.
#pragma once

#include <cmath>
#include <cstdint>

#include "primitives.h"
#include "row_tiles.h"
#include "window12.h"
#include "window12_gradients.h"

namespace swin_fast::cuda {

// The scores of a strip of queries and a strip of keys, and a tile of dq.
template <class T, bool kCosine>
struct Window12Scores : Window12Gradients<T, kCosine> {
  using Base = Window12Gradients<T, kCosine>;
  using Base::kHd, Base::kTiles, Base::kStrip, Base::kKeyNorms, Base::kQueryNorms;
  using Base::p, Base::lane, Base::warp, Base::quad, Base::pair, Base::memory, Base::factor, Base::dlogit_scale;
  using Base::queries, Base::keys, Base::norms, Base::regions, Base::borders;
  using typename Base::Tile;
  static constexpr int kEntries = Window12::kEntries;

  const int query_strip = warp / Window12::kStrips, key_strip = warp % Window12::kStrips;
  const int own = kStrip * query_strip, own_keys = kStrip * key_strip;
  char* const dbias = memory + Window12::kAtBiasSums + warp * Window12::kPairs + lane * sizeof(Float2);
  char* const sums = memory + Window12::kAtSums + (own + quad) * sizeof(Float2);
  float s[kTiles][kTiles][2][4] = {};  // scores in base 2, and then weights
  OtherRows<T, kHd> v[kTiles];
  float sum[kTiles][2] = {}, delta[kTiles][2] = {};  // of weights, and of their products with dP

  SWIN_FAST_DEVICE explicit Window12Scores(const Window12BwdParams& p_) : Base(p_) {
    for (int i = 0; i < kEntries; ++i) store_shared(dbias + i * 256, Float2{0.0f, 0.0f});
  }

  SWIN_FAST_DEVICE const char* entries_of(int strip) const {
    return memory + Window12::kAtTable + (query_strip - strip + Window12::kStrips - 1) * Window12::kPairs +
           lane * sizeof(Float2);
  }

  // Products of a tile with three others: six that do not wait for one another before those that do.
  static SWIN_FAST_DEVICE void multiply_strip(float (&products)[kTiles][2][4], const OwnRows<T, kHd>& one,
                                              const OtherRows<T, kHd> (&others)[kTiles]) {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 8 * kTiles; ++i) products[i / 8][i / 4 % 2][i % 4] = 0.0f;
    SWIN_FAST_UNROLL
    for (int step = 0; step < Tile::kSteps; ++step) {
      uint32_t a[4];
      one.fragment(a, step);
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2 * kTiles; ++i) {
        const uint32_t (&b)[4] = others[i / 2].b[step];
        mma_m16n8k16<T>(products[i / 2][i % 2], a, b[i % 2 * 2], b[i % 2 * 2 + 1]);
      }
    }
  }

  // Scores of a tile of own queries and one of keys from their products, but for the mask. Entries of the bias come
  // from entry(half, eight).
  template <class Entry>
  SWIN_FAST_DEVICE void score_tile(float (&score)[2][4], int stage, int query, int key, const Entry& entry) const {
    SWIN_FAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      float of_row = factor * kLog2E;
      if (kCosine) of_row *= load_shared<float>(norms(stage) + kQueryNorms + 4 * (query + quad + 8 * half));
      SWIN_FAST_UNROLL
      for (int j = 0; j < 2; ++j) {
        float &first = score[j][2 * half], &second = score[j][2 * half + 1];
        if (kCosine) {
          const auto two = load_shared<Float2>(norms(stage) + kKeyNorms + 4 * (key + 8 * j + pair));
          first *= two.x;
          second *= two.y;
        }
        const Float2 bias = entry(half, j);
        first = first * of_row + bias.x;
        second = second * of_row + bias.y;
      }
    }
  }

  SWIN_FAST_DEVICE void mask_tile(float (&score)[2][4], int stage, int query, int key) const {
    const char* const of_own = regions(stage) + 2 * (query + quad);
    const uint32_t region[2] = {load_shared<uint16_t>(of_own), load_shared<uint16_t>(of_own + 16)};
    SWIN_FAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      const auto two = load_shared<uint32_t>(regions(stage) + 2 * (key + 8 * j + pair));
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) {
        const uint32_t other = (e & 1) != 0 ? two >> 16 : two & 0xffffu;
        if (other != region[e >> 1]) score[j][e] += p.problem.mask_value * kLog2E;
      }
    }
  }

  // Gives each tile of queries to use(tile) when it has its scores: their exponentials are a third of the time of the
  // products, and go on beside those of the tile behind.
  template <class Use>
  SWIN_FAST_DEVICE void score(int stage, const Use& use) {
    const bool border = load_shared<int>(borders(stage)) != 0;
    Float2 entries[kEntries];
    SWIN_FAST_UNROLL
    for (int i = 0; i < kEntries; ++i) entries[i] = load_shared<Float2>(entries_of(key_strip) + i * 256);
    OtherRows<T, kHd> k[kTiles];
    SWIN_FAST_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) k[tile] = {keys(stage, own_keys + 16 * tile), lane};
    const auto multiply = [&](int r) { multiply_strip(s[r], {queries(stage, own + 16 * r), lane}, k); };
    multiply(0);
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      if (r + 1 < kTiles) multiply(r + 1);
      SWIN_FAST_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        score_tile(s[r][tile], stage, own + 16 * r, own_keys + 16 * tile,
                   [&](int half, int j) { return entries[Window12::entries(r, half, tile, j)]; });
      }
      if (border) {
        SWIN_FAST_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) mask_tile(s[r][tile], stage, own + 16 * r, own_keys + 16 * tile);
      }
      use(r);
    }
  }

  SWIN_FAST_DEVICE void load_values(int stage) {
    SWIN_FAST_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) v[tile] = {keys(stage, own_keys + 16 * tile) + Tile::kSecond, lane};
  }

  // Gives dP - delta to use(tile of queries, tile of keys, products), after load_values: sums begin with -delta.
  template <class Use>
  SWIN_FAST_DEVICE void with_values(int stage, const Use& use) const {
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      const OwnRows<T, kHd> dout(queries(stage, own + 16 * r) + Tile::kSecond, lane);
      SWIN_FAST_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        float dp[2][4];
        SWIN_FAST_UNROLL
        for (int e = 0; e < 8; ++e) dp[e >> 2][e & 3] = -delta[r][(e >> 1) & 1];
        v[tile].add_products(dp, dout);
        use(r, tile, dp);
      }
    }
  }

  static SWIN_FAST_DEVICE void add_quad(float& sum) {
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
  }

  // Weights exp(score), and what those of own keys add up to, for the warps with the other keys.
  SWIN_FAST_DEVICE void weigh(int stage) {
    const auto add_deltas = [&](int r) {
      float dp[kTiles][2][4];
      multiply_strip(dp, {queries(stage, own + 16 * r) + Tile::kSecond, lane}, v);
      delta[r][0] = delta[r][1] = 0.0f;
      SWIN_FAST_UNROLL
      for (int e = 0; e < 8 * kTiles; ++e) {
        delta[r][(e >> 1) & 1] += s[r][e >> 3][(e >> 2) & 1][e & 3] * dp[e >> 3][(e >> 2) & 1][e & 3];
      }
    };
    score(stage, [&](int r) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 8 * kTiles; ++e) {
        float& one = s[r][e >> 3][(e >> 2) & 1][e & 3];
        one = exp2_approx_here(one);
        float& of_row = sum[r][(e >> 1) & 1];
        of_row = (e & ~2) == 0 ? one : of_row + one;
      }
      if (r == 1) load_values(stage);
      if (r > 0) add_deltas(r - 1);
    });
    add_deltas(kTiles - 1);
    // Four lanes have parts of these sums of a row: of two rows each lane gets one sum whole.
    const bool odd = (lane & 1) != 0, upper = (lane & 2) != 0;
    float both[2 * kTiles];
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * kTiles; ++i) {
      const float of_row = sum[i / 2][i % 2], with_dp = delta[i / 2][i % 2];
      both[i] = (odd ? with_dp : of_row) + shuffle_xor(odd ? of_row : with_dp, 1);
    }
    char* const to = sums + key_strip * Window12::kSumsOfStrip + (upper ? 64 : 0) + (odd ? 4 : 0);
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * kTiles; i += 2) {
      const float whole = (upper ? both[i + 1] : both[i]) + shuffle_xor(upper ? both[i] : both[i + 1], 2);
      store_shared(to + 64 * i, whole);
    }
  }

  // The same relative to the largest scores of rows, of which each warp goes over all keys.
  SWIN_FAST_DEVICE void weigh_exactly(int stage) {
    // Of each row 16 bytes where P of own queries and keys will lie.
    char* const rows = memory + Window12::kAtWeights + (own + quad) * Window12::kWeightRow + 2 * own_keys;
    SWIN_FAST_NO_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      const int query = own + 16 * r;
      const OwnRows<T, kHd> q(queries(stage, query), lane), dout(queries(stage, query) + Tile::kSecond, lane);
      float top[2] = {-INFINITY, -INFINITY}, of_row[2] = {0.0f, 0.0f}, with_dp[2] = {0.0f, 0.0f};
      SWIN_FAST_NO_UNROLL
      for (int turn = 0; turn < 2 * Window12::kSteps; ++turn) {
        const int tile = turn % Window12::kSteps;
        float one[2][4], dp[2][4];
        OtherRows<T, kHd>(keys(stage, 16 * tile), lane).times(one, q);
        score_tile(one, stage, query, 16 * tile, [&](int half, int j) {
          return load_shared<Float2>(entries_of(tile / kTiles) + Window12::entries(r, half, tile % kTiles, j) * 256);
        });
        if (load_shared<int>(borders(stage)) != 0) mask_tile(one, stage, query, 16 * tile);
        if (turn < Window12::kSteps) {
          SWIN_FAST_UNROLL
          for (int e = 0; e < 8; ++e) top[(e >> 1) & 1] = fmaxf(top[(e >> 1) & 1], one[e >> 2][e & 3]);
          if (tile < Window12::kSteps - 1) continue;
          SWIN_FAST_UNROLL
          for (int i = 0; i < 2; ++i) {
            top[i] = fmaxf(top[i], shuffle_xor(top[i], 1));
            top[i] = fmaxf(top[i], shuffle_xor(top[i], 2));
            if (top[i] == -INFINITY) top[i] = 0.0f;
          }
          continue;
        }
        OtherRows<T, kHd>(keys(stage, 16 * tile) + Tile::kSecond, lane).times(dp, dout);
        SWIN_FAST_UNROLL
        for (int e = 0; e < 8; ++e) {
          const int half = (e >> 1) & 1;
          const float weight = exp2_approx(one[e >> 2][e & 3] - top[half]);
          of_row[half] += weight;
          with_dp[half] += weight * dp[e >> 2][e & 3];
        }
      }
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        add_quad(of_row[i]);
        add_quad(with_dp[i]);
        if (pair != 0) continue;
        store_shared(rows + (16 * r + 8 * i) * Window12::kWeightRow, Float4{top[i], of_row[i], with_dp[i], 0.0f});
      }
    }
    sync_warp();
    score(stage, [](int) {});
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * kTiles; ++i) {
      const auto row = load_shared<Float4>(rows + 8 * i * Window12::kWeightRow);
      sum[i / 2][i % 2] = row.y;
      delta[i / 2][i % 2] = row.z;
      SWIN_FAST_UNROLL
      for (int j = 0; j < 4 * kTiles; ++j) {
        float& one = s[i / 2][j / 4][(j >> 1) & 1][2 * (i & 1) + (j & 1)];
        one = exp2_approx(one - row.x);
      }
    }
    sync_warp();  // rows have been read
  }

  // P, dS and dbias. kMayBeDead: a row that may attend to nothing weighs nothing, and not 0 * NaN.
  template <bool kMayBeDead>
  SWIN_FAST_DEVICE void differentiate(int stage) {
    char* const to =
        memory + Window12::kAtWeights + Window12::weight(own + (lane & 15), 2 * kTiles * key_strip + (lane >> 4));
    float to_bias[kEntries][2];
    float share[kTiles][2];
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * kTiles; ++i) {
      share[i / 2][i % 2] = reciprocal_approx(sum[i / 2][i % 2]);
      delta[i / 2][i % 2] *= share[i / 2][i % 2];
    }
    if (kMayBeDead) load_values(stage);  // again, for they would be spilled where all keys are gone over
    with_values(stage, [&](int r, int tile, const float (&dp)[2][4]) {
      if (tile == 0) {
        SWIN_FAST_UNROLL
        for (int i = 0; i < kEntries; ++i) {
          if (i < 2 * r + (r == 0 ? 0 : 5) || i >= 2 * r + 7) continue;
          const auto two = load_shared<Float2>(dbias + i * 256);
          to_bias[i][0] = two.x;
          to_bias[i][1] = two.y;
        }
      }
      uint32_t weight[4], ds[4];
      SWIN_FAST_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int j = i >> 1, half = i & 1;
        float two[2], gradient[2];
        SWIN_FAST_UNROLL
        for (int e = 0; e < 2; ++e) {
          two[e] = s[r][tile][j][2 * half + e] * share[r][half];
          gradient[e] = two[e] * dp[j][2 * half + e];
          if (kMayBeDead && sum[r][half] == 0.0f) two[e] = gradient[e] = 0.0f;
          to_bias[Window12::entries(r, half, tile, j)][e] += gradient[e];
        }
        if (kCosine) {
          const auto of_row = load_shared<float>(norms(stage) + kQueryNorms + 4 * (own + 16 * r + 8 * half + quad));
          const auto of_keys =
              load_shared<Float2>(norms(stage) + kKeyNorms + 4 * (own_keys + 16 * tile + 8 * j + pair));
          gradient[0] *= of_keys.x * of_row;
          gradient[1] *= of_keys.y * of_row;
        }
        weight[i] = pack<T>(two[0], two[1]);
        ds[i] = pack<T>(gradient[0], gradient[1]);
      }
      char* const of_tile = to + r * 16 * Window12::kWeightRow + tile * 32;
      stmatrix(of_tile, weight);
      stmatrix(of_tile + Window12::kWeights, ds);
      if (tile == kTiles - 1) {
        SWIN_FAST_UNROLL
        for (int i = 0; i < kEntries; ++i) {
          if (i < 2 * r || i >= 2 * r + (r == kTiles - 1 ? 7 : 2)) continue;
          store_shared(dbias + i * 256, Float2{to_bias[i][0], to_bias[i][1]});
        }
      }
    });
  }

  // From the sums of all warps.
  SWIN_FAST_DEVICE void differentiate_rows(int stage) {
    constexpr float kLeast = 0x1p-90f, kMost = 0x1p60f;  // that a sum of weights may be
    bool exact = true;
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * kTiles; ++i) {
      float &of_row = sum[i / 2][i % 2], &with_dp = delta[i / 2][i % 2];
      SWIN_FAST_UNROLL
      for (int strip = 0; strip < Window12::kStrips; ++strip) {
        const auto two = load_shared<Float2>(sums + strip * Window12::kSumsOfStrip + 64 * i);
        of_row = strip == 0 ? two.x : of_row + two.x;
        with_dp = strip == 0 ? two.y : with_dp + two.y;
      }
      exact = exact && of_row >= kLeast && of_row <= kMost;
    }
    if (!any_lane(!exact)) return differentiate<false>(stage);
    weigh_exactly(stage);  // as do all warps with these queries
    differentiate<true>(stage);
  }

  // The tile of dq of the window in a stage, while dS is there.
  SWIN_FAST_DEVICE void compute_queries(int stage) {
    typename Base::template Sums<1> sums;
    this->template multiply<0>(sums, 16 * warp, stage);
    this->template finish<0>(sums, 16 * warp, stage);
    this->put(sums, this->result(warp));
  }

  // The part of dlogit_scale, to where sums of rows were.
  SWIN_FAST_DEVICE void leave_parts() {
    SWIN_FAST_UNROLL
    for (int mask = 4; kCosine && mask < 32; mask *= 2) dlogit_scale += shuffle_xor(dlogit_scale, mask);
    if (lane == 0) store_shared(memory + Window12::kAtSums + 4 * warp, dlogit_scale);
  }
};

}  // namespace swin_fast::cuda
