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
  using Warp::queries, Warp::keys, Warp::norms, Warp::places, Warp::image;
  template <int kCount>
  using Sums = float[kCount][2 * Tile::kSteps][4];

  char* const staging = memory + Window12::kAtResults + Window12::result_tile(warp) * Window12::kResultTile;
  float dlogit_scale = 0.0f;

  SWIN_FAST_DEVICE explicit Window12Gradients(const Window12BwdParams& p_) : Warp(p_) {}

  // Of dpad_value, of a strip: of k, and of v.
  SWIN_FAST_DEVICE char* pad_sums(int strip) const { return memory + Window12::kAtPadSums + strip * 2 * kHd * 4; }

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

  // Gradients of q, k or v from their sums, to where they belong in the image of the stage: each step of it for all
  // tiles, whose waits for shared memory go on beside one another.
  template <int kWhich, int kCount>
  SWIN_FAST_DEVICE void finish(Sums<kCount>& sums, int first, int stage, char* pad_sums) {
    int place[kCount][2];  // in the image, or kPadding
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * kCount; ++i) {
      place[i / 2][i % 2] = load_shared<int>(places(stage) + 4 * (first + 8 * i + quad));
    }
    SWIN_FAST_UNROLL
    for (int r = 0; r < kCount; ++r) {
      if (kCosine && kWhich < 2) {
        const int row = first + 16 * r;
        const char* const norm = norms(stage) + (kWhich == 0 ? kQueryNorms : kKeyNorms) + 4 * (row + quad);
        float left[2], whole[2], radial[2];
        SWIN_FAST_UNROLL
        for (int i = 0; i < 2; ++i) {
          left[i] = load_shared<float>(norm + 32 * i);
          whole[i] = load_shared<float>(norm + kWhole + 32 * i);
          const float share = reciprocal_approx(left[i]);  // dS came times the norms of both sides
          SWIN_FAST_UNROLL
          for (int c = 0; c < 2 * Tile::kSteps; ++c) {
            sums[r][c][2 * i] *= share;
            sums[r][c][2 * i + 1] *= share;
          }
        }
        const OwnRows<T, kHd> own_rows(kWhich == 0 ? queries(stage, row) : keys(stage, row), lane);
        own_rows.through_norm(sums[r], left, whole, factor, radial);
        if (kWhich == 0) dlogit_scale += radial[0] + radial[1];
      } else if (kWhich < 2) {
        scale_rows<kHd>(sums[r], factor);
      }
    }
    if (kWhich > 0 && p.problem.pad_value != nullptr) {
      SWIN_FAST_UNROLL
      for (int r = 0; r < kCount; ++r) {
        const bool padding[2] = {place[r][0] < 0, place[r][1] < 0};
        if (any_lane(padding[0] || padding[1])) add_rows_of<kHd>(pad_sums, sums[r], padding, lane);
      }
    }
    if (kWhich > 1) sync_warp();  // the tiles of dk have been read
    SWIN_FAST_UNROLL
    for (int r = 0; r < kCount; ++r) {
      RoundedRows<T, kHd>(sums[r]).stage(staging + r * Window12::kResultTile, lane);
    }
    uint16_t* const to = static_cast<uint16_t*>(p.problem.dqkv) + load_shared<int64_t>(image(stage)) +
                         (kWhich * p.problem.nH * kHd + (lane & 3) * 8);
    const auto from = [&](int i) {
      return load_shared<UInt4>(staging + i / 2 * Window12::kResultTile + Tile::offset(quad + i % 2 * 8, lane & 3));
    };
    const auto put = [&](int i, const UInt4& eight) {
      store_global(to + place[i / 2][i % 2] * int64_t{3 * p.problem.nH * kHd}, eight);
    };
    if (p.in_pieces) {  // nothing is padding
      UInt4 rows[2 * kCount];
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2 * kCount; ++i) rows[i] = from(i);
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2 * kCount; ++i) put(i, rows[i]);
    } else {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2 * kCount; ++i) {
        if (place[i / 2][i % 2] >= 0) put(i, from(i));
      }
    }
  }
};

}  // namespace swin_fast::cuda
