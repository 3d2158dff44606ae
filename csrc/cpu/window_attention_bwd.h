// SPDX-License-Identifier: Apache-2.0
//
// window_attention_bwd
// Computes  with P = softmax(S), S = scale * q k^T + bias + mask, dP = dO v^T, dS = P * (dP - rowsum(P * dP)):
//           dv = P^T dO, dq = scale * dS k, dk = scale * dS^T q, dbias = sum over windows of dS. P is recomputed.
//           Cosine attention: E = dS / (||q|| ||k||), X = E k, dlogit_scale = sum q.X,
//           dq = logit_scale * (X - q (q.X) / ||q||^2), and the same for k; rows below the norm's eps lose
//           the second term.
//           dpad_value sums the k and v gradients of padded tokens; their queries are dropped, so its q part is 0.
// Grid      one call takes one slice of strips, all heads, in order; slices are cut by shape alone and folded in order.
// Memory    tiles of one (window, head) and kBlock rows of P and dS: 80 KB at N = 49, 210 KB at N = 144.
// Numerics  as forward. dbias is summed over the windows of a strip first, then over strips: two short float sums
//           instead of a long one. dlogit_scale and dpad_value are summed in double.
// Source    the derivative of window_attention_fwd.h; rowsum(P * dP) in place of rowsum(dO * O) needs no saved output.
#pragma once

#include "window_attention_fwd.h"

