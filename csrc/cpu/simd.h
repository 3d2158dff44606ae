// SPDX-License-Identifier: Apache-2.0
//
// One vector vocabulary for every instruction set. Each kernels_*.cpp defines SWIN_FAST_ISA_<NAME> and includes this
// file once; everything lives in an anonymous namespace and no std or torch template is used, so that the linker can
// never keep an AVX-512 copy of a shared inline function and run it on an older CPU.
//
//   vf            a vector of kWidth floats
//   load<T>       T is F32, F16 or BF16: kWidth values of that type as floats; load_part<T> the first n, others 0
//   max_nan       max of a and b; NaN in b comes out (x86 max returns its second operand then)
//   reduce_rows   sums or maxima of the lanes of kReduceRows vectors, one a lane of RowValues
#pragma once

#include <cstdint>
#include <cstring>

#if defined(SWIN_FAST_ISA_AVX2) || defined(SWIN_FAST_ISA_AVX512) || defined(SWIN_FAST_ISA_AVX512_BF16)
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operand inside its own AVX-512 intrinsics for a mistake of the caller.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define SWIN_FAST_INLINE inline __attribute__((always_inline))

namespace swin_fast::cpu {
namespace {

struct F32 {
  using type = float;
};
struct F16 {
  using type = uint16_t;
};
struct BF16 {
  using type = uint16_t;
};

SWIN_FAST_INLINE float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
SWIN_FAST_INLINE uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

// Rows whose maxima and sums are taken together: one tree of shuffles instead of eight.
constexpr int kReduceRows = 8;

// One value for each of a few rows: written and read as whole vectors, or row by row.
struct alignas(64) RowValues {
  static constexpr int kRoom = 16;
  float row[kRoom];
};

struct Add;
struct Max;

#if defined(SWIN_FAST_ISA_AVX512) || defined(SWIN_FAST_ISA_AVX512_BF16)
// ------------------------------------------------------------------------------------------------ AVX-512, 16 lanes
constexpr int kWidth = 16;
constexpr int kRegisters = 32;
using vf = __m512;

SWIN_FAST_INLINE vf zero() { return _mm512_setzero_ps(); }
SWIN_FAST_INLINE vf set1(float x) { return _mm512_set1_ps(x); }
SWIN_FAST_INLINE vf loadf(const float* p) { return _mm512_loadu_ps(p); }
SWIN_FAST_INLINE void storef(float* p, vf a) { _mm512_storeu_ps(p, a); }
SWIN_FAST_INLINE vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
SWIN_FAST_INLINE vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
SWIN_FAST_INLINE vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
SWIN_FAST_INLINE vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
SWIN_FAST_INLINE vf max_nan(vf a, vf b) { return _mm512_max_ps(a, b); }
SWIN_FAST_INLINE float reduce_add(vf a) { return _mm512_reduce_add_ps(a); }
SWIN_FAST_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
// The first n lanes of a, the others of b.
SWIN_FAST_INLINE vf keep(vf a, int n, vf b) { return _mm512_mask_mov_ps(b, first_lanes(n), a); }
// 0 where a is `value`, else a.
SWIN_FAST_INLINE vf zero_where(vf a, float value) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, set1(value), _CMP_NEQ_UQ), a);
}
// 1 / a, and 0 where a is 0.
SWIN_FAST_INLINE vf reciprocal_or_zero(vf a) {
  return _mm512_maskz_div_ps(_mm512_cmp_ps_mask(a, zero(), _CMP_NEQ_UQ), set1(1.f), a);
}
// a + (ids differ ? value : 0)
SWIN_FAST_INLINE vf add_where_differs(vf a, const int32_t* ids, int32_t id, vf value) {
  return _mm512_mask_add_ps(a, _mm512_cmpneq_epi32_mask(_mm512_loadu_si512(ids), _mm512_set1_epi32(id)), a, value);
}

