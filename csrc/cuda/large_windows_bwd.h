// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of up to 1024 tokens in two kernels: owners of queries, then owners of keys. Each goes over
// the other side in chunks, and recomputes the scores: nothing is added atomically.
#pragma once

#include <cmath>
#include <cstdint>

#include "float_rows.h"
#include "fold_parts.h"
#include "large_bwd_cut.h"
#include "primitives.h"
#include "row_tiles.h"
#include "windows.h"

namespace swin_fast::cuda {

// What both kernels have in common: a block's head, owner and own rows, and what it knows of tokens.
template <class T, int kHd, bool kCosine>
struct LargeBlock {
  static constexpr int kWords = kHd * kElementBytes<T> / 2;  // of 16 bits, of a row
  using Tile = RowTile<kWords>;
  const LargeBwdParams& p;
  const LargeCut& cut;
  const LargeLayout layout;
  char* const memory;
  const int tokens, lane, warp, head, owner, tile, row;  // row: the warp's first own one
  int64_t first, last;                                   // windows
  float factor;
  int32_t columns;

  SWIN_FAST_DEVICE LargeBlock(const LargeBwdParams& params, bool of_keys, int own_floats)
      : p(params),
        cut(of_keys ? params.keys : params.queries),
        layout(kElementBytes<T> * kHd, cut, kCosine, of_keys, own_floats),
        memory(shared_memory()),
        tokens(params.problem.window_area()),
        lane(threadIdx.x & 31),
        warp(threadIdx.x >> 5),
        head(static_cast<int>(blockIdx.x) / cut.tiles % params.problem.nH),
        owner(static_cast<int>(blockIdx.x) / cut.tiles / params.problem.nH),
        tile(static_cast<int>(blockIdx.x) % cut.tiles),
        row((tile * cut.warps + warp) * 16),
        first(owner * params.all.of_all / cut.owners),
        last((owner + 1) * params.all.of_all / cut.owners) {
    const WindowAttentionBwdParams& problem = p.problem;
    factor = kCosine ? load_global<float>(problem.logit_scale + head) : problem.scale;
    columns = problem.window_size[1];
  }

  SWIN_FAST_DEVICE char* pixels(int token) const { return memory + layout.pixels + 8 * token; }
  SWIN_FAST_DEVICE char* own(int which) const {
    return memory + layout.own + Tile::sixteen(warp * 16) + which * Tile::kSecond;
  }
  SWIN_FAST_DEVICE char* chunk_rows(int slot, int which) const {
    return memory + layout.chunks + Tile::sixteen(slot * cut.chunk) + which * Tile::kSecond;
  }
  SWIN_FAST_DEVICE char* norms(int slot) const { return memory + layout.norms + slot * cut.chunk * 4; }
  SWIN_FAST_DEVICE char* statistics(int slot, int which) const {
    return memory + layout.statistics + (slot * 3 + which) * cut.chunk * 4;
  }
  SWIN_FAST_DEVICE int chunk_count() const { return (p.rows + cut.chunk - 1) / cut.chunk; }
  SWIN_FAST_DEVICE int rows_of_chunk(int chunk) const {
    const int left = p.rows - chunk * cut.chunk;
    return left < cut.chunk ? left : cut.chunk;
  }
  SWIN_FAST_DEVICE int64_t part() const { return head * cut.parts_of_head() + int64_t{owner} * cut.tiles + tile; }
  SWIN_FAST_DEVICE int64_t statistics_of(int64_t window) const { return (window * p.problem.nH + head) * 3 * p.rows; }

  // Where the tokens of a window stand, and in which regions where it has more than one.
  SWIN_FAST_DEVICE void write_pixels(const Windows::Place& place, bool border) const {
    for (int token = threadIdx.x; token < cut.rows(); token += blockDim.x) {
      const int y = token / columns, x = token - y * columns;
      Pixel pixel;
      if (!p.all.pixel(place, y, x, &pixel.y, &pixel.x)) pixel.y = kPadding;
      if (token >= tokens) pixel.y = kNoToken;
      store_shared(pixels(token), pixel);
      if (border) {
        store_shared(memory + layout.regions + 2 * token, static_cast<uint16_t>(p.all.region(place, y, x)));
      }
    }
  }

