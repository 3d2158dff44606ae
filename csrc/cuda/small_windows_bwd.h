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
  const SmallBwdParams& p;
  const WindowAttentionBwdParams& problem;
  int lane, warp, head, tokens;
  SmallGrid<kWindow> grid;
  char* const memory = shared_memory();
  // Where the lane reads first, in the set of rows in work: 16 rows by the first or the last 16 columns, and 8 rows by
  // all 32. They change from window to window, or the compiler would rather compute them anew each time.
  int square[2], strip;
  // Where it leaves pairs of scores and of results: 16 * j further, by exclusive or, is its next tile of columns. And
  // where it reads 16 rows of scores by the warp's 16 keys, and its results.
  int own_scores, own_results, square_of_scores, chunk_of_results;

  SWIN_FAST_DEVICE explicit SmallBwdWarp(const SmallBwdParams& params)
      : p(params),
        problem(params.problem),
        lane(threadIdx.x & 31),
        warp(threadIdx.x >> 5),
        head(blockIdx.x % params.problem.nH),
        tokens(kWindow == 0 ? params.problem.window_area() : Sizes::kTokens),
        grid(params.problem) {
    square[0] = (lane & 15) * kRowBytes + swizzled(lane & 15, lane >> 4);
    square[1] = square[0] ^ 32;
    strip = (lane & 7) * kRowBytes + swizzled(lane & 7, lane >> 3);
    own_scores = Sizes::kScores + token(0) * Sizes::kScoreRowBytes + quad() * 16 + pair() * 2;
    own_results = Sizes::kResults + warp * 2 * Sizes::kResultBytes + quad() * kRowBytes;
    chunk_of_results = own_results + swizzled(quad(), lane & 3);
    own_results += swizzled(quad(), 0) + pair() * 2;
    const int row = (lane & 7) + (lane >> 4) * 8, chunk = 2 * warp + ((lane >> 3) & 1);
    square_of_scores = Sizes::kScores + row * Sizes::kScoreRowBytes + ((chunk ^ row) & 7) * 16;
  }

  // On to the other set of rows, and of scores and results. (With cosine attention registers are too few to keep where
  // those lie, and always the same of the two saves some.)
  SWIN_FAST_DEVICE void turn() {
    square[0] ^= Sizes::kSetBytes;
    square[1] ^= Sizes::kSetBytes;
    strip ^= Sizes::kSetBytes;
    if (kCosine) return;
    own_scores ^= Sizes::kScoreBytes;
    square_of_scores ^= Sizes::kScoreBytes;
    own_results ^= Sizes::kResultBytes;
    chunk_of_results ^= Sizes::kResultBytes;
  }

  SWIN_FAST_DEVICE int quad() const { return lane >> 2; }
  SWIN_FAST_DEVICE int pair() const { return (lane & 3) * 2; }
  // The token of row quad() or quad() + 8 of the warp's tile.
  SWIN_FAST_DEVICE int token(int half) const { return warp * 16 + half * 8 + quad(); }
  // The pixel of a token of the warp, kPadding, or kNoToken.
  SWIN_FAST_DEVICE int pixel(int half) const {
    const char* const all = memory + Sizes::kPixels + (square[0] & Sizes::kSetBytes) / (Sizes::kSetBytes / 256);
    return token(half) < tokens ? load_shared<int>(all + token(half) * 4) : kNoToken;
  }

  // 1 / |row| of all rows of q or k. Those of a window make place for the next one's: behind the barrier that scores
  // wait for, a warp reads those of its own rows alone.
  SWIN_FAST_DEVICE char* inverses(int tensor) const { return memory + Sizes::kInverses + tensor * 256; }
  SWIN_FAST_DEVICE char* sums() const { return memory + Sizes::kSums + warp * 2 * kHeadDim * 4; }

  // Cosine attention: 1 / |row| of the rows of q and k that this lane has fetched a chunk of. 1 / |row| may be 1e12,
  // which float16 does not hold: there its power of two goes to the row, where it rounds nothing that matters, and what
  // is left of it, between 1 and 2, to the gradients of scores. bfloat16 takes it there whole.
  SWIN_FAST_DEVICE void normalise() const {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int own = token(i & 1), tensor = i >> 1;
      char* const chunk = memory + Sizes::kRows + (square[0] & Sizes::kSetBytes) + tensor * Sizes::kTileBytes +
                          own * kRowBytes + swizzled(own, lane & 3);
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
  SWIN_FAST_DEVICE float inverse_of(int tensor, int half) const {
    return load_shared<float>(inverses(tensor) + token(half) * 4);
  }

  // The warp's own rows of a tile: of q, k, v or grad_out, as they are numbered.
  SWIN_FAST_DEVICE void own_rows(int tile, uint32_t (&a)[2][4]) const {
    ldmatrix_x4(a[0], memory + square[0] + tile * Sizes::kTileBytes + warp * 16 * kRowBytes);
    ldmatrix_x4(a[1], memory + square[1] + tile * Sizes::kTileBytes + warp * 16 * kRowBytes);
  }

  // d = the warp's own rows of a tile @ all rows of another, which are keys, transposed.
  SWIN_FAST_DEVICE void times_keys(int tile, int keys, float (&d)[Sizes::kKeyTiles][4]) const {
    uint32_t a[2][4];
    own_rows(tile, a);
    SWIN_FAST_UNROLL
    for (int j = 0; j < Sizes::kKeyTiles; ++j) {
      uint32_t b[4];
      ldmatrix_x4(b, memory + strip + keys * Sizes::kTileBytes + j * 8 * kRowBytes);
      d[j][0] = d[j][1] = d[j][2] = d[j][3] = 0.0f;
      mma_m16n8k16<T>(d[j], a[0], b[0], b[1]);
      mma_m16n8k16<T>(d[j], a[1], b[2], b[3]);
    }
  }

  // d = the sum over all tokens of left(token) @ its row, where left(step, a) gives the fragment of 16 of them.
  template <class Left>
  SWIN_FAST_DEVICE void sum_rows(const Left& left, int tile, float (&d)[4][4]) const {
    SWIN_FAST_UNROLL
    for (int c = 0; c < 4; ++c) d[c][0] = d[c][1] = d[c][2] = d[c][3] = 0.0f;
    SWIN_FAST_UNROLL
    for (int step = 0; step < Sizes::kKeySteps; ++step) {
      uint32_t a[4];
      left(step, a);
      SWIN_FAST_UNROLL
      for (int half = 0; half < 2; ++half) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, memory + square[half] + tile * Sizes::kTileBytes + step * 16 * kRowBytes);
        mma_m16n8k16<T>(d[2 * half], a, b[0], b[1]);
        mma_m16n8k16<T>(d[2 * half + 1], a, b[2], b[3]);
      }
    }
  }

  // The probabilities of the warp's queries; true where a row of scores is wholly -inf.
  SWIN_FAST_DEVICE void probabilities(int border, float factor, float (&s)[Sizes::kKeyTiles][4],
                                      bool (&dead)[2]) const {
    times_keys(0, 1, s);
    float of_row[2] = {factor, factor};
    if (kCosine) {
      of_row[0] *= left_of(inverse_of(0, 0));
      of_row[1] *= left_of(inverse_of(0, 1));
    }
    const char* const bias = memory + Sizes::kBias + warp * Sizes::kKeyTiles * 512 + lane * 16;
    SWIN_FAST_UNROLL
    for (int j = 0; j < Sizes::kKeyTiles; ++j) {
      const auto own = load_shared<Float4>(bias + j * 512);
      const float added[4] = {own.x, own.y, own.z, own.w};
      if (kCosine) {
        const auto of_key = load_shared<Float2>(inverses(1) + (j * 8 + pair()) * 4);
        SWIN_FAST_UNROLL
        for (int e = 0; e < 4; ++e) s[j][e] *= left_of(e & 1 ? of_key.y : of_key.x);
      }
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) s[j][e] = s[j][e] * of_row[e >> 1] + added[e];
    }
    if (border != 0) {
      const Border<kWindow> cut(grid, border >> 8, border & 255, pair());
      const uint32_t apart[2] = {cut.apart_from(token(0)), cut.apart_from(token(1))};
      SWIN_FAST_UNROLL
      for (int j = 0; j < Sizes::kKeyTiles; ++j) {
        SWIN_FAST_UNROLL
        for (int e = 0; e < 4; ++e) {
          if (is_apart(apart[e >> 1], j, e)) s[j][e] += problem.mask_value;
        }
      }
    }
    float share[2];
    exponentials(s, pair(), tokens, share);
    dead[0] = share[0] == 0.0f;
    dead[1] = share[1] == 0.0f;
    SWIN_FAST_UNROLL
    for (int j = 0; j < Sizes::kKeyTiles; ++j) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) s[j][e] *= share[e >> 1];
    }
  }

  // dS = P (dP - delta), where delta is the sum of P dP over the row.
  SWIN_FAST_DEVICE void score_gradients(const float (&s)[Sizes::kKeyTiles][4], const bool (&dead)[2],
                                        float (&d)[Sizes::kKeyTiles][4]) const {
    times_keys(3, 2, d);
    if (any_lane(dead[0] || dead[1])) {  // no gradient, even where v is not finite
      SWIN_FAST_UNROLL
      for (int j = 0; j < Sizes::kKeyTiles; ++j) {
        SWIN_FAST_UNROLL
        for (int e = 0; e < 4; ++e) d[j][e] = dead[e >> 1] ? 0.0f : d[j][e];
      }
    }
    float delta[2] = {0.0f, 0.0f};
    SWIN_FAST_UNROLL
    for (int j = 0; j < Sizes::kKeyTiles; ++j) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) delta[e >> 1] += s[j][e] * d[j][e];
    }
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      delta[i] += shuffle_xor(delta[i], 1);
      delta[i] += shuffle_xor(delta[i], 2);
    }
    SWIN_FAST_UNROLL
    for (int j = 0; j < Sizes::kKeyTiles; ++j) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) d[j][e] = s[j][e] * (d[j][e] - delta[e >> 1]);
    }
  }

  // Rows of scores that other warps sum over, at [query][key].
  SWIN_FAST_DEVICE void leave_scores(int which, const float (&s)[Sizes::kKeyTiles][4], const float (&of_row)[2]) const {
    SWIN_FAST_UNROLL
    for (int j = 0; j < Sizes::kKeyTiles; ++j) {
      char* const to = memory + (own_scores ^ (16 * j) ^ (which * Sizes::kScoreBytes));
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        const uint32_t two = pack<T>(s[j][2 * i] * of_row[i], s[j][2 * i + 1] * of_row[i]);
        store_shared(to + i * 8 * Sizes::kScoreRowBytes, two);
      }
    }
  }
  // The fragment of 16 queries from there, transposed: of the warp's 16 keys. Queries that do not exist are zeros.
  SWIN_FAST_DEVICE void take_scores(int which, int step, uint32_t (&a)[4]) const {
    const bool exist = step * 16 + (lane & 7) + (lane >> 4) * 8 < tokens;
    const int at = (square_of_scores ^ (which * Sizes::kScoreBytes)) + step * 16 * Sizes::kScoreRowBytes;
    ldmatrix_x4_trans(a, memory + (exist ? at : Sizes::kZeros + (at & (Sizes::kScoreRowBytes - 1))));
  }

  // From the sum of products with the other side of q.k, to the gradient of the rows of q or k: times the factor, or
  // with cosine attention without the part along the row, as the unit row u = x / |x| has du = (dx - u (u.dx)) / |x|,
  // unless |x| was clamped. `radial` is u.d of the warp's rows, the gradient of the factor.
  SWIN_FAST_DEVICE void row_gradients(int tensor, float factor, float (&d)[4][4], float (&radial)[2]) const {
    uint32_t x[2][4];
    if (kCosine) own_rows(tensor, x);
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      float of_row = factor, kept = 0.0f;
      if (kCosine) {
        const float inverse = inverse_of(tensor, i);
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

  // The gradients of the warp's rows, rounded, in shared memory; and from there to their pixels, 16 bytes a lane.
  SWIN_FAST_DEVICE void leave_result(int which, const float (&d)[4][4]) const {
    SWIN_FAST_UNROLL
    for (int c = 0; c < 4; ++c) {
      char* const to = memory + (own_results ^ (16 * c) ^ (which * Sizes::kResultBytes));
      store_shared(to, pack<T>(d[c][0], d[c][1]));
      store_shared(to + 8 * kRowBytes, pack<T>(d[c][2], d[c][3]));
    }
  }
  SWIN_FAST_DEVICE void store_result(int which, char* const (&to)[2], const int (&pixels)[2]) const {
    const char* const from = memory + (chunk_of_results ^ (which * Sizes::kResultBytes));
    SWIN_FAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      if (pixels[half] >= 0) store_global(to[half], load_shared<UInt4>(from + half * 8 * kRowBytes));
    }
  }

  // Adds the gradients of tokens that are padding to the warp's sums, of k (0) or v (1). A lane meets its own again.
  SWIN_FAST_DEVICE void add_padding(int tensor, const float (&d)[4][4], const int (&pixels)[2]) const {
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
        char* const own = sums() + (tensor * kHeadDim + c * 8 + pair() + e) * 4;
        store_shared(own, load_shared<float>(own) + sum);
      }
    }
  }
};

