// SPDX-License-Identifier: Apache-2.0
//
// The forward kernel of windows of up to 64 tokens, at head_dim 32, in float16 and bfloat16.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "small_windows.h"

namespace swin_fast::cuda {

// What the kernel is told: the problem, and how its work is cut.
struct SmallFwdParams {
  WindowAttentionFwdParams problem;
  Windows all;
  int32_t stride_y, stride_x;  // of qkv
  int64_t image_size;          // elements of out
  int32_t heads = 1;           // of a block: they divide nH
  int32_t windows = 1;         // that a block has in work at a time; a warp for each of them and each head
  int32_t groups = 1;          // of heads: nH / heads
  int32_t blocks = 1;          // of each group
};

constexpr int kZeroBytes = 2 * kRowBytes;  // a row pair of zeros, which stands for all rows that do not exist

template <int kWindow>
struct SmallFwdSizes : SmallSizes<kWindow> {
  using Sizes = SmallSizes<kWindow>;
  // k, v, q, and the q of the next window. An even number of rows each, or the rows of zeros were in others' banks.
  static constexpr int kTileBytes = (Sizes::kTokens + 1) / 2 * 2 * kRowBytes;
  static constexpr int kWarpBytes = 4 * kTileBytes;
  static constexpr size_t shared_bytes(int heads, int windows) {
    return kZeroBytes + size_t{4} * Sizes::kBiasFloats * heads + size_t{kWarpBytes} * heads * windows;
  }
};

// How the work of a problem is cut for a GPU of so many multiprocessors with room for so much shared memory a block.
// Siblings of a window share a block, for their rows share cache lines; at most 8 warps, for that many registers
// there are.
template <int kWindow>
SmallFwdParams cut_small_fwd(const WindowAttentionFwdParams& problem, int multiprocessors, size_t shared_memory) {
  SmallFwdParams p{problem, Windows(problem), static_cast<int32_t>(problem.qkv_stride[1]),
                   static_cast<int32_t>(problem.qkv_stride[2]), problem.H * problem.W * problem.nH * kHeadDim};
  for (p.heads = std::min(4, problem.nH); problem.nH % p.heads != 0; --p.heads) {
  }
  while (p.heads > 1 && SmallFwdSizes<kWindow>::shared_bytes(p.heads, 1) > shared_memory) {
    do --p.heads;
    while (problem.nH % p.heads != 0);
  }
  p.windows = std::max(1, 8 / p.heads);
  while (p.windows > 1 && SmallFwdSizes<kWindow>::shared_bytes(p.heads, p.windows) > shared_memory) --p.windows;
  p.groups = problem.nH / p.heads;
  const int64_t wanted = ceil_div(p.all.of_all, p.windows);
  p.blocks = static_cast<int32_t>(std::min(wanted, std::max(int64_t{1}, ceil_div(multiprocessors, p.groups))));
  return p;
}

// A warp's place: its window, head and rows in shared memory.
template <class T, int kWindow>
struct SmallWarp {
  using Sizes = SmallFwdSizes<kWindow>;
  const SmallFwdParams& p;
  int lane, head, tokens;
  SmallGrid<kWindow> grid;
  char* zeros;
  char* rows[4];  // k, v, q and the other q

  SWIN_FAST_DEVICE SmallWarp(const SmallFwdParams& params, int lane_, int head_, char* zeros_, char* memory)
      : p(params), lane(lane_), head(head_), tokens(params.problem.window_area()), grid(params.problem), zeros(zeros_) {
    for (int i = 0; i < 4; ++i) rows[i] = memory + i * Sizes::kTileBytes;
  }

  SWIN_FAST_DEVICE int count() const { return kWindow == 0 ? tokens : Sizes::kTokens; }
  SWIN_FAST_DEVICE char* at(char* base, int row, int chunk) const {
    return row < count() ? base + row * kRowBytes + swizzled(row, chunk)
                         : zeros + (row & 1) * kRowBytes + swizzled(row, chunk);
  }

  // Rows of one window on their way into shared memory.
  template <bool kAligned>
  SWIN_FAST_DEVICE void fetch(const Windows::Place& window, char* q_rows) const {
    const int first = lane >> 2, at = first * kRowBytes + swizzled(first, lane & 3);
    const QkvRows source(p.problem, window.b, head, lane & 3);
    char* const target[3] = {q_rows + at, rows[0] + at, rows[1] + at};
    const auto bring = [&](int step, int y, int x, bool real) {
      const int64_t offset = int64_t{y} * p.stride_y + int64_t{x} * p.stride_x;
      SWIN_FAST_UNROLL
      for (int which = 0; which < 3; ++which) {
        source.fetch<kAligned>(which, target[which] + step * 8 * kRowBytes, real, offset);
      }
    };
    grid.template visit<(Sizes::kTokens + 7) / 8, kAligned>(p.all, window, first, count(), bring);
    copy_async_commit();
  }

