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

// C[m][.] (+)= sum_k A[m][k] B[k][.] for kM rows and NV vectors of columns. A[m][k] stands at a[m * ars + k * acs]; the
// accumulators are kM * NV registers.
template <class Product, int kM, int NV, bool kAccumulate>
SWIN_FAST_INLINE void gemm_tile(int K, const float* a, int64_t ars, int64_t acs, const float* b, int64_t ldb, float* c,
                                int64_t ldc) {
  vf acc[kM][NV];
#pragma GCC unroll 16
  for (int i = 0; i < kM; i++) {
#pragma GCC unroll 16
    for (int v = 0; v < NV; v++) acc[i][v] = kAccumulate ? loadf(c + i * ldc + v * kWidth) : zero();
  }
  for (int k = 0; k < K; k++) {
    vf bv[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; v++) bv[v] = loadf(b + v * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kM; i++) {
      const vf x = set1(a[i * ars]);
#pragma GCC unroll 16
      for (int v = 0; v < NV; v++) acc[i][v] = Product::dot(acc[i][v], x, bv[v]);
    }
    a += acs;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kM; i++) {
#pragma GCC unroll 16
    for (int v = 0; v < NV; v++) storef(c + i * ldc + v * kWidth, acc[i][v]);
  }
}

// Rows of a register tile that is `vectors` wide: as many accumulators as leave room for B and one broadcast.
constexpr int max_rows(int vectors) {
  if (kRegisters == 32) return vectors >= 4 ? 6 : vectors == 3 ? 9 : vectors == 2 ? 13 : 14;
  return vectors >= 4 ? 2 : vectors == 3 ? 4 : vectors == 2 ? 6 : 8;
}

// All rows of one chunk of columns. kM > 0: the count is known and is cut into nearly equal register tiles.
template <class Product, int kM, int NV, bool kAccumulate>
SWIN_FAST_INLINE void gemm_rows(int M, int K, const float* a, int64_t ars, int64_t acs, const float* b, int64_t ldb,
                                float* c, int64_t ldc) {
  constexpr int kMax = max_rows(NV);
  if constexpr (kM > 0) {
    constexpr int kTiles = (kM + kMax - 1) / kMax, kSmall = kM / kTiles, kLarge = kM % kTiles;
    for (int t = 0; t < kLarge; t++, a += (kSmall + 1) * ars, c += (kSmall + 1) * ldc)
      gemm_tile<Product, kSmall + 1, NV, kAccumulate>(K, a, ars, acs, b, ldb, c, ldc);
    for (int t = 0; t < kTiles - kLarge; t++, a += kSmall * ars, c += kSmall * ldc)
      gemm_tile<Product, kSmall, NV, kAccumulate>(K, a, ars, acs, b, ldb, c, ldc);
  } else {
    constexpr int kStep = kMax >= 8 ? 8 : kMax >= 4 ? 4 : 2;
    int i = 0;
    for (; i + kStep <= M; i += kStep)
      gemm_tile<Product, kStep, NV, kAccumulate>(K, a + i * ars, ars, acs, b, ldb, c + i * ldc, ldc);
    for (; i < M; i++) gemm_tile<Product, 1, NV, kAccumulate>(K, a + i * ars, ars, acs, b, ldb, c + i * ldc, ldc);
  }
}

// The widest chunk of columns that cuts `vectors` evenly enough to keep the register tile full.
constexpr int chunk_vectors(int vectors) {
  if (kRegisters == 32) return vectors <= 4 ? vectors : vectors % 3 == 0 ? 3 : vectors % 4 == 0 ? 4 : 3;
  return vectors <= 3 ? vectors : vectors % 3 == 0 ? 3 : 2;
}

// C = A B (or C += A B): M x columns, contraction length K in elements. kM, kColumns > 0 give compile-time sizes.
// Columns are rounded up to whole vectors, so B and C need that much room behind the last one.
template <class Product, int kM, int kColumns, bool kAccumulate>
SWIN_FAST_INLINE void gemm(int M, int columns, int K, const float* a, int64_t ars, int64_t acs, const float* b,
                           int64_t ldb, float* c, int64_t ldc) {
  constexpr int kVectors = (kColumns + kWidth - 1) / kWidth;
  constexpr int kChunk = kColumns > 0 ? chunk_vectors(kVectors) : kRegisters == 32 ? 3 : 2;
  const int vectors = kColumns > 0 ? kVectors : (columns + kWidth - 1) / kWidth;
  int v = 0;
  for (; v + kChunk <= vectors; v += kChunk)
    gemm_rows<Product, kM, kChunk, kAccumulate>(M, K, a, ars, acs, b + v * kWidth, ldb, c + v * kWidth, ldc);
  if constexpr (kColumns > 0) {
    if constexpr (kVectors % kChunk > 0)
      gemm_rows<Product, kM, kVectors % kChunk, kAccumulate>(M, K, a, ars, acs, b + v * kWidth, ldb, c + v * kWidth,
                                                             ldc);
  } else {
    for (; v < vectors; v++)
      gemm_rows<Product, kM, 1, kAccumulate>(M, K, a, ars, acs, b + v * kWidth, ldb, c + v * kWidth, ldc);
  }
}

// c[r * ldc] = A row r . b for rows of `length` elements, at most kReduceRows of them: one column of a product. The
// column that N = 49 leaves over after 48 costs a third of a narrow vector this way.
template <class Product>
SWIN_FAST_INLINE void dot_column(int M, int length, const float* a, int64_t lda, const float* b, float* c,
                                 int64_t ldc) {
  vf sums[kReduceRows];
#pragma GCC unroll 8
  for (int r = 0; r < kReduceRows; r++) {
    sums[r] = zero();
    if (r < M)
      for (int k = 0; k < length; k += kWidth) sums[r] = Product::dot(sums[r], loadf(a + r * lda + k), loadf(b + k));
  }
  float column[kReduceRows];
  reduce_rows<Add>(sums, column);
  for (int r = 0; r < M; r++) c[r * ldc] = column[r];
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
// What stands behind column n is stale or zero; softmax_rows takes no number from there.
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

// Writes hd floats as one row of T.
template <class T>
SWIN_FAST_INLINE void store_row(typename T::type* dst, const float* src, int hd, vf factor) {
  const int whole = hd / kWidth * kWidth;
  for (int d = 0; d < whole; d += kWidth) store<T>(dst + d, mul(loadf(src + d), factor));
  if (whole < hd) store_part<T>(dst + whole, mul(loadf(src + whole), factor), hd - whole);
}

}  // namespace
}  // namespace swin_fast::cpu
