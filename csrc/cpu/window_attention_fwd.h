// SPDX-License-Identifier: Apache-2.0
//
// window_attention_fwd
// Computes  out = softmax(scale * q k^T + bias + mask) v for every (window, head), rows of q, k, v gathered from image
//           order by computed index, rows of out scattered back; cosine attention divides by the row norms.
// Grid      one call takes a range of strips (rows of windows of one image); windows in order, heads inside a window.
// Memory    q, k^T, v of one (window, head) and a block of kRowBlock score rows: 33 KB at N = 49, 66 KB at N = 144.
//           The next window's rows are prefetched while this one is computed.
// Numerics  products in the input type (float16 and, without AVX512-BF16, bfloat16 are widened: exact), accumulation,
//           scores, softmax and the final division in float. P is not normalised before the second product.
// Source    Liu et al. 2021, section 3.2; Liu et al. 2022 (Swin V2), section 3.2 for cosine attention.
#pragma once

#include "tile.h"
#include "tokens.h"

namespace swin_fast::cpu {
namespace {

constexpr float kNormEps = 1e-12f;
constexpr float kLog2E = 1.44269504088896341f;

SWIN_FAST_INLINE constexpr int round_up(int a, int b) { return (a + b - 1) / b * b; }

// Sizes of one instance; kN = 0 means that both are known at run time only.
template <int kN, int kHD>
struct Sizes {
  static constexpr int kStaticN = kN, kStaticHD = kHD;
  // Rows of scores computed together, so that they stay in L1; it divides N where N is static.
  static constexpr int kRowBlock = kN == 0 ? 8 : kN % 8 == 0 ? 8 : 7;
  // N = 49 leaves one column behind 48: it is computed for all rows of a block as one vector over rows, since a fourth
  // vector of every row would be a quarter of softmax for one value (7 % of a forward in bfloat16).
  static constexpr bool kLone = kN % kColumnPad == 1;
  static constexpr int kProductN = kLone ? kN - 1 : kN;
  // The row count as a template argument of gemm: 0, a run-time count, where the last block may be short.
  static constexpr int kStaticRows = kN == 0 ? 0 : kRowBlock;
  static_assert((kN == 0 || kN % kRowBlock == 0) && kRowBlock <= kReduceRows);
  int n_, hd_;
  Sizes(int n, int hd) : n_(n), hd_(hd) {}
  SWIN_FAST_INLINE int n() const { return kN ? kN : n_; }
  SWIN_FAST_INLINE int hd() const { return kHD ? kHD : hd_; }
  SWIN_FAST_INLINE int product_n() const { return kN ? kProductN : n_; }
  SWIN_FAST_INLINE int columns() const { return round_up(n(), kColumnPad); }  // of a row of scores
  SWIN_FAST_INLINE int hd_columns() const { return round_up(hd(), kColumnPad); }
  // Vectors that hold a row of scores, but for a lone column.
  SWIN_FAST_INLINE int vectors() const { return (product_n() + kWidth - 1) / kWidth; }
  static constexpr int kMaxVectors = ((kN ? kProductN : kMaxWindowArea) + kWidth - 1) / kWidth;
};

// How operands are held for products in float.
struct FloatOperands {
  using Product = FloatProduct;
  // Contraction steps and row length (in 32-bit elements) of a row of hd or N values.
  static SWIN_FAST_INLINE int steps(int values) { return values; }
  static SWIN_FAST_INLINE int row_elements(int values) { return round_up(values, kColumnPad); }

  // dst: rows [i0, i0 + m) of hd values, natural order.
  static SWIN_FAST_INLINE void pack(ScalarType dtype, const RowSource& rows, int i0, int m, int hd, float* dst,
                                    int64_t ld) {
    switch (dtype) {
      case ScalarType::kFloat32: return pack_rows<F32>(rows, i0, m, hd, dst, ld);
      case ScalarType::kFloat16: return pack_rows<F16>(rows, i0, m, hd, dst, ld);
      case ScalarType::kBFloat16: return pack_rows<BF16>(rows, i0, m, hd, dst, ld);
    }
  }
  // The same rows as right operand, contracted over rows: in float they are what they were.
  static SWIN_FAST_INLINE const float* as_right(const float* rows, int64_t, int, int, float*) { return rows; }
  static constexpr bool kRightIsCopy = false;
  // One vector of a packed row, as floats.
  static SWIN_FAST_INLINE vf values(const float* row, int d) { return loadf(row + d); }
  static SWIN_FAST_INLINE void store_values(float* row, int d, vf x) { storef(row + d, x); }
  // Lane by lane, the element that holds one value and whose neighbour, if it has one, is 0.
  static SWIN_FAST_INLINE vf elements(vf x) { return x; }
};

#ifdef SWIN_FAST_ISA_AVX512_BF16
// The same for products in bfloat16, two values an element.
struct PairOperands {
  using Product = PairProduct;
  static SWIN_FAST_INLINE int steps(int values) { return (values + 1) / 2; }
  static SWIN_FAST_INLINE int row_elements(int values) { return round_up(values, 2 * kColumnPad) / 2; }

