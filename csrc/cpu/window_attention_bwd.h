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
// Memory    tiles of this (window, head) and of the next, and kBlock rows of P and dS: 110 KB at N = 49, 290 KB at
//           N = 144 in float.
// Numerics  as forward. dbias is summed over the windows of a strip first, then over strips: two short float sums
//           instead of a long one. Long contractions are summed in parts. dlogit_scale and dpad_value are summed in
//           double.
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
  float *scores, *dprobs;                 // kRowBlock rows: exponentials, dP where it is not in registers
  float *p, *ds, *p_left, *ds_left;       // kBlock rows; left: contracted over rows
  float* dq;                              // kRowBlock rows: cosine attention
  float *dk, *dv;                         // cosine attention, and where blocks are summed
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
  s.dq = tile(Size::kRowBlock, hd_columns);
  s.dk = tile(n, hd_columns);
  s.dv = tile(n, hd_columns);
  s.q_inverse = arena.take<float>(columns);
  s.k_inverse = arena.take<float>(columns);
  s.dbias_strip = has_bias ? arena.take<float>(nH * head_stride) : nullptr;
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

// Hands rows in memory over to a finish.
template <class Finish>
SWIN_FAST_INLINE void hand_over(int m, int hd, const float* rows, int64_t ld, const Finish& finish) {
  for (int i = 0; i < m; i++)
    for (int d = 0; d < hd; d += kWidth) {
      const vf x[1][1] = {{loadf(rows + i * ld + d)}};
      finish(i, d, x);
    }
}

// Finishes of the products that give the gradients of one (window, head).
template <class Operands>
struct Gradients {
  const WindowAttentionBwdParams& p;
  const int64_t* token;  // row in the image, or -1: padding
  double* dpad_value;    // of the head, k; v stands nH * hd further on; null: dropped
  int h;
  float factor;  // of dq and dk

