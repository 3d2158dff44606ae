// SPDX-License-Identifier: Apache-2.0
//
// The forward kernel of windows of up to 64 tokens, at head_dim 32, in float16 and bfloat16.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <type_traits>

#include "small_windows.h"

namespace swin_fast::cuda {

// What the kernel is told: the problem, and how its work is cut.
struct SmallFwdParams {
  WindowAttentionFwdParams problem;
  Windows all;
  uint32_t stride_y, stride_x;           // of qkv, in bytes
  int64_t image_bytes;                   // of out
  uint32_t row_bytes;                    // of out: of all heads of a pixel
  int32_t windows = 1;                   // that a block has in work at a time, of its head; a warp for each
  int32_t blocks = 1;                    // of each head, all of which run at the same time
  int64_t slots = 1;                     // window i goes to place i % slots of the blocks * windows places of a head
  Windows::Place step = {};              // from there to the next window of the place
  int32_t border_y = -1, border_x = -1;  // the windows of each axis that have a border, or -1
  bool padded = false;                   // whether some window has padding
};

// Warps of a block, of which a multiprocessor has one: two for each scheduler. On an H200 twelve take as long, and need
// to make do with 168 registers.
constexpr int kSmallFwdWarps = 8;

// Rows of 64 bytes in shared memory, as four chunks of 16. ldmatrix reads one chunk of eight rows at once: the chunk is
// turned by the pair that a row belongs to, so that the eight lie in eight different groups of banks.
SWIN_FAST_HOST_DEVICE inline int swizzled(int row, int chunk) { return ((chunk ^ (row >> 1)) & 3) * 16; }

constexpr int kZeroBytes = 2 * kRowBytes;  // a row pair of zeros, which stands for all rows that do not exist

// Whether scores may be kept divided by the scale, so that products start from the bias and the exponentials multiply:
// 112 instructions of a warp less. Otherwise the instance for any window takes the problem.
inline bool divides_by_scale(const WindowAttentionParams& p) {
  return p.logit_scale != nullptr || (p.scale > 0x1p-60f && p.scale < 0x1p60f);
}

// Where the row of a token lies, counted from where the window begins.
struct alignas(16) TokenPlace {
  int64_t from;   // bytes of qkv
  int32_t pixel;  // of out, or kPadding
  int32_t unused;
};

// Only the last two windows of an axis can have padding, or pixels of both ends of the image. All others are of one
// kind, and begin at their first pixel; those begin at that of the image.
constexpr int kAxisKinds = 3;
SWIN_FAST_HOST_DEVICE inline int32_t kind_of(const WindowAxis& axis, int32_t window) {
  const int32_t kind = window - (static_cast<int32_t>(axis.num_windows) - kAxisKinds);
  return kind > 0 ? kind : 0;
}

template <int kWindow>
struct SmallFwdSizes : SmallSizes<kWindow> {
  using Sizes = SmallSizes<kWindow>;
  // k, v, q, and the q of the next window. An even number of rows each, or the rows of zeros were in others' banks.
  static constexpr int kTileBytes = (Sizes::kTokens + 1) / 2 * 2 * kRowBytes;
  static constexpr int kWarpBytes = 4 * kTileBytes;
  static constexpr int kBiasBytes = Sizes::kRowTiles * Sizes::kKeyTiles * 512;  // of a head, as fragments
  static constexpr int kKindBytes = Sizes::kTokens * static_cast<int>(sizeof(TokenPlace));
  static constexpr int kPlaceBytes = (kAxisKinds * kAxisKinds * kKindBytes + 127) / 128 * 128;
  static constexpr int kCutBytes = 32 * 8;
  static constexpr size_t shared_bytes(int windows) {
    return size_t{kZeroBytes + kPlaceBytes + kCutBytes + kBiasBytes} + static_cast<size_t>(kWarpBytes * windows);
  }
};

// How the work of a problem is cut for a GPU of so many multiprocessors with room for so much shared memory a block.
// A block has one head: heads of a window in one block, whose rows lie side by side, take as long, and more of their
// biases.
template <int kWindow>
SmallFwdParams cut_small_fwd(const WindowAttentionFwdParams& problem, int multiprocessors, size_t shared_memory) {
  SmallFwdParams p{problem,
                   Windows(problem),
                   static_cast<uint32_t>(2 * problem.qkv_stride[1]),
                   static_cast<uint32_t>(2 * problem.qkv_stride[2]),
                   problem.H * problem.W * problem.nH * kRowBytes,
                   static_cast<uint32_t>(problem.nH * kRowBytes)};
  const auto border = [](const WindowAxis& axis) {
    return axis.shift == 0 ? -1 : static_cast<int32_t>(axis.num_windows) - 1;
  };
  p.border_y = border(p.all.y);
  p.border_x = border(p.all.x);
  p.padded = p.all.y.padded_size != p.all.y.size || p.all.x.padded_size != p.all.x.size;
  // All blocks run at the same time, and few windows are spread over them.
  const int64_t room = std::max(1, multiprocessors / problem.nH);
  p.windows = static_cast<int32_t>(std::clamp(ceil_div(p.all.of_all, room), int64_t{1}, int64_t{kSmallFwdWarps}));
  while (p.windows > 1 && SmallFwdSizes<kWindow>::shared_bytes(p.windows) > shared_memory) --p.windows;
  p.blocks = static_cast<int32_t>(std::min(room, ceil_div(p.all.of_all, p.windows)));
  p.slots = int64_t{p.blocks} * p.windows;
  // Windows with a border take longer, and are the last of each axis. A step that leaves neither axis where it was
  // gives each slot its share of them; for that, at most one slot in 16 has nothing to do.
  const int64_t x = p.all.x.num_windows, y = p.all.y.num_windows;
  for (int64_t slots = p.slots; slots < p.all.of_all && 16 * slots > 15 * p.slots; --slots) {
    if (std::gcd(slots % x, x) == 1 && std::gcd(slots / x % y, y) == 1) {
      p.slots = slots;
      break;
    }
  }
  p.step = p.all.place(p.slots);
  return p;
}

// Which tokens of a lane lie behind the border of a window's axis: its keys, in the bits of Border, and from bit 16 on
// its queries.
struct alignas(8) Cut {
  uint32_t rows, columns;