template <class Op>
SWIN_FAST_INLINE vf combine(vf a, vf b) {
  if constexpr (__is_same(Op, Add)) return _mm512_add_ps(a, b);
  return _mm512_max_ps(a, b);
}
template <class Op>
SWIN_FAST_INLINE void reduce_rows(const vf* rows, RowValues& out) {
  vf a[4];  // quarters of 128 bits: two rows, each folded to two quarters
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    a[i] = combine<Op>(_mm512_shuffle_f32x4(rows[2 * i], rows[2 * i + 1], 0x44),
                       _mm512_shuffle_f32x4(rows[2 * i], rows[2 * i + 1], 0xee));
  vf b[2];  // four rows, a quarter each
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++)
    b[i] = combine<Op>(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88),
                       _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xdd));
  // Quarter j now holds row j in the low and row j + 4 in the high half.
  vf c = combine<Op>(_mm512_shuffle_ps(b[0], b[1], 0x44), _mm512_shuffle_ps(b[0], b[1], 0xee));
  c = combine<Op>(c, _mm512_permute_ps(c, 0xb1));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 4, 8, 12, 2, 6, 10, 14);
  // A whole vector, so that a vector can be loaded again without waiting for the store to leave its queue.
  _mm512_store_ps(out.row, _mm512_permutexvar_ps(order, c));
}

// 2^x. The fraction is taken on [0, 1), scalef takes the floor of x itself; -inf gives 0 and NaN stays NaN.
template <bool kShort>
SWIN_FAST_INLINE vf exp2_fast(vf x) {
  const vf r = _mm512_reduce_ps(x, 0x09);  // x - floor(x), no exceptions; +-inf -> 0
  vf p;
  if constexpr (kShort) {  // 8.6e-5 relative, a twentieth of a bfloat16 rounding, and exact at 0
    p = set1(7.70671964e-2f);
    p = fma(p, r, set1(2.27644816e-1f));
    p = fma(p, r, set1(6.95116818e-1f));
    p = fma(p, r, set1(1.f));
  } else {  // 6.2e-8 relative
    p = set1(2.17022563e-4f);
    p = fma(p, r, set1(1.24396873e-3f));
    p = fma(p, r, set1(9.67884064e-3f));
    p = fma(p, r, set1(5.54833412e-2f));
    p = fma(p, r, set1(2.4022983e-1f));
    p = fma(p, r, set1(6.93147004e-1f));
    p = fma(p, r, set1(1.f));
  }
  return _mm512_scalef_ps(p, x);
}

template <class T>
SWIN_FAST_INLINE vf load(const void* p) {
  if constexpr (sizeof(typename T::type) == 4) {
    return _mm512_loadu_ps(p);
  } else {
    const __m256i h = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    if constexpr (__is_same(T, F16)) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
}
template <class T>
SWIN_FAST_INLINE vf load_part(const void* p, int n) {
  if constexpr (sizeof(typename T::type) == 4) {
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
  } else {
    const __m256i h = _mm256_maskz_loadu_epi16(first_lanes(n), p);
    if constexpr (__is_same(T, F16)) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
}
SWIN_FAST_INLINE __m256i to_bf16(vf a) {
#ifdef SWIN_FAST_ISA_AVX512_BF16
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a));  // to nearest even; subnormals become 0
#else
  // Round to nearest even on the bits; a NaN keeps its sign and becomes quiet.
  const __m512i u = _mm512_castps_si512(a);
  const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)));
  r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