  SWIN_FAST_DEVICE void fetch_own(const RowSource& first_rows, const RowSource& second_rows) const {
    fetch_rows<kWords>(own(0), pixels(row), 16, first_rows, p.aligned, lane, 32);
    fetch_rows<kWords>(own(1), pixels(row), 16, second_rows, p.aligned, lane, 32);
  }

  SWIN_FAST_DEVICE void fetch_chunk(int chunk, int slot, const RowSource& first_rows,
                                    const RowSource& second_rows) const {
    const char* const from = pixels(chunk * cut.chunk);
    const int count = rows_of_chunk(chunk);
    fetch_rows<kWords>(chunk_rows(slot, 0), from, count, first_rows, p.aligned, threadIdx.x, blockDim.x);
    fetch_rows<kWords>(chunk_rows(slot, 1), from, count, second_rows, p.aligned, threadIdx.x, blockDim.x);
  }

  // All threads see a chunk of which each has waited for its own copies, with its norms.
  SWIN_FAST_DEVICE void share_chunk(int chunk, int slot) const {
    sync_threads();
    if (!kCosine) return;
    for (int row_ = warp * 8 + (lane >> 2); row_ < rows_of_chunk(chunk); row_ += cut.warps * 8) {
      prepare_norm<T, kHd>(chunk_rows(slot, 0), row_, norms(slot) + 4 * row_, lane);
    }
    sync_threads();
  }

  // The norms of two rows of a chunk from `row` on.
  SWIN_FAST_DEVICE Float2 two_norms(int slot, int row_) const {
    return kCosine ? load_shared<Float2>(norms(slot) + 4 * row_) : Float2{1.0f, 1.0f};
  }
};

// What scores are multiplied by, so that weights are powers of 2. Not in float32, where the rounding of these products
// would be seen.
template <class T>
constexpr float kBase = is_float<T> ? 1.0f : kLog2E;

// Turns products of own rows with rows of the other side into scores.
template <class T, int kHd, bool kCosine>
struct LargeScores {
  // In float32 a score is rounded alike whichever side owns. When it was not, the weights of owners of keys had other
  // sums than those by which owners of queries divide them: dv of a single key was off by 4 times what may be.
  static constexpr bool kSymmetric = kCosine && is_float<T>;
  const LargeBlock<T, kHd, kCosine>& block;
  const bool border;
  float own_factor[2];  // of own rows lane / 4 and that + 8

  SWIN_FAST_DEVICE LargeScores(const LargeBlock<T, kHd, kCosine>& block_, bool border_, const float (&inverse)[2])
      : block(block_), border(border_) {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      own_factor[i] = kSymmetric ? 1.0f : block.factor * kBase<T>;
      if (kCosine) own_factor[i] *= inverse[i];
    }
  }

  // Of twice eight of them, of which this lane has two and two from `token` on, where `inverses` are their norms.
  SWIN_FAST_DEVICE void of(float (&s)[2][4], const BiasWalk& bias, int token, const Float2 (&inverses)[2]) const {
    SWIN_FAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      const Float4 four = bias.fragment(j);
      const float of_pair[4] = {four.x, four.y, four.z, four.w};
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) {
        const float inverse = (e & 1) != 0 ? inverses[j].y : inverses[j].x;
        if constexpr (kSymmetric) {
          s[j][e] = s[j][e] * (inverse * own_factor[e >> 1]) * block.factor + of_pair[e];
        } else {
          if (kCosine) s[j][e] *= inverse;
          s[j][e] = s[j][e] * own_factor[e >> 1] + of_pair[e];
        }
      }
    }
    if (border) mask(s, token);
  }

 private:
  SWIN_FAST_DEVICE void mask(float (&s)[2][4], int token) const {
    sync_warp();  // or the compiler makes all of it conditional instructions, 30 of 170 for windows without a border
    const char* const regions = block.memory + block.layout.regions;
    const char* const of_own = regions + 2 * (block.row + (block.lane >> 2));
    const uint32_t own[2] = {load_shared<uint16_t>(of_own), load_shared<uint16_t>(of_own + 16)};
    SWIN_FAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      const auto two = load_shared<uint32_t>(regions + 2 * (token + 8 * j));
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) {
        const uint32_t other = (e & 1) != 0 ? two >> 16 : two & 0xffffu;
        if (other != own[e >> 1]) s[j][e] += block.p.problem.mask_value * kBase<T>;
      }
    }
  }
};

