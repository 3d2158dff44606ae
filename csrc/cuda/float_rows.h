// SPDX-License-Identifier: Apache-2.0
//
// The products of row_tiles.h for rows of float32. Tensor cores know 11 of their 24 significant bits: a number is split
// in two that have 11 or 12 each, and of the four products of two numbers three are computed; the fourth is 2^-22 of
// the first. Of what is not finite that is NaN, and such products are computed again.
//
// Tensor cores also cut off what they add, always towards zero: nothing is summed by them over more than 16 rows or
// channels, and small products before large ones, or apart from them. Longer sums are of float32 additions.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "primitives.h"
#include "row_tiles.h"
#include "windows.h"

namespace swin_fast::cuda {

// A number as the sum of one that a product takes whole and of what is left, less than 2^-11 of it.
struct SplitFloat {
  float upper, lower;

  SplitFloat() = default;
  explicit SWIN_FAST_DEVICE SplitFloat(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    bits = (bits + 0x1000u) & 0xffffe000u;  // rounded to nearest; cut off, parts of all products would have one sign
    __builtin_memcpy(&upper, &bits, sizeof(bits));
    lower = value - upper;
  }
};

SWIN_FAST_DEVICE bool is_finite(float value) { return fabsf(value) < INFINITY; }

// A left side of a product.
struct SplitLeft {
  float upper[4], lower[4];

  SplitLeft() = default;
  explicit SWIN_FAST_DEVICE SplitLeft(const float (&values)[4]) {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const SplitFloat split(values[i]);
      upper[i] = split.upper;
      lower[i] = split.lower;
    }
  }
};

// Adds the two small products, and the large one.
SWIN_FAST_DEVICE void add_small(float (&d)[4], const SplitLeft& a, const SplitFloat& b0, const SplitFloat& b1) {
  mma_m16n8k8_tf32(d, a.lower, b0.upper, b1.upper);
  mma_m16n8k8_tf32(d, a.upper, b0.lower, b1.lower);
}
SWIN_FAST_DEVICE void add_large(float (&d)[4], const SplitLeft& a, const SplitFloat& b0, const SplitFloat& b1) {
  mma_m16n8k8_tf32(d, a.upper, b0.upper, b1.upper);
}

// Rows of sums. A lane reads four channels at once as a right side: column g of four tiles, or two of two where
// head_dim is 16. So of a row of sums, of which it has columns 2t and 2t + 1 of each tile, it has eight channels in a
// row, or four.
template <int kHd>
struct FloatSums {
  static constexpr int kSlab = kHd >= 32 ? 4 : 2;  // tiles
  static constexpr int kSlabs = kHd / (8 * kSlab);

  // The four of a piece of 16 bytes: half 0 and 1 of a slab of four tiles, or half 0 of one of two; i: row g or g + 8.
  static SWIN_FAST_DEVICE Float4 piece(const float (&sums)[kHd / 8][4], int slab, int half, int i) {
    const int tile = slab * kSlab;
    if constexpr (kSlab == 2) {
      return {sums[tile][2 * i], sums[tile + 1][2 * i], sums[tile][2 * i + 1], sums[tile + 1][2 * i + 1]};
    } else {
      const int e = 2 * i + half;
      return {sums[tile][e], sums[tile + 1][e], sums[tile + 2][e], sums[tile + 3][e]};
    }
  }
  // Where that stands in a row.
  static SWIN_FAST_DEVICE int piece_of(int slab, int half, int lane) {
    return kSlab == 2 ? lane & 3 : slab * 8 + 2 * (lane & 3) + half;
  }
  static constexpr int kHalves = kSlab / 2;
};

template <int kHd>
struct SumChannels<Float32, kHd> {
  static SWIN_FAST_DEVICE int of(int tile, int e, int lane) {
    constexpr int kSlab = FloatSums<kHd>::kSlab;
    return tile / kSlab * (8 * kSlab) + (2 * (lane & 3) + e) * kSlab + tile % kSlab;
  }
};