  template <int kWindow>
  SWIN_FAST_DEVICE static Cut make(const SmallFwdParams& p, int lane) {
    const SmallGrid<kWindow> grid(p.problem);
    const int row = p.all.y.window - p.all.y.shift, column = p.all.x.window - p.all.x.shift;
    const Border<kWindow> keys(grid, row, column, (lane & 3) * 2);
    Cut cut = {keys.behind_row, keys.behind_column};
    for (int i = 0; i < 2 * SmallSizes<kWindow>::kRowTiles; ++i) {
      const int query = i * 8 + (lane >> 2);
      cut.rows |= static_cast<uint32_t>(grid.row(query) >= row) << (16 + i);
      cut.columns |= static_cast<uint32_t>(grid.column(query) >= column) << (16 + i);
    }
    return cut;
  }

  // The keys that are apart from query 8 * query + lane / 4, as is_apart() takes them.
  SWIN_FAST_DEVICE uint32_t apart_from(int query) const {
    const auto behind = [query](uint32_t cut) { return static_cast<int32_t>(cut << (15 - query)) >> 31; };
    return (rows ^ static_cast<uint32_t>(behind(rows))) | (columns ^ static_cast<uint32_t>(behind(columns)));
  }
};

// A bias or mask over the scale; finite where it was.
SWIN_FAST_DEVICE float divided(float value, float inverse_scale) {
  const float quotient = value * inverse_scale;
  constexpr float kMost = 3.4028234e38f;
  return fabsf(value) <= kMost ? fminf(fmaxf(quotient, -kMost), kMost) : quotient;
}

// A warp's place: its head, its rows in shared memory, and the places of tokens of all kinds of windows there.
template <class T, int kWindow>
struct SmallWarp {
  using Sizes = SmallFwdSizes<kWindow>;
  static constexpr int kSteps = (Sizes::kTokens + 7) / 8;
  const SmallFwdParams& p;
  int lane, head, tokens;
  char *zeros, *places;
  char* rows[4];  // k, v, q and the other q

  SWIN_FAST_DEVICE SmallWarp(const SmallFwdParams& params, int lane_, int head_, char* zeros_, char* places_,
                             char* memory)
      : p(params),
        lane(lane_),
        head(head_),
        tokens(kWindow == 0 ? params.problem.window_area() : Sizes::kTokens),
        zeros(zeros_),
        places(places_) {
    for (int i = 0; i < 4; ++i) rows[i] = memory + i * Sizes::kTileBytes;
  }

