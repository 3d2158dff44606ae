// SPDX-License-Identifier: Apache-2.0
//
// Rows of q, k, v and of gradients in shared memory, for any head_dim that is a multiple of 16: where their pieces lie,
// how they come there and leave, and the products of 16 rows that a warp owns with 16 that it goes over.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../window_attention.h"
#include "primitives.h"
#include "windows.h"

namespace swin_fast::cuda {

// Rows of kHd elements as pieces of 16 bytes. ldmatrix reads one piece of eight rows at once: pieces are permuted in
// groups of up to eight by the row, so that the eight lie in eight different groups of banks. Of two tensors 16 rows
// follow on 16 rows: what is read of both has one address in a register, and another that is a constant away.
template <int kHd>
struct RowTile {
  static_assert(kHd % 16 == 0, "rows are whole steps of a product");
  static constexpr int kPieces = kHd / 8;
  static constexpr int kSteps = kHd / 16;  // of a product over channels
  static constexpr int kRowBytes = 2 * kHd;
  static constexpr int kGroup = kPieces % 8 == 0 ? 8 : kPieces % 4 == 0 ? 4 : 2;

  static constexpr int kSecond = 16 * kRowBytes;  // from a row of the first tensor to the same of the second

  // Of 16 rows from `row` on, a multiple of 16.
  static SWIN_FAST_DEVICE int sixteen(int row) { return row * 2 * kRowBytes; }
  static SWIN_FAST_DEVICE int offset(int row, int piece) {
    return (row + (row & ~15)) * kRowBytes + (piece ^ (row / (8 / kGroup) & (kGroup - 1))) * 16;
  }

  // Fragments for mma_m16n8k16 of 16 rows, `step` counting 16 channels: as its left side; as two right sides, of which
  // the rows are the columns; as two right sides contracted over the rows, of channels.
  static SWIN_FAST_DEVICE void left(uint32_t (&a)[4], const char* rows, int step, int lane) {
    ldmatrix_x4(a, rows + offset(lane & 15, 2 * step + (lane >> 4)));
  }
  static SWIN_FAST_DEVICE void columns(uint32_t (&b)[4], const char* rows, int step, int lane) {
    ldmatrix_x4(b, rows + offset((lane & 7) + (lane >> 4) * 8, 2 * step + ((lane >> 3) & 1)));
  }
  static SWIN_FAST_DEVICE void contracted(uint32_t (&b)[4], const char* rows, int step, int lane) {
    ldmatrix_x4_trans(b, rows + offset(lane & 15, 2 * step + (lane >> 4)));
  }
};

// Where rows of one tensor lie in an image, for one head; all in units of 16 bits.
struct RowSource {
  const uint16_t* rows;
  const uint16_t* padding;  // the row that stands for padding; null: zeros
  int64_t stride_y, stride_x;

