// SPDX-License-Identifier: Apache-2.0
//
// The backward kernel of windows of up to 64 tokens, at head_dim 32, in float16 and bfloat16.
#pragma once

#include <cstdint>

#include "small_bwd_fetch.h"

namespace swin_fast::cuda {

// What a warp knows of its place, and the steps of its work. Rows are those of one window in shared memory: of q, k, v
// and grad_out, a tile each.
template <class T, int kWindow, bool kCosine>
struct SmallBwdWarp {
  using Sizes = SmallBwdSizes<kWindow>;
  static constexpr int kKeyTiles = Sizes::kKeyTiles;
  static constexpr bool kShort = kKeyTiles % 2 == 1;  // the last 16 tokens are 8 at most

  const SmallBwdParams& p;
  const WindowAttentionBwdParams& problem;
  int lane, warp, head, tokens;
  SmallGrid<kWindow> grid;
  char* const memory = shared_memory();
  // The set of rows in work, and where the lane reads first there: 16 rows by the first 16 columns, and 8 rows by all
  // 32. They change from window to window, or the compiler would rather compute them anew each time.
  int set = 0, square, strip;
  int own;          // from `square` to the rows of the warp's queries
  int own_scores;   // where it leaves a row of scores by 8 keys: 32 further, by exclusive or, are the next 16 keys
  int keys_scores;  // where it reads 16 rows of scores by the first 16 of its 32 keys
  int own_bias;

  SWIN_FAST_DEVICE explicit SmallBwdWarp(const SmallBwdParams& params)
      : p(params),
        problem(params.problem),
        lane(threadIdx.x & 31),
        warp(threadIdx.x >> 5),
        head(blockIdx.x % params.problem.nH),
        tokens(kWindow == 0 ? params.problem.window_area() : Sizes::kTokens),
        grid(params.problem) {
    square = (lane & 15) * Sizes::kTokenBytes + Sizes::chunk(lane, lane >> 4);
    strip = (lane & 7) * Sizes::kTokenBytes + Sizes::chunk(lane, lane >> 3);
    // What is behind the rows of the last warp does not exist: it reads the first eight twice.
    own = warp * 16 * Sizes::kTokenBytes - (has_one_left() ? (lane & 8) * Sizes::kTokenBytes : 0);
    const int upper = lane >> 3 & 1,
              right = lane >> 4;  // of the four 8 x 8 matrices of a fragment; or of two, upper ones
    own_scores = Sizes::kScores + (warp * 16 + (lane & 7) + (has_one_left() ? 0 : upper * 8)) * Sizes::kScoreBytes +
                 Sizes::chunk(lane, has_one_left() ? upper : right);
    keys_scores = Sizes::kScores + ((lane & 7) + (lane >> 4) * 8) * Sizes::kScoreBytes +
                  (sums_up_k() ? Sizes::kGradients : 0) + Sizes::chunk(lane, 4 * (warp & 1) + ((lane >> 3) & 1));
    own_bias = Sizes::kBias + warp * 512 + (has_one_left() ? lane & 3 : lane) * 16;
  }

  SWIN_FAST_DEVICE void turn() {
    set ^= Sizes::kSet;
    square ^= Sizes::kSet;
    strip ^= Sizes::kSet;
  }

  SWIN_FAST_DEVICE int quad() const { return lane >> 2; }
  SWIN_FAST_DEVICE int pair() const { return (lane & 3) * 2; }
  SWIN_FAST_DEVICE bool has_one_left() const { return Sizes::kOneLeft && warp == Sizes::kRowTiles - 1; }
  // The token of row quad() or quad() + 8 of the warp's queries.
  SWIN_FAST_DEVICE int token(int half) const { return warp * 16 + half * 8 + quad(); }
  // The pixel of a token, kPadding, or kNoToken.
  SWIN_FAST_DEVICE int pixel(int of_token) const {
    return load_shared<int>(memory + Sizes::kPixels + set * 4 + of_token * 4);
  }
  SWIN_FAST_DEVICE int news() const { return load_shared<int>(memory + Sizes::kNews + set / 16); }