  static SWIN_FAST_INLINE void pack(ScalarType, const RowSource& rows, int i0, int m, int hd, float* dst, int64_t ld) {
    const int whole = hd / 32 * 32;
    for (int i = i0; i < i0 + m; i++) {
      const uint16_t* row = static_cast<const uint16_t*>(rows[i]);
      uint16_t* out = reinterpret_cast<uint16_t*>(dst + i * ld);
      for (int d = 0; d < whole; d += 32) _mm512_storeu_si512(out + d, _mm512_loadu_si512(row + d));
      if (whole < hd) {
        const __mmask32 rest = static_cast<__mmask32>((1ull << (hd - whole)) - 1);
        _mm512_storeu_si512(out + whole, _mm512_maskz_loadu_epi16(rest, row + whole));
      }
    }
  }
  // Rows as right operand: neighbours of the contraction (two rows) become one element. An odd last row pairs with 0.
  static SWIN_FAST_INLINE const float* as_right(const float* rows, int64_t ld, int n, int columns, float* dst) {
    for (int i = 0; i < n; i += 2) {
      const uint16_t* a = reinterpret_cast<const uint16_t*>(rows + i * ld);
      const uint16_t* b = i + 1 < n ? reinterpret_cast<const uint16_t*>(rows + (i + 1) * ld) : nullptr;
      float* out = dst + static_cast<int64_t>(i / 2) * columns;
      for (int d = 0; d < columns; d += 16) {
        __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + d)));
        if (b != nullptr) {
          const __m512i y = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + d)));
          x = _mm512_or_si512(x, _mm512_slli_epi32(y, 16));
        }
        _mm512_storeu_si512(out + d, x);
      }
    }
    return dst;
  }
  static constexpr bool kRightIsCopy = true;
  static SWIN_FAST_INLINE vf values(const float* row, int d) {
    return load<BF16>(reinterpret_cast<const uint16_t*>(row) + d);
  }
  static SWIN_FAST_INLINE void store_values(float* row, int d, vf x) {
    store<BF16>(reinterpret_cast<uint16_t*>(row) + d, x);
  }
  static SWIN_FAST_INLINE vf elements(vf x) { return _mm512_castsi512_ps(_mm512_cvtepu16_epi32(to_bf16(x))); }
};
#endif

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

// What turns the raw products of one (window, head) into scores.
struct ScoreTerms {
  float scale;             // or logit_scale
  const float* q_inverse;  // cosine attention: 1 / ||q||, 1 / ||k||; else null
  const float* k_inverse;
  const float* bias;  // of the head, with the offset of each row
  const int32_t* row_offset;
  const int32_t* region;  // null outside border windows
  float mask_value;

  SWIN_FAST_INLINE float row_factor(int i) const { return q_inverse != nullptr ? scale * q_inverse[i] : scale; }
};

// One value for each row of a block, and room for whole vectors of them.
struct alignas(64) RowValues {
  static constexpr int kVectors = (kReduceRows + kWidth - 1) / kWidth;
  float row[kVectors * kWidth] = {};
  SWIN_FAST_INLINE vf vector(int v) const { return loadf(row + v * kWidth); }
  SWIN_FAST_INLINE void set(int v, vf x) { storef(row + v * kWidth, x); }
};

template <class Operands>
SWIN_FAST_INLINE vf exp_of(vf score, vf top) {
  return exp2_fast<Operands::Product::kShortExp>(mul(sub(score, top), set1(kLog2E)));
}