  SWIN_FAST_DEVICE int64_t offset(const Pixel& pixel) const { return pixel.y * stride_y + pixel.x * stride_x; }
};

template <class T = BFloat16>  // which any of 16 bits is
SWIN_FAST_DEVICE RowSource rows_of_qkv(const WindowAttentionParams& problem, int64_t b, int which, int head) {
  constexpr int kWords = kElementBytes<T> / 2;
  const auto* const rows =
      static_cast<const uint16_t*>(problem.qkv) +
      kWords * (b * problem.qkv_stride[0] + which * problem.qkv_stride[3] + head * problem.qkv_stride[4]);
  const bool padded = which > 0 && problem.pad_value != nullptr;  // a padded query is dropped
  const auto* const padding =
      padded ? static_cast<const uint16_t*>(problem.pad_value) + kWords * (which * problem.nH + head) * problem.hd
             : nullptr;
  return {rows, padding, kWords * problem.qkv_stride[1], kWords * problem.qkv_stride[2]};
}

template <class T = BFloat16>
SWIN_FAST_DEVICE RowSource rows_of_grad_out(const WindowAttentionBwdParams& problem, int64_t b, int head) {
  constexpr int kWords = kElementBytes<T> / 2;
  const auto* const rows =
      static_cast<const uint16_t*>(problem.grad_out) + kWords * (b * problem.grad_out_stride[0] + head * problem.hd);
  return {rows, nullptr, kWords * problem.grad_out_stride[1], kWords * problem.grad_out_stride[2]};
}

// Begins to bring a piece of the row of a token, whose pixel has an offset, to its place in a tile.
SWIN_FAST_DEVICE void fetch_piece(char* to, const Pixel& pixel, int64_t offset, const RowSource& source, int piece,
                                  bool aligned) {
  const bool padded = pixel.y == kPadding && source.padding != nullptr, valid = padded || pixel.y >= 0;
  const uint16_t* const from = padded ? source.padding : pixel.y >= 0 ? source.rows + offset : source.rows;
  if (aligned) {
    fetch_chunk<true>(to, from + piece * 8, valid);
  } else {
    fetch_chunk<false>(to, from + piece * 8, valid);
  }
}

// Begins to bring the rows of `count` tokens, whose pixels stand at `pixels`, into a tile: what one of `threads`
// threads does of it.
template <int kHd>
SWIN_FAST_DEVICE void fetch_rows(char* tile, const char* pixels, int count, const RowSource& source, bool aligned,
                                 int thread, int threads) {
  using Tile = RowTile<kHd>;
  for (int i = thread; i < count * Tile::kPieces; i += threads) {
    const int row = i / Tile::kPieces, piece = i % Tile::kPieces;
    const auto pixel = load_shared<Pixel>(pixels + row * 8);
    fetch_piece(tile + Tile::offset(row, piece), pixel, source.offset(pixel), source, piece, aligned);
  }
}

// Where the row of a pixel of q of a head lies in dqkv; those of k and v follow nH rows and twice as many behind.
template <int kHd>
SWIN_FAST_DEVICE uint16_t* row_of_dqkv(const WindowAttentionBwdParams& problem, int64_t b, int head,
                                       const Pixel& pixel) {
  const int64_t row = (b * problem.H + pixel.y) * problem.W + pixel.x;
  return static_cast<uint16_t*>(problem.dqkv) + (row * (3 * problem.nH) + head) * kHd;
}

// The 16 rows of a warp from its tile to their place in dqkv, where they are pixels.
template <int kHd>
SWIN_FAST_DEVICE void store_rows(const WindowAttentionBwdParams& problem, int64_t b, int which, int head,
                                 const char* tile, const char* pixels, int lane) {
  using Tile = RowTile<kHd>;
  for (int i = lane; i < 16 * Tile::kPieces; i += 32) {
    const int row = i / Tile::kPieces, piece = i % Tile::kPieces;
    const auto pixel = load_shared<Pixel>(pixels + row * 8);
    if (pixel.y < 0) continue;
    uint16_t* const to = row_of_dqkv<kHd>(problem, b, head, pixel) + which * problem.nH * kHd + piece * 8;
    store_global(to, load_shared<UInt4>(tile + Tile::offset(row, piece)));
  }
}

// The 16 rows that a warp owns, as left sides of products: in registers where these suffice.
template <class T, int kHd>
class OwnRows {
 public:
  SWIN_FAST_DEVICE OwnRows(const char* rows, int lane) : rows_(rows), lane_(lane) {
    if constexpr (kKept) {
      SWIN_FAST_UNROLL
      for (int step = 0; step < kKeptSteps; ++step) RowTile<kHd>::left(kept_[step], rows, step, lane);
    }
  }

