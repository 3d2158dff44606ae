// SPDX-License-Identifier: Apache-2.0
//
// How operands of products are held: packed from image rows, turned into right operands, read and written as floats,
// and how finished rows go back to the image. Included by each kernels_*.cpp after tile.h.
#pragma once

#include "../window_attention.h"
#include "kernels.h"
#include "tile.h"

namespace swin_fast::cpu {
namespace {

SWIN_FAST_INLINE constexpr int round_up(int a, int b) { return (a + b - 1) / b * b; }
SWIN_FAST_INLINE constexpr int min_of(int a, int b) { return a < b ? a : b; }
SWIN_FAST_INLINE constexpr int64_t element_size(ScalarType dtype) { return dtype == ScalarType::kFloat32 ? 4 : 2; }

// How operands are held for products in float.
struct FloatOperands {
  using Product = FloatProduct;
  // Contraction steps and row length (in 32-bit elements) of a row of hd or N values.
  static SWIN_FAST_INLINE constexpr int steps(int values) { return values; }
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
  static SWIN_FAST_INLINE int64_t element_bytes(ScalarType dtype) { return element_size(dtype); }
  // Lane by lane, the element that holds one value and whose neighbour, if it has one, is 0.
  static SWIN_FAST_INLINE vf elements(vf x) { return x; }
  // Columns [column, hd) of a row of the image, as far as NV vectors reach.
  template <int NV>
  static SWIN_FAST_INLINE void store_image(ScalarType dtype, void* image, int64_t at, int column, int hd,
                                           const vf (&x)[NV], vf factor) {
    switch (dtype) {
      case ScalarType::kFloat32: return store_row<F32>(static_cast<float*>(image) + at, column, hd, x, factor);
      case ScalarType::kFloat16: return store_row<F16>(static_cast<uint16_t*>(image) + at, column, hd, x, factor);
      case ScalarType::kBFloat16: return store_row<BF16>(static_cast<uint16_t*>(image) + at, column, hd, x, factor);
    }
  }
};

#ifdef SWIN_FAST_ISA_AVX512_BF16
// The same for products in bfloat16, two values an element.
struct PairOperands {
  using Product = PairProduct;
  static SWIN_FAST_INLINE constexpr int steps(int values) { return (values + 1) / 2; }
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
    // Lanes of 16 bits: element e takes value e of the first row and value e of the second.
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i low = _mm512_or_si512(lanes, _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(32)), 16));
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int i = 0; i < n; i += 2) {
      const uint16_t* a = reinterpret_cast<const uint16_t*>(rows + i * ld);
      const uint16_t* b = reinterpret_cast<const uint16_t*>(rows + (i + 1) * ld);
      float* out = dst + static_cast<int64_t>(i / 2) * columns;
      for (int d = 0; d < columns; d += 32) {
        const __m512i x = _mm512_loadu_si512(a + d), y = i + 1 < n ? _mm512_loadu_si512(b + d) : _mm512_setzero_si512();
        _mm512_storeu_si512(out + d, _mm512_permutex2var_epi16(x, low, y));
        if (d + 16 < columns) _mm512_storeu_si512(out + d + 16, _mm512_permutex2var_epi16(x, high, y));
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
  static SWIN_FAST_INLINE int64_t element_bytes(ScalarType) { return 2; }  // a constant for the compiler
  static SWIN_FAST_INLINE vf elements(vf x) { return _mm512_castsi512_ps(_mm512_cvtepu16_epi32(to_bf16(x))); }
  template <int NV>
  static SWIN_FAST_INLINE void store_image(ScalarType, void* image, int64_t at, int column, int hd, const vf (&x)[NV],
                                           vf factor) {
    uint16_t* row = static_cast<uint16_t*>(image) + at;
    if constexpr (NV == 2) {
      if (column + 2 * kWidth <= hd) {  // one store of a whole cache line
        const __m512bh both = _mm512_cvtne2ps_pbh(mul(x[1], factor), mul(x[0], factor));
        _mm512_storeu_si512(row + column, reinterpret_cast<__m512i>(both));
        return;
      }
    }
    store_row<BF16>(row, column, hd, x, factor);
  }
};
#endif

}  // namespace
}  // namespace swin_fast::cpu