  SWIN_FAST_DEVICE char* at(char* base, int row, int chunk) const {
    return row < tokens ? base + row * kRowBytes + swizzled(row, chunk)
                        : zeros + (row & 1) * kRowBytes + swizzled(row, chunk);
  }
  // Where this lane moves 16 bytes of each eighth row.
  SWIN_FAST_DEVICE int first() const { return lane >> 2; }
  SWIN_FAST_DEVICE int first_bytes() const { return first() * kRowBytes + swizzled(first(), lane & 3); }

  // The place of its first token in a window, and the pixel that the window begins at.
  SWIN_FAST_DEVICE const char* first_place(const Windows::Place& window, Pixel* begin) const {
    const int kind_y = kind_of(p.all.y, window.y), kind_x = kind_of(p.all.x, window.x);
    *begin = {kind_y == 0 ? window.y * p.all.y.window : 0, kind_x == 0 ? window.x * p.all.x.window : 0};
    return places + (kind_y * kAxisKinds + kind_x) * Sizes::kKindBytes + first() * static_cast<int>(sizeof(TokenPlace));
  }

  // Rows of one window on their way into shared memory. Padding takes its row of pad_value; a padded query is zero.
  template <bool kAligned>
  SWIN_FAST_DEVICE void fetch(const Windows::Place& window, char* q_rows) const {
    const WindowAttentionFwdParams& problem = p.problem;
    char* const target[3] = {q_rows + first_bytes(), rows[0] + first_bytes(), rows[1] + first_bytes()};
    Pixel begin;
    const char* const place = first_place(window, &begin);
    const char* const source = static_cast<const char*>(problem.qkv) + 2 * (window.b * problem.qkv_stride[0]) +
                               2 * (head * problem.qkv_stride[4]) +
                               uint64_t{p.stride_y} * static_cast<uint32_t>(begin.y) +
                               uint64_t{p.stride_x} * static_cast<uint32_t>(begin.x) + (lane & 3) * 16;
    const int64_t stride = 2 * problem.qkv_stride[3];
    const auto bring = [&](auto may_be_padding) {
      TokenPlace token[kSteps];
      SWIN_FAST_UNROLL
      for (int i = 0; i < kSteps; ++i) {
        if (first() + 8 * i < tokens) token[i] = load_shared<TokenPlace>(place + i * 8 * sizeof(TokenPlace));
      }
      SWIN_FAST_UNROLL
      for (int i = 0; i < kSteps; ++i) {
        if (first() + 8 * i >= tokens) continue;
        const bool real = !decltype(may_be_padding)::value || token[i].pixel >= 0;
        const char* from = source + token[i].from;
        SWIN_FAST_UNROLL
        for (int which = 0; which < 3; ++which) {
          const auto* row = reinterpret_cast<const uint16_t*>(from);
          if (!real) row = static_cast<const uint16_t*>(problem.pad_value);
          const bool valid = real || (which > 0 && row != nullptr);
          if (!real && valid) row += (which * problem.nH + head) * kHeadDim + (lane & 3) * 8;
          fetch_chunk<kAligned>(target[which] + i * 8 * kRowBytes,
                                valid ? row : static_cast<const uint16_t*>(problem.qkv), valid);
          from += stride;
        }
      }
    };
    if (p.padded) {
      bring(std::true_type{});
    } else {
      bring(std::false_type{});
    }
    copy_async_commit();
  }

