// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of 12 x 12: gradients of rows, and how rows come.
#pragma once

#include <cstdint>

#include "primitives.h"
#include "row_tiles.h"
#include "window12.h"
#include "windows.h"

namespace swin_fast::cuda {

// dq, dk or dv, and a strip of the rows of the next window.
template <class T, bool kCosine>
struct Window12Results : Window12Warp<T, kCosine> {
  using Warp = Window12Warp<T, kCosine>;
  using typename Warp::Tile;
  using Warp::kHd, Warp::kTiles, Warp::kStrip, Warp::kKeyNorms, Warp::kQueryNorms, Warp::kWhole;
  using Warp::p, Warp::lane, Warp::warp, Warp::quad, Warp::pair, Warp::memory, Warp::factor, Warp::head;
  using Warp::queries, Warp::keys, Warp::norms, Warp::regions, Warp::borders, Warp::places;
  static constexpr int kRows = kStrip / 8;  // of a lane
  static constexpr int kAtOnce = 5, kHeld = Window12::kSteps - kAtOnce;
  template <int kCount>
  using Sums = float[kCount][2 * Tile::kSteps][4];

  const int which = warp - Window12::kScoreWarps, strip = which, own = kStrip * strip;
  char* const staging = memory + Window12::kAtResults + which * 2 * Window12::kResultTile;
  char* const pad_sums = memory + Window12::kAtPadSums + which * kHd * 4;  // of dpad_value
  float dlogit_scale = 0.0f;
  // The last tiles, which wait until others have come to P and dS, and where their rows lie in the image, or kPadding.
  Sums<kHeld> held;
  int of_image[kHeld][2];

  SWIN_FAST_DEVICE explicit Window12Results(const Window12BwdParams& p_) : Warp(p_) {
    store_shared(pad_sums + 4 * lane, 0.0f);
  }

