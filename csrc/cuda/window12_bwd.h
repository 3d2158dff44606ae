// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of 12 x 12 tokens at head_dim 32, in float16 and bfloat16: one pass for each window and head.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "fold_parts.h"
#include "primitives.h"
#include "row_tiles.h"
#include "windows.h"

namespace swin_fast::cuda {

struct Window12BwdParams {
  WindowAttentionBwdParams problem;
  Windows all;
  bool aligned;  // rows of qkv and grad_out stand at multiples of 16 bytes, and so does pad_value
  Parts parts;   // in scratch memory, of parts.bytes
};

struct Window12 {
  static constexpr int kSide = 12, kTokens = kSide * kSide, kHd = 32;
  static constexpr int kSteps = kTokens / 16;  // of 16 keys or queries
  static constexpr int kWarps = kSteps, kThreads = 32 * kWarps;
  using Tile = RowTile<kHd>;
  // Shared memory, in this order.
  static constexpr int kPairBytes = 2 * kTokens * Tile::kRowBytes;                 // of q and dO, or of k and v
  static constexpr int kStages = 2 * 2 * kPairBytes;                               // of this window and of the next
  static constexpr int kWeightRow = 2 * kTokens, kWeights = kTokens * kWeightRow;  // of P, then of dS
  static constexpr int kSumsOfWarp = kTokens / 8 * 512;                            // dbias as fragments
  static constexpr int kSums = kWarps * kSumsOfWarp;
  static constexpr int kReach = 2 * kSide - 1, kTable = (kReach * kReach * 4 + 15) / 16 * 16;  // the relative bias
  static constexpr int kNorms = 4 * 4 * kTokens;
  static constexpr int kRegions = 2 * kTokens;
  static constexpr int kPadSums = kWarps * 2 * kHd * 4;  // sums of dpad_value
  static constexpr int kScales = (kWarps * 4 + 15) / 16 * 16;
  static constexpr size_t kSharedBytes =
      kStages + kPairBytes + kWeights + kSums + kTable + kNorms + kRegions + kPadSums + kScales;

