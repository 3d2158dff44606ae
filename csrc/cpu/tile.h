// SPDX-License-Identifier: Apache-2.0
//
// What the attention kernels are made of: small matrix products on tiles that live in L1/L2, and the packing of image
// rows into such tiles. Included by each kernels_*.cpp after simd.h.
//
// A tile holds 32-bit elements. For products in float an element is a float; for products in bfloat16 it is a pair of
// neighbours along the contracted dimension, so the same code serves both and only dot() differs.
#pragma once

#include "simd.h"

namespace swin_fast::cpu {
namespace {

// Products in float: one element is one step of the contraction.
struct FloatProduct {
  static constexpr bool kShortExp = false;
  static SWIN_FAST_INLINE vf dot(vf acc, vf a, vf b) { return fma(a, b, acc); }
};

#ifdef SWIN_FAST_ISA_AVX512_BF16
// Products in bfloat16, accumulated in float: one element is two steps of the contraction.
struct PairProduct {
  static constexpr bool kShortExp = true;
  static SWIN_FAST_INLINE vf dot(vf acc, vf a, vf b) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

// acc[m][.] += sum_k A[m][k] B[k][.] for kM rows and NV vectors of columns, all in registers. A[m][k] stands at
// a[m * ars + k * acs].
template <int kM, int NV>
SWIN_FAST_INLINE void clear(vf (&acc)[kM][NV]) {
#pragma GCC unroll 16
  for (int i = 0; i < kM; i++) {
#pragma GCC unroll 16
    for (int v = 0; v < NV; v++) acc[i][v] = zero();
  }
}
template <class Product, int kM, int NV>
SWIN_FAST_INLINE void multiply(vf (&acc)[kM][NV], int K, const float* a, int64_t ars, int64_t acs, const float* b,
                               int64_t ldb) {
  for (int k = 0; k < K; k++) {
    // Held in registers meanwhile: the shorter of a row of B and a column of A.
    if constexpr (NV <= kM) {
      vf bv[NV];
#pragma GCC unroll 16
      for (int v = 0; v < NV; v++) bv[v] = loadf(b + v * kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < kM; i++) {
        const vf x = set1(a[i * ars]);
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) acc[i][v] = Product::dot(acc[i][v], x, bv[v]);
      }
    } else {
      vf av[kM];
#pragma GCC unroll 16
      for (int i = 0; i < kM; i++) av[i] = set1(a[i * ars]);
#pragma GCC unroll 16
      for (int v = 0; v < NV; v++) {
        const vf x = loadf(b + v * kWidth);
#pragma GCC unroll 16
        for (int i = 0; i < kM; i++) acc[i][v] = Product::dot(acc[i][v], av[i], x);
      }
    }
    a += acs;
    b += ldb;
  }
}

// What a product is added to: rows in memory, or nothing (null). Added last, so that a long contraction in parts is a
// few sums of sums: padding makes equal terms, and hundreds of those in one sum all round the same way.
struct OnTopOf {
  const float* c;
  int64_t ldc;
  template <int kM, int NV>
  SWIN_FAST_INLINE void operator()(int row, int column, vf (&acc)[kM][NV]) const {
    if (c == nullptr) return;
#pragma GCC unroll 16
    for (int i = 0; i < kM; i++) {
#pragma GCC unroll 16
      for (int v = 0; v < NV; v++) acc[i][v] = add(acc[i][v], loadf(c + (row + i) * ldc + column + v * kWidth));
    }
  }
};
constexpr OnTopOf kNothing{nullptr, 0};
// Where it goes: each tile of accumulators is handed over while it is in registers.
struct ToMemory {
  float* c;
  int64_t ldc;
  template <int kM, int NV>
  SWIN_FAST_INLINE void operator()(int row, int column, const vf (&acc)[kM][NV]) const {
#pragma GCC unroll 16
    for (int i = 0; i < kM; i++) {
#pragma GCC unroll 16
      for (int v = 0; v < NV; v++) storef(c + (row + i) * ldc + column + v * kWidth, acc[i][v]);
    }
  }
};

// Rows of a register tile that is `vectors` wide: as many accumulators as leave room for B and one broadcast.
constexpr int max_rows(int vectors) {
  if (kRegisters == 32) return vectors >= 4 ? 6 : vectors == 3 ? 9 : vectors == 2 ? 13 : 14;
  return vectors >= 4 ? 2 : vectors == 3 ? 4 : vectors == 2 ? 6 : 8;
}

// One product: A and B, and how far from one row or step to the next.
struct Operand {
  const float* a;
  int64_t ars, acs;
  const float* b;
  int64_t ldb;
};

// kM rows from `row` on, NV vectors of columns from `column` on.
template <class Product, int kM, int NV, class Finish>
SWIN_FAST_INLINE void gemm_tile(int row, int column, int K, const Operand& o, const OnTopOf& sum,
                                const Finish& finish) {
  vf acc[kM][NV];
  clear(acc);
  multiply<Product, kM, NV>(acc, K, o.a + row * o.ars, o.ars, o.acs, o.b + column, o.ldb);
  sum(row, column, acc);
  finish(row, column, acc);
}

// All rows of one chunk of columns. kM > 0: the count is known and is cut into nearly equal register tiles.
template <class Product, int kM, int NV, class Finish>
SWIN_FAST_INLINE void gemm_rows(int M, int column, int K, const Operand& o, const OnTopOf& sum, const Finish& finish) {
  constexpr int kMax = max_rows(NV);
  if constexpr (kM > 0) {
    constexpr int kTiles = (kM + kMax - 1) / kMax, kSmall = kM / kTiles, kLarge = kM % kTiles;
    int i = 0;
    if constexpr (kLarge > 0) {
      for (; i < kLarge * (kSmall + 1); i += kSmall + 1)
        gemm_tile<Product, kSmall + 1, NV>(i, column, K, o, sum, finish);
    }
    for (; i < kM; i += kSmall) gemm_tile<Product, kSmall, NV>(i, column, K, o, sum, finish);
  } else {
    constexpr int kStep = kMax >= 8 ? 8 : kMax >= 4 ? 4 : 2;
    int i = 0;
    for (; i + kStep <= M; i += kStep) gemm_tile<Product, kStep, NV>(i, column, K, o, sum, finish);
    for (; i < M; i++) gemm_tile<Product, 1, NV>(i, column, K, o, sum, finish);
  }
}

// The widest chunk of columns that cuts `vectors` evenly enough to keep the register tile full.
constexpr int chunk_vectors(int vectors) {
  if (kRegisters == 32) return vectors <= 4 ? vectors : vectors % 3 == 0 ? 3 : vectors % 4 == 0 ? 4 : 3;
  return vectors <= 3 ? vectors : vectors % 3 == 0 ? 3 : 2;
}

// A B on top of `sum`, to `finish`: M x columns, contraction length K in elements. kM, kColumns > 0 give compile-time
// sizes. Columns are rounded up to whole vectors, so B and what sum and finish touch need that much room.
template <class Product, int kM, int kColumns, class Finish>
SWIN_FAST_INLINE void gemm(int M, int columns, int K, const Operand& o, const OnTopOf& sum, const Finish& finish) {
  constexpr int kVectors = (kColumns + kWidth - 1) / kWidth;
  constexpr int kChunk = kColumns > 0 ? chunk_vectors(kVectors) : kRegisters == 32 ? 3 : 2;
  const int vectors = kColumns > 0 ? kVectors : (columns + kWidth - 1) / kWidth;
  int v = 0;
  for (; v + kChunk <= vectors; v += kChunk) gemm_rows<Product, kM, kChunk>(M, v * kWidth, K, o, sum, finish);
  if constexpr (kColumns > 0) {
    if constexpr (kVectors % kChunk > 0) gemm_rows<Product, kM, kVectors % kChunk>(M, v * kWidth, K, o, sum, finish);
  } else {
    for (; v < vectors; v++) gemm_rows<Product, kM, 1>(M, v * kWidth, K, o, sum, finish);
  }
}

// The same with a contraction of any length, cut into parts whose sums are added up in `memory`.
template <class Product, int kM, int kColumns, class Finish>
SWIN_FAST_INLINE void gemm_in_parts(int M, int columns, int K, Operand o, const ToMemory& memory,
                                    const Finish& finish) {
  constexpr int kPart = 64;
  OnTopOf sum = kNothing;
  for (; K > kPart; K -= kPart, o.a += kPart * o.acs, o.b += kPart * o.ldb, sum = {memory.c, memory.ldc})
    gemm<Product, kM, kColumns>(M, columns, kPart, o, sum, memory);
  gemm<Product, kM, kColumns>(M, columns, K, o, sum, finish);
}

// out[r] = A row r . b for kM rows of `length` elements: one column of a product. The column that N = 49 leaves over
// after 48 costs a third of a narrow vector this way.
template <class Product, int kM>
SWIN_FAST_INLINE void dot_column(int length, const float* a, int64_t lda, const float* b, RowValues& out) {
  static_assert(kM <= kReduceRows);
  vf sums[kReduceRows];
#pragma GCC unroll 8
  for (int r = 0; r < kReduceRows; r++) {
    sums[r] = zero();
    if (r < kM)
      for (int k = 0; k < length; k += kWidth) sums[r] = Product::dot(sums[r], loadf(a + r * lda + k), loadf(b + k));
  }
  reduce_rows<Add>(sums, out);
}

// ------------------------------------------------------------------------------------------------------- packing
// Where the hd values of a token stand: `offset` bytes behind the token's first, or at `pad` for padding.
struct RowSource {
  const char* const* first;  // null: padding
  int64_t offset;
  const void* pad;
  SWIN_FAST_INLINE const void* operator[](int i) const { return first[i] != nullptr ? first[i] + offset : pad; }
};

// dst[i][0..hdp) = row i as floats for i in [i0, i0 + m), zeros from hd on up to a whole vector.
template <class T>
SWIN_FAST_INLINE void pack_rows(const RowSource& rows, int i0, int m, int hd, float* dst, int64_t ld) {
  const int whole = hd / kWidth * kWidth;
  for (int i = i0; i < i0 + m; i++) {
    const typename T::type* row = static_cast<const typename T::type*>(rows[i]);
    float* out = dst + i * ld;
    for (int d = 0; d < whole; d += kWidth) storef(out + d, load<T>(row + d));
    if (whole < hd) storef(out + whole, load_part<T>(row + whole, hd - whole));
  }
}

// dst[d][i] = row i, element d, for rows of 32-bit elements already packed at src[i][d], `steps` of them.
// What stands behind column n is stale or zero; softmax.h takes no number from there.
SWIN_FAST_INLINE void transpose_rows(const float* src, int64_t lds, int n, int steps, float* dst, int64_t ld) {
  int i = 0;
  // The vector path reads whole vectors of a row, which packing has padded to a multiple of 16 elements.
  for (; i + kWidth <= n; i += kWidth) {
    for (int d = 0; d < steps; d += kWidth) {
      vf r[kWidth];
#pragma GCC unroll 16
      for (int j = 0; j < kWidth; j++) r[j] = loadf(src + (i + j) * lds + d);
      transpose(r);
      const int count = steps - d < kWidth ? steps - d : kWidth;
      if (count == kWidth) {
#pragma GCC unroll 16
        for (int j = 0; j < kWidth; j++) storef(dst + (d + j) * ld + i, r[j]);
      } else {
        for (int j = 0; j < count; j++) storef(dst + (d + j) * ld + i, r[j]);
      }
    }
  }
  if (i == n) return;
  const int rest = n - i;
  for (int d = 0; d < steps; d++) {
    float* out = dst + d * ld + i;
    storef(out, zero());
    for (int j = 0; j < rest; j++) out[j] = src[(i + j) * lds + d];
  }
}

// Writes columns [column, hd) of a row of T, as far as NV vectors reach.
template <class T, int NV>
SWIN_FAST_INLINE void store_row(typename T::type* row, int column, int hd, const vf (&x)[NV], vf factor) {
#pragma GCC unroll 16
  for (int v = 0; v < NV; v++) {
    const int d = column + v * kWidth;
    if (d + kWidth <= hd) {
      store<T>(row + d, mul(x[v], factor));
    } else if (d < hd) {
      store_part<T>(row + d, mul(x[v], factor), hd - d);
    }
  }
}

}  // namespace
}  // namespace swin_fast::cpu