namespace swin_fast::cpu {
namespace {

struct BwdScratch {
  WindowTokens tokens[2];
  HeadTiles tiles[2];  // q, k, v
  float* dout[2];
  float *kt, *vt;
  float *q_right, *k_right, *dout_right;  // as right operands
  float *scores, *dprobs;                 // kRowBlock rows
  float *p, *ds, *p_left, *ds_left;       // kBlock rows; left: contracted over rows
  float* dq;                              // kRowBlock rows
  float *dk, *dv;                         // kRowBlock rows, or all of them where blocks are summed
  float *q_inverse, *k_inverse;           // cosine attention
  float* dbias_strip;                     // nH * head_stride
};

// Rows of P and dS kept at once: all of a small window; 48 of N = 144 (28 KB each) and 32 of any other.
template <class Size>
constexpr int block_rows() {
  return Size::kStaticN == 0 ? 32 : Size::kStaticN <= 64 ? Size::kStaticN : 48;
}

template <class Operands, class Size>
void take_bwd(Arena& arena, const Size& size, int nH, int64_t head_stride, bool has_bias, BwdScratch& s) {
  const int64_t n = size.n(), columns = size.columns(), hd_columns = size.hd_columns();
  const int64_t hd_row = Operands::row_elements(size.hd()), n_row = Operands::row_elements(size.n());
  const int64_t block = block_rows<Size>();
  for (WindowTokens& t : s.tokens) t.take(arena, size.n(), size.columns());
  const auto tile = [&](int64_t rows, int64_t row_elements) { return arena.take<float>(rows * row_elements); };
  const auto right = [&](int64_t rows, int64_t row_elements) {
    return Operands::kRightIsCopy ? tile((rows + 1) / 2, row_elements) : nullptr;
  };
  for (HeadTiles& t : s.tiles)
    for (float*& part : t.part) part = tile(n, hd_row);
  for (float*& part : s.dout) part = tile(n, hd_row);
  s.kt = tile(size.hd(), columns);
  s.vt = tile(size.hd(), columns);
  s.q_right = right(n, hd_columns);
  s.k_right = right(n, hd_columns);
  s.dout_right = right(n, hd_columns);
  s.scores = tile(Size::kRowBlock, columns);
  s.dprobs = tile(Size::kRowBlock, columns);
  s.p = tile(block, n_row);
  s.ds = tile(block, n_row);
  s.p_left = right(block, columns);
  s.ds_left = right(block, columns);
  const int64_t summed = block_rows<Size>() == Size::kStaticN ? Size::kRowBlock : n;
  s.dq = tile(Size::kRowBlock, hd_columns);
  s.dk = tile(summed, hd_columns);
  s.dv = tile(summed, hd_columns);
  s.q_inverse = arena.take<float>(columns);
  s.k_inverse = arena.take<float>(columns);
  s.dbias_strip = has_bias ? arena.take<float>(nH * head_stride) : nullptr;
}

// Rows [i0, i0 + m), from raw products and dP to P and dS as operands. dS is also added to the rows of the bias
// gradient; for the products with k and q, cosine attention divides it by ||q|| ||k||.
template <class Operands, class Size>
SWIN_FAST_INLINE void softmax_bwd_rows(const Size& size, const ScoreTerms& terms, int i0, int m, float* scores,
                                       const float* dprobs, int64_t ld, float* dbias, float* p, float* ds,
                                       int64_t ldp) {
  const int vectors = size.vectors(), n = size.n();
  const int last = size.product_n() - (vectors - 1) * kWidth;
  RowValues top, lone, sums, deltas, inverse;
  score_rows(size, terms, i0, m, scores, ld, top, lone);
  vf sum[kReduceRows], delta[kReduceRows];
  for (int r = 0; r < m; r++) {
    const vf shift = set1(top.row[r]);
    vf total = zero(), weighted = zero();
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
      float* at = scores + r * ld + v * kWidth;
      const vf e = exp_of<Operands>(loadf(at), shift);
      storef(at, e);
      vf d = loadf(dprobs + r * ld + v * kWidth);
      if (v == vectors - 1 && last < kWidth) d = keep(d, last, zero());  // what lies behind N is not a number
      total = add(total, e);
      weighted = fma(e, d, weighted);
    }
    sum[r] = total;
    delta[r] = weighted;
  }
  for (int r = m; r < kReduceRows; r++) sum[r] = delta[r] = sum[0];
  reduce_rows<Add>(sum, sums.row);
  reduce_rows<Add>(delta, deltas.row);
  RowValues lone_d;
  if constexpr (Size::kLone) {
    for (int r = 0; r < m; r++) lone_d.row[r] = dprobs[r * ld + n - 1];
    for (int v = 0; v < RowValues::kVectors; v++) {
      const vf e = exp_of<Operands>(lone.vector(v), top.vector(v));
      sums.set(v, add(sums.vector(v), e));
      deltas.set(v, fma(e, lone_d.vector(v), deltas.vector(v)));
      lone.set(v, e);
    }
  }
  invert_sums(sums, inverse);
  for (int v = 0; v < RowValues::kVectors; v++) deltas.set(v, mul(deltas.vector(v), inverse.vector(v)));
  for (int r = 0; r < m; r++) {
    const vf scale = set1(inverse.row[r]), shift = set1(deltas.row[r]);
    vf d[Size::kMaxVectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
      const vf e = mul(loadf(scores + r * ld + v * kWidth), scale);
      Operands::store_values(p + r * ldp, v * kWidth, e);
      d[v] = mul(e, sub(loadf(dprobs + r * ld + v * kWidth), shift));
      if (v == vectors - 1 && last < kWidth) d[v] = keep(d[v], last, zero());
    }
    if (dbias != nullptr) {
      float* row = dbias + terms.row_offset[i0 + r];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; v++) storef(row + v * kWidth, add(loadf(row + v * kWidth), d[v]));
    }
    if (terms.k_inverse != nullptr) {
      const vf factor = set1(terms.q_inverse[i0 + r]);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; v++) d[v] = mul(mul(d[v], factor), loadf(terms.k_inverse + v * kWidth));
      if (last < kWidth) d[vectors - 1] = keep(d[vectors - 1], last, zero());
    }
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) Operands::store_values(ds + r * ldp, v * kWidth, d[v]);
  }
  if constexpr (Size::kLone) {
    for (int v = 0; v < RowValues::kVectors; v++) {
      const vf e = mul(lone.vector(v), inverse.vector(v));
      lone.set(v, Operands::elements(e));
      lone_d.set(v, mul(e, sub(lone_d.vector(v), deltas.vector(v))));
    }
    const int at = Operands::steps(n) - 1;
    for (int r = 0; r < m; r++) {
      p[r * ldp + at] = lone.row[r];
      if (dbias != nullptr) dbias[terms.row_offset[i0 + r] + n - 1] += lone_d.row[r];
      if (terms.k_inverse != nullptr) lone_d.row[r] *= terms.q_inverse[i0 + r] * terms.k_inverse[n - 1];
    }
    for (int v = 0; v < RowValues::kVectors; v++) lone_d.set(v, Operands::elements(lone_d.vector(v)));
    for (int r = 0; r < m; r++) ds[r * ldp + at] = lone_d.row[r];
  }
}

