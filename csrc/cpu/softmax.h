// SPDX-License-Identifier: Apache-2.0
//
// From products q.k to probabilities, and from their gradients back, a few rows of one (window, head) at a time.
// Included by each kernels_*.cpp after sizes.h.
//
// Where the sizes are known, a tile of rows stays in registers from the accumulators of q k^T to the exponentials, and
// dO v^T likewise to dS: no row of either is ever stored and read again (RegisterRows). Other sizes pass through memory
// (MemoryRows). The code is one.
#pragma once

#include "sizes.h"

namespace swin_fast::cpu {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

template <int kRows, int kVectors>
struct RegisterRows {
  static constexpr int kStaticRows = kRows, kStaticVectors = kVectors;
  vf x[kRows][kVectors];
  SWIN_FAST_INLINE vf get(int r, int v) const { return x[r][v]; }
  SWIN_FAST_INLINE void set(int r, int v, vf a) { x[r][v] = a; }
};

struct MemoryRows {
  static constexpr int kStaticRows = 0, kStaticVectors = 0;
  float* x;
  int64_t ld;
  SWIN_FAST_INLINE vf get(int r, int v) const { return loadf(x + r * ld + v * kWidth); }
  SWIN_FAST_INLINE void set(int r, int v, vf a) { storef(x + r * ld + v * kWidth, a); }
};

// Products of rows [i0, i0 + m) of a with all N rows of b, given as rows and transposed; `lone` is the last column
// where that stands apart. `memory` has room for the rows, if they are not kept in registers.
template <class Operands, class Size>
SWIN_FAST_INLINE auto product_rows(const Size& size, int i0, int m, const float* a, const float* b, const float* bt,
                                   float* memory, RowValues& lone) {
  using Product = typename Operands::Product;
  const int64_t ld = Operands::row_elements(size.hd()), columns = size.columns();
  const int steps = Operands::steps(size.hd());
  if constexpr (Size::kLone)
    dot_column<Product, Size::kRowBlock>(steps, a + i0 * ld, ld, b + (size.n() - 1) * ld, lone);
  if constexpr (Size::kTileRows > 0) {
    RegisterRows<Size::kTileRows, Size::kVectors> rows;
    clear(rows.x);
    multiply<Product>(rows.x, steps, a + i0 * ld, ld, 1, bt, columns);
    return rows;
  } else {
    gemm<Product, Size::kStaticRows, Size::kProductN>(m, size.product_n(), steps, {a + i0 * ld, ld, 1, bt, columns},
                                                      kNothing, ToMemory{memory, columns});
    return MemoryRows{memory, columns};
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
};

template <class Operands>
SWIN_FAST_INLINE vf exp_of(vf score, vf top) {
  return exp2_fast<Operands::Product::kShortExp>(mul(sub(score, top), set1(kLog2E)));
}

// Vectors that hold one value for each of kReduceRows rows.
constexpr int kRowVectors = (kReduceRows + kWidth - 1) / kWidth;
SWIN_FAST_INLINE vf get(const RowValues& values, int v) { return loadf(values.row + v * kWidth); }
SWIN_FAST_INLINE void set(RowValues& values, int v, vf x) { storef(values.row + v * kWidth, x); }

// The softmax of rows [i0, i0 + m), m of them or Rows::kStaticRows.
template <class Operands, class Size, class Rows>
struct SoftmaxRows {
  const Size& size;
  const ScoreTerms& terms;
  int i0, m;

  static constexpr int kRows = Rows::kStaticRows, kVectors = Rows::kStaticVectors;

  // f(r) for each row, and f(v) for each vector of a row.
  template <class F>
  SWIN_FAST_INLINE void rows(const F& f) const {
    each<kRows>(m, f);
  }
  template <class F>
  SWIN_FAST_INLINE void vectors(const F& f) const {
    each<kVectors>(size.vectors(), f);
  }
  // The sum over the vectors of a row, in parts of kColumnPad columns that are added last: the same few long sums on
  // every path. (Padded keys have equal terms, and those all round the same way.) f(v, &sum) is the sum with vector v;
  // without a sum yet, f(v, nullptr).
  template <class F>
  SWIN_FAST_INLINE vf sum(const F& f) const {
    constexpr int kParts = kColumnPad / kWidth;
    static_assert(kRows == 0 || kParts == 1);
    vf total = f(0, nullptr);
    if constexpr (kRows > 0) {
      each<kVectors - 1>(kVectors - 1, [&](int v) __attribute__((always_inline)) { total = f(v + 1, &total); });
    } else {
      for (int v = kParts; v < size.vectors(); v += kParts) total = f(v, &total);
      for (int part = 1; part < kParts && part < size.vectors(); part++) {
        vf t = f(part, nullptr);
        for (int v = part + kParts; v < size.vectors(); v += kParts) t = f(v, &t);
        total = add(total, t);
      }
    }
    return total;
  }
  // out = what reduces `values` row by row; rows that are not there repeat the first.
  template <class Op>
  SWIN_FAST_INLINE void reduce(vf (&values)[kReduceRows], RowValues& out) const {
#pragma GCC unroll 8
    for (int r = kRows; r < kReduceRows; r++)
      if (r >= m) values[r] = values[0];
    reduce_rows<Op>(values, out);
  }
  // x in vector v of a row; behind column N, where no number stands, `rest`.
  SWIN_FAST_INLINE vf inside(int v, vf x, vf rest) const {
    if constexpr (kRows > 0) return x;  // whole vectors
    return v == size.vectors() - 1 && size.last_columns() < kWidth ? keep(x, size.last_columns(), rest) : x;
  }

  // The bias of the lone column. Gathered row by row, so it is called ahead of the products: what is stored in pieces
  // cannot be loaded as a vector until the stores have left their queue.
  SWIN_FAST_INLINE void lone_bias(RowValues& bias) const {
    for (int r = 0; r < m; r++) bias.row[r] = terms.bias[terms.row_offset[i0 + r] + size.n() - 1];
  }

  // From products to scores in place; top = the maximum of each row, 0 if it is wholly -inf.
  SWIN_FAST_INLINE void scores(Rows& x, RowValues& lone, const RowValues& lone_bias, RowValues& top) const {
    vf row_top[kReduceRows];
    rows([&](int r) __attribute__((always_inline)) {
      const float* bias = terms.bias + terms.row_offset[i0 + r];
      vf factor = set1(terms.scale);
      if (terms.k_inverse != nullptr) {
        factor = mul(factor, set1(terms.q_inverse[i0 + r]));
        vectors([&](int v) __attribute__((always_inline)) {
          x.set(r, v, mul(x.get(r, v), loadf(terms.k_inverse + v * kWidth)));
        });
      }
      vectors([&](int v)
                  __attribute__((always_inline)) { x.set(r, v, fma(x.get(r, v), factor, loadf(bias + v * kWidth))); });
      if (terms.region != nullptr) {
        const vf mask = set1(terms.mask_value);
        vectors([&](int v) __attribute__((always_inline)) {
          x.set(r, v, add_where_differs(x.get(r, v), terms.region + v * kWidth, terms.region[i0 + r], mask));
        });
      }
      vectors([&](int v) __attribute__((always_inline)) {
        // Behind column N: exp makes 0 of it.
        if constexpr (kRows == 0) x.set(r, v, inside(v, x.get(r, v), set1(-__builtin_inff())));
        row_top[r] = v == 0 ? x.get(r, 0) : max_nan(row_top[r], x.get(r, v));
      });
    });
    reduce<Max>(row_top, top);
    if constexpr (Size::kLone) {
      for (int v = 0; v < kRowVectors; v++) {
        vf factor = set1(terms.scale), t = get(lone, v);
        if (terms.k_inverse != nullptr) {
          factor = mul(factor, loadf(terms.q_inverse + i0 + v * kWidth));
          t = mul(t, set1(terms.k_inverse[size.n() - 1]));
        }
        t = fma(t, factor, get(lone_bias, v));
        if (terms.region != nullptr)
          t = add_where_differs(t, terms.region + i0 + v * kWidth, terms.region[size.n() - 1], set1(terms.mask_value));
        set(lone, v, t);
        set(top, v, max_nan(get(top, v), t));
      }
    }
    // A row that is wholly -inf has no maximum to subtract; its exponentials are then 0.
    for (int v = 0; v < kRowVectors; v++) set(top, v, zero_where(get(top, v), -__builtin_inff()));
  }

  // From scores to exp(score - top), handed to store(r, v, x) too; sums of the rows, and the lone column's with it.
  template <class Store>
  SWIN_FAST_INLINE void exponentials(const Rows& x, RowValues& lone, const RowValues& top, RowValues& sums,
                                     const Store& store) const {
    vf row_sums[kReduceRows];
    rows([&](int r) __attribute__((always_inline)) {
      const vf shift = set1(top.row[r]);
      row_sums[r] = sum([&](int v, const vf* total) __attribute__((always_inline)) {
        const vf e = exp_of<Operands>(x.get(r, v), shift);
        store(r, v, e);
        return total == nullptr ? e : add(*total, e);
      });
    });
    reduce<Add>(row_sums, sums);
    if constexpr (Size::kLone) {
      for (int v = 0; v < kRowVectors; v++) {
        const vf e = exp_of<Operands>(get(lone, v), get(top, v));
        set(sums, v, add(get(sums, v), e));
        set(lone, v, e);
      }
    }
  }
};

// p = exp(score - max) of rows [i0, i0 + m), as left operand; inverse = 1 / sum of each row, 0 if it is wholly -inf.
template <class Operands, class Size, class Rows>
SWIN_FAST_INLINE void softmax_rows(const SoftmaxRows<Operands, Size, Rows>& softmax, Rows& x, RowValues& lone,
                                   const RowValues& lone_bias, float* p, int64_t ldp, RowValues& inverse) {
  RowValues top, sums;
  softmax.scores(x, lone, lone_bias, top);
  softmax.exponentials(x, lone, top, sums, [&](int r, int v, vf e) __attribute__((always_inline)) {
    Operands::store_values(p + r * ldp, v * kWidth, e);
  });
  if constexpr (Size::kLone) {
    for (int v = 0; v < kRowVectors; v++) set(lone, v, Operands::elements(get(lone, v)));
    for (int r = 0; r < softmax.m; r++) p[r * ldp + Operands::steps(softmax.size.n()) - 1] = lone.row[r];
  }
  for (int v = 0; v < kRowVectors; v++) set(inverse, v, reciprocal_or_zero(get(sums, v)));
}

// From exponentials e and their sums, and d = dO v^T, to P and dS as operands. dS is also added to the rows of the bias
// gradient; for the products with k and q, cosine attention divides it by ||q|| ||k||.
template <class Operands, class Size, class Rows>
SWIN_FAST_INLINE void softmax_bwd_rows(const SoftmaxRows<Operands, Size, Rows>& softmax, const float* e, int64_t lde,
                                       RowValues& lone_e, const RowValues& sums, Rows& d, RowValues& lone_d,
                                       float* dbias, float* p, float* ds, int64_t ldp) {
  const ScoreTerms& terms = softmax.terms;
  const int i0 = softmax.i0, n = softmax.size.n();
  RowValues deltas, inverse;
  vf delta[kReduceRows];
  softmax.rows([&](int r) __attribute__((always_inline)) {
    delta[r] = softmax.sum([&](int v, const vf* total) __attribute__((always_inline)) {
      const vf x = loadf(e + r * lde + v * kWidth), dx = softmax.inside(v, d.get(r, v), zero());
      return total == nullptr ? mul(x, dx) : fma(x, dx, *total);
    });
  });
  softmax.template reduce<Add>(delta, deltas);
  for (int v = 0; v < kRowVectors; v++) {
    set(inverse, v, reciprocal_or_zero(get(sums, v)));
    vf t = get(deltas, v);
    if constexpr (Size::kLone) t = fma(get(lone_e, v), get(lone_d, v), t);
    set(deltas, v, mul(t, get(inverse, v)));
  }
  softmax.rows([&](int r) __attribute__((always_inline)) {
    const vf scale = set1(inverse.row[r]), shift = set1(deltas.row[r]);
    softmax.vectors([&](int v) __attribute__((always_inline)) {
      const vf x = mul(loadf(e + r * lde + v * kWidth), scale);
      Operands::store_values(p + r * ldp, v * kWidth, x);
      d.set(r, v, softmax.inside(v, mul(x, sub(d.get(r, v), shift)), zero()));
    });
    if (dbias != nullptr) {
      float* row = dbias + terms.row_offset[i0 + r];
      softmax.vectors([&](int v) __attribute__((always_inline)) {
        storef(row + v * kWidth, add(loadf(row + v * kWidth), d.get(r, v)));
      });
    }
    if (terms.k_inverse != nullptr) {
      const vf factor = set1(terms.q_inverse[i0 + r]);
      softmax.vectors([&](int v) __attribute__((always_inline)) {
        const vf t = mul(mul(d.get(r, v), factor), loadf(terms.k_inverse + v * kWidth));
        d.set(r, v, softmax.inside(v, t, zero()));
      });
    }
    softmax.vectors(
        [&](int v) __attribute__((always_inline)) { Operands::store_values(ds + r * ldp, v * kWidth, d.get(r, v)); });
  });
  if constexpr (Size::kLone) {
    for (int v = 0; v < kRowVectors; v++) {
      const vf x = mul(get(lone_e, v), get(inverse, v));
      set(lone_e, v, Operands::elements(x));
      set(lone_d, v, mul(x, sub(get(lone_d, v), get(deltas, v))));
    }
    const int at = Operands::steps(n) - 1;
    for (int r = 0; r < softmax.m; r++) {
      p[r * ldp + at] = lone_e.row[r];
      if (dbias != nullptr) dbias[terms.row_offset[i0 + r] + n - 1] += lone_d.row[r];
    }
    for (int v = 0; v < kRowVectors; v++) {
      vf t = get(lone_d, v);
      if (terms.k_inverse != nullptr)
        t = mul(mul(t, loadf(terms.q_inverse + i0 + v * kWidth)), set1(terms.k_inverse[n - 1]));
      set(lone_d, v, Operands::elements(t));
    }
    for (int r = 0; r < softmax.m; r++) ds[r * ldp + at] = lone_d.row[r];
  }
}

}  // namespace
}  // namespace swin_fast::cpu