  SWIN_FAST_DEVICE void fragment(uint32_t (&a)[4], int step) const {
    if constexpr (kKept) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 4; ++i) a[i] = kept_[step][i];
    } else {
      RowTile<kHd>::left(a, rows_, step, lane_);
    }
  }

  // Computes the products with 16 rows: of own row lane / 4 (elements 0 and 1) and that + 8
  // (2 and 3), two of the first eight rows, and two of the others.
  SWIN_FAST_DEVICE void times(float (&product)[2][4], const char* rows) const {
    SWIN_FAST_UNROLL
    for (int e = 0; e < 8; ++e) product[e >> 2][e & 3] = 0.0f;
    SWIN_FAST_UNROLL
    for (int step = 0; step < RowTile<kHd>::kSteps; ++step) {
      uint32_t a[4], b[4];
      fragment(a, step);
      RowTile<kHd>::columns(b, rows, step, lane_);
      mma_m16n8k16<T>(product[0], a, b[0], b[1]);
      mma_m16n8k16<T>(product[1], a, b[2], b[3]);
    }
  }

  // 1 / max(|row|, eps) of own rows lane / 4 and that + 8.
  SWIN_FAST_DEVICE void inverse_norms(float (&inverse)[2]) const {
    float sum[2] = {0.0f, 0.0f};
    SWIN_FAST_UNROLL
    for (int step = 0; step < RowTile<kHd>::kSteps; ++step) {
      uint32_t a[4];
      fragment(a, step);
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) sum[i] += squares<T>(a[i]) + squares<T>(a[i + 2]);
    }
    inverse[0] = inverse_norm(sum[0]);
    inverse[1] = inverse_norm(sum[1]);
  }

  // Turns sums of dS times rows of the other side, which are of unit length, into gradients of own rows x. With
  // u = x / max(|x|, eps), of gradient g = factor * sums, that of x is (g - u (u.g)) / |x|, as du = (dx - u (u.dx)) /
  // |x|; a row below eps is divided by a constant. `whole` is 1 / max(|x|, eps), and `inverse` what is left of it for
  // what own rows are. `radial`: u.sums, the gradient of the factor.
  SWIN_FAST_DEVICE void through_norm(float (&sums)[2 * RowTile<kHd>::kSteps][4], const float (&inverse)[2],
                                     const float (&whole)[2], float factor, float (&radial)[2]) const {
    radial[0] = radial[1] = 0.0f;
    SWIN_FAST_UNROLL
    for (int step = 0; step < RowTile<kHd>::kSteps; ++step) {
      uint32_t a[4];
      fragment(a, step);
      SWIN_FAST_UNROLL
      for (int i = 0; i < 4; ++i) {
        const Float2 own = unpack<T>(a[i]);
        const float* const pair = &sums[2 * step + (i >> 1)][2 * (i & 1)];
        radial[i & 1] += own.x * pair[0] + own.y * pair[1];
      }
    }
    float along[2], scale[2];
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      scale[i] = factor * whole[i];
      radial[i] += shuffle_xor(radial[i], 1);
      radial[i] += shuffle_xor(radial[i], 2);
      radial[i] *= inverse[i];
      along[i] = whole[i] < 1.0f / kNormFloor ? radial[i] * inverse[i] : 0.0f;
    }
    SWIN_FAST_UNROLL
    for (int step = 0; step < RowTile<kHd>::kSteps; ++step) {
      uint32_t a[4];
      fragment(a, step);
      SWIN_FAST_UNROLL
      for (int i = 0; i < 4; ++i) {
        const Float2 own = unpack<T>(a[i]);
        float* const pair = &sums[2 * step + (i >> 1)][2 * (i & 1)];
        pair[0] = (pair[0] - own.x * along[i & 1]) * scale[i & 1];
        pair[1] = (pair[1] - own.y * along[i & 1]) * scale[i & 1];
      }
    }
  }

 private:
  static constexpr bool kKept = kHd <= 64;  // 4 registers for 16 channels
  static constexpr int kKeptSteps = kKept ? RowTile<kHd>::kSteps : 1;
  const char* rows_;
  int lane_;
  uint32_t kept_[kKeptSteps][4];
};

// 16 rows as right sides of products, of which the rows are the columns.
template <class T, int kHd>
struct OtherRows {
  uint32_t b[RowTile<kHd>::kSteps][4];

  OtherRows() = default;
  SWIN_FAST_DEVICE OtherRows(const char* rows, int lane) {
    SWIN_FAST_UNROLL
    for (int step = 0; step < RowTile<kHd>::kSteps; ++step) RowTile<kHd>::columns(b[step], rows, step, lane);
  }