  // Rows from i0 on of dq, dk or dv: part 0, 1 or 2.
  SWIN_FAST_INLINE ToImage<Operands> to_image(int part, int i0) const {
    static const float one = 1.f;
    const int64_t hd = p.hd, C = p.nH * hd;
    return {p.dtype,
            p.dqkv,
            3 * C,
            part * C + h * hd,
            p.hd,
            token + i0,
            part == 2 ? &one : &factor,
            0,
            part == 0 || dpad_value == nullptr ? nullptr : dpad_value + (part - 1) * C};
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
  const int64_t bytes = Operands::element_bytes(p.dtype), C = static_cast<int64_t>(p.nH) * hd;
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

      const ScoreTerms terms = score_terms<Operands>(task, tokens, h, q, k, s.q_inverse, s.k_inverse);
      float* dbias = has_bias ? s.dbias_strip + h * task.layout.head_stride : nullptr;
      const Gradients<Operands> gradients{
          p, tokens.row, sums.dpad_value != nullptr ? sums.dpad_value + h * hd : nullptr, h, terms.scale};

      for (int b0 = 0; b0 < n; b0 += kBlock) {
        const int block = kWhole ? kBlock : min_of(n - b0, kBlock);
        // Rows [r0, r0 + m) of the block of P and dS.
        const auto probabilities = [&](int r0, int m) __attribute__((always_inline)) {
          constexpr int kTile = Size::kTileRows ? Size::kTileRows : Size::kRowBlock;
          for (int t0 = 0; t0 < (Size::kTileRows ? Size::kRowBlock : 1); t0 += kTile) {
            const int rows = Size::kTileRows ? kTile : m, i = b0 + r0 + t0;
            const int64_t at = (r0 + t0) * static_cast<int64_t>(n_row);
            RowValues lone, lone_bias = {}, lone_d, top, exp_sums;
            using Rows = decltype(product_rows<Operands>(size, 0, 0, q, k, s.kt, s.scores, lone));
            const SoftmaxRows<Operands, Size, Rows> softmax{size, terms, i, rows};
            if constexpr (Size::kLone) softmax.lone_bias(lone_bias);
            Rows x = product_rows<Operands>(size, i, rows, q, k, s.kt, s.scores, lone);
            softmax.scores(x, lone, lone_bias, top);
            softmax.exponentials(x, lone, top, exp_sums, [&](int r, int v, vf e) __attribute__((always_inline)) {
              storef(s.scores + r * columns + v * kWidth, e);
            });
            Rows d = product_rows<Operands>(size, i, rows, dout, v, s.vt, s.dprobs, lone_d);
            softmax_bwd_rows(softmax, s.scores, columns, lone, exp_sums, d, lone_d, dbias, s.p + at, s.ds + at, n_row);
          }
        };
        const auto store_dq = [&](int r0, int m) __attribute__((always_inline)) {
          const int i0 = b0 + r0;
          const Operand ds_k{s.ds + r0 * static_cast<int64_t>(n_row), n_row, 1, k_right, hd_columns};
          const auto finish = gradients.to_image(0, i0);
          const ToMemory memory{s.dq, hd_columns};
          const auto in_parts = [&](const auto& last) __attribute__((always_inline)) {
            gemm_in_parts<Product, Size::kStaticRows, Size::kStaticHD>(m, hd, n_steps, ds_k, memory, last);
          };
          if (!cosine) {
            if constexpr (Size::kStaticN > 0) {
              gemm<Product, Size::kStaticRows, Size::kStaticHD>(m, hd, n_steps, ds_k, kNothing, finish);
            } else {
              in_parts(finish);
            }
            return;
          }
          in_parts(memory);
          sums.dlogit_scale[h] += project_rows<Operands>(q + static_cast<int64_t>(i0) * hd_row, hd_row,
                                                         s.q_inverse + i0, m, hd, s.dq, hd_columns);
          hand_over(m, hd, s.dq, hd_columns, finish);
        };
        const int row_blocks = (block + Size::kRowBlock - 1) / Size::kRowBlock;
        const auto rows_of = [&](int i) { return min_of(block - i * Size::kRowBlock, Size::kRowBlock); };
        for (int i = 0; i < row_blocks + Size::kDelay; i++) {
          if (i < row_blocks) {
            const int r0 = i * Size::kRowBlock, m = rows_of(i), i0 = b0 + r0;
            if (more) {
              for (int r = i0; r < i0 + m; r++) {
                beyond.prefetch_qkv(r, hd);
                if (ahead.row[r] < 0) continue;
                prefetch<0>(ahead.dout[r] + bytes * h * hd, bytes * hd);
#pragma GCC unroll 3
                for (int part = 0; part < 3; part++)
                  prefetch<1>(static_cast<char*>(p.dqkv) + bytes * ((ahead.row[r] * 3 + part) * C + h * hd),
                              bytes * hd);
              }
            }
            if (has_next) {
              next.pack(i0, m, hd, s.tiles[head ^ 1]);
              Operands::pack(p.dtype, next_dout, i0, m, hd, s.dout[head ^ 1], hd_row);
            }
            probabilities(r0, m);
          }
          const int ready = i - Size::kDelay;
          if (ready >= 0) store_dq(ready * Size::kRowBlock, rows_of(ready));
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
        const Operand p_dout{p_left, 1, left_stride, dout_right + right_offset, hd_columns};
        const Operand ds_q{ds_left, 1, left_stride, q_right + right_offset, hd_columns};
        // One of them: from zero in the first block, on top of the sum of the blocks before in later ones, and to the
        // image from the last; cosine attention projects dk in between.
        const auto contract = [&](const Operand& o, float* sum, const ToImage<Operands>& image,
                                  bool to_image) __attribute__((always_inline)) {
          const OnTopOf so_far{kSummed && b0 > 0 ? sum : nullptr, hd_columns};
          const auto run = [&](const auto& finish) __attribute__((always_inline)) {
            gemm<Product, Size::kStaticN, Size::kStaticHD>(n, hd, block_steps, o, so_far, finish);
          };
          to_image ? run(image) : run(ToMemory{sum, hd_columns});
        };
        const bool last_block = b0 + block == n;
        contract(p_dout, s.dv, gradients.to_image(2, 0), last_block);
        contract(ds_q, s.dk, gradients.to_image(1, 0), last_block && !cosine);
        if (last_block && cosine) {
          project_rows<Operands>(k, hd_row, s.k_inverse, n, hd, s.dk, hd_columns);
          hand_over(n, hd, s.dk, hd_columns, gradients.to_image(1, 0));
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