// Of row 2t or 2t + 1 of eight, as the right side of products with column g of a slab's tiles.
template <int kHd>
SWIN_FAST_DEVICE void load_columns(float (&values)[FloatSums<kHd>::kSlab], const char* rows, int row, int slab,
                                   int lane) {
  using Tile = RowTile<2 * kHd>;
  const int g = lane >> 2;
  if constexpr (kHd == 16) {
    const auto two = load_shared<Float2>(rows + Tile::offset(row, g >> 1) + (g & 1) * 8);
    values[0] = two.x;
    values[1] = two.y;
  } else {
    const auto four = load_shared<Float4>(rows + Tile::offset(row, slab * 8 + g));
    values[0] = four.x;
    values[1] = four.y;
    values[2] = four.z;
    values[3] = four.w;
  }
}

// Computes the products of a tile of columns with 16 rows: small ones first, or, with kApart, in a sum of their own.
// With kMend what is not finite of the rows counts in the large ones alone.
template <bool kMend, bool kApart, int kSlab>
SWIN_FAST_DEVICE void multiply_tile(float (&part)[4], const SplitLeft (&a)[2], const float (&values)[4][kSlab], int j) {
  SplitFloat b[4];
  SWIN_FAST_UNROLL
  for (int i = 0; i < 4; ++i) {
    b[i] = SplitFloat(values[i][j]);
    if (kMend && !is_finite(b[i].upper)) b[i] = SplitFloat(0.0f);
  }
  SWIN_FAST_UNROLL
  for (int e = 0; e < 4; ++e) part[e] = 0.0f;
  add_small(part, a[0], b[0], b[1]);
  add_small(part, a[1], b[2], b[3]);
  SWIN_FAST_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (kMend && !is_finite(SplitFloat(values[i][j]).upper)) b[i].upper = values[i][j];
  }
  float large[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  float (&to)[4] = kApart ? large : part;
  add_large(to, a[0], b[0], b[1]);
  add_large(to, a[1], b[2], b[3]);
  SWIN_FAST_UNROLL
  for (int e = 0; e < 4 && kApart; ++e) part[e] += large[e];
}

// Adds  weights @ rows  of 16 rows, weights as they lie in products, two columns of eight: as left sides their columns
// 2t and 2t + 1 are t and t + 4. Rows that are infinite give NaN; with kMend infinities, where weights are not zero.
template <class T, int kHd, bool kMend = false>
SWIN_FAST_DEVICE std::enable_if_t<is_float<T>> add_weighted_rows(float (&sums)[kHd / 8][4],
                                                                 const float (&weights)[2][4], const char* rows,
                                                                 int lane) {
  using Sums = FloatSums<kHd>;
  // Of the forward alone: the backward keeps the tolerance without, and would be 3 to 6 % longer and spill registers.
  constexpr bool kApart = kMend;
  constexpr int kTogether = kApart ? 2 : Sums::kSlab;  // tiles; with four the forward at head_dim 32 spilled 8 bytes
  SplitLeft a[2];
  SWIN_FAST_UNROLL
  for (int half = 0; half < 2; ++half) {
    a[half] = SplitLeft({weights[half][0], weights[half][2], weights[half][1], weights[half][3]});
  }
  SWIN_FAST_UNROLL
  for (int slab = 0; slab < Sums::kSlabs; ++slab) {
    const auto load = [&](float (&values)[4][Sums::kSlab]) {  // of rows 2t and 2t + 1 of both halves
      SWIN_FAST_UNROLL
      for (int i = 0; i < 4; ++i) {
        load_columns<kHd>(values[i], rows, (i >> 1) * 8 + (lane & 3) * 2 + (i & 1), slab, lane);
      }
    };
    float values[4][Sums::kSlab];
    load(values);
    SWIN_FAST_UNROLL
    for (int first = 0; first < Sums::kSlab; first += kTogether) {
      float parts[kTogether][4];
      float all = 0.0f;
      SWIN_FAST_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        multiply_tile<false, kApart>(parts[j], a, values, first + j);
        SWIN_FAST_UNROLL
        for (int e = 0; e < 4; ++e) all += parts[j][e];
      }
      if (kMend && any_lane(!is_finite(all))) {
        sync_warp();  // or nvcc keeps the values, 16 registers, to have them here
        float again[4][Sums::kSlab];
        load(again);
        SWIN_FAST_UNROLL
        for (int j = 0; j < kTogether; ++j) multiply_tile<true, kApart>(parts[j], a, again, first + j);
      }
      SWIN_FAST_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        SWIN_FAST_UNROLL
        for (int e = 0; e < 4; ++e) sums[slab * Sums::kSlab + first + j][e] += parts[j][e];
      }
    }
  }
}