// x -= (x.unit) unit for each row, unit = row / ||row||, where the norm is not clamped; returns the sum of row.x.
template <class Operands>
double project_rows(const float* rows, int64_t ld, const float* inverse, int n, int hd, float* x, int64_t ldx) {
  constexpr float kClamped = 1.f / kNormEps;
  double total = 0.;
  for (int i = 0; i < n; i++) {
    float* xi = x + i * ldx;
    vf sum = zero();
    for (int d = 0; d < hd; d += kWidth) {
      vf product = mul(Operands::values(rows + i * ld, d), loadf(xi + d));
      if (hd - d < kWidth) product = keep(product, hd - d, zero());
      sum = add(sum, product);
    }
    const float dot = reduce_add(sum);
    total += static_cast<double>(dot);
    if (inverse[i] == kClamped) continue;
    const vf factor = set1(-(dot * inverse[i]) * inverse[i]);
    for (int d = 0; d < hd; d += kWidth) storef(xi + d, fma(Operands::values(rows + i * ld, d), factor, loadf(xi + d)));
  }
  return total;
}

// Where the gradients of one (window, head) go.
struct GradientRows {
  const WindowAttentionBwdParams& p;
  const int64_t* token;  // row in the image, or -1: padding
  double* dpad_value;    // of the head, k; v stands nH * hd further on; null: dropped
  int64_t C, head;       // elements of a row, and of those before the head

  // Rows [i0, i0 + m) of dq, dk or dv (part 0, 1, 2), times factor.
  SWIN_FAST_INLINE void store(int part, int i0, int m, const float* rows, int64_t ld, int hd, float factor) const {
    for (int r = 0; r < m; r++) {
      const int64_t at = token[i0 + r];
      if (at >= 0) {
        store_out(p.dtype, p.dqkv, (at * 3 + part) * C + head, rows + r * ld, hd, factor);
      } else if (dpad_value != nullptr && part > 0) {
        double* sum = dpad_value + (part - 1) * C;
        for (int d = 0; d < hd; d++) sum[d] += static_cast<double>(rows[r * ld + d]) * static_cast<double>(factor);
      }
    }
  }
};

