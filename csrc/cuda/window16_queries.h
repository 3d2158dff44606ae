// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of 16 x 16: gradients of queries.
#pragma once

#include <cstdint>

#include "primitives.h"
#include "row_tiles.h"
#include "window16.h"

namespace swin_fast::cuda {

// dq of a step: a warp has 16 queries x 16 channels from half of the keys, and then whole rows of four queries.
template <class T, bool kCosine>
struct Window16Queries : Window16Warp<T, kCosine> {
  using Base = Window16Warp<T, kCosine>;
  using Base::kHd, Base::kRows, Base::kQueryNorms, Base::kWhole;
  using Base::p, Base::lane, Base::warp, Base::quad, Base::pair, Base::memory, Base::factor;
  using Base::queries, Base::keys, Base::norms, Base::places, Base::image;
  using typename Base::Tile;

  static constexpr int kKeys = Window16::kTokens / 2;  // of a half

  const int tile = warp & 1, channels = (warp >> 1) & 1, of_keys = warp >> 2;
  const int row = warp * 4 + (lane >> 3), piece = lane & 7;  // of a step, when whole rows are left
  // Where this lane reads dS and k, writes and reads halves of dq. They change with steps and windows by an exclusive
  // or, so that the compiler does not compute them anew for each step: 40 instructions of 150.
  int from_weights = Window16::kAtWeights + Tile::sixteen(of_keys * kKeys) +
                     Tile::offset((lane & 7) + (lane >> 4) * 8, 2 * tile + ((lane >> 3) & 1));
  int from_keys =
      Window16::kAtKeys + Tile::sixteen(of_keys * kKeys) + Tile::offset(lane & 15, 2 * channels + (lane >> 4));
  int to_half = Window16::kAtQueries + of_keys * Window16::kHalf +
                Window16::of_query(tile * 16 + quad, channels * 4 + (pair >> 2)) + (pair & 2) * 4;
  int from_halves = Window16::kAtQueries + Window16::of_query(row, piece);
  float dlogit_scale = 0.0f;

  SWIN_FAST_DEVICE explicit Window16Queries(const Window16BwdParams& p_) : Base(p_) {
    for (int i = 0; i < 2; ++i) store_shared(this->pad_sums() + 4 * (kHd * i + lane), 0.0f);
  }

  // From dS of a step and the rows of keys; `last`: of a window.
  SWIN_FAST_DEVICE void multiply(bool last) {
    float sums[2][2][4];  // every second product adds to the same: a warp waits for one some 33 cycles
    SWIN_FAST_UNROLL
    for (int e = 0; e < 16; ++e) sums[e >> 3][(e >> 2) & 1][e & 3] = 0.0f;
    SWIN_FAST_UNROLL
    for (int i = 0; i < kKeys / 16; ++i) {
      uint32_t a[4], b[4];
      ldmatrix_x4_trans(a, memory + from_weights + Tile::sixteen(16 * i));
      ldmatrix_x4_trans(b, memory + from_keys + Tile::sixteen(16 * i));
      mma_m16n8k16<T>(sums[i & 1][0], a, b[0], b[1]);
      mma_m16n8k16<T>(sums[i & 1][1], a, b[2], b[3]);
    }
    SWIN_FAST_UNROLL
    for (int i = 0; i < 4; ++i) {  // rows eight apart are 1,024 bytes apart, and eight channels 32
      const float (&first)[4] = sums[0][i >> 1], (&second)[4] = sums[1][i >> 1];
      const int e = 2 * (i & 1);
      store_shared(memory + (to_half ^ (i >> 1) * 32) + (i & 1) * 1024,
                   Float2{first[e] + second[e], first[e + 1] + second[e + 1]});
    }
    from_weights ^= Tile::kSecond;
    if (last) from_keys ^= Tile::kSecond;
    to_half ^= 2 * Window16::kHalf;
  }

  // From both halves to dqkv.
  SWIN_FAST_DEVICE void leave(int stage, int step) {
    const int query = step * kRows + row;
    const auto of_first = load_shared<Float4>(memory + from_halves);
    const auto of_second = load_shared<Float4>(memory + from_halves + Window16::kHalf);
    from_halves ^= 2 * Window16::kHalf;
    float sums[4] = {of_first.x + of_second.x, of_first.y + of_second.y, of_first.z + of_second.z,
                     of_first.w + of_second.w};
    const int place = load_shared<int>(places(stage) + 4 * query);
    float scale = factor;
    if (kCosine) {  // as OwnRows::through_norm
      const char* const norm = norms(stage) + kQueryNorms + 4 * query;
      const auto left = load_shared<float>(norm), whole = load_shared<float>(norm + kWhole);
      const auto pairs =
          load_shared<UInt2>(queries(stage, query & ~15) + Tile::offset(query & 15, piece >> 1) + (piece & 1) * 8);
      const Float2 low = unpack<T>(pairs.x), high = unpack<T>(pairs.y);
      const float own[4] = {low.x, low.y, high.x, high.y};
      const float share = reciprocal_approx(left);  // dS came times the norms of both sides
      float radial = 0.0f;
      SWIN_FAST_UNROLL
      for (int i = 0; i < 4; ++i) {
        sums[i] *= share;
        radial += own[i] * sums[i];
      }
      SWIN_FAST_UNROLL
      for (int mask = 1; mask < 8; mask *= 2) radial += shuffle_xor(radial, mask);
      radial *= left;
      dlogit_scale += radial;
      const float along = whole < 1.0f / kNormFloor ? radial * left : 0.0f;
      scale *= whole;
      SWIN_FAST_UNROLL
      for (int i = 0; i < 4; ++i) sums[i] -= own[i] * along;
    }
    if (place < 0) return;
    const int64_t to = load_shared<int64_t>(image(stage)) + place * int64_t{3 * p.problem.nH * kHd} + 4 * piece;
    store_global(static_cast<char*>(p.problem.dqkv) + 2 * to,
                 UInt2{pack<T>(sums[0] * scale, sums[1] * scale), pack<T>(sums[2] * scale, sums[3] * scale)});
  }

  // The part of dlogit_scale, to where sums of weights were.
  SWIN_FAST_DEVICE void leave_part() {
    SWIN_FAST_UNROLL
    for (int mask = 8; kCosine && mask < 32; mask *= 2) dlogit_scale += shuffle_xor(dlogit_scale, mask);
    if (lane == 0) store_shared(memory + Window16::kAtSums + 4 * warp, dlogit_scale);
  }
};

}  // namespace swin_fast::cuda