// The 16 rows that a warp owns, as OwnRows of 16 bits has them.
template <int kHd>
class OwnRows<Float32, kHd> {
 public:
  using Tile = RowTile<2 * kHd>;

  SWIN_FAST_DEVICE OwnRows(const char* rows, int lane) : rows_(rows), lane_(lane) {
    if constexpr (kKept) {
      SWIN_FAST_UNROLL
      for (int step = 0; step < kKeptSteps; ++step) kept_[step] = load(step);
    }
  }

  // Computes the products with 16 rows: of own row lane / 4 (elements 0 and 1) and that + 8 (2 and 3), two of the first
  // eight rows, and two of the others. Where one is not finite, it is computed again, as infinities have products with
  // the lower parts of numbers that are NaN.
  SWIN_FAST_DEVICE void times(float (&product)[2][4], const char* rows) const {
    two_steps(product, rows, 0);
    // All steps where fragments are kept; of more, the addresses alone would take the registers.
    SWIN_FAST_UNROLL_2
    for (int step = 2; step < Tile::kSteps; step += 2) {
      float sums[2][4];
      two_steps(sums, rows, step);
      SWIN_FAST_UNROLL
      for (int e = 0; e < 8; ++e) product[e >> 2][e & 3] += sums[e >> 2][e & 3];
    }
    float all = 0.0f;
    SWIN_FAST_UNROLL
    for (int e = 0; e < 8; ++e) all += product[e >> 2][e & 3];
    if (is_finite(all)) return;
    SWIN_FAST_NO_UNROLL
    for (int which = 0; which < 8; ++which) {
      const float again = dot((lane_ >> 2) + 4 * (which & 2), rows, (which & 4) * 2 + (lane_ & 3) * 2 + (which & 1));
      SWIN_FAST_UNROLL
      for (int e = 0; e < 8; ++e) {
        if (e == which && !is_finite(product[e >> 2][e & 3])) product[e >> 2][e & 3] = again;
      }
    }
  }