// Turns rows [i0, i0 + m) of products into scores in place; top = the maximum of each, 0 if wholly -inf; lone = the
// scores of the lone column, if there is one.
template <class Size>
SWIN_FAST_INLINE void score_rows(const Size& size, const ScoreTerms& terms, int i0, int m, float* scores, int64_t ld,
                                 RowValues& top, RowValues& lone) {
  const int vectors = size.vectors(), n = size.n();
  const int last = size.product_n() - (vectors - 1) * kWidth;
  const vf minus_infinity = set1(-__builtin_inff());
  vf row_top[kReduceRows];
  for (int r = 0; r < m; r++) {
    float* row = scores + r * ld;
    const float* bias = terms.bias + terms.row_offset[i0 + r];
    const vf factor = set1(terms.row_factor(i0 + r));
    vf t[Size::kMaxVectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) t[v] = loadf(row + v * kWidth);
    if (terms.k_inverse != nullptr) {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; v++) t[v] = mul(t[v], loadf(terms.k_inverse + v * kWidth));
    }
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) t[v] = fma(t[v], factor, loadf(bias + v * kWidth));
    if (terms.region != nullptr) {
      const vf mask = set1(terms.mask_value);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; v++)
        t[v] = add_where_differs(t[v], terms.region + v * kWidth, terms.region[i0 + r], mask);
    }
    // Behind column n: exp makes 0 of it.
    if (last < kWidth) t[vectors - 1] = keep(t[vectors - 1], last, minus_infinity);
    row_top[r] = t[0];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
      storef(row + v * kWidth, t[v]);
      if (v > 0) row_top[r] = max_nan(row_top[r], t[v]);
    }
  }
  for (int r = m; r < kReduceRows; r++) row_top[r] = row_top[0];
  reduce_rows<Max>(row_top, top.row);
  if constexpr (Size::kLone) {
    const float k_inverse = terms.k_inverse != nullptr ? terms.k_inverse[n - 1] : 1.f;
    for (int r = 0; r < m; r++) {
      float t =
          scores[r * ld + n - 1] * k_inverse * terms.row_factor(i0 + r) + terms.bias[terms.row_offset[i0 + r] + n - 1];
      if (terms.region != nullptr && terms.region[n - 1] != terms.region[i0 + r]) t += terms.mask_value;
      lone.row[r] = t;
      top.row[r] = top.row[r] > t ? top.row[r] : t;
    }
  }
  // A row that is wholly -inf has no maximum to subtract; its exponentials are then 0.
  for (float& t : top.row) t = t == -__builtin_inff() ? 0.f : t;
}

// inverse[r] = 1 / sums[r], and 0 for a row that is wholly -inf.
SWIN_FAST_INLINE void invert_sums(const RowValues& sums, RowValues& inverse) {
  for (int r = 0; r < kReduceRows; r++) inverse.row[r] = sums.row[r] == 0.f ? 0.f : 1.f / sums.row[r];
}

// p = exp(score - max) of rows [i0, i0 + m), as left operand; inverse = 1 / sum of each row.
template <class Operands, class Size>
SWIN_FAST_INLINE void softmax_rows(const Size& size, const ScoreTerms& terms, int i0, int m, float* scores, int64_t ld,
                                   float* p, int64_t ldp, RowValues& inverse) {
  const int vectors = size.vectors();
  RowValues top, lone, sums;
  score_rows(size, terms, i0, m, scores, ld, top, lone);
  vf sum[kReduceRows];
  for (int r = 0; r < m; r++) {
    const vf shift = set1(top.row[r]);
    vf total = zero();
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
      const vf e = exp_of<Operands>(loadf(scores + r * ld + v * kWidth), shift);
      total = add(total, e);
      Operands::store_values(p + r * ldp, v * kWidth, e);
    }
    sum[r] = total;
  }
  for (int r = m; r < kReduceRows; r++) sum[r] = sum[0];
  reduce_rows<Add>(sum, sums.row);
  if constexpr (Size::kLone) {
    for (int v = 0; v < RowValues::kVectors; v++) {
      const vf e = exp_of<Operands>(lone.vector(v), top.vector(v));
      sums.set(v, add(sums.vector(v), e));
      lone.set(v, Operands::elements(e));
    }
    for (int r = 0; r < m; r++) p[r * ldp + Operands::steps(size.n()) - 1] = lone.row[r];
  }
  invert_sums(sums, inverse);
}