  // After the queries, the warp sums up dk (or dv) of 32 keys.
  SWIN_FAST_DEVICE bool sums_up_k() const { return warp >= 2; }
  SWIN_FAST_DEVICE int key(int tile, int half) const { return (warp & 1) * 32 + tile * 16 + half * 8 + quad(); }

  // 1 / |row| of all rows of q or k.
  SWIN_FAST_DEVICE char* inverses(int tensor) const { return memory + Sizes::kInverses + tensor * 256 + set * 8; }
  SWIN_FAST_DEVICE char* sums() const { return memory + Sizes::kSums + warp * kHeadDim * 4; }

  // Cosine attention: 1 / |row| of the rows of q and k that this lane has fetched a chunk of. 1 / |row| may be 1e12,
  // which float16 does not hold: there its power of two goes to the row, where it rounds nothing that matters, and what
  // is left of it, between 1 and 2, to the gradients of scores. bfloat16 takes it there whole.
  SWIN_FAST_DEVICE void normalise() const {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int own = token(i & 1), tensor = i >> 1;
      char* const chunk =
          memory + tensor * Sizes::kTileBytes + ((own * Sizes::kTokenBytes + Sizes::chunk(own, lane & 3)) ^ set);
      UInt4 eight = {0, 0, 0, 0};
      if (own < tokens) eight = load_shared<UInt4>(chunk);
      uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
      const float inverse =
          inverse_norm((squares<T>(pairs[0]) + squares<T>(pairs[1])) + (squares<T>(pairs[2]) + squares<T>(pairs[3])));
      if (is_half<T> && own < tokens) {
        const float power = power_of(inverse);
        SWIN_FAST_UNROLL
        for (uint32_t& two : pairs) {
          const Float2 wide = unpack<T>(two);
          two = pack<T>(wide.x * power, wide.y * power);
        }
        store_shared(chunk, UInt4{pairs[0], pairs[1], pairs[2], pairs[3]});
      }
      if ((lane & 3) == 0) store_shared(inverses(tensor) + own * 4, inverse);
    }
  }

  // What is left of 1 / |row| for a row in shared memory.
  SWIN_FAST_DEVICE static float left_of(float inverse) { return is_half<T> ? fraction_of(inverse) : inverse; }
  SWIN_FAST_DEVICE float inverse_of(int tensor, int token) const {
    return load_shared<float>(inverses(tensor) + token * 4);
  }

  // Of the two keys that the lane has in a tile of 8; 1 without cosine attention.
  SWIN_FAST_DEVICE Float2 norms_of_keys(int j) const {
    if (!kCosine) return {1.0f, 1.0f};
    const auto two = load_shared<Float2>(inverses(1) + (j * 8 + pair()) * 4);
    return {left_of(two.x), left_of(two.y)};
  }

  // 16 rows of a tile, from the one at `at` bytes on.
  SWIN_FAST_DEVICE void rows(int at, uint32_t (&a)[2][4]) const {
    ldmatrix_x4(a[0], memory + square + at);
    ldmatrix_x4(a[1], memory + (square ^ 32) + at);
  }