  // Of a piece of a row of weights, so that eight rows of 288 bytes have theirs in eight groups of banks.
  static SWIN_FAST_DEVICE int weight(int row, int piece) {
    return row * kWeightRow + piece / 2 * 32 + ((piece ^ row >> 2) & 1) * 16;
  }
};

// Whether the kernel takes a problem on a GPU with room for so much shared memory a block: 218 KB, as of sm_90. A dense
// bias would have to lie there whole, for which there is no room.
inline bool takes_window12_bwd(const WindowAttentionParams& problem, size_t shared_memory) {
  return problem.window_size[0] == Window12::kSide && problem.window_size[1] == Window12::kSide &&
         problem.hd == Window12::kHd && problem.bias_form != BiasForm::kDense &&
         shared_memory >= Window12::kSharedBytes;
}

// How the work is cut for a GPU of so many multiprocessors, each with room for one block: an owner has the windows
// [i U / owners, (i + 1) U / owners) of its head. Scratch memory: at a multiple of 16 bytes, or nullptr where only
// parts.bytes is asked for.
inline Window12BwdParams cut_window12_bwd(const WindowAttentionBwdParams& problem, bool aligned, int multiprocessors,
                                          void* scratch) {
  Window12BwdParams p{problem, Windows(problem), aligned, {}};
  const int64_t owners = std::min<int64_t>(std::max(1, multiprocessors / problem.nH), p.all.of_all);
  p.parts = Parts::at(scratch, problem, static_cast<int32_t>(owners));
  return p;
}

// Computes: dqkv of windows of 144 tokens, and the parts of dbias, dlogit_scale and dpad_value.
// Grid:     nH * owners of kThreads, heads fastest, which run at the same time and share cache lines. Each of nine
//           warps has 16 queries and 16 keys of the window: as queries for P, dS and dq, as keys for dk and dv. Its
//           rows of dbias stay in shared memory over all windows of the owner; rows of the next window are on their
//           way.
// Memory:   reads 4 and writes 3 rows of 64 bytes for each token and head, 16 bytes at a time. P, and then dS, go
//           through shared memory in the dtype of the rows, to the warps that have the keys.
// Numerics: products in the input dtype with float32 accumulators; scores, softmax and sums over windows in float32; P
//           and dS rounded for their products. Nothing of dqkv depends on owners. Not yet run on a GPU.
// Source:   as large_queries_bwd; fragments as in the PTX manual, mma.m16n8k16.
template <class T, bool kCosine>
__global__ void __launch_bounds__(Window12::kThreads, 1) window12_bwd(const Window12BwdParams p) {
  using Tile = Window12::Tile;
  // What is left of 1 / max(|row|, eps), and what gradients are multiplied with.
  constexpr int kNorm = 4 * Window12::kTokens, kKeyNorms = 0, kQueryNorms = kNorm, kKeyScales = 2 * kNorm,
                kQueryScales = 3 * kNorm;
  constexpr int kSteps = Window12::kSteps, kTokens = Window12::kTokens, kHd = Window12::kHd;
  const WindowAttentionBwdParams& problem = p.problem;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, quad = lane >> 2, pair = (lane & 3) * 2;
  const int head = static_cast<int>(blockIdx.x) % problem.nH, owner = static_cast<int>(blockIdx.x) / problem.nH;
  const int64_t first = owner * p.all.of_all / p.parts.owners;
  char* const stages = shared_memory();
  char* const results = stages + Window12::kStages;  // dq and dv
  char* const weights = results + Window12::kPairBytes;
  char* const dbias = weights + Window12::kWeights + warp * Window12::kSumsOfWarp + lane * 16;
  char* const table = weights + Window12::kWeights + Window12::kSums;
  char* const norms = table + Window12::kTable;
  char* const regions = norms + Window12::kNorms;
  char* const dpad_value = regions + Window12::kRegions + warp * 2 * kHd * 4;
  char* const scales = regions + Window12::kRegions + Window12::kPadSums;
  const int own = Tile::sixteen(16 * warp), token[2] = {16 * warp + quad, 16 * warp + quad + 8};

  // This lane's two rows: those of its quad in fragments, and those of which it brings and stores a piece.
  const auto pixel_of = [&](const Windows::Place& place, int i) {
    Pixel pixel;
    const int row = token[i] / Window12::kSide;
    if (!p.all.pixel(place, row, token[i] - row * Window12::kSide, &pixel.y, &pixel.x)) pixel.y = kPadding;
    return pixel;
  };
  const auto fetch = [&](int64_t b, const Windows::Place& place, char* stage) {
    const RowSource source[4] = {rows_of_qkv(problem, b, 0, head), rows_of_grad_out(problem, b, head),
                                 rows_of_qkv(problem, b, 1, head), rows_of_qkv(problem, b, 2, head)};
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      const Pixel pixel = pixel_of(place, i);
      const int64_t offset[2] = {source[0].offset(pixel), source[1].offset(pixel)};  // k and v lie as q does
      SWIN_FAST_UNROLL
      for (int which = 0; which < 4; ++which) {
        char* const to = stage + (which >> 1) * Window12::kPairBytes + own + (which & 1) * Tile::kSecond;
        fetch_piece(to + Tile::offset(quad + 8 * i, lane & 3), pixel, offset[which == 1], source[which], lane & 3,
                    p.aligned);
      }
    }
    copy_async_commit();
  };

