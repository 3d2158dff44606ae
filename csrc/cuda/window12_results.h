// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of 12 x 12: gradients of keys and values, and how rows come.
#pragma once

#include <cstdint>

#include "primitives.h"
#include "row_tiles.h"
#include "window12.h"
#include "window12_gradients.h"
#include "windows.h"

namespace swin_fast::cuda {

// A strip of dk and of dv, and of the rows of the next window.
template <class T, bool kCosine>
struct Window12Results : Window12Gradients<T, kCosine> {
  using Base = Window12Gradients<T, kCosine>;
  using Base::kHd, Base::kTiles, Base::kStrip, Base::kKeyNorms, Base::kQueryNorms, Base::kWhole;
  using Base::p, Base::lane, Base::warp, Base::quad, Base::pair, Base::memory, Base::head;
  using Base::queries, Base::keys, Base::norms, Base::regions, Base::borders, Base::places, Base::image;
  using typename Base::Tile;
  static constexpr int kRows = kStrip / 8;  // of a lane

  const int strip = warp - Window12::kScoreWarps, own = kStrip * strip;
  const int column = strip * Window12::kPatch + (quad & 3), first_row = quad >> 2;  // and every second one
  char* const pad_sums = memory + Window12::kAtPadSums + strip * 2 * kHd * 4;       // of dpad_value, of k and of v
  // Of the window of compute(): its image in dqkv, and where rows of this lane lie there, or kPadding.
  uint16_t* to;
  int place[kRows];
  // Of the window that is fetched next, where in_pieces: its image, and pixels and pieces of rows from there on.
  const uint16_t* images[4];
  uint32_t pixels[kRows], pieces[kRows][2];

  SWIN_FAST_DEVICE explicit Window12Results(const Window12BwdParams& p_) : Base(p_) {
    for (int i = 0; i < 2; ++i) store_shared(pad_sums + 4 * (kHd * i + lane), 0.0f);
  }

  // Finds the rows of a window, which is fetched when all are done with the one before.
  SWIN_FAST_DEVICE void find(int64_t b, const Windows::Place& place) {
    if (!p.in_pieces) return;
    const auto& problem = p.problem;
    const auto wrap = [](uint32_t at, uint32_t size) { return at < at - size ? at : at - size; };
    const auto H = static_cast<uint32_t>(problem.H), W = static_cast<uint32_t>(problem.W);
    const uint32_t x =
        wrap(static_cast<uint32_t>(place.x * Window12::kSide + column) + static_cast<uint32_t>(p.all.x.roll), W);
    const uint32_t top =
        static_cast<uint32_t>(place.y * Window12::kSide + first_row) + static_cast<uint32_t>(p.all.y.roll);
    images[0] = rows_of_qkv(problem, b, 0, head).rows;
    images[1] = rows_of_grad_out(problem, b, head).rows;
    images[2] = images[0] + problem.qkv_stride[3];
    images[3] = images[0] + 2 * problem.qkv_stride[3];
    SWIN_FAST_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const uint32_t y = wrap(top + 2 * i, H);
      pixels[i] = y * W + x;
      SWIN_FAST_UNROLL
      for (int j = 0; j < 2; ++j) pieces[i][j] = y * p.pieces_y[j] + (x * p.pieces_x[j] + (lane & 3));
    }
  }

  // Begins to bring them: of those of the strip a lane has a piece of six.
  SWIN_FAST_DEVICE void fetch(int64_t b, const Windows::Place& place, int stage) const {
    const auto& problem = p.problem;
    char* const to = queries(stage, own) + Tile::offset(quad, lane & 3);
    const auto place_of = [&](int i, int which) {
      return to + (which >> 1) * Window12::kPairBytes + (which & 1) * Tile::kSecond + Tile::sixteen(i / 2 * 16) +
             i % 2 * 8 * Tile::kRowBytes;
    };
    char* const of_tokens = places(stage) + 4 * (own + quad);
    if (p.in_pieces) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 4 * kRows; ++i) {
        const int which = i % 4;
        copy_async_16(place_of(i / 4, which), images[which] + uint64_t{pieces[i / 4][which == 1]} * 8, true);
      }
      SWIN_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) {
        if (pair == 0) store_shared(of_tokens + 32 * i, pixels[i]);
      }
    } else {
      const RowSource q = rows_of_qkv(problem, b, 0, head), dout = rows_of_grad_out(problem, b, head);
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
    if (strip == 0 && lane == 0) {
      store_shared(borders(stage), border ? 1 : 0);
      const uint16_t* const to = row_of_dqkv<kHd>(problem, b, head, {0, 0});
      store_shared(image(stage), int64_t{to - static_cast<uint16_t*>(problem.dqkv)});
    }
    if (!border || pair != 0) return;
    SWIN_FAST_NO_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const auto region = static_cast<uint16_t>(p.all.region(place, first_row + 2 * i, column));
      store_shared(regions(stage) + 2 * (own + 8 * i + quad), region);
    }
  }

  // Ends it.
  SWIN_FAST_DEVICE void receive(int stage) const { receive_rows<T, kCosine, kRows>(*this, stage); }

  // Those of the window in a stage, while P and dS are there.
  SWIN_FAST_DEVICE void compute(int stage) {
    to = static_cast<uint16_t*>(p.problem.dqkv) + load_shared<int64_t>(image(stage)) + (lane & 3) * 8;
    SWIN_FAST_UNROLL
    for (int i = 0; i < kRows; ++i) place[i] = load_shared<int>(places(stage) + 4 * (own + 8 * i + quad));
    compute<1>(stage);
    compute<2>(stage);
  }

  // A strip of dq of the window of compute(), which others have put.
  SWIN_FAST_DEVICE void leave_queries() const { leave<0>(this->result(kTiles * strip)); }

 private:
  template <int kWhich>
  SWIN_FAST_DEVICE void compute(int stage) {
    typename Base::template Sums<kTiles> sums;
    this->template multiply<kWhich>(sums, own, stage);
    this->template finish<kWhich>(sums, own, stage);
    if (p.problem.pad_value != nullptr) {
      SWIN_FAST_UNROLL
      for (int r = 0; r < kTiles; ++r) {
        const bool padding[2] = {place[2 * r] < 0, place[2 * r + 1] < 0};
        if (!any_lane(padding[0] || padding[1])) continue;
        add_rows_of<kHd>(pad_sums + (kWhich - 1) * 4 * kHd, sums[r], padding, lane);
      }
    }
    if (kWhich > 1) sync_warp();  // the tiles of dk have been read
    char* const tiles = this->result(Window12::kSteps + kTiles * strip);
    this->put(sums, tiles);
    leave<kWhich>(tiles);
  }

  // Tiles to where they belong in the image.
  template <int kWhich>
  SWIN_FAST_DEVICE void leave(const char* tiles) const {
    const auto from = [&](int i) {
      return load_shared<UInt4>(tiles + i / 2 * Window12::kResultTile + Tile::offset(quad + i % 2 * 8, lane & 3));
    };
    const auto store = [&](int i, const UInt4& eight) {
      store_global(to + kWhich * p.problem.nH * kHd + place[i] * int64_t{3 * p.problem.nH * kHd}, eight);
    };
    if (p.in_pieces) {  // nothing is padding, and waits for shared memory go on beside one another
      UInt4 rows[kRows];
      SWIN_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) rows[i] = from(i);
      SWIN_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) store(i, rows[i]);
    } else {
      SWIN_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) {
        if (place[i] >= 0) store(i, from(i));
      }
    }
  }
};

}  // namespace swin_fast::cuda