  // The products with own rows, as OwnRows::times gives them; and added to what is there.
  SWIN_FAST_DEVICE void times(float (&product)[2][4], const OwnRows<T, kHd>& own) const {
    SWIN_FAST_UNROLL
    for (int e = 0; e < 8; ++e) product[e >> 2][e & 3] = 0.0f;
    add_products(product, own);
  }

  SWIN_FAST_DEVICE void add_products(float (&product)[2][4], const OwnRows<T, kHd>& own) const {
    SWIN_FAST_UNROLL
    for (int step = 0; step < RowTile<kHd>::kSteps; ++step) {
      uint32_t a[4];
      own.fragment(a, step);
      mma_m16n8k16<T>(product[0], a, b[step][0], b[step][1]);
      mma_m16n8k16<T>(product[1], a, b[step][2], b[step][3]);
    }
  }
};

// Adds  a @ rows  of 16 rows, for tiles of 16 rows of a.
template <class T, int kHd, int kTiles>
SWIN_FAST_DEVICE void add_tiles_times(float (&sums)[kTiles][2 * RowTile<kHd>::kSteps][4],
                                      const uint32_t (&a)[kTiles][4], const char* rows, int lane) {
  SWIN_FAST_UNROLL
  for (int step = 0; step < RowTile<kHd>::kSteps; ++step) {
    uint32_t b[4];
    RowTile<kHd>::contracted(b, rows, step, lane);
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      mma_m16n8k16<T>(sums[r][2 * step], a[r], b[0], b[1]);
      mma_m16n8k16<T>(sums[r][2 * step + 1], a[r], b[2], b[3]);
    }
  }
}

// Adds  a @ rows  of 16 rows.
template <class T, int kHd>
SWIN_FAST_DEVICE void add_rows_times(float (&sums)[2 * RowTile<kHd>::kSteps][4], const uint32_t (&a)[4],
                                     const char* rows, int lane) {
  SWIN_FAST_UNROLL
  for (int step = 0; step < RowTile<kHd>::kSteps; ++step) {
    uint32_t b[4];
    RowTile<kHd>::contracted(b, rows, step, lane);
    mma_m16n8k16<T>(sums[2 * step], a, b[0], b[1]);
    mma_m16n8k16<T>(sums[2 * step + 1], a, b[2], b[3]);
  }
}

// The same with weights as they lie in products, two columns of eight.
template <class T, int kHd>
SWIN_FAST_DEVICE std::enable_if_t<is_element<T>> add_weighted_rows(float (&sums)[kHd / 8][4],
                                                                   const float (&weights)[2][4], const char* rows,
                                                                   int lane) {
  const uint32_t a[4] = {pack<T>(weights[0][0], weights[0][1]), pack<T>(weights[0][2], weights[0][3]),
                         pack<T>(weights[1][0], weights[1][1]), pack<T>(weights[1][2], weights[1][3])};
  add_rows_times<T, kHd>(sums, a, rows, lane);
}

template <int kHd>
SWIN_FAST_DEVICE void scale_rows(float (&sums)[kHd / 8][4], float factor) {
  SWIN_FAST_UNROLL
  for (int piece = 0; piece < kHd / 8; ++piece) {
    SWIN_FAST_UNROLL
    for (int e = 0; e < 4; ++e) sums[piece][e] *= factor;
  }
}

// Which channel of a row of sums columns 2t and 2t + 1 of a tile of eight are, lane & 3 = t.
template <class T, int kHd>
struct SumChannels {
  static SWIN_FAST_DEVICE int of(int tile, int e, int lane) { return tile * 8 + (lane & 3) * 2 + e; }
};

// Adds those of a warp's 16 rows of sums that are `wanted`, of this lane's two, to a row of floats in shared memory.
template <int kHd, class T = BFloat16>  // which any of 16 bits is
SWIN_FAST_DEVICE void add_rows_of(char* row, const float (&sums)[kHd / 8][4], const bool (&wanted)[2], int lane) {
  SWIN_FAST_UNROLL
  for (int piece = 0; piece < kHd / 8; ++piece) {
    SWIN_FAST_UNROLL
    for (int e = 0; e < 2; ++e) {
      float found = (wanted[0] ? sums[piece][e] : 0.0f) + (wanted[1] ? sums[piece][e + 2] : 0.0f);
      SWIN_FAST_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) found += shuffle_xor(found, mask);
      char* const to = row + SumChannels<T, kHd>::of(piece, e, lane) * 4;
      if (lane < 4) store_shared(to, load_shared<float>(to) + found);
    }
  }
}