  // Results, in place of the queries, to their pixels.
  SWIN_FAST_DEVICE void store(const Windows::Place& window, const char* results) const {
    const WindowAttentionFwdParams& problem = p.problem;
    Pixel begin;
    const char* const place = first_place(window, &begin) + offsetof(TokenPlace, pixel);
    const auto first_pixel = static_cast<uint32_t>(begin.y * static_cast<int32_t>(problem.W) + begin.x);
    char* const out = static_cast<char*>(problem.out) + window.b * p.image_bytes + uint64_t{p.row_bytes} * first_pixel +
                      (head * kRowBytes + (lane & 3) * 16);
    int32_t pixel[kSteps];
    SWIN_FAST_UNROLL
    for (int i = 0; i < kSteps; ++i) {
      pixel[i] = kPadding;
      if (first() + 8 * i < tokens) pixel[i] = load_shared<int32_t>(place + i * 8 * sizeof(TokenPlace));
    }
    SWIN_FAST_UNROLL
    for (int i = 0; i < kSteps; ++i) {
      if (pixel[i] < 0) continue;
      store_global(out + uint64_t{p.row_bytes} * static_cast<uint32_t>(pixel[i]),
                   load_shared<UInt4>(results + first_bytes() + i * 8 * kRowBytes));
    }
  }
};

// The places of tokens in all kinds of windows, by the whole block; a barrier has to follow.
template <int kWindow>
SWIN_FAST_DEVICE void list_places(const SmallFwdParams& p, char* places) {
  using Sizes = SmallFwdSizes<kWindow>;
  const WindowAttentionFwdParams& problem = p.problem;
  const SmallGrid<kWindow> grid(problem);
  const auto on_axis = [](const WindowAxis& axis, int kind, int token) {
    const auto windows = static_cast<int32_t>(axis.num_windows);
    const int32_t window = kind == 0 ? 0 : windows - kAxisKinds + kind;
    if (window < 0) return int32_t{kPadding};  // fewer windows than kinds: the last are in use
    return kind == 0 ? token + static_cast<int32_t>(axis.roll) : axis.pixel<int32_t>(window * axis.window + token);
  };
  const int tokens = problem.window_area();
  for (int i = threadIdx.x; i < kAxisKinds * kAxisKinds * Sizes::kTokens; i += blockDim.x) {
    const int kind = i / Sizes::kTokens, token = i - kind * Sizes::kTokens;
    if (token >= tokens) continue;
    const int y = on_axis(p.all.y, kind / kAxisKinds, grid.row(token));
    const int x = on_axis(p.all.x, kind % kAxisKinds, grid.column(token));
    TokenPlace place = {0, kPadding, 0};
    if (y >= 0 && x >= 0) {
      place.from = 2 * (y * problem.qkv_stride[1] + x * problem.qkv_stride[2]);
      place.pixel = y * static_cast<int32_t>(problem.W) + x;
    }
    store_shared(places + i * sizeof(TokenPlace), place);
  }
}

// Of the first kRows of the two rows of scores that a lane has a part of: exponentials of the scores times `factor`, to
// base 2, in place of the scores, relative to the largest one of a row; and the reciprocal of their sum, or 0 where
// every score is -inf. A row that does not exist is zeros.
template <int kRows, int kKeyTiles>
SWIN_FAST_DEVICE void exponentials(float (&s)[kKeyTiles][4], int pair, int tokens, float (&share)[2], float factor) {
  float top[kRows], sum[kRows];
  SWIN_FAST_UNROLL
  for (int i = 0; i < kRows; ++i) top[i] = -INFINITY;
  SWIN_FAST_UNROLL
  for (int j = 0; j < kKeyTiles; ++j) {
    SWIN_FAST_UNROLL
    for (int e = 0; e < 2 * kRows; ++e) {
      if (j * 8 + pair + (e & 1) >= tokens) s[j][e] = -INFINITY;
      top[e >> 1] = fmaxf(top[e >> 1], s[j][e]);
    }
  }
  SWIN_FAST_UNROLL
  for (int i = 0; i < kRows; ++i) {
    top[i] = fmaxf(top[i], shuffle_xor(top[i], 1));
    top[i] = fmaxf(top[i], shuffle_xor(top[i], 2));
    if (top[i] == -INFINITY) top[i] = 0.0f;
    sum[i] = 0.0f;
  }
  // Rounded, but the same for the whole row, where it cancels: only differences of scores are told apart. Where it is
  // rounded by more than 1, they come first.
  float base[kRows], largest = 0.0f;
  SWIN_FAST_UNROLL
  for (int i = 0; i < kRows; ++i) {
    base[i] = top[i] * factor;
    largest = fmaxf(largest, fabsf(base[i]));
  }
  if (any_lane(largest > 0x1p25f)) {
    SWIN_FAST_UNROLL
    for (int i = 0; i < kRows; ++i) {
      SWIN_FAST_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        s[j][2 * i] -= top[i];
        s[j][2 * i + 1] -= top[i];
      }
      base[i] = 0.0f;
    }
  }
  SWIN_FAST_UNROLL
  for (int j = 0; j < kKeyTiles; ++j) {
    SWIN_FAST_UNROLL
    for (int e = 0; e < 2 * kRows; ++e) {
      s[j][e] = exp2_approx(fmaf(s[j][e], factor, -base[e >> 1]));
      sum[e >> 1] += s[j][e];
    }
    if (kRows == 1) s[j][2] = s[j][3] = 0.0f;
  }
  share[1] = 0.0f;
  SWIN_FAST_UNROLL
  for (int i = 0; i < kRows; ++i) {
    sum[i] += shuffle_xor(sum[i], 1);
    sum[i] += shuffle_xor(sum[i], 2);
    share[i] = sum[i] == 0.0f ? 0.0f : reciprocal_approx(sum[i]);
  }
}