  // Results, in place of the queries, to their pixels.
  SWIN_FAST_DEVICE void store(const Windows::Place& window, const char* results) const {
    const int first = lane >> 2, at = first * kRowBytes + swizzled(first, lane & 3);
    const WindowAttentionFwdParams& problem = p.problem;
    const int32_t row_size = problem.nH * kHeadDim;
    auto* const out = static_cast<uint16_t*>(problem.out) + window.b * p.image_size + head * kHeadDim + (lane & 3) * 8;
    const auto bring = [&](int step, int y, int x, bool real) {
      if (!real) return;
      const int64_t pixel = y * static_cast<int32_t>(problem.W) + x;
      store_global(out + pixel * row_size, load_shared<UInt4>(results + at + step * 8 * kRowBytes));
    };
    grid.template visit<(Sizes::kTokens + 7) / 8, (kWindow != 0)>(p.all, window, first, count(), bring);
  }
};

// Computes: out of windows of up to 64 tokens.
// Grid:     groups * blocks, groups fastest: heads of a window run at the same time. A warp has one head, whose bias
//           lies in shared memory as the fragments of its accumulators, and every blocks * windows-th window; while it
//           computes one, the rows of its next are on their way.
// Memory:   reads 3 and writes 1 rows of 64 bytes for each token and head, 16 bytes at a time.
// Numerics: products in the input dtype with float32 accumulators; scores, softmax and its sum in float32;
//           probabilities rounded for the product with v, which is divided by the sum. Nothing depends on blocks or
//           windows. sm_90, N = 49: 1,475 warp instructions a window and head without a border, of the 2,703 that an
//           H200 has time for while its memory moves the rows. Not yet run on a GPU.
// Source:   written for this project; fragments as in the PTX manual, mma.m16n8k16.
template <class T, int kWindow, bool kCosine, bool kAligned>
__global__ void __launch_bounds__(256) small_windows_fwd(const SmallFwdParams p) {
  using Sizes = SmallFwdSizes<kWindow>;
  const WindowAttentionFwdParams& problem = p.problem;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int group = blockIdx.x % p.groups;
  const int head_slot = warp % p.heads, window_slot = warp / p.heads;
  char* const zeros = shared_memory();
  char* const fragments = zeros + kZeroBytes;
  char* const warps = fragments + size_t{4} * Sizes::kBiasFloats * p.heads;
  SmallWarp<T, kWindow> self(p, lane, group * p.heads + head_slot, zeros, warps + warp * Sizes::kWarpBytes);
  const int tokens = self.count();

  const int64_t stride = int64_t{p.blocks} * p.windows;
  const int64_t window = static_cast<int64_t>(blockIdx.x / p.groups) * p.windows + window_slot;
  auto left = static_cast<int32_t>(window < p.all.of_all ? ceil_div(p.all.of_all - window, stride) : 0);
  const Windows::Place step = p.all.place(stride);
  Windows::Place place, next = p.all.place(window);
  if (left > 0) self.template fetch<kAligned>(next, self.rows[2]);

  for (int i = threadIdx.x; i < kZeroBytes / 4; i += blockDim.x) store_shared(zeros + 4 * i, uint32_t{0});
  load_bias_fragments<kWindow>(problem, group * p.heads, p.heads, fragments);
  sync_threads();

  const float factor = kCosine ? load_global<float>(problem.logit_scale + self.head) : problem.scale;
  const char* const bias = fragments + size_t{4} * Sizes::kBiasFloats * head_slot + lane * 16;
  const int quad = lane >> 2, pair = (lane & 3) * 2;
  char *q_rows = self.rows[2], *next_q_rows = self.rows[3];
  for (; left > 0; --left) {
    copy_async_wait<0>();
    sync_warp();  // rows that other lanes fetched
    uint32_t k[Sizes::kKeyTiles + 1][2][2];
    uint32_t v[Sizes::kKeySteps][4][2];
    SWIN_FAST_UNROLL
    for (int tile = 0; tile < Sizes::kKeyTiles; tile += 2) {
      SWIN_FAST_UNROLL
      for (int half = 0; half < 2; ++half) {
        uint32_t four[4];
        const int row = tile * 8 + (lane & 7) + (lane >> 4) * 8;
        ldmatrix_x4(four, self.at(self.rows[0], row, half * 2 + ((lane >> 3) & 1)));
        k[tile][half][0] = four[0];
        k[tile][half][1] = four[1];
        k[tile + 1][half][0] = four[2];
        k[tile + 1][half][1] = four[3];
      }
    }
    SWIN_FAST_UNROLL
    for (int step = 0; step < Sizes::kKeySteps; ++step) {
      SWIN_FAST_UNROLL
      for (int half = 0; half < 2; ++half) {
        uint32_t four[4];
        ldmatrix_x4_trans(four, self.at(self.rows[1], step * 16 + (lane & 15), half * 2 + (lane >> 4)));
        v[step][half * 2][0] = four[0];
        v[step][half * 2][1] = four[1];
        v[step][half * 2 + 1][0] = four[2];
        v[step][half * 2 + 1][1] = four[3];
      }
    }
    sync_warp();  // k, v and the other q may be written now
    place = next;
    p.all.advance(&next, step);
    if (left > 1) self.template fetch<kAligned>(next, next_q_rows);

    const bool border = p.all.has_border(place);
    float key_inverse[Sizes::kKeyTiles];  // of key lane / 4 of each tile
    if (kCosine) {
      SWIN_FAST_UNROLL
      for (int tile = 0; tile < Sizes::kKeyTiles; ++tile) {
        key_inverse[tile] = inverse_norm(squares<T>(k[tile][0][0]) + squares<T>(k[tile][0][1]) +
                                         squares<T>(k[tile][1][0]) + squares<T>(k[tile][1][1]));
      }
    }
    const auto attend = [&](auto has_border) {
      constexpr bool kBorder = decltype(has_border)::value;
      const Border<kWindow> cut(self.grid, p.all.border_row(place), p.all.border_column(place), pair);
      SWIN_FAST_UNROLL
      for (int tile = 0; tile < Sizes::kRowTiles; ++tile) {
        uint32_t q[2][4];
        SWIN_FAST_UNROLL
        for (int half = 0; half < 2; ++half) {
          ldmatrix_x4(q[half], self.at(q_rows, tile * 16 + (lane & 15), half * 2 + (lane >> 4)));
        }
        float of_row[2] = {factor, factor};
        if (kCosine) {
          SWIN_FAST_UNROLL
          for (int i = 0; i < 2; ++i) {
            of_row[i] = factor * inverse_norm(squares<T>(q[0][i]) + squares<T>(q[0][i + 2]) + squares<T>(q[1][i]) +
                                              squares<T>(q[1][i + 2]));
          }
        }
        const int row[2] = {tile * 16 + quad, tile * 16 + quad + 8};
        const uint32_t apart[2] = {kBorder ? cut.apart_from(row[0]) : 0, kBorder ? cut.apart_from(row[1]) : 0};
        float s[Sizes::kKeyTiles][4];
        SWIN_FAST_UNROLL
        for (int j = 0; j < Sizes::kKeyTiles; ++j) {
          s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
          mma_m16n8k16<T>(s[j], q[0], k[j][0][0], k[j][0][1]);
          mma_m16n8k16<T>(s[j], q[1], k[j][1][0], k[j][1][1]);
          const auto own = load_shared<Float4>(bias + (tile * Sizes::kKeyTiles + j) * 512);
          const float added[4] = {own.x, own.y, own.z, own.w};
          float of_key[2] = {1.0f, 1.0f};
          if (kCosine) {
            of_key[0] = shuffle(key_inverse[j], pair * 4);  // anew for each tile of queries: 7 registers, not 14
            of_key[1] = shuffle(key_inverse[j], pair * 4 + 4);
          }
          SWIN_FAST_UNROLL
          for (int e = 0; e < 4; ++e) {
            if (kCosine) s[j][e] *= of_key[e & 1];
            s[j][e] = s[j][e] * of_row[e >> 1] + added[e];
            if (kBorder && is_apart(apart[e >> 1], j, e)) s[j][e] += problem.mask_value;
          }
        }
        float share[2];
        exponentials(s, pair, tokens, share);
        uint32_t probabilities[Sizes::kKeySteps][4];
        SWIN_FAST_UNROLL
        for (int i = 0; i < 4 * Sizes::kKeySteps; ++i) {
          const int j = i >> 1, e = 2 * (i & 1);
          probabilities[i >> 2][i & 3] = j < Sizes::kKeyTiles ? pack<T>(s[j][e], s[j][e + 1]) : 0;
        }
        SWIN_FAST_UNROLL
        for (int c = 0; c < 4; ++c) {
          float o[4] = {0.0f, 0.0f, 0.0f, 0.0f};
          SWIN_FAST_UNROLL
          for (int step = 0; step < Sizes::kKeySteps; ++step) {
            mma_m16n8k16<T>(o, probabilities[step], v[step][c][0], v[step][c][1]);
          }
          SWIN_FAST_UNROLL
          for (int i = 0; i < 2; ++i) {
            if (row[i] >= tokens) continue;
            // In place of the query: the four bytes that this lane alone has read of it.
            const uint32_t two = pack<T>(o[2 * i] * share[i], o[2 * i + 1] * share[i]);
            store_shared(q_rows + row[i] * kRowBytes + swizzled(row[i], c) + (lane & 3) * 4, two);
          }
        }
      }
    };
    if (border) {
      attend(std::true_type{});
    } else {
      attend(std::false_type{});
    }
    sync_warp();
    self.store(place, q_rows);
    char* const other = q_rows;
    q_rows = next_q_rows;
    next_q_rows = other;
  }
}

}  // namespace swin_fast::cuda