// Of a score relative to another, in the base of scores.
template <class T>
SWIN_FAST_DEVICE float weight_of(float score, float other) {
  return is_float<T> ? weight_of(score, other) : exp2_approx(score - other);
}

SWIN_FAST_DEVICE float finite_top(float top) { return top == -INFINITY ? 0.0f : top; }

// Computes: dq of 16 * warps queries in a range of windows of one head, their rows of its part of dbias, a part of
//           dlogit_scale, and for large_keys_bwd what makes a probability of a score.
// Grid:     nH * owners * tiles, tiles fastest, which read the same keys, then heads. A warp has 16 queries, and goes
//           over the keys twice: for the statistics of its rows, and for dS.
// Memory:   q and dO once, k and v once for each tile of queries, or twice where their chunks do not all have a place;
//           12 bytes of statistics a token and head; the bias from the caches; dbias stays in shared memory.
// Numerics: products in the input dtype with float32 accumulators, in float32 as float_rows.h has them; scores,
//           softmax and sums in float32. Each lane keeps largest score, sum and delta of its keys, corrected when a
//           larger score comes; lanes are added at the end. dS rounded for its product. Nothing of dq depends on
//           owners, warps or chunks.
// Source:   Dao et al. 2022, FlashAttention, for dS = P (dP - delta); written for this project.
template <class T, int kHd, bool kCosine>
__global__ void __launch_bounds__(32 * kLargeWarps, large_blocks(kElementBytes<T>* kHd))
    large_queries_bwd(const LargeBwdParams p) {
  const WindowAttentionBwdParams& problem = p.problem;
  const int own_floats = large_query_floats(problem, p.rows);
  using Block = LargeBlock<T, kHd, kCosine>;
  const Block block(p, false, own_floats);
  const int lane = block.lane, pair = (lane & 3) * 2, tokens = block.tokens, chunks = block.chunk_count();
  const bool resident = block.cut.slots >= chunks, has_rows = block.row < p.rows;
  char* const sums = block.memory + block.layout.sums + block.warp * own_floats * 4;
  char* const dbias = sums + lane * 16;
  const bool has_bias = problem.bias_form != BiasForm::kNone;
  for (int key = 0; key < p.rows && has_bias; key += 8) {
    store_shared(dbias + key * 64, Float4{0.0f, 0.0f, 0.0f, 0.0f});
  }
  float dlogit_scale = 0.0f;

  for (int64_t window = block.first; window < block.last; ++window) {
    const Windows::Place place = p.all.place(window);
    const bool border = p.all.has_border(place);
    const RowSource k_source = rows_of_qkv<T>(problem, place.b, 1, block.head);
    const RowSource v_source = rows_of_qkv<T>(problem, place.b, 2, block.head);
    sync_threads();  // nobody reads pixels and rows of the window before any more
    block.write_pixels(place, border);
    sync_threads();
    block.fetch_own(rows_of_qkv<T>(problem, place.b, 0, block.head), rows_of_grad_out<T>(problem, place.b, block.head));
    copy_async_commit();
    block.fetch_chunk(0, 0, k_source, v_source);
    copy_async_commit();
    copy_async_wait<1>();
    sync_warp();  // own rows that other lanes fetched
    const OwnRows<T, kHd> q(block.own(0), lane), dout(block.own(1), lane);
    float inverse[2] = {1.0f, 1.0f};
    if (kCosine) q.inverse_norms(inverse);
    const LargeScores<T, kHd, kCosine> scores(block, border, inverse);

    // The statistics of a row: of this lane's keys, then of all.
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f}, delta[2] = {0.0f, 0.0f}, share[2] = {0.0f, 0.0f};
    float dq[kHd / 8][4];
    SWIN_FAST_UNROLL
    for (int c = 0; c < kHd / 8; ++c) dq[c][0] = dq[c][1] = dq[c][2] = dq[c][3] = 0.0f;

    BiasWalk bias(p.bias, p.query_bias, block.head, block.row / 16, lane);
    for (int go = 0; go < 2 * chunks; ++go) {
      const bool again = go >= chunks;
      const int chunk = again ? go - chunks : go, slot = resident ? chunk : go & 1;
      if (chunk == 0) bias.restart();
      if (go + 1 < (resident ? chunks : 2 * chunks)) {
        const int next = go + 1 < chunks ? go + 1 : go + 1 - chunks;
        block.fetch_chunk(next, resident ? next : (go + 1) & 1, k_source, v_source);
        copy_async_commit();
        copy_async_wait<1>();
      } else {
        copy_async_wait<0>();
      }
      if (!again || !resident) block.share_chunk(chunk, slot);
      for (int row = 0; row < block.rows_of_chunk(chunk) && has_rows; row += 16) {
        const int key = chunk * block.cut.chunk + row + pair;
        const char* const rows = block.chunk_rows(slot, 0) + Block::Tile::sixteen(row);
        float s[2][4], dp[2][4];
        q.times(s, rows);
        dout.times(dp, rows + Block::Tile::kSecond);
        const Float2 norms[2] = {block.two_norms(slot, row + pair), block.two_norms(slot, row + pair + 8)};
        scores.of(s, bias, key, norms);
        bias.advance();
        if (key - pair + 16 > tokens) {  // the product of an infinite query with a key that does not exist is NaN
          SWIN_FAST_UNROLL
          for (int e = 0; e < 8; ++e) {
            if (key + 8 * (e >> 2) + (e & 1) >= tokens) s[e >> 2][e & 3] = -INFINITY;
          }
        }
        if (!again) {
          SWIN_FAST_UNROLL
          for (int i = 0; i < 2; ++i) {
            const float* const low = &s[0][2 * i];
            const float* const high = &s[1][2 * i];
            const float larger = fmaxf(top[i], fmaxf(fmaxf(low[0], low[1]), fmaxf(high[0], high[1])));
            const float base = finite_top(larger), shrunk = weight_of<T>(top[i], base);
            top[i] = larger;
            sum[i] *= shrunk;
            delta[i] *= shrunk;
            SWIN_FAST_UNROLL
            for (int e = 0; e < 4; ++e) {
              const float weight = weight_of<T>(s[e >> 1][2 * i + (e & 1)], base);
              sum[i] += weight;
              delta[i] += weight * dp[e >> 1][2 * i + (e & 1)];
            }
          }
          continue;
        }
        SWIN_FAST_UNROLL
        for (int j = 0; j < 2; ++j) {
          SWIN_FAST_UNROLL
          for (int e = 0; e < 4; ++e) {
            const float weight = weight_of<T>(s[j][e], top[e >> 1]) * share[e >> 1];
            // A row that may attend to nothing weighs nothing: not 0 * NaN.
            s[j][e] = share[e >> 1] != 0.0f ? weight * (dp[j][e] - delta[e >> 1]) : 0.0f;
          }
          if (has_bias) {
            char* const at = dbias + (key - pair + 8 * j) * 64;
            const auto before = load_shared<Float4>(at);
            store_shared(at, Float4{before.x + s[j][0], before.y + s[j][1], before.z + s[j][2], before.w + s[j][3]});
          }
          SWIN_FAST_UNROLL
          for (int e = 0; e < 4; ++e) s[j][e] *= (e & 1) != 0 ? norms[j].y : norms[j].x;
        }
        add_weighted_rows<T, kHd>(dq, s, rows, lane);
      }
      if (go == chunks - 1) {
        SWIN_FAST_UNROLL
        for (int i = 0; i < 2; ++i) {
          float largest = fmaxf(top[i], shuffle_xor(top[i], 1));
          largest = finite_top(fmaxf(largest, shuffle_xor(largest, 2)));
          const float shrunk = weight_of<T>(top[i], largest);
          top[i] = largest;
          sum[i] *= shrunk;
          delta[i] *= shrunk;
          SWIN_FAST_UNROLL
          for (int mask = 1; mask < 4; mask *= 2) {
            sum[i] += shuffle_xor(sum[i], mask);
            delta[i] += shuffle_xor(delta[i], mask);
          }
          const int query = block.row + (lane >> 2) + 8 * i;
          // 0: every score was -inf, or there is no such query, whose products with infinite keys are NaN.
          share[i] = query < tokens && sum[i] != 0.0f ? reciprocal<T>(sum[i]) : 0.0f;
          delta[i] *= share[i];
          if (!has_rows || pair != 0) continue;
          float* const to = p.statistics + block.statistics_of(window) + query;
          store_global(to, top[i]);
          store_global(to + p.rows, share[i]);
          store_global(to + 2 * p.rows, delta[i]);
        }
      }
      if (!resident) sync_threads();  // the chunk may be overwritten
    }
    float radial[2];
    if (kCosine) {
      q.through_norm(dq, inverse, inverse, block.factor, radial);
      dlogit_scale += radial[0] + radial[1];
    } else {
      scale_rows<kHd>(dq, block.factor);
    }
    RoundedRows<T, kHd>(dq).put(block.own(0), lane);
    store_rows<Block::kWords>(problem, place.b, 0, block.head, block.own(0), block.pixels(block.row), lane);
  }

  if (has_bias) {
    float* const part = p.of_bias.dbias + (int64_t{block.head} * block.cut.owners + block.owner) * tokens * tokens;
    for (int key = 0; key < p.rows; key += 8) {
      const auto four = load_shared<Float4>(dbias + key * 64);
      const float own[4] = {four.x, four.y, four.z, four.w};
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int row = block.row + (lane >> 2) + 8 * (e >> 1), column = key + pair + (e & 1);
        if (row < tokens && column < tokens) store_global(part + int64_t{row} * tokens + column, own[e]);
      }
    }
  }
  if (kCosine) {
    SWIN_FAST_UNROLL
    for (int mask = 4; mask < 32; mask *= 2) dlogit_scale += shuffle_xor(dlogit_scale, mask);
    const int behind = 4 * (own_floats - 4);
    if (lane == 0) store_shared(sums + behind, dlogit_scale);
    sync_threads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < block.cut.warps; ++warp) {
      dlogit_scale += load_shared<float>(sums + warp * own_floats * 4 + behind);
    }
    store_global(p.of_logit_scale.dlogit_scale + block.part(), dlogit_scale);
  }
}