// Computes: dqkv of windows of up to 64 tokens, and the parts of dbias, dlogit_scale and dpad_value.
// Grid:     nH * owners, heads fastest: those of a window run at the same time, for their rows share cache lines. An
//           owner has the windows [i U / owners, (i + 1) U / owners) of its head, and four warps: each has 16 queries,
//           whose dbias stays in its registers, and then the 16 keys of the same tokens. While the block computes a
//           window, the rows of its next are on their way.
// Memory:   reads 4 and writes 3 rows of 64 bytes for each token and head, 16 bytes at a time.
// Numerics: as the forward; probabilities and the gradients of scores rounded to the input dtype for products, sums
//           over windows in float32, in their order. Nothing but those depends on the number of owners. sm_90, N = 49:
//           3,324 warp instructions a window and head without a border, of the 4,731 that an H200 has time for while
//           its memory moves the rows. Not yet run on a GPU.
// Source:   Dao et al. 2022, FlashAttention, for dS = P (dP - delta); delta from P and dP as they are, so nothing has
//           to be saved by the forward. Written for this project; fragments as in the PTX manual, mma.m16n8k16.
template <class T, int kWindow, bool kCosine, bool kAligned>
__global__ void __launch_bounds__(kSmallBwdThreads, kSmallBwdBlocks<kWindow>)
    small_windows_bwd(const SmallBwdParams p) {
  using Sizes = SmallBwdSizes<kWindow>;
  const WindowAttentionBwdParams& problem = p.problem;
  SmallBwdWarp<T, kWindow, kCosine> self(p);
  const int owner = blockIdx.x / problem.nH;
  const int64_t first = owner * p.all.of_all / p.parts.owners;
  auto left = static_cast<int32_t>((owner + 1) * p.all.of_all / p.parts.owners - first);
  Windows::Place next = p.all.place(first);
  SmallBwdFetch<T, kWindow, kAligned> fetch(p, next.b, self.lane, self.token(0), self.head, self.tokens);
  int next_border = fetch(next);

  for (int at = 16 * threadIdx.x; at < Sizes::kInverses; at += 16 * kSmallBwdThreads) {
    if (at < 2 * Sizes::kSetBytes && at / kRowBytes % 64 < self.tokens) continue;
    store_shared(self.memory + at, UInt4{0, 0, 0, 0});
  }
  load_bias_fragments<kWindow>(problem, self.head, 1, self.memory + Sizes::kBias);

  const float factor = kCosine ? load_global<float>(problem.logit_scale + self.head) : problem.scale;
  const bool has_queries = kWindow != 0 || self.warp * 16 < self.tokens;
  const float ones[2] = {1.0f, 1.0f};
  float dbias[Sizes::kKeyTiles][4] = {};
  float dlogit_scale = 0.0f;
  char* image =
      static_cast<char*>(problem.dqkv) + next.b * p.image_bytes + self.head * kRowBytes + (self.lane & 3) * 16;
  bool next_image = false;
  for (; left > 0; --left, self.turn()) {
    const int border = next_border;
    copy_async_wait<0>();
    if (kCosine) self.normalise();
    sync_threads();  // this window's rows are there, and nobody needs the last one's rows and scores any more
    if (next_image) image += p.image_bytes;
    if (left > 1) {
      next_image = p.all.advance(&next);
      if (next_image) fetch.next_image();
      next_border = fetch(next);
    }
    float radial[2];
    int pixels[2] = {kNoToken, kNoToken};
    char* to[2];
    if (has_queries) {
      float s[Sizes::kKeyTiles][4], d[Sizes::kKeyTiles][4];
      bool dead[2];
      self.probabilities(border, factor, s, dead);
      self.leave_scores(0, s, ones);
      self.score_gradients(s, dead, d);
      SWIN_FAST_UNROLL
      for (int j = 0; j < Sizes::kKeyTiles; ++j) {
        SWIN_FAST_UNROLL
        for (int e = 0; e < 4; ++e) dbias[j][e] += d[j][e];
      }
      float of_row[2] = {1.0f, 1.0f};
      if (kCosine) {
        of_row[0] = self.left_of(self.inverse_of(0, 0));
        of_row[1] = self.left_of(self.inverse_of(0, 1));
      }
      self.leave_scores(1, d, of_row);
      float dq[4][4];
      const auto own_scores = [&](int step, uint32_t (&a)[4]) {
        SWIN_FAST_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int j = 2 * step + (i >> 1), e = 2 * (i & 1);
          a[i] = 0;
          if (j >= Sizes::kKeyTiles) continue;
          Float2 of_key = {1.0f, 1.0f};
          if (kCosine) {
            of_key = load_shared<Float2>(self.inverses(1) + (j * 8 + self.pair()) * 4);
            of_key = {self.left_of(of_key.x), self.left_of(of_key.y)};
          }
          a[i] = pack<T>(d[j][e] * of_key.x, d[j][e + 1] * of_key.y);
        }
      };
      self.sum_rows(own_scores, 1, dq);
      self.row_gradients(0, factor, dq, radial);
      if (kCosine) dlogit_scale += radial[0] + radial[1];  // rows that do not exist are zeros
      self.leave_result(0, dq);
      sync_warp();
      SWIN_FAST_UNROLL
      for (int half = 0; half < 2; ++half) {
        pixels[half] = self.pixel(half);
        to[half] = image + int64_t{pixels[half]} * p.row_bytes;
      }
      self.store_result(0, to, pixels);
    }
    sync_threads();  // the scores of all queries are there
    if (has_queries) {
      float dv[4][4], dk[4][4];
      self.sum_rows([&](int step, uint32_t (&a)[4]) { self.take_scores(0, step, a); }, 3, dv);
      self.leave_result(0, dv);
      self.sum_rows([&](int step, uint32_t (&a)[4]) { self.take_scores(1, step, a); }, 0, dk);
      self.row_gradients(1, factor, dk, radial);
      self.leave_result(1, dk);
      sync_warp();
      for (char*& row : to) row += problem.nH * kRowBytes;
      self.store_result(1, to, pixels);
      for (char*& row : to) row += problem.nH * kRowBytes;
      self.store_result(0, to, pixels);
      if (problem.pad_value != nullptr && any_lane(pixels[0] == kPadding || pixels[1] == kPadding)) {
        self.add_padding(0, dk, pixels);
        self.add_padding(1, dv, pixels);
      }
    }
  }

  const int64_t part = int64_t{self.head} * p.parts.owners + owner;
  if (problem.bias_form != BiasForm::kNone && has_queries) {
    float* const to = p.parts.dbias + part * self.tokens * self.tokens;
    SWIN_FAST_UNROLL
    for (int j = 0; j < Sizes::kKeyTiles; ++j) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int query = self.token(e >> 1), key = j * 8 + self.pair() + (e & 1);
        if (query < self.tokens && key < self.tokens) store_global(to + query * self.tokens + key, dbias[j][e]);
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
  if (kCosine && threadIdx.x == 0) {
    float sum = 0.0f;
    for (int i = 0; i < kSmallBwdWarps; ++i) {
      sum += load_shared<float>(self.memory + Sizes::kInverses + i * 4);
    }
    store_global(p.parts.dlogit_scale + part, sum);
  }
  if (problem.pad_value != nullptr && threadIdx.x < 2 * kHeadDim) {
    float sum = 0.0f;
    for (int i = 0; i < kSmallBwdWarps; ++i) {
      sum += load_shared<float>(self.memory + Sizes::kSums + (i * 2 * kHeadDim + threadIdx.x) * 4);
    }
    store_global(p.parts.dpad_value + part * 2 * kHeadDim + threadIdx.x, sum);
  }
}

}  // namespace swin_fast::cuda
