// SPDX-License-Identifier: Apache-2.0
//
// float16 and bfloat16 in software, rounding to nearest even from double, so that the tests need no instruction of
// the CPU and share no code with the kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../../csrc/window_attention.h"

namespace swin_fast_test {

using swin_fast::ScalarType;

struct FloatFormat {
  int mantissa_bits;                                                   // stored ones
  int min_exponent;                                                    // of the smallest normal number
  double max;                                                          // largest finite number
  double unit() const { return std::ldexp(1.0, -mantissa_bits - 1); }  // largest relative rounding error
  double smallest() const { return std::ldexp(1.0, min_exponent - mantissa_bits); }
};

inline FloatFormat float_format(ScalarType type) {
  switch (type) {
    case ScalarType::kFloat16: return {10, -14, 65504.0};
    case ScalarType::kBFloat16: return {7, -126, std::ldexp(2.0 - std::ldexp(1.0, -7), 127)};
    default: return {23, -126, std::numeric_limits<float>::max()};
  }
}

// Rounds to the nearest number of the format, ties to even, overflow to infinity.
inline double round_to(ScalarType type, double x) {
  if (!std::isfinite(x) || x == 0) return x;
  const FloatFormat format = float_format(type);
  int exponent;
  std::frexp(x, &exponent);  // |x| = m * 2^exponent with 1/2 <= m < 1
  const int lowest_bit = std::max(exponent - 1, format.min_exponent) - format.mantissa_bits;
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(x, -lowest_bit)), lowest_bit);
  return std::fabs(rounded) > format.max ? std::copysign(INFINITY, x) : rounded;
}

inline int64_t size_of(ScalarType type) { return type == ScalarType::kFloat32 ? 4 : 2; }

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Writes x, rounded to the format, at element `index`. memcpy, since guarded buffers need not be aligned for the type.
inline void store(ScalarType type, void* base, int64_t index, double x) {
  const double rounded = round_to(type, x);
  char* at = static_cast<char*>(base) + index * size_of(type);
  const uint32_t bits = bits_from_float(static_cast<float>(rounded));
  if (type == ScalarType::kFloat32) {
    std::memcpy(at, &bits, 4);
    return;
  }
  uint16_t half;
  if (type == ScalarType::kBFloat16) {
    half = static_cast<uint16_t>(std::isnan(x) ? 0x7fc0 : bits >> 16);
  } else {
    const FloatFormat format = float_format(type);
    const double magnitude = std::fabs(rounded);
    if (std::isnan(x)) {
      half = 0x7e00;
    } else if (std::isinf(rounded)) {
      half = 0x7c00;
    } else if (magnitude < std::ldexp(1.0, format.min_exponent)) {
      half = static_cast<uint16_t>(std::ldexp(magnitude, 24));
    } else {
      half = static_cast<uint16_t>((((bits >> 23) & 0xff) - 127 + 15) << 10 | ((bits >> 13) & 0x3ff));
    }
    half = static_cast<uint16_t>(half | (bits >> 31) << 15);
  }
  std::memcpy(at, &half, 2);
}

inline double load(ScalarType type, const void* base, int64_t index) {
  const char* at = static_cast<const char*>(base) + index * size_of(type);
  if (type == ScalarType::kFloat32) {
    uint32_t bits;
    std::memcpy(&bits, at, 4);
    return float_from_bits(bits);
  }
  uint16_t half;
  std::memcpy(&half, at, 2);
  if (type == ScalarType::kBFloat16) return float_from_bits(static_cast<uint32_t>(half) << 16);
  const int exponent = half >> 10 & 0x1f, mantissa = half & 0x3ff;
  double magnitude = exponent == 0    ? std::ldexp(mantissa, -24)
                     : exponent == 31 ? (mantissa == 0 ? INFINITY : NAN)
                                      : std::ldexp(mantissa + 1024, exponent - 25);
  return half >> 15 ? -magnitude : magnitude;
}

// Whether every 16-bit pattern survives a round trip, and every number between two neighbours goes to the nearer one
// or, halfway, to the even one. A wrong conversion here would otherwise be blamed on the kernels.
inline bool float_formats_are_sound() {
  for (const ScalarType type : {ScalarType::kFloat16, ScalarType::kBFloat16}) {
    const int infinity_bits = type == ScalarType::kFloat16 ? 0x7c00 : 0x7f80;
    for (int bits = 0; bits < 0x10000; ++bits) {
      const uint16_t half = static_cast<uint16_t>(bits);
      uint16_t back;
      const double x = load(type, &half, 0);
      store(type, &back, 0, x);
      if (std::isnan(x) != ((bits & 0x7fff) > infinity_bits)) return false;
      if (std::isnan(x) ? !std::isnan(load(type, &back, 0)) : back != half) return false;
      if ((bits & 0x7fff) >= infinity_bits - 1) continue;
      const uint16_t above = static_cast<uint16_t>(bits + 1);  // the next number away from zero
      const double y = load(type, &above, 0);
      for (const double weight : {0.25, 0.5, 0.75}) {
        store(type, &back, 0, x + (y - x) * weight);
        const uint16_t nearest = weight < 0.5 ? half : weight > 0.5 ? above : bits % 2 == 0 ? half : above;
        if (back != nearest) return false;
      }
    }
  }
  return true;
}

}  // namespace swin_fast_test