// Computes: dk and dv of 16 * warps keys in a range of windows of one head, and their part of dpad_value.
// Grid:     nH * owners * tiles, tiles fastest, which read the same queries, then heads. A warp has 16 keys.
// Memory:   k and v once, q, dO and 12 bytes of statistics of each query once for each tile of keys.
// Numerics: as large_queries_bwd, which has to have run; P rounded for its product, too.
// Source:   as large_queries_bwd.
template <class T, int kHd, bool kCosine>
__global__ void __launch_bounds__(32 * kLargeWarps, large_blocks(kElementBytes<T>* kHd))
    large_keys_bwd(const LargeBwdParams p) {
  const WindowAttentionBwdParams& problem = p.problem;
  using Block = LargeBlock<T, kHd, kCosine>;
  const Block block(p, true, large_key_floats(kHd));
  const int lane = block.lane, pair = (lane & 3) * 2, chunks = block.chunk_count();
  const bool has_rows = block.row < p.rows;
  char* const dpad_value = block.memory + block.layout.sums;  // of warps, each (2, hd), of k and v
  for (int i = threadIdx.x; i < block.cut.warps * 2 * kHd; i += blockDim.x) store_shared(dpad_value + 4 * i, 0.0f);

  for (int64_t window = block.first; window < block.last; ++window) {
    const Windows::Place place = p.all.place(window);
    const bool border = p.all.has_border(place);
    const RowSource q_source = rows_of_qkv<T>(problem, place.b, 0, block.head);
    const RowSource dout_source = rows_of_grad_out<T>(problem, place.b, block.head);
    const auto fetch = [&](int chunk) {
      block.fetch_chunk(chunk, chunk & 1, q_source, dout_source);
      const float* const from = p.statistics + block.statistics_of(window) + chunk * block.cut.chunk;
      const int pieces = block.rows_of_chunk(chunk) / 4;
      for (int i = threadIdx.x; i < 3 * pieces; i += blockDim.x) {
        const int which = i / pieces, piece = i - which * pieces;
        copy_async_16(block.statistics(chunk & 1, which) + 16 * piece, from + which * p.rows + 4 * piece, true);
      }
      copy_async_commit();
    };
    sync_threads();  // nobody reads pixels and rows of the window before any more
    block.write_pixels(place, border);
    sync_threads();
    block.fetch_own(rows_of_qkv<T>(problem, place.b, 1, block.head), rows_of_qkv<T>(problem, place.b, 2, block.head));
    copy_async_commit();
    fetch(0);
    copy_async_wait<1>();
    sync_warp();  // own rows that other lanes fetched
    const OwnRows<T, kHd> k(block.own(0), lane), v(block.own(1), lane);
    float inverse[2] = {1.0f, 1.0f};
    if (kCosine) k.inverse_norms(inverse);
    const LargeScores<T, kHd, kCosine> scores(block, border, inverse);
    float dk[kHd / 8][4], dv[kHd / 8][4];
    SWIN_FAST_UNROLL
    for (int c = 0; c < kHd / 8; ++c) {
      dk[c][0] = dk[c][1] = dk[c][2] = dk[c][3] = dv[c][0] = dv[c][1] = dv[c][2] = dv[c][3] = 0.0f;
    }

    BiasWalk bias(p.bias, p.key_bias, block.head, block.row / 16, lane);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int slot = chunk & 1;
      if (chunk + 1 < chunks) {
        fetch(chunk + 1);
        copy_async_wait<1>();
      } else {
        copy_async_wait<0>();
      }
      block.share_chunk(chunk, slot);
      for (int row = 0; row < block.rows_of_chunk(chunk) && has_rows; row += 16) {
        const char* const rows = block.chunk_rows(slot, 0) + Block::Tile::sixteen(row);
        float s[2][4], dp[2][4];
        k.times(s, rows);
        v.times(dp, rows + Block::Tile::kSecond);
        const Float2 norms[2] = {block.two_norms(slot, row + pair), block.two_norms(slot, row + pair + 8)};
        scores.of(s, bias, chunk * block.cut.chunk + row + pair, norms);
        bias.advance();
        SWIN_FAST_UNROLL
        for (int j = 0; j < 2; ++j) {
          const int query = row + 8 * j + pair;
          const auto top = load_shared<Float2>(block.statistics(slot, 0) + 4 * query);
          const auto share = load_shared<Float2>(block.statistics(slot, 1) + 4 * query);
          const auto delta = load_shared<Float2>(block.statistics(slot, 2) + 4 * query);
          SWIN_FAST_UNROLL
          for (int e = 0; e < 4; ++e) {
            const bool odd = (e & 1) != 0, alive = (odd ? share.y : share.x) != 0.0f;
            const float weight = weight_of<T>(s[j][e], odd ? top.y : top.x) * (odd ? share.y : share.x);
            const float ds = weight * (dp[j][e] - (odd ? delta.y : delta.x)) * (odd ? norms[j].y : norms[j].x);
            s[j][e] = alive ? weight : 0.0f;
            dp[j][e] = alive ? ds : 0.0f;
          }
        }
        sync_warp();  // or products are begun early, for which head_dim 128 leaves no registers
        add_weighted_rows<T, kHd>(dv, s, rows + Block::Tile::kSecond, lane);
        add_weighted_rows<T, kHd>(dk, dp, rows, lane);
      }
      sync_threads();  // the chunk may be overwritten
    }
    float radial[2];
    if (kCosine) {
      k.through_norm(dk, inverse, inverse, block.factor, radial);
    } else {
      scale_rows<kHd>(dk, block.factor);
    }
    if (problem.pad_value != nullptr) {
      const int key = block.row + (lane >> 2);
      const bool padding[2] = {load_shared<Pixel>(block.pixels(key)).y == kPadding,
                               load_shared<Pixel>(block.pixels(key + 8)).y == kPadding};
      if (any_lane(padding[0] || padding[1])) {
        char* const to = dpad_value + block.warp * 2 * kHd * 4;
        add_rows_of<kHd, T>(to, dk, padding, lane);
        add_rows_of<kHd, T>(to + kHd * 4, dv, padding, lane);
      }
    }
    RoundedRows<T, kHd>(dk).put(block.own(0), lane);
    RoundedRows<T, kHd>(dv).put(block.own(1), lane);
    store_rows<Block::kWords>(problem, place.b, 1, block.head, block.own(0), block.pixels(block.row), lane);
    store_rows<Block::kWords>(problem, place.b, 2, block.head, block.own(1), block.pixels(block.row), lane);
  }

  if (problem.pad_value == nullptr) return;
  sync_threads();
  for (int i = threadIdx.x; i < 2 * kHd; i += blockDim.x) {
    float sum = 0.0f;
    for (int warp = 0; warp < block.cut.warps; ++warp) {
      sum += load_shared<float>(dpad_value + (warp * 2 * kHd + i) * 4);
    }
    store_global(p.of_pad_value.dpad_value + block.part() * 2 * kHd + i, sum);
  }
}