#endif
}
template <class T>
SWIN_FAST_INLINE void store(void* p, vf a) {
  if constexpr (__is_same(T, F32)) {
    _mm512_storeu_ps(p, a);
  } else if constexpr (__is_same(T, F16)) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  } else {
    _mm256_storeu_si256(static_cast<__m256i*>(p), to_bf16(a));
  }
}
template <class T>
SWIN_FAST_INLINE void store_part(void* p, vf a, int n) {
  const __mmask16 m = first_lanes(n);
  if constexpr (__is_same(T, F32)) {
    _mm512_mask_storeu_ps(p, m, a);
  } else if constexpr (__is_same(T, F16)) {
    _mm256_mask_storeu_epi16(p, m, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  } else {
    _mm256_mask_storeu_epi16(p, m, to_bf16(a));
  }
}

// Transposes kWidth vectors of 32-bit elements in place.
SWIN_FAST_INLINE void transpose(vf* r) {
  __m512 t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 16
    for (int h = 0; h < 2; h++) {
      const __m512d a = _mm512_castps_pd(t[i + h]), b = _mm512_castps_pd(t[i + 2 + h]);
      r[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      r[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

#elif defined(SWIN_FAST_ISA_AVX2)
// ---------------------------------------------------------------------------------------------- AVX2 + FMA, 8 lanes
constexpr int kWidth = 8;
constexpr int kRegisters = 16;
using vf = __m256;

SWIN_FAST_INLINE vf zero() { return _mm256_setzero_ps(); }
SWIN_FAST_INLINE vf set1(float x) { return _mm256_set1_ps(x); }
SWIN_FAST_INLINE vf loadf(const float* p) { return _mm256_loadu_ps(p); }
SWIN_FAST_INLINE void storef(float* p, vf a) { _mm256_storeu_ps(p, a); }
SWIN_FAST_INLINE vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
SWIN_FAST_INLINE vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
SWIN_FAST_INLINE vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
SWIN_FAST_INLINE vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
SWIN_FAST_INLINE vf max_nan(vf a, vf b) { return _mm256_max_ps(a, b); }
SWIN_FAST_INLINE float reduce_add(vf a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
SWIN_FAST_INLINE float reduce_max(vf a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
SWIN_FAST_INLINE __m256 first_lanes(int n) {
  const __m256i iota = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), iota));
}
SWIN_FAST_INLINE vf keep(vf a, int n, vf b) { return _mm256_blendv_ps(b, a, first_lanes(n)); }
SWIN_FAST_INLINE vf zero_where(vf a, float value) {
  return _mm256_and_ps(a, _mm256_cmp_ps(a, set1(value), _CMP_NEQ_UQ));
}
SWIN_FAST_INLINE vf reciprocal_or_zero(vf a) {
  return _mm256_and_ps(_mm256_div_ps(set1(1.f), a), _mm256_cmp_ps(a, zero(), _CMP_NEQ_UQ));
}
SWIN_FAST_INLINE vf add_where_differs(vf a, const int32_t* ids, int32_t id, vf value) {
  const __m256i same =
      _mm256_cmpeq_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(ids)), _mm256_set1_epi32(id));
  return _mm256_blendv_ps(add(a, value), a, _mm256_castsi256_ps(same));
}

template <class Op>
SWIN_FAST_INLINE void reduce_rows(const vf* rows, RowValues& out) {
  for (int r = 0; r < kReduceRows; r++) out.row[r] = __is_same(Op, Add) ? reduce_add(rows[r]) : reduce_max(rows[r]);
}

template <bool kShort>
SWIN_FAST_INLINE vf exp2_fast(vf x) {
  const vf floor_x = _mm256_floor_ps(_mm256_max_ps(set1(-127.f), x));  // second operand: NaN stays
  const vf r = sub(_mm256_max_ps(set1(-127.f), x), floor_x);
  vf p = set1(2.17022563e-4f);
  p = fma(p, r, set1(1.24396873e-3f));
  p = fma(p, r, set1(9.67884064e-3f));
  p = fma(p, r, set1(5.54833412e-2f));
  p = fma(p, r, set1(2.4022983e-1f));
  p = fma(p, r, set1(6.93147004e-1f));
  p = fma(p, r, set1(1.f));
  // 2^floor as a float of its own; an exponent of -127 has no bits left and is exactly 0, so -inf gives 0.
  const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(floor_x), _mm256_set1_epi32(127)), 23);
  const vf y = mul(p, _mm256_castsi256_ps(e));
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

template <class T>
SWIN_FAST_INLINE vf load(const void* p) {
  if constexpr (__is_same(T, F32)) {
    return _mm256_loadu_ps(static_cast<const float*>(p));
  } else {
    const __m128i h = _mm_loadu_si128(static_cast<const __m128i*>(p));
    if constexpr (__is_same(T, F16)) return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
}
template <class T>
SWIN_FAST_INLINE vf load_part(const void* p, int n) {
  typename T::type part[kWidth] = {};
  std::memcpy(part, p, static_cast<size_t>(n) * sizeof(part[0]));
  return load<T>(part);
}
template <class T>
SWIN_FAST_INLINE void store(void* p, vf a) {
  if constexpr (__is_same(T, F32)) {
    _mm256_storeu_ps(static_cast<float*>(p), a);
  } else if constexpr (__is_same(T, F16)) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  } else {
    const __m256i u = _mm256_castps_si256(a);
    const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i r = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    _mm_storeu_si128(static_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1)));
  }
}
template <class T>
SWIN_FAST_INLINE void store_part(void* p, vf a, int n) {
  typename T::type part[kWidth];
  store<T>(part, a);
  std::memcpy(p, part, static_cast<size_t>(n) * sizeof(part[0]));
}

