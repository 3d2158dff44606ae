// SPDX-License-Identifier: Apache-2.0
//
// window_attention_fwd
// Computes  out = softmax(scale * q k^T + bias + mask) v for every (window, head), rows of q, k, v gathered from image
//           order by computed index, rows of out scattered back; cosine attention divides by the row norms.
// Grid      one call takes a range of strips (rows of windows of one image); windows in order, heads inside a window.
// Memory    q, k, v of this (window, head) and of the next, k^T, and blocks of probability rows: 50 KB at N = 49,
//           145 KB at N = 144 in float, half in pairs. Scores stay in registers where sizes.h says so. The next
//           window's rows are prefetched meanwhile.
// Numerics  products in the input type (float16 and, without AVX512-BF16, bfloat16 are widened: exact), accumulation,
//           scores, softmax and the final division in float. P is not normalised before the second product.
// Source    Liu et al. 2021, section 3.2; Liu et al. 2022 (Swin V2), section 3.2 for cosine attention.
#pragma once

#include "softmax.h"
#include "tokens.h"

namespace swin_fast::cpu {
namespace {

constexpr float kNormEps = 1e-12f;

// inverse[i] = 1 / max(||row i||, eps), NaN where the row holds one.
template <class Operands>
void inverse_norms(const float* rows, int64_t ld, int n, int hd, float* inverse) {
  for (int i = 0; i < n; i++) {
    vf sum = zero();
    int d = 0;
    for (; d + kWidth <= hd; d += kWidth) {
      const vf x = Operands::values(rows + i * ld, d);
      sum = fma(x, x, sum);
    }
    if (d < hd) {
      const vf x = keep(Operands::values(rows + i * ld, d), hd - d, zero());
      sum = fma(x, x, sum);
    }
    const float norm = __builtin_sqrtf(reduce_add(sum));
    inverse[i] = 1.f / (norm < kNormEps ? kNormEps : norm);
  }
}

// q, k and v of one (window, head). Two sets take turns: while one is computed, the next is packed a few rows at a
// time, so that the loads from L2 hide behind the products (8 % of a forward).
struct HeadTiles {
  float* part[3];
};

// Which rows one (window, head) reads.
template <class Operands>
struct HeadSource {
  const WindowAttentionParams& p;
  const WindowTokens& tokens;
  int h;

  SWIN_FAST_INLINE RowSource rows(int part) const {
    const int64_t bytes = element_size(p.dtype), hd = p.hd;
    const void* pad = p.pad_value == nullptr ? static_cast<const void*>(kZeroRow)
                                             : static_cast<const char*>(p.pad_value) + bytes * (part * p.nH + h) * hd;
    return {tokens.qkv, bytes * (part * p.qkv_stride[3] + h * p.qkv_stride[4]), pad};
  }
  SWIN_FAST_INLINE void pack(int i0, int m, int hd, const HeadTiles& tiles) const {
    for (int part = 0; part < 3; part++)
      Operands::pack(p.dtype, rows(part), i0, m, hd, tiles.part[part], Operands::row_elements(hd));
  }
  SWIN_FAST_INLINE void prefetch_qkv(int i, int hd) const {
    if (tokens.qkv[i] == nullptr) return;
#pragma GCC unroll 3
    for (int part = 0; part < 3; part++)
      prefetch<0>(tokens.qkv[i] + rows(part).offset, Operands::element_bytes(p.dtype) * hd);
  }
};

// The terms of head h, in a window of these tokens; cosine attention leaves the norms of q and k in q_ and k_inverse.
template <class Operands, class Task>
SWIN_FAST_INLINE ScoreTerms score_terms(const Task& task, const WindowTokens& tokens, int h, const float* q,
                                        const float* k, float* q_inverse, float* k_inverse) {
  const WindowAttentionParams& p = *task.params;
  ScoreTerms terms{p.scale,
                   nullptr,
                   nullptr,
                   task.bias + h * task.layout.head_stride,
                   task.layout.row_offset,
                   tokens.border ? tokens.region : nullptr,
                   p.mask_value};
  if (p.logit_scale != nullptr) {
    const int n = p.window_area(), ld = Operands::row_elements(p.hd);
    inverse_norms<Operands>(q, ld, n, p.hd, q_inverse);
    inverse_norms<Operands>(k, ld, n, p.hd, k_inverse);
    terms.scale = p.logit_scale[h];
    terms.q_inverse = q_inverse;
    terms.k_inverse = k_inverse;
  }
  return terms;
}

// Finish of a product: rows of accumulators, times a factor each, become rows of the image.
template <class Operands>
struct ToImage {
  ScalarType dtype;
  void* image;
  int64_t stride, offset;  // elements from token to token, and to the first element of the head
  int hd;
  const int64_t* token;  // of the product's first row; -1: padding
  const float* factor;   // of the product's first row
  int factor_step;       // 0: one factor for all rows
  double* padding;       // where rows of padding are summed, hd values; null: dropped