  // d = the rows of the warp's queries in a tile @ all rows of another, which are keys, transposed.
  SWIN_FAST_DEVICE void times_keys(int tile, int keys, float (&d)[kKeyTiles][4]) const {
    uint32_t a[2][4];
    rows(tile + own, a);
    SWIN_FAST_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      uint32_t b[4];
      ldmatrix_x4(b, memory + strip + keys + j * 8 * Sizes::kTokenBytes);
      d[j][0] = d[j][1] = d[j][2] = d[j][3] = 0.0f;
      mma_m16n8k16<T>(d[j], a[0], b[0], b[1]);
      mma_m16n8k16<T>(d[j], a[1], b[2], b[3]);
    }
  }

  // d[i] += the sum over 16 tokens, or the 8 of a short step, of a[i](token) @ its row of a tile.
  template <int kTiles>
  SWIN_FAST_DEVICE void add_rows(int step, const uint32_t (&a)[kTiles][4], int tile, float (&d)[kTiles][4][4]) const {
    const int at = tile + step * 16 * Sizes::kTokenBytes;
    if (kShort && step == Sizes::kKeySteps - 1) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, memory + strip + at);
      SWIN_FAST_UNROLL
      for (int i = 0; i < kTiles; ++i) {
        SWIN_FAST_UNROLL
        for (int c = 0; c < 4; ++c) mma_m16n8k8<T>(d[i][c], a[i][0], a[i][1], b[c]);
      }
      return;
    }
    SWIN_FAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, memory + (square ^ (32 * half)) + at);
      SWIN_FAST_UNROLL
      for (int i = 0; i < kTiles; ++i) {
        mma_m16n8k16<T>(d[i][2 * half], a[i], b[0], b[1]);
        mma_m16n8k16<T>(d[i][2 * half + 1], a[i], b[2], b[3]);
      }
    }
  }

  // Where windows are cut into shift regions: which keys of a lane lie behind the border, along each axis. They are the
  // same in all windows that have one, and made anew in each they took 100 instructions.
  SWIN_FAST_DEVICE void bring_borders() const {
    const auto &y = p.all.y, &x = p.all.x;
    const Border<kWindow> cut(grid, y.window - y.shift, x.window - x.shift, pair());
    if (quad() == 0) store_shared(behind(), UInt2{cut.behind_row, cut.behind_column});
  }
  SWIN_FAST_DEVICE char* behind() const { return memory + Sizes::kBehind + (lane & 3) * 8; }
  // The keys that are apart from a query. Bits are those of Border.
  SWIN_FAST_DEVICE uint32_t apart_from(int query, int border) const {
    const auto keys = load_shared<UInt2>(behind());
    const int row = border >> 8, column = border & 255;
    const uint32_t rows = row < p.all.y.window ? keys.x : 0, columns = column < p.all.x.window ? keys.y : 0;
    return (grid.row(query) >= row ? ~rows : rows) | (grid.column(query) >= column ? ~columns : columns);
  }

  // The bias of the warp's queries times log2(e), in the order that `scores` reads it in.
  SWIN_FAST_DEVICE void bring_bias() const {
    const int Wh = problem.window_size[0], Ww = problem.window_size[1];
    const bool relative = problem.bias_form == BiasForm::kRelative;
    const float* const from = problem.bias + int64_t{head} * (relative ? (2 * Wh - 1) * (2 * Ww - 1) : tokens * tokens);
    SWIN_FAST_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      float value[4];
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int query = token(e >> 1), key = j * 8 + pair() + (e & 1);
        const int apart = relative_index(grid.row(query), grid.row(key), Wh) * (2 * Ww - 1) +
                          relative_index(grid.column(query), grid.column(key), Ww);
        const bool exists = problem.bias_form != BiasForm::kNone && query < tokens && key < tokens;
        value[e] = exists ? load_global<float>(from + (relative ? apart : query * tokens + key)) : 0.0f;
        value[e] = limited(value[e]) * kLog2E;
      }
      if (j < Sizes::kBiasTiles) {
        const Float4 four = {value[0], value[1], value[2], value[3]};
        if (!has_one_left() || quad() == 0) store_shared(memory + own_bias + j * Sizes::kBiasTileBytes, four);
      } else if (pair() == 0) {
        store_shared(memory + Sizes::kBiasOfLast + token(0) * 4, value[0]);
        store_shared(memory + Sizes::kBiasOfLast + token(1) * 4, value[2]);
      }
    }
  }

  // Whether element e of the accumulators of tile j of 8 keys is of none in any lane.
  static SWIN_FAST_HOST_DEVICE bool is_none(int j, int e) { return kWindow != 0 && j * 8 + (e & 1) >= Sizes::kTokens; }

  // From q.k to scores times log2(e), of the first 8 * kHalves of the warp's queries.
  template <int kHalves>
  SWIN_FAST_DEVICE void scores(int border, float factor, float (&s)[kKeyTiles][4]) const {
    float of_row[2] = {factor * kLog2E, factor * kLog2E};
    if (kCosine) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < kHalves; ++i) of_row[i] *= left_of(inverse_of(0, token(i)));
    }
    SWIN_FAST_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      float added[4] = {};
      if (j < Sizes::kBiasTiles) {
        const auto of_bias = load_shared<Float4>(memory + own_bias + j * Sizes::kBiasTileBytes);
        added[0] = of_bias.x;
        added[1] = of_bias.y;
        added[2] = of_bias.z;
        added[3] = of_bias.w;
      } else {
        SWIN_FAST_UNROLL
        for (int i = 0; i < kHalves; ++i) {
          added[2 * i] = load_shared<float>(memory + Sizes::kBiasOfLast + token(i) * 4);
        }
      }
      const Float2 of_key = norms_of_keys(j);
      SWIN_FAST_UNROLL
      for (int e = 0; e < 2 * kHalves; ++e) {
        if (kCosine) s[j][e] *= e & 1 ? of_key.y : of_key.x;
        s[j][e] = s[j][e] * of_row[e >> 1] + added[e];
        if (j * 8 + pair() + (e & 1) >= tokens) s[j][e] = -INFINITY;
      }
    }
    if (border == 0) return;
    const uint32_t apart[2] = {apart_from(token(0), border), apart_from(token(1), border)};
    SWIN_FAST_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 2 * kHalves; ++e) {
        if (!is_none(j, e) && is_apart(apart[e >> 1], j, e)) s[j][e] += problem.mask_value * kLog2E;
      }
    }
  }

  // Scores relative to the largest one of the row. Where all are -inf they stay so.
  template <int kHalves>
  SWIN_FAST_DEVICE void take_off_top(float (&s)[kKeyTiles][4]) const {
    SWIN_FAST_UNROLL
    for (int i = 0; i < kHalves; ++i) {
      float top = -INFINITY;
      SWIN_FAST_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) top = fmaxf(top, fmaxf(s[j][2 * i], s[j][2 * i + 1]));
      top = fmaxf(top, shuffle_xor(top, 1));
      top = fmaxf(top, shuffle_xor(top, 2));
      if (top == -INFINITY) top = 0.0f;
      SWIN_FAST_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        s[j][2 * i] -= top;
        s[j][2 * i + 1] -= top;
      }
    }
  }

  // 2^score in place of scores; sums of a row over all keys, of those and of their products with dP.
  template <int kHalves>
  SWIN_FAST_DEVICE void exponentials_of(float (&s)[kKeyTiles][4], const float (&d)[kKeyTiles][4], float (&sum)[kHalves],
                                        float (&delta)[kHalves]) const {
    SWIN_FAST_UNROLL
    for (int i = 0; i < kHalves; ++i) {
      sum[i] = delta[i] = 0.0f;
      SWIN_FAST_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        SWIN_FAST_UNROLL
        for (int e = 2 * i; e < 2 * i + 2; ++e) {
          if (is_none(j, e)) continue;
          s[j][e] = exp2_approx(s[j][e]);
          sum[i] += s[j][e];
          delta[i] += s[j][e] * d[j][e];
        }
      }
    }
    SWIN_FAST_UNROLL
    for (int i = 0; i < kHalves; ++i) {
      SWIN_FAST_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        sum[i] += shuffle_xor(sum[i], mask);
        delta[i] += shuffle_xor(delta[i], mask);
      }
    }
  }

  // P and dP of the warp's queries, and delta, the sum of P dP over the row.
  template <int kHalves>
  SWIN_FAST_DEVICE void probabilities(int border, float factor, float (&s)[kKeyTiles][4], float (&d)[kKeyTiles][4],
                                      float (&delta)[kHalves]) const {
    times_keys(Sizes::kQ, Sizes::kK, s);
    scores<kHalves>(border, factor, s);
    sync_warp();  // or the compiler has more rows on their way than there are registers
    times_keys(Sizes::kGradOut, Sizes::kV, d);
    float sum[kHalves];
    // Exponentials need no scores relative to the largest one where sums are neither large nor small, which the sums
    // tell: where one is, the warp computes its scores again. The logits of cosine attention may be 100 and more.
    bool relative = kCosine;
    if (!kCosine) {
      exponentials_of<kHalves>(s, d, sum, delta);
      bool fits = true;
      SWIN_FAST_UNROLL
      for (int i = 0; i < kHalves; ++i) {
        const bool exists = (kWindow != 0 && kHalves == 2) || token(i) < tokens;
        if (exists) fits = fits && sum[i] > 1e-12f && sum[i] < 1e18f && fabsf(delta[i]) < 1e36f;
      }
      relative = any_lane(!fits);
      if (relative) {
        times_keys(Sizes::kQ, Sizes::kK, s);
        scores<kHalves>(border, factor, s);
        sync_warp();
        times_keys(Sizes::kGradOut, Sizes::kV, d);
      }
    }
    if (relative) {
      take_off_top<kHalves>(s);
      exponentials_of<kHalves>(s, d, sum, delta);
      SWIN_FAST_UNROLL
      for (int i = 0; i < kHalves; ++i) {
        if (sum[i] != 0.0f) continue;
        // All scores of the row are -inf: it has no gradient, even where v is not finite.
        sum[i] = INFINITY;
        delta[i] = 0.0f;
        SWIN_FAST_UNROLL
        for (int j = 0; j < kKeyTiles; ++j) d[j][2 * i] = d[j][2 * i + 1] = 0.0f;
      }
    }
    SWIN_FAST_UNROLL
    for (int i = 0; i < kHalves; ++i) {
      const float share = reciprocal_approx(sum[i]);
      delta[i] *= share;
      SWIN_FAST_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        SWIN_FAST_UNROLL
        for (int e = 2 * i; e < 2 * i + 2; ++e) s[j][e] = is_none(j, e) ? 0.0f : s[j][e] * share;
      }
    }
  }

  // The fragment of the warp's queries by 16 keys, times what factors(tile of keys, half of the queries) gives for two
  // neighbouring keys; zeros where there is none.
  template <int kHalves, class Factors>
  SWIN_FAST_DEVICE void fragment(int step, const float (&s)[kKeyTiles][4], const Factors& factors,
                                 uint32_t (&a)[4]) const {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int j = 2 * step + (i >> 1), half = i & 1;
      a[i] = 0;
      if (j >= kKeyTiles || half >= kHalves) continue;
      const Float2 two = factors(j, half);
      a[i] = pack<T>(s[j][2 * half] * two.x, s[j][2 * half + 1] * two.y);
    }
  }

  // Rows of scores that other warps sum over, at [query][key]: P or dS.
  template <int kHalves>
  SWIN_FAST_DEVICE void leave_scores(int which, const float (&s)[kKeyTiles][4], const float (&of_row)[2]) const {
    SWIN_FAST_UNROLL
    for (int step = 0; step < Sizes::kKeySteps; ++step) {
      uint32_t a[4];
      fragment<kHalves>(step, s, [&](int, int half) { return Float2{of_row[half], of_row[half]}; }, a);
      char* const to = memory + (own_scores ^ (32 * step)) + which;
      const bool is_short = kShort && step == Sizes::kKeySteps - 1;
      if (kHalves == 2 && !is_short) {
        stmatrix(to, a);
      } else if (kHalves == 2) {
        stmatrix(to, {a[0], a[1]});
      } else if (!is_short) {
        stmatrix(to, {a[0], a[2]});
      } else {
        stmatrix(to, {a[0]});
      }
    }
  }

  // The fragments of 16 queries from there, or 8 in a short step, transposed: of the warp's 32 keys. Queries that do
  // not exist are zeros.
  SWIN_FAST_DEVICE void take_scores(int step, uint32_t (&a)[2][4]) const {
    const int at = keys_scores + step * 16 * Sizes::kScoreBytes;
    const bool exist = step * 16 + (lane & 7) + (lane >> 4) * 8 < tokens;
    const int from = exist ? at : Sizes::kZeros + (at & 127);
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (kShort && step == Sizes::kKeySteps - 1) {
        uint32_t two[2];
        ldmatrix_x2_trans(two, memory + (from ^ (32 * i)));
        a[i][0] = two[0];
        a[i][1] = two[1];
      } else {
        ldmatrix_x4_trans(a[i], memory + (from ^ (32 * i)));
      }
    }
  }

  // From the sum of products with the other side of q.k, to the gradient of 16 rows of q or k, from `first` on: times
  // the factor, or with cosine attention without the part along the row, as the unit row u = x / |x| has
  // du = (dx - u (u.dx)) / |x|, unless |x| was clamped. `radial` is u.d of the rows, the gradient of the factor.
  SWIN_FAST_DEVICE void row_gradients(int tensor, int first, float factor, float (&d)[4][4], float (&radial)[2]) const {
    uint32_t x[2][4];
    if (kCosine) rows(tensor * Sizes::kTileBytes + first * Sizes::kTokenBytes, x);
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      float of_row = factor, kept = 0.0f;
      if (kCosine) {
        const float inverse = inverse_of(tensor, first + quad() + 8 * i);
        float dot = 0.0f;
        SWIN_FAST_UNROLL
        for (int c = 0; c < 4; ++c) {
          const Float2 two = unpack<T>(x[c >> 1][i + 2 * (c & 1)]);
          dot += two.x * d[c][2 * i] + two.y * d[c][2 * i + 1];
        }
        dot += shuffle_xor(dot, 1);
        dot += shuffle_xor(dot, 2);
        radial[i] = dot * left_of(inverse);
        kept = inverse < 1.0f / kNormFloor ? radial[i] * left_of(inverse) : 0.0f;
        of_row *= inverse;
      }
      SWIN_FAST_UNROLL
      for (int c = 0; c < 4; ++c) {
        if (kCosine) {
          const Float2 two = unpack<T>(x[c >> 1][i + 2 * (c & 1)]);
          d[c][2 * i] -= two.x * kept;
          d[c][2 * i + 1] -= two.y * kept;
        }
        d[c][2 * i] *= of_row;
        d[c][2 * i + 1] *= of_row;
      }
    }
  }

  // The gradients of two rows, rounded, to their pixels. Lanes exchange so much that each has 8 bytes: the four of a
  // row fill sectors of 32 bytes.
  template <int kHalves>
  SWIN_FAST_DEVICE void store_result(char* to, const int (&pixels)[2], const float (&d)[4][4]) const {
    const bool odd = (lane & 1) != 0;
    to += (lane & 1) * 16 + (lane & 2) * 4;
    SWIN_FAST_UNROLL
    for (int i = 0; i < kHalves; ++i) {
      char* const row = to + int64_t{pixels[i]} * p.row_bytes;
      SWIN_FAST_UNROLL
      for (int c = 0; c < 4; c += 2) {
        const uint32_t left = pack<T>(d[c][2 * i], d[c][2 * i + 1]);
        const uint32_t right = pack<T>(d[c + 1][2 * i], d[c + 1][2 * i + 1]);
        const uint32_t other = shuffle_xor(odd ? left : right, 1);
        const UInt2 four = {odd ? other : left, odd ? right : other};
        if (pixels[i] >= 0) store_global(row + c * 16, four);
      }
    }
  }

  // Adds the gradients of tokens that are padding to the warp's sums, of k or v. A lane meets its own again.
  SWIN_FAST_DEVICE void add_padding(const float (&d)[4][4], const int (&pixels)[2]) const {
    SWIN_FAST_UNROLL
    for (int c = 0; c < 4; ++c) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 2; ++e) {
        float sum = pixels[0] == kPadding ? d[c][e] : 0.0f;
        sum += pixels[1] == kPadding ? d[c][e + 2] : 0.0f;
        sum += shuffle_xor(sum, 4);
        sum += shuffle_xor(sum, 8);
        sum += shuffle_xor(sum, 16);
        if (quad() != 0) continue;
        char* const own = sums() + (c * 8 + pair() + e) * 4;
        store_shared(own, load_shared<float>(own) + sum);
      }
    }
  }

  // The warp's queries, or the first 8 * kHalves of them: leaves P and dS for the sums over queries, adds dS to dbias,
  // and stores dq.
  template <int kHalves>
  SWIN_FAST_DEVICE void of_queries(int border, float factor, char* image, float (&dbias)[kKeyTiles][4],
                                   float* dlogit_scale) const {
    float s[kKeyTiles][4], d[kKeyTiles][4], delta[kHalves];
    probabilities<kHalves>(border, factor, s, d, delta);
    SWIN_FAST_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 2 * kHalves; ++e) {
        d[j][e] = is_none(j, e) ? 0.0f : s[j][e] * (d[j][e] - delta[e >> 1]);
      }
    }
    float of_row[2] = {1.0f, 1.0f};
    leave_scores<kHalves>(0, s, of_row);
    if (kCosine) {
      of_row[0] = left_of(inverse_of(0, token(0)));
      of_row[1] = left_of(inverse_of(0, token(1)));
    }
    leave_scores<kHalves>(Sizes::kGradients, d, of_row);
    SWIN_FAST_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 2 * kHalves; ++e) {
        if (!is_none(j, e)) dbias[j][e] += d[j][e];
      }
    }
    float dq[1][4][4] = {};
    SWIN_FAST_UNROLL
    for (int step = 0; step < Sizes::kKeySteps; ++step) {
      uint32_t a[1][4];
      fragment<kHalves>(step, d, [&](int j, int) { return norms_of_keys(j); }, a[0]);
      add_rows<1>(step, a, Sizes::kK, dq);
    }
    float radial[2];
    row_gradients(0, warp * 16, factor, dq[0], radial);
    if (kCosine) *dlogit_scale += radial[0] + radial[1];  // rows that do not exist are zeros
    const int pixels[2] = {pixel(token(0)), kHalves == 1 ? kNoToken : pixel(token(1))};
    store_result<kHalves>(image, pixels, dq[0]);
  }

  // The warp's 32 keys: stores dk or dv.
  SWIN_FAST_DEVICE void of_keys(float factor, char* image) const {
    float sum[2][4][4] = {};
    const int tile = sums_up_k() ? Sizes::kQ : Sizes::kGradOut;
    SWIN_FAST_UNROLL
    for (int step = 0; step < Sizes::kKeySteps; ++step) {
      uint32_t a[2][4];
      take_scores(step, a);
      add_rows<2>(step, a, tile, sum);
    }
    image += (sums_up_k() ? 1 : 2) * problem.nH * kRowBytes;
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      float radial[2];
      if (sums_up_k()) row_gradients(1, (warp & 1) * 32 + i * 16, factor, sum[i], radial);
      const int pixels[2] = {pixel(key(i, 0)), pixel(key(i, 1))};
      store_result<2>(image, pixels, sum[i]);
      if (problem.pad_value != nullptr && any_lane(pixels[0] == kPadding || pixels[1] == kPadding)) {
        add_padding(sum[i], pixels);
      }
    }
  }
};