  // Begins to bring the rows of a window: of those of the strip a lane has a piece of six.
  SWIN_FAST_DEVICE void fetch(int64_t b, const Windows::Place& place, int stage) const {
    const auto& problem = p.problem;
    const int column = strip * Window12::kPatch + (quad & 3), first_row = quad >> 2;  // and every second one
    const RowSource q = rows_of_qkv(problem, b, 0, head), dout = rows_of_grad_out(problem, b, head);
    char* const to = queries(stage, own) + Tile::offset(quad, lane & 3);
    const auto place_of = [&](int i, int which) {
      return to + (which >> 1) * Window12::kPairBytes + (which & 1) * Tile::kSecond + Tile::sixteen(i / 2 * 16) +
             i % 2 * 8 * Tile::kRowBytes;
    };
    char* const of_tokens = places(stage) + 4 * (own + quad);
    if (p.in_pieces) {
      const auto wrap = [](uint32_t at, uint32_t size) { return at < at - size ? at : at - size; };
      const auto H = static_cast<uint32_t>(problem.H), W = static_cast<uint32_t>(problem.W);
      const uint32_t x =
          wrap(static_cast<uint32_t>(place.x * Window12::kSide + column) + static_cast<uint32_t>(p.all.x.roll), W);
      const uint32_t top =
          static_cast<uint32_t>(place.y * Window12::kSide + first_row) + static_cast<uint32_t>(p.all.y.roll);
      const uint16_t* const rows[4] = {q.rows, dout.rows, q.rows + problem.qkv_stride[3],
                                       q.rows + 2 * problem.qkv_stride[3]};
      SWIN_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const uint32_t y = wrap(top + 2 * i, H);
        const uint32_t pieces[2] = {y * p.pieces_y[0] + (x * p.pieces_x[0] + (lane & 3)),
                                    y * p.pieces_y[1] + (x * p.pieces_x[1] + (lane & 3))};
        SWIN_FAST_UNROLL
        for (int which = 0; which < 4; ++which) {
          copy_async_16(place_of(i, which), rows[which] + uint64_t{pieces[which == 1]} * 8, true);
        }
        if (pair == 0) store_shared(of_tokens + 32 * i, y * W + x);
      }
    } else {
      const RowSource k = rows_of_qkv(problem, b, 1, head), v = rows_of_qkv(problem, b, 2, head);
      SWIN_FAST_NO_UNROLL
      for (int i = 0; i < kRows; ++i) {
        Pixel pixel;
        if (!p.all.pixel(place, first_row + 2 * i, column, &pixel.y, &pixel.x)) pixel.y = kPadding;
        fetch_piece(place_of(i, 0), pixel, q.offset(pixel), q, lane & 3, p.aligned);
        fetch_piece(place_of(i, 1), pixel, dout.offset(pixel), dout, lane & 3, p.aligned);
        fetch_piece(place_of(i, 2), pixel, k.offset(pixel), k, lane & 3, p.aligned);
        fetch_piece(place_of(i, 3), pixel, v.offset(pixel), v, lane & 3, p.aligned);
        const int of_image = pixel.y * static_cast<int>(problem.W) + pixel.x;  // below 0 for padding
        if (pair == 0) store_shared(of_tokens + 32 * i, of_image);
      }
    }
    copy_async_commit();
    const bool border = p.all.has_border(place);
    if (strip == 0 && lane == 0) store_shared(borders(stage), border ? 1 : 0);
    if (!border || pair != 0) return;
    SWIN_FAST_NO_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const auto region = static_cast<uint16_t>(p.all.region(place, first_row + 2 * i, column));
      store_shared(regions(stage) + 2 * (own + 8 * i + quad), region);
    }
  }

  // Ends it.
  SWIN_FAST_DEVICE void receive(int stage) const {
    copy_async_wait<0>();
    SWIN_FAST_UNROLL
    for (int i = 0; i < kRows && kCosine; ++i) {  // of each row a lane reads the piece that it has fetched
      char* const norm = norms(stage) + 4 * (own + 8 * i + quad);
      const float of_key = prepare_norm<T, kHd, true>(keys(stage, own), 8 * i + quad, norm + kKeyNorms, lane);
      const float of_query = prepare_norm<T, kHd, true>(queries(stage, own), 8 * i + quad, norm + kQueryNorms, lane);
      if (pair != 0) continue;
      store_shared(norm + kWhole + kKeyNorms, of_key);
      store_shared(norm + kWhole + kQueryNorms, of_query);
    }
  }

  // The products of rows of weights, or of columns, with rows of q, k or dO: tiles from `first` on.
  template <bool kColumns, int kCount>
  SWIN_FAST_DEVICE void multiply(Sums<kCount>& sums, int first, int stage) const {
    const char* const rows = which == 0   ? keys(stage, 0)
                             : which == 1 ? queries(stage, 0)
                                          : queries(stage, 0) + Tile::kSecond;
    const char* const left = memory + Window12::kAtWeights + (which < 2 ? Window12::kWeights : 0) +
                             (kColumns ? first * 32 + Window12::weight((lane & 7) + (lane >> 4) * 8, (lane >> 3) & 1)
                                       : Window12::weight(first * 16 + (lane & 15), lane >> 4));
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

  template <int kCount>
  SWIN_FAST_DEVICE void multiply(Sums<kCount>& sums, int first, int stage) const {
    if (which == 0) {
      multiply<false>(sums, first, stage);
    } else {
      multiply<true>(sums, first, stage);
    }
  }

  // Where the rows of this lane lie in the image, or kPadding.
  template <int kCount>
  SWIN_FAST_DEVICE void find(int (&rows)[kCount][2], int first, int stage) const {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * kCount; ++i) {
      rows[i / 2][i % 2] = load_shared<int>(places(stage) + 4 * (16 * first + 8 * i + quad));
    }
  }

  // Gradients of q, k or v from their sums, to where they belong.
  template <int kCount>
  SWIN_FAST_DEVICE void finish(Sums<kCount>& sums, int first, const int (&rows)[kCount][2], int64_t b, int stage) {
    uint16_t* const to = row_of_dqkv<kHd>(p.problem, b, head, {0, 0}) + which * p.problem.nH * kHd + (lane & 3) * 8;
    const float of_result = which < 2 ? factor : 1.0f;
    SWIN_FAST_UNROLL
    for (int r = 0; r < kCount; ++r) {
      if (kCosine && which < 2) {
        const int row = 16 * (first + r);
        const char* const norm = norms(stage) + (which == 0 ? kQueryNorms : kKeyNorms) + 4 * (row + quad);
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
        const OwnRows<T, kHd> own_rows(which == 0 ? queries(stage, row) : keys(stage, row), lane);
        own_rows.through_norm(sums[r], left, whole, factor, radial);
        dlogit_scale += radial[0] + radial[1];  // only that of queries counts
      } else if (!kCosine) {
        scale_rows<kHd>(sums[r], of_result);
      }
      if (p.problem.pad_value != nullptr && which > 0) {
        const bool padding[2] = {rows[r][0] < 0, rows[r][1] < 0};
        if (any_lane(padding[0] || padding[1])) add_rows_of<kHd>(pad_sums, sums[r], padding, lane);
      }
      char* const tile = staging + (first + r) % 2 * Window12::kResultTile;  // the one before is still read
      RoundedRows<T, kHd>(sums[r]).stage(tile, lane);
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        const auto eight = load_shared<UInt4>(tile + Tile::offset(quad + 8 * i, lane & 3));
        if (rows[r][i] >= 0) store_global(to + rows[r][i] * int64_t{3 * p.problem.nH * kHd}, eight);
      }
    }
  }

  // Those of a window, while P and dS are there.
  SWIN_FAST_DEVICE void compute(int64_t b, int stage) {
    Sums<kAtOnce> sums;
    int rows[kAtOnce][2];
    multiply(sums, 0, stage);
    find(rows, 0, stage);
    finish(sums, 0, rows, b, stage);
    multiply(held, kAtOnce, stage);
    find(of_image, kAtOnce, stage);
    if (kCosine) finish(held, kAtOnce, of_image, b, stage);  // while its norms are there
  }

  SWIN_FAST_DEVICE void finish_rest(int64_t b, int stage) { finish(held, kAtOnce, of_image, b, stage); }

  // To part `part`.
  SWIN_FAST_DEVICE void leave_parts(int64_t part) {
    if (kCosine && which == 0) {
      SWIN_FAST_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) dlogit_scale += shuffle_xor(dlogit_scale, mask);
      if (lane == 0) store_global(p.parts.dlogit_scale + part, dlogit_scale);
    }
    if (p.problem.pad_value == nullptr || which == 0) return;
    sync_warp();
    store_global(p.parts.dpad_value + (2 * part + which - 1) * kHd + lane, load_shared<float>(pad_sums + 4 * lane));
  }
};

}  // namespace swin_fast::cuda
