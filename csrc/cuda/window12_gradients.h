// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of 12 x 12: gradients of rows.
#pragma once

#include <cstdint>

#include "primitives.h"
#include "row_tiles.h"
#include "window12.h"
#include "windows.h"

namespace swin_fast::cuda {

// dq, dk or dv of tiles, from P and dS: of kWhich 0, 1 or 2.
template <class T, bool kCosine>
struct Window12Gradients : Window12Warp<T, kCosine> {
  using Warp = Window12Warp<T, kCosine>;
  using typename Warp::Tile;
  using Warp::kHd, Warp::kKeyNorms, Warp::kQueryNorms, Warp::kWhole;
  using Warp::p, Warp::lane, Warp::warp, Warp::quad, Warp::memory, Warp::factor;
  using Warp::queries, Warp::keys, Warp::norms;
  template <int kCount>
  using Sums = float[kCount][2 * Tile::kSteps][4];

  float dlogit_scale = 0.0f;

  SWIN_FAST_DEVICE explicit Window12Gradients(const Window12BwdParams& p_) : Warp(p_) {}

  // Tiles on their way: of dq, and, behind, those of a strip of dk or dv.
  SWIN_FAST_DEVICE char* result(int tile) const { return memory + Window12::kAtResults + tile * Window12::kResultTile; }

  // The products of rows of weights, or of columns, with rows of k, q or dO: tiles from row `first` on.
  template <int kWhich, int kCount>
  SWIN_FAST_DEVICE void multiply(Sums<kCount>& sums, int first, int stage) const {
    constexpr bool kColumns = kWhich > 0;
    const char* const rows = (kWhich == 0 ? keys(stage, 0) : queries(stage, 0)) + (kWhich < 2 ? 0 : Tile::kSecond);
    const char* const left = memory + Window12::kAtWeights + (kWhich < 2 ? Window12::kWeights : 0) +
                             (kColumns ? first * 2 + Window12::weight((lane & 7) + (lane >> 4) * 8, (lane >> 3) & 1)
                                       : Window12::weight(first + (lane & 15), lane >> 4));
    SWIN_FAST_UNROLL
    for (int i = 0; i < 16 * kCount; ++i) sums[i / 16][i / 4 % 4][i % 4] = 0.0f;
    SWIN_FAST_UNROLL
    for (int step = 0; step < Window12::kSteps; ++step) {
      uint32_t a[kCount][4];
      SWIN_FAST_UNROLL
      for (int r = 0; r < kCount; ++r) {
        if (kColumns) {
          ldmatrix_x4_trans(a[r], left + step * 16 * Window12::kWeightRow + r * 32);
        } else {
          ldmatrix_x4(a[r], left + r * 16 * Window12::kWeightRow + step * 32);
        }
      }
      add_tiles_times<T, kHd>(sums, a, rows + Tile::sixteen(16 * step), lane);
    }
  }

  // Gradients of q, k or v from their sums, to tiles in shared memory.
  template <int kWhich, int kCount>
  SWIN_FAST_DEVICE void finish(Sums<kCount>& sums, int first, int stage) {
    SWIN_FAST_UNROLL
    for (int r = 0; r < kCount; ++r) {
      if (kCosine && kWhich < 2) {
        const int row = first + 16 * r;
        const OwnRows<T, kHd> own_rows(kWhich == 0 ? queries(stage, row) : keys(stage, row), lane);
        const char* const norm = norms(stage) + (kWhich == 0 ? kQueryNorms : kKeyNorms) + 4 * (row + quad);
        float radial[2];
        through_both_norms(sums[r], own_rows, norm, kWhole, factor, radial);
        if (kWhich == 0) dlogit_scale += radial[0] + radial[1];
      } else if (kWhich < 2) {
        scale_rows<kHd>(sums[r], factor);
      }
    }
  }

  template <int kCount>
  SWIN_FAST_DEVICE void put(const Sums<kCount>& sums, char* tiles) const {
    SWIN_FAST_UNROLL
    for (int r = 0; r < kCount; ++r) RoundedRows<T, kHd>(sums[r]).stage(tiles + r * Window12::kResultTile, lane);
  }
};

}  // namespace swin_fast::cuda
