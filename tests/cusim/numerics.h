// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of the emulated device: 16-bit formats, matrix products and fast functions, the latter two in the two
// models of Math. What a kernel computes must be right with either; neither is exactly what any GPU does.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cusim.h"

namespace cusim {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// ---------------------------------------------------------------------------------------------------------------------
// Formats

constexpr uint16_t kNan16 = 0x7fff;    // what the device makes of every NaN, in either format
constexpr uint32_t kNan = 0x7fffffff;  // and what it makes of each of float16; one of bfloat16 keeps its bits

inline float bfloat16_to_float(uint16_t element) { return float_of(static_cast<uint32_t>(element) << 16); }

inline uint16_t float_to_bfloat16(float value) {
  if (std::isnan(value)) return kNan16;
  const uint32_t bits = bits_of(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float half_to_float(uint16_t element) {
  const uint32_t sign = static_cast<uint32_t>(element & 0x8000) << 16;
  const uint32_t exponent = element >> 10 & 0x1f;
  const uint32_t fraction = element & 0x3ff;
  if (exponent == 0x1f) return float_of(fraction != 0 ? kNan : sign | 0x7f800000);
  if (exponent != 0) return float_of(sign | (exponent + 127 - 15) << 23 | fraction << 13);
  const float subnormal = static_cast<float>(fraction) * 0x1p-24f;
  return sign != 0 ? -subnormal : subnormal;
}

inline uint16_t float_to_half(float value) {
  if (std::isnan(value)) return kNan16;
  const uint16_t sign = static_cast<uint16_t>(bits_of(value) >> 16 & 0x8000);
  const uint32_t bits = bits_of(value) & 0x7fffffff;
  const float magnitude = float_of(bits);
  if (magnitude >= 65520.f) return static_cast<uint16_t>(sign | 0x7c00);  // half way from the largest number to 2^16
  if (magnitude < 0x1p-14f) {
    // A multiple of 2^-24. Where the sum lies, floats are as dense, so the addition rounds as wanted.
    return static_cast<uint16_t>(sign | (bits_of(magnitude + 0.5f) - bits_of(0.5f)));
  }
  const uint32_t rounded = bits + 0xfff + (bits >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - ((127 - 15) << 10)));
}

// ---------------------------------------------------------------------------------------------------------------------
// Matrix products

inline float cut_to_float(double value) {
  const float rounded = static_cast<float>(value);
  const bool grown = std::isfinite(rounded) && std::fabs(static_cast<double>(rounded)) > std::fabs(value);
  return grown ? std::nextafterf(rounded, 0.f) : rounded;
}

// The exponent that the hardware sees: subnormal floats have that of the smallest normal one.
inline int exponent_of(float value) { return std::max<int>(bits_of(value) >> 23 & 0xff, 1) - 127; }

// Computes  2^exponent,  for the exponents of normal doubles.
inline double power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(1023 + exponent) << 52;
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The same of an operand of a product, or what leaves any sum of two below all exponents, where it is 0.
constexpr int kNoExponent = -4000;
inline int operand_exponent(float value) { return value != 0.f ? exponent_of(value) : kNoExponent; }

// Sums 8 products and an accumulator the way tensor cores do: every term is aligned to the one with the largest
// exponent, what then lies below its last bit is dropped, and so is what does not fit into the result. Of the operands
// it is told the exponents, too, as each is one of several products.
inline float add_products(const float* a, const int* a_exponents, const float* b, const int* b_exponents,
                          float accumulator) {
  constexpr int kProducts = 8;
  constexpr int kFractionBits = 23;
  if (std::isinf(accumulator)) return accumulator;  // the products before were too large
  int largest = operand_exponent(accumulator);
  for (int k = 0; k < kProducts; k++) largest = std::max(largest, a_exponents[k] + b_exponents[k]);
  if (largest <= kNoExponent / 2) return 0.f;
  const double scale = power_of_two(kFractionBits - largest);
  int64_t sum = static_cast<int64_t>(accumulator * scale);  // the conversion cuts off
  for (int k = 0; k < kProducts; k++) sum += static_cast<int64_t>(static_cast<double>(a[k]) * b[k] * scale);
  return cut_to_float(static_cast<double>(sum) * power_of_two(largest - kFractionBits));
}

// A number of float32 as a product takes it that knows 11 significant bits.
inline float cut_to_tf32(float value) { return float_of(bits_of(value) & 0xffffe000); }

// Computes  c += a @ b,  with b transposed: b[n][k].
template <int kDepth>
void multiply_accumulate(const float (&a)[16][kDepth], const float (&b)[8][kDepth], float (&c)[16][8], Math math) {
  int a_exponents[16][kDepth], b_exponents[8][kDepth];
  if (math == Math::hardware_like) {
    for (int k = 0; k < kDepth; k++) {
      for (int m = 0; m < 16; m++) a_exponents[m][k] = operand_exponent(a[m][k]);
      for (int n = 0; n < 8; n++) b_exponents[n][k] = operand_exponent(b[n][k]);
    }
  }
  double columns[kDepth][8];  // what the inner loop reads is one after the other, and is widened once
  for (int k = 0; k < kDepth; k++) {
    for (int n = 0; n < 8; n++) columns[k][n] = b[n][k];
  }
  for (int m = 0; m < 16; m++) {
    double sums[8];
    for (int n = 0; n < 8; n++) sums[n] = c[m][n];
    for (int k = 0; k < kDepth; k++) {  // outside: the sums do not wait for each other
      const double left = a[m][k];
      for (int n = 0; n < 8; n++) sums[n] += left * columns[k][n];
    }
    for (int n = 0; n < 8; n++) {
      // Not finite: an infinite or NaN operand, for which there is nothing to align.
      if (math == Math::exact || !std::isfinite(sums[n])) {
        c[m][n] = static_cast<float>(sums[n]);
      } else {
        for (int k = 0; k < kDepth; k += 8) {
          c[m][n] = add_products(&a[m][k], &a_exponents[m][k], &b[n][k], &b_exponents[n][k], c[m][n]);
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Fast functions

inline float flush(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.f, value) : value; }

// A result as far off as the device's may be, by -ulps to ulps, always the same for the same argument.
inline float perturb(float result, float argument, int ulps) {
  result = flush(result);
  if (result == 0.f || !std::isfinite(result)) return result;
  const uint32_t hash = bits_of(argument) * 2654435761u >> 16;
  const int steps = static_cast<int>(hash % static_cast<uint32_t>(2 * ulps + 1)) - ulps;
  return flush(float_of(bits_of(result) + static_cast<uint32_t>(steps)));
}

inline float exp2_model(float x, Math math) {
  const float exact = static_cast<float>(std::exp2(static_cast<double>(x)));
  if (math == Math::exact) return exact;
  return flush(x) == 0.f ? 1.f : perturb(exact, x, 2);  // 2^0 is promised to be 1
}

inline float rsqrt_model(float x, Math math) {
  if (math == Math::hardware_like) x = flush(x);
  const float exact = static_cast<float>(1.0 / std::sqrt(static_cast<double>(x)));
  return math == Math::exact ? exact : perturb(exact, x, 2);
}

inline float reciprocal_model(float x, Math math) {
  if (math == Math::hardware_like) x = flush(x);
  const float exact = static_cast<float>(1.0 / static_cast<double>(x));
  return math == Math::exact ? exact : perturb(exact, x, 1);
}

}  // namespace cusim