template <class Operands, class Size>
void bwd_strips(const BwdTask& task, int64_t strip_begin, int64_t strip_end, const BwdSums& sums, void* scratch) {
  using Product = typename Operands::Product;
  constexpr int kBlock = block_rows<Size>();
  // Static row counts of a block, and of what is contracted over it, where the block divides N.
  constexpr bool kWhole = Size::kStaticN > 0 && Size::kStaticN % kBlock == 0;
  static_assert(Size::kStaticN == 0 || kWhole);
  constexpr bool kSummed = kBlock != Size::kStaticN;  // dk and dv are sums over several blocks
  const WindowAttentionBwdParams& p = *task.params;
  const Size size(p.window_area(), p.hd);
  const int n = size.n(), hd = size.hd(), columns = size.columns(), hd_columns = size.hd_columns();
  const int hd_row = Operands::row_elements(hd), n_row = Operands::row_elements(n);
  const int hd_steps = Operands::steps(hd), n_steps = Operands::steps(n);
  const int64_t bytes = element_size(p.dtype), C = static_cast<int64_t>(p.nH) * hd;
  const bool cosine = p.logit_scale != nullptr, has_bias = sums.dbias != nullptr;
  const int64_t bias_elements = has_bias ? p.nH * task.layout.head_stride : 0;
  Arena arena{static_cast<char*>(scratch)};
  BwdScratch s;
  take_bwd<Operands>(arena, size, p.nH, task.layout.head_stride, has_bias, s);
  if (has_bias) std::memset(s.dbias_strip, 0, sizeof(float) * static_cast<size_t>(bias_elements));

  WindowWalk walk(p, strip_begin, strip_end);
  if (walk.done()) return;
  // The rows of grad_out of a (window, head); padded queries were dropped, so theirs are zeros.
  const auto dout_rows = [&](const WindowTokens& t, int h) { return RowSource{t.dout, bytes * h * hd, kZeroRow}; };
  int window = 0, head = 0;  // which of the two sets is in use
  walk.locate(s.tokens[0], p.grad_out, p.grad_out_stride);
  HeadSource<Operands>{p, s.tokens[0], 0}.pack(0, n, hd, s.tiles[0]);
  Operands::pack(p.dtype, dout_rows(s.tokens[0], 0), 0, n, hd, s.dout[0], hd_row);
  for (; !walk.done(); window ^= 1) {
    const WindowTokens& tokens = s.tokens[window];
    const WindowTokens& ahead = s.tokens[window ^ 1];
    const bool ends_strip = walk.ends_strip();
    walk.advance();
    const bool more = !walk.done();
    if (more) walk.locate(s.tokens[window ^ 1], p.grad_out, p.grad_out_stride);

    for (int h = 0; h < p.nH; h++, head ^= 1) {
      const bool last_head = h == p.nH - 1, has_next = more || !last_head;
      const HeadSource<Operands> next{p, last_head ? ahead : tokens, last_head ? 0 : h + 1}, beyond{p, ahead, h};
      const RowSource next_dout = dout_rows(next.tokens, next.h);
      const float *q = s.tiles[head].part[0], *k = s.tiles[head].part[1], *v = s.tiles[head].part[2];
      const float* dout = s.dout[head];
      transpose_rows(k, hd_row, size.product_n(), hd_steps, s.kt, columns);
      transpose_rows(v, hd_row, size.product_n(), hd_steps, s.vt, columns);
      const float* k_right = Operands::as_right(k, hd_row, n, hd_columns, s.k_right);
      const float* q_right = Operands::as_right(q, hd_row, n, hd_columns, s.q_right);
      const float* dout_right = Operands::as_right(dout, hd_row, n, hd_columns, s.dout_right);

      ScoreTerms terms{p.scale,
                       nullptr,
                       nullptr,
                       task.bias + h * task.layout.head_stride,
                       task.layout.row_offset,
                       tokens.border ? tokens.region : nullptr,
                       p.mask_value};
      if (cosine) {
        inverse_norms<Operands>(q, hd_row, n, hd, s.q_inverse);
        inverse_norms<Operands>(k, hd_row, n, hd, s.k_inverse);
        terms.scale = p.logit_scale[h];
        terms.q_inverse = s.q_inverse;
        terms.k_inverse = s.k_inverse;
      }
      float* dbias = has_bias ? s.dbias_strip + h * task.layout.head_stride : nullptr;

      const float factor = cosine ? p.logit_scale[h] : p.scale;
      const GradientRows gradients{p, tokens.row, sums.dpad_value != nullptr ? sums.dpad_value + h * hd : nullptr, C,
                                   static_cast<int64_t>(h) * hd};

      for (int b0 = 0; b0 < n; b0 += kBlock) {
        const int block = kWhole ? kBlock : (n - b0 < kBlock ? n - b0 : kBlock);
        for (int r0 = 0; r0 < block; r0 += Size::kRowBlock) {
          const int m = kWhole ? Size::kRowBlock : (block - r0 < Size::kRowBlock ? block - r0 : Size::kRowBlock);
          const int i0 = b0 + r0;
          float *p_rows = s.p + r0 * static_cast<int64_t>(n_row), *ds_rows = s.ds + r0 * static_cast<int64_t>(n_row);
          if (more) {
            beyond.prefetch(i0, m);
            prefetch_rows(ahead.dout, i0, m, bytes * h * hd, bytes * hd);
            for (int part = 0; part < 3; part++)
              prefetch_for_write(p.dqkv, ahead.row, i0, m, bytes * 3 * C, bytes * (part * C + h * hd), bytes * hd);
          }
          if (has_next) {
            next.pack(i0, m, hd, s.tiles[head ^ 1]);
            Operands::pack(p.dtype, next_dout, i0, m, hd, s.dout[head ^ 1], hd_row);
          }
          product_rows<Operands>(size, i0, m, q, k, s.kt, s.scores);
          product_rows<Operands>(size, i0, m, dout, v, s.vt, s.dprobs);
          softmax_bwd_rows<Operands>(size, terms, i0, m, s.scores, s.dprobs, columns, dbias, p_rows, ds_rows, n_row);
          gemm<Product, Size::kStaticRows, Size::kStaticHD, false>(m, hd, n_steps, ds_rows, n_row, 1, k_right,
                                                                   hd_columns, s.dq, hd_columns);
          if (cosine)
            sums.dlogit_scale[h] += project_rows<Operands>(q + static_cast<int64_t>(i0) * hd_row, hd_row,
                                                           s.q_inverse + i0, m, hd, s.dq, hd_columns);
          gradients.store(0, i0, m, s.dq, hd_columns, hd, factor);
        }

        // dv and dk contract over the rows of the block: element (j, i) of the left operand stands at [i][j].
        const float *p_left = s.p, *ds_left = s.ds;
        int64_t left_stride = n_row;
        if constexpr (Operands::kRightIsCopy) {
          p_left = Operands::as_right(s.p, n_row, block, columns, s.p_left);
          ds_left = Operands::as_right(s.ds, n_row, block, columns, s.ds_left);
          left_stride = columns;
        }
        const int block_steps = Operands::steps(block);
        const int64_t right_offset = static_cast<int64_t>(Operands::steps(b0)) * hd_columns;
        const bool last_block = b0 + block == n;
        for (int j0 = 0; j0 < n; j0 += Size::kRowBlock) {
          const int m = Size::kStaticRows ? Size::kStaticRows : (n - j0 < Size::kRowBlock ? n - j0 : Size::kRowBlock);
          float* dv = s.dv + (kSummed ? j0 * static_cast<int64_t>(hd_columns) : 0);
          float* dk = s.dk + (kSummed ? j0 * static_cast<int64_t>(hd_columns) : 0);
          if (b0 == 0) {
            gemm<Product, Size::kStaticRows, Size::kStaticHD, false>(m, hd, block_steps, p_left + j0, 1, left_stride,
                                                                     dout_right, hd_columns, dv, hd_columns);
            gemm<Product, Size::kStaticRows, Size::kStaticHD, false>(m, hd, block_steps, ds_left + j0, 1, left_stride,
                                                                     q_right, hd_columns, dk, hd_columns);
          } else if constexpr (kSummed) {
            gemm<Product, Size::kStaticRows, Size::kStaticHD, true>(
                m, hd, block_steps, p_left + j0, 1, left_stride, dout_right + right_offset, hd_columns, dv, hd_columns);
            gemm<Product, Size::kStaticRows, Size::kStaticHD, true>(m, hd, block_steps, ds_left + j0, 1, left_stride,
                                                                    q_right + right_offset, hd_columns, dk, hd_columns);
          }
          if (!last_block) continue;
          if (cosine)
            project_rows<Operands>(k + static_cast<int64_t>(j0) * hd_row, hd_row, s.k_inverse + j0, m, hd, dk,
                                   hd_columns);
          gradients.store(1, j0, m, dk, hd_columns, hd, factor);
          gradients.store(2, j0, m, dv, hd_columns, hd, 1.f);
        }
      }
    }
    if (has_bias && ends_strip) {
      for (int64_t e = 0; e < bias_elements; e++) sums.dbias[e] += s.dbias_strip[e];
      std::memset(s.dbias_strip, 0, sizeof(float) * static_cast<size_t>(bias_elements));
    }
  }
}

template <class Operands, class Size>
size_t bwd_bytes(const BwdTask& task) {
  Arena arena{nullptr};
  BwdScratch s;
  take_bwd<Operands>(arena, Size(task.params->window_area(), task.params->hd), task.params->nH, task.layout.head_stride,
                     task.params->bias_form != BiasForm::kNone, s);
  return arena.used;
}

}  // namespace
}  // namespace swin_fast::cpu