  template <int kM, int NV>
  SWIN_FAST_INLINE void operator()(int row, int column, const vf (&acc)[kM][NV]) const {
#pragma GCC unroll 16
    for (int i = 0; i < kM; i++) {
      const float times = factor[(row + i) * factor_step];
      if (token[row + i] >= 0) {
        Operands::store_image(dtype, image, token[row + i] * stride + offset, column, hd, acc[i], set1(times));
      } else if (padding != nullptr) {
        float values[NV * kWidth];
        for (int v = 0; v < NV; v++) storef(values + v * kWidth, acc[i][v]);
        for (int d = 0; d < NV * kWidth && column + d < hd; d++)
          padding[column + d] += static_cast<double>(values[d]) * static_cast<double>(times);
      }
    }
  }
};

struct FwdScratch {
  WindowTokens tokens[2];
  HeadTiles tiles[2];
  float *kt, *v_right, *scores, *o, *q_inverse, *k_inverse;
  float *p[2], *inverse[2];  // of kRowBlock rows
};

template <class Operands, class Size>
void take_fwd(Arena& arena, const Size& size, FwdScratch& s) {
  const int n = size.n(), columns = size.columns(), hd_columns = size.hd_columns();
  const int hd_row = Operands::row_elements(size.hd());
  for (WindowTokens& t : s.tokens) t.take(arena, n, columns);
  for (HeadTiles& t : s.tiles)
    for (float*& tile : t.part) tile = arena.take<float>(static_cast<int64_t>(n) * hd_row);
  s.v_right = Operands::kRightIsCopy ? arena.take<float>(static_cast<int64_t>((n + 1) / 2) * hd_columns) : nullptr;
  s.kt = arena.take<float>(static_cast<int64_t>(size.hd()) * columns);
  s.scores = Size::kTileRows ? nullptr : arena.take<float>(static_cast<int64_t>(Size::kRowBlock) * columns);
  s.o = Size::kStaticN ? nullptr : arena.take<float>(static_cast<int64_t>(Size::kRowBlock) * hd_columns);
  s.q_inverse = arena.take<float>(columns);
  s.k_inverse = arena.take<float>(columns);
  for (int i = 0; i < 2; i++) {
    s.p[i] = arena.take<float>(static_cast<int64_t>(Size::kRowBlock) * Operands::row_elements(n));
    s.inverse[i] = arena.take<float>(Size::kRowBlock + RowValues::kRoom);
  }
}

template <class Operands, class Size>
void fwd_strips(const FwdTask& task, int64_t strip_begin, int64_t strip_end, void* scratch) {
  using Product = typename Operands::Product;
  const WindowAttentionFwdParams& p = *task.params;
  const Size size(p.window_area(), p.hd);
  const int n = size.n(), hd = size.hd(), columns = size.columns(), hd_columns = size.hd_columns();
  const int hd_row = Operands::row_elements(hd), p_row = Operands::row_elements(n);
  const int hd_steps = Operands::steps(hd), n_steps = Operands::steps(n);
  const int64_t bytes = Operands::element_bytes(p.dtype), C = static_cast<int64_t>(p.nH) * hd;
  Arena arena{static_cast<char*>(scratch)};
  FwdScratch s;
  take_fwd<Operands>(arena, size, s);

  WindowWalk walk(p, strip_begin, strip_end);
  if (walk.done()) return;
  int window = 0, head = 0;  // which of the two sets is in use
  walk.locate(s.tokens[0], nullptr, nullptr);
  HeadSource<Operands>{p, s.tokens[0], 0}.pack(0, n, hd, s.tiles[0]);
  for (; !walk.done(); window ^= 1) {
    const WindowTokens& tokens = s.tokens[window];
    const WindowTokens& ahead = s.tokens[window ^ 1];
    walk.advance();
    const bool more = !walk.done();
    if (more) walk.locate(s.tokens[window ^ 1], nullptr, nullptr);

    for (int h = 0; h < p.nH; h++, head ^= 1) {
      const HeadTiles &tiles = s.tiles[head], &next_tiles = s.tiles[head ^ 1];
      const bool last_head = h == p.nH - 1, has_next = more || !last_head;
      const HeadSource<Operands> next{p, last_head ? ahead : tokens, last_head ? 0 : h + 1}, beyond{p, ahead, h};
      const float *q = tiles.part[0], *k = tiles.part[1];
      transpose_rows(k, hd_row, size.product_n(), hd_steps, s.kt, columns);
      const float* v = Operands::as_right(tiles.part[2], hd_row, n, hd_columns, s.v_right);
      const ScoreTerms terms = score_terms<Operands>(task, tokens, h, q, k, s.q_inverse, s.k_inverse);

      // Rows [i0, i0 + m) of P, into set `half`.
      const auto probabilities = [&](int i0, int m, int half) __attribute__((always_inline)) {
        constexpr int kTile = Size::kTileRows ? Size::kTileRows : Size::kRowBlock;
        for (int r0 = 0; r0 < (Size::kTileRows ? Size::kRowBlock : 1); r0 += kTile) {
          const int rows = Size::kTileRows ? kTile : m;
          RowValues lone, lone_bias = {}, inverse;
          using Rows = decltype(product_rows<Operands>(size, 0, 0, q, k, s.kt, s.scores, lone));
          const SoftmaxRows<Operands, Size, Rows> softmax{size, terms, i0 + r0, rows};
          if constexpr (Size::kLone) softmax.lone_bias(lone_bias);
          Rows x = product_rows<Operands>(size, i0 + r0, rows, q, k, s.kt, s.scores, lone);
          softmax_rows(softmax, x, lone, lone_bias, s.p[half] + r0 * p_row, p_row, inverse);
          for (int v = 0; v < kRowVectors; v++) storef(s.inverse[half] + r0 + v * kWidth, get(inverse, v));
        }
      };
      const auto output = [&](int i0, int m, int half) __attribute__((always_inline)) {
        const Operand p_v{s.p[half], p_row, 1, v, hd_columns};
        const ToImage<Operands> image{p.dtype,         p.out, C,      h * static_cast<int64_t>(hd), hd, tokens.row + i0,
                                      s.inverse[half], 1,     nullptr};
        if constexpr (Size::kStaticN > 0) {
          gemm<Product, Size::kStaticRows, Size::kStaticHD>(m, hd, n_steps, p_v, kNothing, image);
        } else {
          gemm_in_parts<Product, 0, 0>(m, hd, n_steps, p_v, ToMemory{s.o, hd_columns}, image);
        }
      };
      const int blocks = (n + Size::kRowBlock - 1) / Size::kRowBlock;
      const auto rows_of = [&](int block) { return min_of(n - block * Size::kRowBlock, Size::kRowBlock); };
      for (int block = 0; block < blocks + Size::kDelay; block++) {
        if (block < blocks) {
          const int i0 = block * Size::kRowBlock, m = rows_of(block);
          if (more) {
            for (int i = i0; i < i0 + m; i++) {
              beyond.prefetch_qkv(i, hd);
              if (ahead.row[i] >= 0)
                prefetch<1>(static_cast<char*>(p.out) + bytes * (ahead.row[i] * C + h * hd), bytes * hd);
            }
          }
          if (has_next) next.pack(i0, m, hd, next_tiles);
          probabilities(i0, m, block & 1);
        }
        const int ready = block - Size::kDelay;
        if (ready >= 0) output(ready * Size::kRowBlock, rows_of(ready), ready & 1);
      }
    }
  }
}

template <class Operands, class Size>
size_t fwd_bytes(const FwdTask& task) {
  Arena arena{nullptr};
  FwdScratch s;
  take_fwd<Operands>(arena, Size(task.params->window_area(), task.params->hd), s);
  return arena.used;
}

}  // namespace
}  // namespace swin_fast::cpu