// A warp's 16 rows of sums, rounded: of each piece, two of row lane / 4 and two of that + 8.
template <class T, int kHd>
struct RoundedRows {
  uint32_t pairs[RowTile<kHd>::kPieces][2];

  explicit SWIN_FAST_DEVICE RoundedRows(const float (&sums)[2 * RowTile<kHd>::kSteps][4]) {
    SWIN_FAST_UNROLL
    for (int piece = 0; piece < RowTile<kHd>::kPieces; ++piece) {
      pairs[piece][0] = pack<T>(sums[piece][0], sums[piece][1]);
      pairs[piece][1] = pack<T>(sums[piece][2], sums[piece][3]);
    }
  }

  // Into the warp's tile, and for all of its lanes to see; in place of own rows without a barrier before: a lane writes
  // the four bytes that it alone has as left side of a product.
  SWIN_FAST_DEVICE void put(char* tile, int lane) const {
    SWIN_FAST_UNROLL
    for (int piece = 0; piece < RowTile<kHd>::kPieces; ++piece) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        store_shared(tile + RowTile<kHd>::offset((lane >> 2) + 8 * i, piece) + (lane & 3) * 4, pairs[piece][i]);
      }
    }
    sync_warp();
  }

  // The same into a tile that is not that of own rows.
  SWIN_FAST_DEVICE void stage(char* tile, int lane) const {
    SWIN_FAST_UNROLL
    for (int piece = 0; piece < RowTile<kHd>::kPieces; piece += 2) {
      const uint32_t four[4] = {pairs[piece][0], pairs[piece][1], pairs[piece + 1][0], pairs[piece + 1][1]};
      stmatrix(tile + RowTile<kHd>::offset(lane & 15, piece + (lane >> 4)), four);
    }
    sync_warp();
  }
};

// Gives 1 / max(|row|, eps) of a row of a tile to its quad. dS is multiplied with it and rounded, but float16 does not
// hold the 1e12 that it may be: there its power of two goes to the row, where it rounds nothing but what is 2^-14 of
// the row's length, and what is left lies between 1 and 2: kSplit. What is left is stored at `left`.
template <class T, int kHd, bool kSplit = is_half<T>>
SWIN_FAST_DEVICE float prepare_norm(char* tile, int row, char* left, int lane) {
  using Tile = RowTile<kHd * kElementBytes<T> / 2>;
  constexpr int kOfLane = (Tile::kPieces + 3) / 4;
  float sum = 0.0f;
  SWIN_FAST_UNROLL
  for (int i = 0; i < kOfLane; ++i) {
    const int piece = i * 4 + (lane & 3);
    if (piece >= Tile::kPieces) continue;
    sum += squares<T>(load_shared<UInt4>(tile + Tile::offset(row, piece)));
  }
  const float inverse = inverse_norm<T>(sum);
  if constexpr (kSplit) {
    const auto scaled = [power = power_of(inverse)](uint32_t pair) {
      const Float2 two = unpack<T>(pair);
      return pack<T>(two.x * power, two.y * power);
    };
    SWIN_FAST_UNROLL
    for (int i = 0; i < kOfLane; ++i) {
      const int piece = i * 4 + (lane & 3);
      if (piece >= Tile::kPieces) continue;
      char* const at = tile + Tile::offset(row, piece);
      const auto eight = load_shared<UInt4>(at);  // again: 16 registers less at head_dim 128
      store_shared(at, UInt4{scaled(eight.x), scaled(eight.y), scaled(eight.z), scaled(eight.w)});
    }
  }
  if ((lane & 3) == 0) store_shared(left, kSplit ? fraction_of(inverse) : inverse);
  return inverse;
}

}  // namespace swin_fast::cuda