SWIN_FAST_INLINE void transpose(vf* r) {
  __m256 t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 4) {
#pragma GCC unroll 8
    for (int h = 0; h < 2; h++) {
      const __m256d a = _mm256_castps_pd(t[i + h]), b = _mm256_castps_pd(t[i + 2 + h]);
      r[i + 2 * h] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
      r[i + 2 * h + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4; i++) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) r[i] = t[i];
}

#else
// ------------------------------------------------------------ scalar: plain C++ that any compiler and CPU can take
constexpr int kWidth = 4;
constexpr int kRegisters = 16;
struct vf {
  float lane[kWidth];
};

#define SWIN_FAST_LANES(expression)                          \
  vf r;                                                      \
  for (int i = 0; i < kWidth; i++) r.lane[i] = (expression); \
  return r

SWIN_FAST_INLINE vf set1(float x) { SWIN_FAST_LANES(x); }
SWIN_FAST_INLINE vf zero() { return set1(0.f); }
SWIN_FAST_INLINE vf loadf(const float* p) { SWIN_FAST_LANES(p[i]); }
SWIN_FAST_INLINE void storef(float* p, vf a) { std::memcpy(p, a.lane, sizeof(a.lane)); }
SWIN_FAST_INLINE vf add(vf a, vf b) { SWIN_FAST_LANES(a.lane[i] + b.lane[i]); }
SWIN_FAST_INLINE vf sub(vf a, vf b) { SWIN_FAST_LANES(a.lane[i] - b.lane[i]); }
SWIN_FAST_INLINE vf mul(vf a, vf b) { SWIN_FAST_LANES(a.lane[i] * b.lane[i]); }
SWIN_FAST_INLINE vf fma(vf a, vf b, vf c) { SWIN_FAST_LANES(a.lane[i] * b.lane[i] + c.lane[i]); }
SWIN_FAST_INLINE vf max_nan(vf a, vf b) { SWIN_FAST_LANES(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }
SWIN_FAST_INLINE float reduce_add(vf a) { return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]); }
SWIN_FAST_INLINE float reduce_max(vf a) {
  float m = a.lane[0];
  for (int i = 1; i < kWidth; i++) m = a.lane[i] > m ? a.lane[i] : m;
  return m;
}
SWIN_FAST_INLINE vf keep(vf a, int n, vf b) { SWIN_FAST_LANES(i < n ? a.lane[i] : b.lane[i]); }
SWIN_FAST_INLINE vf zero_where(vf a, float value) { SWIN_FAST_LANES(a.lane[i] == value ? 0.f : a.lane[i]); }
SWIN_FAST_INLINE vf reciprocal_or_zero(vf a) { SWIN_FAST_LANES(a.lane[i] == 0.f ? 0.f : 1.f / a.lane[i]); }
SWIN_FAST_INLINE vf add_where_differs(vf a, const int32_t* ids, int32_t id, vf value) {
  SWIN_FAST_LANES(ids[i] == id ? a.lane[i] : a.lane[i] + value.lane[i]);
}