SWIN_FAST_INLINE void store_out(ScalarType dtype, void* dst, int64_t at, const float* src, int hd, float factor) {
  switch (dtype) {
    case ScalarType::kFloat32: return store_row<F32>(static_cast<float*>(dst) + at, src, hd, set1(factor));
    case ScalarType::kFloat16: return store_row<F16>(static_cast<uint16_t*>(dst) + at, src, hd, set1(factor));
    case ScalarType::kBFloat16: return store_row<BF16>(static_cast<uint16_t*>(dst) + at, src, hd, set1(factor));
  }
}

// Raw products of rows [i0, i0 + m) of one operand with all N rows of the other, given as rows and transposed.
template <class Operands, class Size>
SWIN_FAST_INLINE void product_rows(const Size& size, int i0, int m, const float* a, const float* b, const float* bt,
                                   float* products) {
  using Product = typename Operands::Product;
  const int64_t ld = Operands::row_elements(size.hd());
  const int steps = Operands::steps(size.hd()), n = size.n(), columns = size.columns();
  gemm<Product, Size::kStaticRows, Size::kProductN, false>(m, n, steps, a + i0 * ld, ld, 1, bt, columns, products,
                                                           columns);
  if constexpr (Size::kLone)
    dot_column<Product>(m, steps, a + i0 * ld, ld, b + (n - 1) * ld, products + n - 1, columns);
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
  SWIN_FAST_INLINE void prefetch(int i0, int m) const {
    for (int part = 0; part < 3; part++)
      prefetch_rows(tokens.qkv, i0, m, rows(part).offset, element_size(p.dtype) * p.hd);
  }
};

struct FwdScratch {
  WindowTokens tokens[2];
  HeadTiles tiles[2];
  float *kt, *v_right, *scores, *p, *o, *q_inverse, *k_inverse;
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
  s.scores = arena.take<float>(static_cast<int64_t>(Size::kRowBlock) * columns);
  s.p = arena.take<float>(static_cast<int64_t>(Size::kRowBlock) * Operands::row_elements(n));
  s.o = arena.take<float>(static_cast<int64_t>(Size::kRowBlock) * hd_columns);
  s.q_inverse = arena.take<float>(columns);
  s.k_inverse = arena.take<float>(columns);
}

template <class Operands, class Size>
void fwd_strips(const FwdTask& task, int64_t strip_begin, int64_t strip_end, void* scratch) {
  using Product = typename Operands::Product;
  const WindowAttentionFwdParams& p = *task.params;
  const Size size(p.window_area(), p.hd);
  const int n = size.n(), hd = size.hd(), columns = size.columns(), hd_columns = size.hd_columns();
  const int hd_row = Operands::row_elements(hd), p_row = Operands::row_elements(n);
  const int hd_steps = Operands::steps(hd), n_steps = Operands::steps(n);
  const int64_t bytes = element_size(p.dtype), C = static_cast<int64_t>(p.nH) * hd;
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

      ScoreTerms terms{p.scale,
                       nullptr,
                       nullptr,
                       task.bias + h * task.layout.head_stride,
                       task.layout.row_offset,
                       tokens.border ? tokens.region : nullptr,
                       p.mask_value};
      if (p.logit_scale != nullptr) {
        inverse_norms<Operands>(q, hd_row, n, hd, s.q_inverse);
        inverse_norms<Operands>(k, hd_row, n, hd, s.k_inverse);
        terms.scale = p.logit_scale[h];
        terms.q_inverse = s.q_inverse;
        terms.k_inverse = s.k_inverse;
      }

      for (int i0 = 0; i0 < n; i0 += Size::kRowBlock) {
        const int m = Size::kStaticRows ? Size::kStaticRows : (n - i0 < Size::kRowBlock ? n - i0 : Size::kRowBlock);
        if (more) {
          beyond.prefetch(i0, m);
          prefetch_for_write(p.out, ahead.row, i0, m, bytes * C, bytes * h * hd, bytes * hd);
        }
        if (has_next) next.pack(i0, m, hd, next_tiles);
        product_rows<Operands>(size, i0, m, q, k, s.kt, s.scores);
        RowValues inverse;
        softmax_rows<Operands>(size, terms, i0, m, s.scores, columns, s.p, p_row, inverse);
        gemm<Product, Size::kStaticRows, Size::kStaticHD, false>(m, hd, n_steps, s.p, p_row, 1, v, hd_columns, s.o,
                                                                 hd_columns);
        for (int r = 0; r < m; r++) {
          const int64_t token = tokens.row[i0 + r];
          if (token >= 0) store_out(p.dtype, p.out, token * C + h * hd, s.o + r * hd_columns, hd, inverse.row[r]);
        }
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