// Computes: dqkv of windows of up to 64 tokens, and the parts of dbias, dlogit_scale and dpad_value.
// Grid:     nH * owners, heads fastest: those of a window run at the same time, for their rows share cache lines. An
//           owner has the windows [i U / owners, (i + 1) U / owners) of its head, and four warps: each has 16 queries,
//           whose dbias stays in its registers, and then 32 keys, of which it sums up dk or dv. While the block
//           computes a window, the rows of its next are on their way.
// Memory:   reads 4 and writes 3 rows of 64 bytes for each token and head, 16 and 8 bytes at a time.
// Numerics: as the forward; probabilities and the gradients of scores rounded to the input dtype for products, sums
//           over windows in float32, in their order. Nothing but those depends on the number of owners. sm_90, N = 49:
//           2,888 warp instructions a window and head without a border, 3,718 at most.
// Source:   Dao et al. 2022, FlashAttention, for dS = P (dP - delta); delta from P and dP as they are, so nothing has
//           to be saved by the forward. Written for this project; fragments as in the PTX manual, mma.m16n8k16.
template <class T, int kWindow, bool kCosine, bool kAligned>
__global__ void __launch_bounds__(kSmallBwdThreads, kSmallBwdBlocks<kWindow, kCosine>)
    small_windows_bwd(const SmallBwdParams p) {
  using Sizes = SmallBwdSizes<kWindow>;
  const WindowAttentionBwdParams& problem = p.problem;
  SmallBwdWarp<T, kWindow, kCosine> self(p);
  const int owner = blockIdx.x / problem.nH;
  const int64_t first = owner * p.all.of_all / p.parts.owners;
  auto left = static_cast<int32_t>((owner + 1) * p.all.of_all / p.parts.owners - first);
  const Windows::Place begin = p.all.place(first);
  // The warp that has one query fetches for all, but with cosine attention, where each brings rows and takes norms.
  constexpr bool kOneFetches = Sizes::kOneLeft && !kCosine;
  const bool fetches = !kOneFetches || self.has_one_left();
  const SmallBwdFetch<T, kWindow, kAligned, kOneFetches ? Sizes::kKeyTiles : 2> fetch(
      p, kOneFetches ? self.quad() : self.token(0), self.tokens);
  if (fetches) fetch.begin(begin, self.head);

  const int thread = threadIdx.x;
  const auto clear = [&](int from, int to) {
    for (int at = from + 16 * thread; at < to; at += 16 * kSmallBwdThreads) {
      store_shared(self.memory + at, UInt4{0, 0, 0, 0});
    }
  };
  for (int tile = 0; tile < 4; ++tile) {
    clear(tile * Sizes::kTileBytes + self.tokens * Sizes::kTokenBytes, (tile + 1) * Sizes::kTileBytes);
  }
  clear(Sizes::kScores, Sizes::kBias);  // where there is no key, too
  clear(Sizes::kSums, Sizes::kInverses);
  if (thread % 64 >= self.tokens) store_shared(self.memory + Sizes::kPixels + thread * 4, kNoToken);
  self.bring_bias();
  if (self.warp == 0) self.bring_borders();

  const float factor = kCosine ? load_global<float>(problem.logit_scale + self.head) : problem.scale;
  const bool has_queries = kWindow != 0 || self.warp * 16 < self.tokens;
  const bool has_keys = kWindow != 0 || (self.warp & 1) * 32 < self.tokens;
  float dbias[Sizes::kKeyTiles][4] = {};
  float dlogit_scale = 0.0f;
  char* image = static_cast<char*>(problem.dqkv) + begin.b * p.image_bytes + self.head * kRowBytes;
  for (; left > 0; --left, self.turn()) {
    copy_async_wait<0>();
    if (kCosine) self.normalise();
    sync_threads();  // this window's rows are there, and nobody needs the last one's rows and scores any more
    const int news = self.news(), border = news & (kNextImage - 1);
    if (news >= kNextImage) image += p.image_bytes;
    if (left > 1 && fetches) fetch.next(self.set ^ Sizes::kSet);
    if (self.has_one_left()) {
      self.template of_queries<1>(border, factor, image, dbias, &dlogit_scale);
    } else if (has_queries) {
      self.template of_queries<2>(border, factor, image, dbias, &dlogit_scale);
    }
    sync_threads();  // the scores of all queries are there
    if (has_keys) self.of_keys(factor, image);
  }

  const int64_t part = int64_t{self.head} * p.parts.owners + owner;
  sync_threads();  // nobody needs rows and scores any more
  if (problem.bias_form != BiasForm::kNone && has_queries) {
    SWIN_FAST_UNROLL
    for (int j = 0; j < Sizes::kKeyTiles; ++j) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int query = self.token(e >> 1), key = j * 8 + self.pair() + (e & 1);
        if (query < self.tokens && key < self.tokens) {
          store_shared(self.memory + (query * self.tokens + key) * 4, dbias[j][e]);
        }
      }
    }
  }
  if (kCosine) {
    SWIN_FAST_UNROLL
    for (int mask = 4; mask < 32; mask *= 2) dlogit_scale += shuffle_xor(dlogit_scale, mask);
    // Over inverses of queries, as above.
    if (self.lane == 0) store_shared(self.memory + Sizes::kInverses + self.warp * 4, dlogit_scale);
  }
  sync_threads();
  if (problem.bias_form != BiasForm::kNone) leave_dbias(problem, self.memory, p.parts, part);
  if (kCosine && thread == 0) {
    float sum = 0.0f;
    for (int i = 0; i < kSmallBwdWarps; ++i) {
      sum += load_shared<float>(self.memory + Sizes::kInverses + i * 4);
    }
    store_global(p.parts.dlogit_scale + part, sum);
  }
  if (problem.pad_value != nullptr && thread < 2 * kHeadDim) {  // of k, which the last two warps have, and of v
    const int at = (thread ^ kHeadDim) / kHeadDim * 2 * kHeadDim + thread % kHeadDim;
    const char* const sums = self.memory + Sizes::kSums + at * 4;
    const float sum = load_shared<float>(sums) + load_shared<float>(sums + kHeadDim * 4);
    store_global(p.parts.dpad_value + part * 2 * kHeadDim + thread, sum);
  }
}

}  // namespace swin_fast::cuda