template <class Op>
SWIN_FAST_INLINE void reduce_rows(const vf* rows, RowValues& out) {
  for (int r = 0; r < kReduceRows; r++) out.row[r] = __is_same(Op, Add) ? reduce_add(rows[r]) : reduce_max(rows[r]);
}

SWIN_FAST_INLINE float exp2_lane(float x) {
  if (!(x >= -126.f)) return x < -126.f ? 0.f : x;    // tiny becomes 0, NaN stays
  const int n = static_cast<int>(x + 1024.f) - 1024;  // floor for -126 <= x < 1024
  const float r = x - static_cast<float>(n);
  float p = 2.17022563e-4f;
  p = p * r + 1.24396873e-3f;
  p = p * r + 9.67884064e-3f;
  p = p * r + 5.54833412e-2f;
  p = p * r + 2.4022983e-1f;
  p = p * r + 6.93147004e-1f;
  p = p * r + 1.f;
  return p * bits_to_float(static_cast<uint32_t>(n + 127) << 23);
}
template <bool kShort>
SWIN_FAST_INLINE vf exp2_fast(vf x) {
  SWIN_FAST_LANES(exp2_lane(x.lane[i]));
}

SWIN_FAST_INLINE float widen(float x, F32) { return x; }
SWIN_FAST_INLINE float widen(uint16_t h, BF16) { return bits_to_float(static_cast<uint32_t>(h) << 16); }
SWIN_FAST_INLINE float widen(uint16_t h, F16) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
  if (magnitude < 0x400) {  // subnormal: an integer number of 2^-24
    const float f = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return sign ? -f : f;
  }
  return bits_to_float(sign | (magnitude + 0x1c000) << 13);
}
SWIN_FAST_INLINE float narrow(float x, F32) { return x; }
SWIN_FAST_INLINE uint16_t narrow(float x, BF16) {
  const uint32_t u = float_to_bits(x);
  if (x != x) return static_cast<uint16_t>((u | 0x400000u) >> 16);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
SWIN_FAST_INLINE uint16_t narrow(float x, F16) {
  const uint32_t u = float_to_bits(x), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and above round to Inf
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    const float f = bits_to_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_to_bits(f) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}

// Not inlined: what widens and rounds 16-bit floats lane by lane is long, and took the compiler most of two minutes.
template <class T>
__attribute__((noinline)) vf load_part(const void* p, int n) {
  vf r = zero();
  for (int i = 0; i < n; i++) r.lane[i] = widen(static_cast<const typename T::type*>(p)[i], T{});
  return r;
}
template <class T>
SWIN_FAST_INLINE vf load(const void* p) {
  return load_part<T>(p, kWidth);
}
template <class T>
__attribute__((noinline)) void store_part(void* p, vf a, int n) {
  for (int i = 0; i < n; i++) static_cast<typename T::type*>(p)[i] = narrow(a.lane[i], T{});
}
template <class T>
SWIN_FAST_INLINE void store(void* p, vf a) {
  store_part<T>(p, a, kWidth);
}
SWIN_FAST_INLINE void transpose(vf* r) {
  for (int i = 0; i < kWidth; i++)
    for (int j = 0; j < i; j++) {
      const float t = r[i].lane[j];
      r[i].lane[j] = r[j].lane[i];
      r[j].lane[i] = t;
    }
}
#undef SWIN_FAST_LANES
#endif

}  // namespace
}  // namespace swin_fast::cpu