// Gives the kernels to launch(kernel, blocks, threads, bytes of shared memory, params), each behind the one before. No
// kernel is launched where the batch is empty but those that write its zeros.
template <class T, int kHd, class Launch>
void launch_large_bwd(const LargeBwdParams& p, Launch launch) {
  const auto heads = static_cast<int64_t>(p.problem.nH);
  const auto blocks = [heads](const LargeCut& cut) { return static_cast<uint32_t>(heads * cut.parts_of_head()); };
  const bool cosine = p.problem.logit_scale != nullptr;
  if (p.all.of_all > 0) {
    for (const bool of_keys : {false, true}) {
      const ArrangeParams arrange{p.problem, p.bias, of_keys ? p.key_bias : p.query_bias, kBase<T>, of_keys};
      launch(arrange_bias<256>, static_cast<uint32_t>(arrange.blocks(256)), 256, size_t{0}, arrange);
    }
    launch(cosine ? large_queries_bwd<T, kHd, true> : large_queries_bwd<T, kHd, false>, blocks(p.queries),
           32 * p.queries.warps, p.queries.shared_bytes, p);
    launch(cosine ? large_keys_bwd<T, kHd, true> : large_keys_bwd<T, kHd, false>, blocks(p.keys), 32 * p.keys.warps,
           p.keys.shared_bytes, p);
  }
  fold_all<T>(p.alone(0), p.of_bias, launch);
  fold_all<T>(p.alone(1), p.of_logit_scale, launch);
  fold_all<T>(p.alone(2), p.of_pad_value, launch);
}

}  // namespace swin_fast::cuda