  Windows::Place place = p.all.place(first);
  int64_t b = place.b;  // of 64 bits: with 32, which are widened for each product, 80 bytes are spilled
  auto windows = static_cast<int>((owner + 1) * p.all.of_all / p.parts.owners - first);  // left to do: at least one
  int stage = 0;  // where the rows of the window lie
  fetch(b, place, stages);
  const bool has_bias = problem.bias != nullptr;
  for (int i = threadIdx.x; i < Window12::kReach * Window12::kReach; i += blockDim.x) {
    const int64_t entry = int64_t{head} * Window12::kReach * Window12::kReach + i;
    store_shared(table + 4 * i, has_bias ? load_global<float>(problem.bias + entry) : 0.0f);
  }
  for (int j = 0; j < 2 * kSteps; ++j) store_shared(dbias + 512 * j, Float4{0.0f, 0.0f, 0.0f, 0.0f});
  for (int i = lane; i < 2 * kHd; i += 32) store_shared(dpad_value + 4 * i, 0.0f);
  const float factor = kCosine ? load_global<float>(problem.logit_scale + head) : problem.scale;
  float dlogit_scale = 0.0f;
  // The entry of a query and a key of the relative bias stands at A(query) - A(key) + a constant, where A(token) =
  // kReach * row + column. Of two neighbouring keys it is the same entry and that before, as 12 is even. Of eight keys
  // from 8 j on, A is that of the first and the distance; where 8 j = 8 mod 12, the last four are one row further.
  const char* entries[2];
  SWIN_FAST_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = token[i] / Window12::kSide, along = token[i] + row * (Window12::kReach - Window12::kSide);
    entries[i] = table + 4 * (along + Window12::kReach * Window12::kReach / 2 - pair);
  }
  const int further = pair >= 4 ? Window12::kReach - Window12::kSide : 0;

  for (; windows > 0; --windows) {
    const bool border = p.all.has_border(place);
    char* const queries = stages + stage;               // q and dO
    char* const keys = queries + Window12::kPairBytes;  // k and v
    copy_async_wait<0>();
    if (kCosine) {  // of each row a lane reads the piece that it has fetched
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        char* const norm = norms + 4 * token[i];
        const float k_scale = factor * prepare_norm<T, kHd>(keys + own, quad + 8 * i, norm + kKeyNorms, lane);
        const float q_scale = factor * prepare_norm<T, kHd>(queries + own, quad + 8 * i, norm + kQueryNorms, lane);
        if (pair != 0) continue;
        store_shared(norm + kKeyScales, k_scale);
        store_shared(norm + kQueryScales, q_scale);
      }
    }
    if (border && lane < 16) {
      const int own_token = 16 * warp + lane, row = own_token / Window12::kSide;
      const int32_t region = p.all.region(place, row, own_token - row * Window12::kSide);
      store_shared(regions + 2 * own_token, static_cast<uint16_t>(region));
    }
    sync_threads();  // all see all rows, and are done with the window before
    stage = 2 * Window12::kPairBytes - stage;
    if (windows > 1) {
      Windows::Place next = place;
      const int64_t next_b = b + p.all.advance(&next);
      fetch(next_b, next, stages + stage);
    }
    const auto of_own = [&](float (&two)[2], int which) {
      two[0] = load_shared<float>(norms + which + 4 * token[0]);
      two[1] = load_shared<float>(norms + which + 4 * token[1]);
    };
    float q_factor[2] = {factor, factor};
    if (kCosine) {
      of_own(q_factor, kQueryNorms);
      q_factor[0] *= factor;
      q_factor[1] *= factor;
    }

    // Scores, then probabilities, then dS.
    const OwnRows<T, kHd> q(queries + own, lane);
    float s[kSteps][2][4];
    float top[2] = {-INFINITY, -INFINITY};
    SWIN_FAST_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      q.times(s[step], keys + Tile::sixteen(16 * step));
      SWIN_FAST_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int key = 16 * step + 8 * j;
        const int along = key + key / Window12::kSide * (Window12::kReach - Window12::kSide);
        Float2 norm{1.0f, 1.0f};
        if (kCosine) norm = load_shared<Float2>(norms + kKeyNorms + 4 * (key + pair));
        SWIN_FAST_UNROLL
        for (int e = 0; e < 4; ++e) {
          float& score = s[step][j][e];
          if (kCosine) score *= (e & 1) != 0 ? norm.y : norm.x;
          const int before = key % Window12::kSide == 8 ? along + further : along;
          const char* const entry = entries[e >> 1] - 4 * (before + (e & 1));
          score = score * q_factor[e >> 1] + load_shared<float>(entry);
        }
      }
    }
    if (border) {
      const uint32_t own_region[2] = {load_shared<uint16_t>(regions + 2 * token[0]),
                                      load_shared<uint16_t>(regions + 2 * token[1])};
      SWIN_FAST_UNROLL
      for (int j = 0; j < 2 * kSteps; ++j) {
        const auto two = load_shared<uint32_t>(regions + 2 * (8 * j + pair));
        SWIN_FAST_UNROLL
        for (int e = 0; e < 4; ++e) {
          const uint32_t other = (e & 1) != 0 ? two >> 16 : two & 0xffffu;
          if (other != own_region[e >> 1]) s[j >> 1][j & 1][e] += problem.mask_value;
        }
      }
    }
    SWIN_FAST_UNROLL
    for (int j = 0; j < 2 * kSteps; ++j) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) top[e >> 1] = fmaxf(top[e >> 1], s[j >> 1][j & 1][e]);
    }
    const OwnRows<T, kHd> dout(queries + own + Tile::kSecond, lane);
    float sum[2] = {0.0f, 0.0f}, delta[2] = {0.0f, 0.0f}, share[2];
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      top[i] = fmaxf(top[i], shuffle_xor(top[i], 1));
      top[i] = fmaxf(top[i], shuffle_xor(top[i], 2));
      // Rounded, but the same for the whole row, where it cancels: only differences of scores are told apart.
      top[i] = top[i] == -INFINITY ? 0.0f : top[i] * kLog2E;
    }
    SWIN_FAST_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      float dp[2][4];
      if (kCosine) sync_warp();  // or products are begun early, for whose results there are no registers
      dout.times(dp, keys + Tile::sixteen(16 * step) + Tile::kSecond);
      SWIN_FAST_UNROLL
      for (int j = 0; j < 2; ++j) {
        SWIN_FAST_UNROLL
        for (int e = 0; e < 4; ++e) {
          const float weight = exp2_approx(fmaf(s[step][j][e], kLog2E, -top[e >> 1]));
          s[step][j][e] = weight;
          sum[e >> 1] += weight;
          delta[e >> 1] += weight * dp[j][e];
        }
      }
    }
    bool alive[2];
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      SWIN_FAST_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        sum[i] += shuffle_xor(sum[i], mask);
        delta[i] += shuffle_xor(delta[i], mask);
      }
      alive[i] = sum[i] != 0.0f;
      share[i] = reciprocal_approx(sum[i]);
      delta[i] *= share[i];
    }
    // A row that may attend to nothing weighs nothing: not 0 * NaN.
    const bool all_alive = !any_lane(!alive[0] || !alive[1]);
    const auto put_weights = [&](int step, const float (&two)[2][4]) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 4; ++i) {
        store_shared(weights + Window12::weight(token[i & 1], 2 * step + (i >> 1)) + (lane & 3) * 4,
                     pack<T>(two[i >> 1][2 * (i & 1)], two[i >> 1][2 * (i & 1) + 1]));
      }
    };
    SWIN_FAST_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 8; ++e) s[step][e >> 2][e & 3] *= share[e >> 1 & 1];
    }
    if (!all_alive) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 8 * kSteps; ++i) {
        if (!alive[i >> 1 & 1]) s[i >> 3][i >> 2 & 1][i & 3] = 0.0f;
      }
    }
    SWIN_FAST_UNROLL
    for (int step = 0; step < kSteps; ++step) put_weights(step, s[step]);
    sync_threads();  // all see P

    // Of own keys: the sums over all queries, of weights that lie as queries by keys.
    const auto times_own_weights = [&](float (&sums)[4][4], const char* rows) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 16; ++i) sums[i >> 2][i & 3] = 0.0f;
      SWIN_FAST_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        uint32_t a[4];
        ldmatrix_x4_trans(
            a, weights + Window12::weight(16 * step + (lane & 7) + (lane >> 4) * 8, 2 * warp + ((lane >> 3) & 1)));
        add_rows_times<T, kHd>(sums, a, rows + Tile::sixteen(16 * step), lane);
      }
    };
    bool padding[2], sums_padding = false;
    if (problem.pad_value != nullptr) {
      padding[0] = pixel_of(place, 0).y < 0;
      padding[1] = pixel_of(place, 1).y < 0;
      sums_padding = any_lane(padding[0] || padding[1]);
    }
    float dv[4][4], dq[4][4], dk[4][4], q_norm[2];
    times_own_weights(dv, queries + Tile::kSecond);
    if (sums_padding) add_rows_of<kHd>(dpad_value + kHd * 4, dv, padding, lane);
    RoundedRows<T, kHd>(dv).put(results + own + Tile::kSecond, lane);

    SWIN_FAST_UNROLL
    for (int i = 0; i < 16; ++i) dq[i >> 2][i & 3] = 0.0f;
    const auto score_gradients = [&](auto some_dead) {
      constexpr bool kDead = decltype(some_dead)::value;
      SWIN_FAST_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        float dp[2][4];
        sync_warp();  // as above
        dout.times(dp, keys + Tile::sixteen(16 * step) + Tile::kSecond);
        SWIN_FAST_UNROLL
        for (int j = 0; j < 2; ++j) {
          Float2 norm{1.0f, 1.0f};
          if (kCosine) norm = load_shared<Float2>(norms + kKeyNorms + 4 * (16 * step + 8 * j + pair));
          SWIN_FAST_UNROLL
          for (int e = 0; e < 4; ++e) {
            float& ds = s[step][j][e];
            ds *= dp[j][e] - delta[e >> 1];
            if (kDead && !alive[e >> 1]) ds = 0.0f;
            dp[j][e] = kCosine ? ds * ((e & 1) != 0 ? norm.y : norm.x) : ds;
          }
          if (has_bias) {
            char* const at = dbias + (2 * step + j) * 512;
            const auto before = load_shared<Float4>(at);
            store_shared(at, Float4{before.x + s[step][j][0], before.y + s[step][j][1], before.z + s[step][j][2],
                                    before.w + s[step][j][3]});
          }
        }
        add_weighted_rows<T, kHd>(dq, dp, keys + Tile::sixteen(16 * step), lane);
      }
    };
    if (all_alive) {
      score_gradients(std::false_type{});
    } else {
      score_gradients(std::true_type{});
    }
    sync_threads();  // nobody reads P, k or v any more
    if (kCosine) of_own(q_norm, kQueryNorms);
    SWIN_FAST_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 8 && kCosine; ++e) s[step][e >> 2][e & 3] *= q_norm[e >> 1 & 1];
      put_weights(step, s[step]);
    }
    float radial[2], scale[2];
    if (kCosine) {
      of_own(scale, kQueryScales);
      OwnRows<T, kHd>(queries + own, lane).through_norm(dq, q_norm, scale, radial);
      dlogit_scale += radial[0] + radial[1];
    } else {
      scale_rows<kHd>(dq, factor);
    }
    RoundedRows<T, kHd>(dq).put(results + own, lane);
    sync_threads();  // all see dS
    times_own_weights(dk, queries);
    if (kCosine) {
      float k_norm[2];
      of_own(k_norm, kKeyNorms);
      of_own(scale, kKeyScales);
      OwnRows<T, kHd>(keys + own, lane).through_norm(dk, k_norm, scale, radial);
    } else {
      scale_rows<kHd>(dk, factor);
    }
    if (sums_padding) add_rows_of<kHd>(dpad_value, dk, padding, lane);
    RoundedRows<T, kHd>(dk).put(keys + own, lane);
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      const Pixel pixel = pixel_of(place, i);
      if (pixel.y < 0) continue;
      uint16_t* const to = row_of_dqkv<kHd>(problem, b, head, pixel) + (lane & 3) * 8;
      const char* const gradients[3] = {results + own, keys + own, results + own + Tile::kSecond};
      SWIN_FAST_UNROLL
      for (int which = 0; which < 3; ++which) {
        const auto eight = load_shared<UInt4>(gradients[which] + Tile::offset(quad + 8 * i, lane & 3));
        store_global(to + which * problem.nH * kHd, eight);
      }
    }
    b += p.all.advance(&place);
  }

  const int64_t part = int64_t{head} * p.parts.owners + owner;
  if (p.parts.dbias != nullptr) {
    float* const to = p.parts.dbias + part * kTokens * kTokens;
    for (int j = 0; j < 2 * kSteps; ++j) {
      const auto four = load_shared<Float4>(dbias + 512 * j);
      store_global(to + token[0] * kTokens + 8 * j + pair, Float2{four.x, four.y});
      store_global(to + token[1] * kTokens + 8 * j + pair, Float2{four.z, four.w});
    }
  }
  if (kCosine) {
    SWIN_FAST_UNROLL
    for (int mask = 4; mask < 32; mask *= 2) dlogit_scale += shuffle_xor(dlogit_scale, mask);
    if (lane == 0) store_shared(scales + 4 * warp, dlogit_scale);
  }
  sync_threads();  // sums of all warps
  if (kCosine && threadIdx.x == 0) {
    for (int other = 1; other < Window12::kWarps; ++other) dlogit_scale += load_shared<float>(scales + 4 * other);
    store_global(p.parts.dlogit_scale + part, dlogit_scale);
  }
  if (problem.pad_value != nullptr && threadIdx.x < 2 * kHd) {
    float sum = 0.0f;
    for (int other = 0; other < Window12::kWarps; ++other) {
      sum += load_shared<float>(regions + Window12::kRegions + (other * 2 * kHd + threadIdx.x) * 4);
    }
    store_global(p.parts.dpad_value + part * 2 * kHd + threadIdx.x, sum);
  }
}

// Gives the kernels to launch(kernel, blocks, threads, bytes of shared memory, params), each behind the one before:
// where the batch is empty only those that write zeros.
template <class T, class Launch>
void launch_window12_bwd(const Window12BwdParams& p, Launch launch) {
  const bool cosine = p.problem.logit_scale != nullptr;
  if (p.all.of_all > 0) {
    launch(cosine ? window12_bwd<T, true> : window12_bwd<T, false>,
           static_cast<uint32_t>(p.problem.nH) * static_cast<uint32_t>(p.parts.owners), Window12::kThreads,
           Window12::kSharedBytes, p);
  }
  fold_all<T>(p.problem, p.parts, launch);
}

}  // namespace swin_fast::cuda