  // 1 / max(|row|, eps) of own rows lane / 4 and that + 8.
  SWIN_FAST_DEVICE void inverse_norms(float (&inverse)[2]) const {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      float sum = 0.0f;
      SWIN_FAST_UNROLL
      for (int piece = 0; piece < Tile::kPieces / 4; ++piece) {
        sum += squares<Float32>(load_shared<UInt4>(rows_ + Tile::offset(row(i), piece * 4 + (lane_ & 3))));
      }
      inverse[i] = inverse_norm<Float32>(sum);
    }
  }

  // As OwnRows of 16 bits.
  SWIN_FAST_DEVICE void through_norm(float (&sums)[kHd / 8][4], const float (&inverse)[2], const float (&whole)[2],
                                     float factor, float (&radial)[2]) const {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      radial[i] = 0.0f;
      SWIN_FAST_UNROLL
      for (int c = 0; c < kHd / 8; ++c) {
        SWIN_FAST_UNROLL
        for (int e = 0; e < 2; ++e) radial[i] += own(i, c, e) * sums[c][2 * i + e];
      }
      radial[i] += shuffle_xor(radial[i], 1);
      radial[i] += shuffle_xor(radial[i], 2);
      radial[i] *= inverse[i];
      const float along = whole[i] < 1.0f / kNormFloor ? radial[i] * inverse[i] : 0.0f, scale = factor * whole[i];
      SWIN_FAST_UNROLL
      for (int c = 0; c < kHd / 8; ++c) {
        SWIN_FAST_UNROLL
        for (int e = 0; e < 2; ++e) sums[c][2 * i + e] = (sums[c][2 * i + e] - own(i, c, e) * along) * scale;
      }
    }
  }

 private:
  static constexpr bool kKept = kHd <= 32;  // 8 registers for 8 channels
  static constexpr int kKeptSteps = kKept ? Tile::kSteps : 1;

  SWIN_FAST_DEVICE int row(int i) const { return (lane_ >> 2) + 8 * i; }

  // What a lane has of four 8 x 4 matrices of floats: what ldmatrix takes for two halves is one.
  static SWIN_FAST_DEVICE void to_floats(float (&values)[4], const uint32_t (&words)[4]) {
    __builtin_memcpy(values, words, sizeof(values));
  }
  SWIN_FAST_DEVICE void columns(float (&b)[4], const char* rows, int step) const {
    uint32_t words[4];
    Tile::columns(words, rows, step, lane_);
    to_floats(b, words);
  }
  SWIN_FAST_DEVICE SplitLeft load(int step) const {
    uint32_t words[4];
    float values[4];
    Tile::left(words, rows_, step, lane_);
    to_floats(values, words);
    return SplitLeft(values);
  }
  SWIN_FAST_DEVICE SplitLeft fragment(int step) const {
    if constexpr (kKept) {
      return kept_[step];
    } else {
      return load(step);
    }
  }

  // Of 16 channels: small products first.
  SWIN_FAST_DEVICE void two_steps(float (&part)[2][4], const char* rows, int step) const {
    SplitLeft a[2];
    SplitFloat b[2][4];
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      a[i] = fragment(step + i);
      float values[4];
      columns(values, rows, step + i);
      SWIN_FAST_UNROLL
      for (int n = 0; n < 4; ++n) b[i][n] = SplitFloat(values[n]);
    }
    SWIN_FAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      SWIN_FAST_UNROLL
      for (int e = 0; e < 4; ++e) part[j][e] = 0.0f;
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) add_small(part[j], a[i], b[i][2 * j], b[i][2 * j + 1]);
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) add_large(part[j], a[i], b[i][2 * j], b[i][2 * j + 1]);
    }
  }

  // An element of own row lane / 4 or that + 8 in the order of sums.
  SWIN_FAST_DEVICE float own(int i, int tile, int e) const {
    const int channel = SumChannels<Float32, kHd>::of(tile, e, lane_);
    return load_shared<float>(rows_ + Tile::offset(row(i), channel / 4) + channel % 4 * 4);
  }

  SWIN_FAST_DEVICE float dot(int own_row, const char* rows, int other) const {
    float sum = 0.0f;
    SWIN_FAST_NO_UNROLL
    for (int piece = 0; piece < Tile::kPieces; ++piece) {
      const auto a = load_shared<Float4>(rows_ + Tile::offset(own_row, piece));
      const auto b = load_shared<Float4>(rows + Tile::offset(other, piece));
      sum = fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
    }
    return sum;
  }

  const char* rows_;
  int lane_;
  SplitLeft kept_[kKeptSteps];
};

// A warp's 16 rows of sums, into its tile of own rows: nobody reads these any more.
template <int kHd>
struct RoundedRows<Float32, kHd> {
  const float (&sums)[kHd / 8][4];

  explicit SWIN_FAST_DEVICE RoundedRows(const float (&sums_)[kHd / 8][4]) : sums(sums_) {}

  SWIN_FAST_DEVICE void put(char* tile, int lane) const {
    using Sums = FloatSums<kHd>;
    sync_warp();
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * Sums::kSlabs * Sums::kHalves; ++i) {
      const int half = i % Sums::kHalves, slab = i / Sums::kHalves % Sums::kSlabs,
                lower = i >= Sums::kSlabs * Sums::kHalves;
      store_shared(tile + RowTile<2 * kHd>::offset((lane >> 2) + 8 * lower, Sums::piece_of(slab, half, lane)),
                   Sums::piece(sums, slab, half, lower));
    }
    sync_warp();
  }
};

}  // namespace swin_fast::cuda