// The relative bias of a head, as it is, into shared memory. By the whole block; a barrier has to follow.
SWIN_FAST_DEVICE void load_relative_bias(const WindowAttentionParams& problem, int head, char* table) {
  if (problem.bias_form != BiasForm::kRelative) return;
  const int entries = (2 * problem.window_size[0] - 1) * (2 * problem.window_size[1] - 1);
  const float* const own = problem.bias + int64_t{head} * entries;
  for (int i = threadIdx.x; i < entries; i += blockDim.x) store_shared(table + 4 * i, load_global<float>(own + i));
}

// The bias of a head as change(value), in the order of accumulators: for each tile of 16 queries and tile of 8 keys
// four floats a lane. Zeros where there is no such token. By the whole block, behind load_relative_bias and a barrier;
// a barrier has to follow. Read from global memory one by one, a relative bias had taken 15 us of a small call.
template <int kWindow, class Change>
SWIN_FAST_DEVICE void make_bias_fragments(const WindowAttentionParams& problem, int head, const char* table,
                                          char* fragments, const Change& change) {
  using Sizes = SmallSizes<kWindow>;
  const SmallGrid<kWindow> grid(problem);
  const int tokens = problem.window_area(), lane = threadIdx.x & 31, of_row = 2 * grid.columns - 1;
  const int center = (problem.window_size[0] - 1) * of_row + grid.columns - 1;
  for (int tile = threadIdx.x >> 5; tile < Sizes::kRowTiles * Sizes::kKeyTiles; tile += blockDim.x >> 5) {
    const int row = tile / Sizes::kKeyTiles * 16 + (lane >> 2), key = tile % Sizes::kKeyTiles * 8 + (lane & 3) * 2;
    float four[4];
    SWIN_FAST_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int q = row + (e & 2) * 4, k = key + (e & 1);
      four[e] = 0.0f;
      if (q >= tokens || k >= tokens) continue;
      if (problem.bias_form == BiasForm::kDense) {
        four[e] = load_global<float>(problem.bias + (int64_t{head} * tokens + q) * tokens + k);
      } else if (problem.bias_form == BiasForm::kRelative) {
        const int entry = (grid.row(q) - grid.row(k)) * of_row + grid.column(q) - grid.column(k) + center;
        four[e] = load_shared<float>(table + 4 * entry);
      }
    }
    store_shared(fragments + (tile * 32 + lane) * 16,
                 Float4{change(four[0]), change(four[1]), change(four[2]), change(four[3])});
  }
}

