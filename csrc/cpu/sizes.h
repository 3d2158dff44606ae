// SPDX-License-Identifier: Apache-2.0
//
// The sizes of one instance of the kernels: known at compile time, or at run time only. Included by each
// kernels_*.cpp after operands.h.
#pragma once

#include "operands.h"

namespace swin_fast::cpu {
namespace {

// Rows whose scores stay in registers from the product to the softmax, whole: 7 x 48, 4 x 64 or 3 x 144 columns are 21,
// 16 or 27 of 32 registers. 0: rows of scores pass through memory. Each tile reads all of k^T: at N = 144 that is 9 KB
// of pairs, but 18 KB of floats, more than L1 spares (4 % slower than through memory).
template <class Operands>
constexpr int tile_rows(int n) {
  if (kRegisters < 32) return 0;
  return n == 49 ? 7 : n == 64 ? 4 : n == 144 && Operands::steps(2) == 1 ? 3 : 0;
}

// kN = 0: N and hd are known at run time only.
template <class Operands, int kN, int kHD>
struct Sizes {
  static constexpr int kStaticN = kN, kStaticHD = kHD;
  static constexpr int kTileRows = tile_rows<Operands>(kN);
  // Rows of probabilities made before they are multiplied with v, so that they stay in L1; it divides N where N is
  // static.
  static constexpr int kRowBlock = kN == 49 ? 7 : kN == 144 && kTileRows > 0 ? 12 : 8;
  // By how many blocks the product after the softmax stays behind: with 1 it fills the latencies of the next block's
  // softmax (2 % of N = 49); where scores pass through memory it costs more L1 than it gains (2 % of N = 144 in float).
  static constexpr int kDelay = kTileRows > 0 ? 1 : 0;
  // N = 49 leaves one column behind 48: it is computed for all rows of a block as one vector over rows, since a fourth
  // vector of every row would be a quarter of softmax for one value (7 % of a forward in bfloat16).
  static constexpr bool kLone = kN % kColumnPad == 1;
  static constexpr int kProductN = kLone ? kN - 1 : kN;
  // The row count as a template argument of gemm: 0, a run-time count, where the last block may be short.
  static constexpr int kStaticRows = kN == 0 ? 0 : kRowBlock;
  static_assert(kN == 0 || kN % kRowBlock == 0);
  static_assert(kTileRows > 0 ? kRowBlock % kTileRows == 0 && kTileRows <= kReduceRows && kProductN % kWidth == 0
                              : kRowBlock <= kReduceRows);
  int n_, hd_;
  Sizes(int n, int hd) : n_(n), hd_(hd) {}
  SWIN_FAST_INLINE int n() const { return kN ? kN : n_; }
  SWIN_FAST_INLINE int hd() const { return kHD ? kHD : hd_; }
  SWIN_FAST_INLINE int product_n() const { return kN ? kProductN : n_; }
  SWIN_FAST_INLINE int columns() const { return round_up(n(), kColumnPad); }  // of a row of scores
  SWIN_FAST_INLINE int hd_columns() const { return round_up(hd(), kColumnPad); }
  // Vectors that hold a row of scores, but for a lone column, and columns in the last of them.
  SWIN_FAST_INLINE int vectors() const { return (product_n() + kWidth - 1) / kWidth; }
  SWIN_FAST_INLINE int last_columns() const { return product_n() - (vectors() - 1) * kWidth; }
  static constexpr int kVectors = (kProductN + kWidth - 1) / kWidth;  // of a static N
};

// Calls f(0), f(1), ... f(count - 1); unrolled where the count is known at compile time, kCount.
template <int kCount, class F>
SWIN_FAST_INLINE void each(int count, const F& f) {
  if constexpr (kCount > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; i++) f(i);
  } else {
    for (int i = 0; i < count; i++) f(i);
  }
}

}  // namespace
}  // namespace swin_fast::cpu