// Computes: out of windows of up to 64 tokens.
// Grid:     nH * blocks, heads fastest: those of a window run at the same time, for their rows share cache lines. The
//           bias of a block's head lies in shared memory as the fragments of accumulators. A warp has every slots-th
//           window; while it computes one, the rows of its next are on their way.
// Memory:   reads 3 and writes 1 rows of 64 bytes for each token and head, 16 bytes at a time.
// Numerics: products in the input dtype with float32 accumulators; scores, softmax and its sum in float32;
//           probabilities rounded for the product with v, which is divided by the sum. Nothing depends on blocks,
//           windows or slots.
// Source:   written for this project; fragments as in the PTX manual, mma.m16n8k16.
template <class T, int kWindow, bool kCosine, bool kAligned>
__global__ void __launch_bounds__(32 * kSmallFwdWarps) small_windows_fwd(const SmallFwdParams p) {
  using Sizes = SmallFwdSizes<kWindow>;
  const WindowAttentionFwdParams& problem = p.problem;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int head = blockIdx.x % problem.nH;
  char* const zeros = shared_memory();
  char* const places = zeros + kZeroBytes;
  char* const cuts = places + Sizes::kPlaceBytes;
  char* const fragments = cuts + Sizes::kCutBytes;
  char* const warps = fragments + Sizes::kBiasBytes;
  SmallWarp<T, kWindow> self(p, lane, head, zeros, places, warps + warp * Sizes::kWarpBytes);
  const int tokens = self.tokens;

  char* const table = warps + 3 * Sizes::kTileBytes;  // where the second q of the first warp will be
  load_relative_bias(problem, head, table);
  for (int i = threadIdx.x; i < kZeroBytes / 4; i += blockDim.x) store_shared(zeros + 4 * i, uint32_t{0});
  list_places<kWindow>(p, places);
  if (warp == 0) store_shared(cuts + 8 * lane, Cut::make<kWindow>(p, lane));
  sync_threads();

  const int64_t slot = int64_t{warp} * p.blocks + blockIdx.x / problem.nH;
  const bool has_work = slot < p.slots && slot < p.all.of_all;
  auto left = static_cast<int32_t>(has_work ? ceil_div(p.all.of_all - slot, p.slots) : 0);
  Windows::Place place, next = p.all.place(slot);
  if (left > 0) self.template fetch<kAligned>(next, self.rows[2]);
  constexpr bool kDivided = kWindow != 0 && !kCosine;
  const float inverse_scale = 1.0f / problem.scale;
  make_bias_fragments<kWindow>(problem, head, table, fragments,
                               [&](float bias) { return kDivided ? divided(bias, inverse_scale) : bias; });
  sync_threads();

  const float factor = kCosine ? load_global<float>(problem.logit_scale + head) : problem.scale;
  const float in_exponent = kDivided ? problem.scale * kLog2E : kLog2E;
  const float masked = kDivided ? divided(problem.mask_value, inverse_scale) : problem.mask_value;
  const char* const bias = fragments + lane * 16;
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
    p.all.advance(&next, p.step);
    if (left > 1) self.template fetch<kAligned>(next, next_q_rows);

    const bool border = place.y == p.border_y || place.x == p.border_x;
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
      Cut cut = {0, 0};
      if (kBorder) {
        cut = load_shared<Cut>(cuts + 8 * lane);
        if (place.y != p.border_y) cut.rows = 0;
        if (place.x != p.border_x) cut.columns = 0;
      }
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
        const uint32_t apart[2] = {cut.apart_from(2 * tile), cut.apart_from(2 * tile + 1)};
        float s[Sizes::kKeyTiles][4];
        SWIN_FAST_UNROLL
        for (int j = 0; j < Sizes::kKeyTiles; ++j) {
          const auto own = load_shared<Float4>(bias + (tile * Sizes::kKeyTiles + j) * 512);
          const float added[4] = {own.x, own.y, own.z, own.w};
          SWIN_FAST_UNROLL
          for (int e = 0; e < 4; ++e) s[j][e] = kDivided ? added[e] : 0.0f;
          mma_m16n8k16<T>(s[j], q[0], k[j][0][0], k[j][0][1]);
          mma_m16n8k16<T>(s[j], q[1], k[j][1][0], k[j][1][1]);
          float of_key[2] = {1.0f, 1.0f};
          if (kCosine) {
            of_key[0] = shuffle(key_inverse[j], pair * 4);  // anew for each tile of queries: 7 registers, not 14
            of_key[1] = shuffle(key_inverse[j], pair * 4 + 4);
          }
          SWIN_FAST_UNROLL
          for (int e = 0; e < 4; ++e) {
            if (kCosine) s[j][e] *= of_key[e & 1];
            if (!kDivided) s[j][e] = s[j][e] * of_row[e >> 1] + added[e];
            if (kBorder && is_apart(apart[e >> 1], j, e)) s[j][e] += masked;
          }
        }
        float share[2];
        if (tile * 16 + 8 < Sizes::kTokens) {
          exponentials<2>(s, pair, tokens, share, in_exponent);
        } else {
          exponentials<1>(s, pair, tokens, share, in_exponent);
        }
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
