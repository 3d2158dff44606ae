// SPDX-License-Identifier: Apache-2.0
//
// What the forward kernels of large windows are told, and how rows come to them from global memory and go back.
#pragma once

#include <cstdint>

#include "bias_fragments.h"
#include "primitives.h"
#include "query_tiles.h"
#include "windows.h"

namespace swin_fast::cuda {

// What the kernels are told: the problem, and how its work is cut.
struct LargeFwdParams {
  WindowAttentionFwdParams problem;
  Windows all;
  uint32_t stride_y, stride_x;  // of qkv, in bytes: below 2^31 elements, as window_attention.cpp has checked
  BiasFragments bias;
  const void* fragments = nullptr;  // what arrange_bias() has made of the bias
  int32_t warps = 1;                // of a block
  int32_t windows = 1;              // square windows: that a block has in work at a time
  int32_t blocks = 1;

  int32_t rounds = 0;  // square windows: of a head, see below

  // Square windows: a round is one head of as many windows as a block has in work, `rounds` windows apart: each team of
  // warps goes from a window to the one behind, so that all have as many with a border. Rounds of one head follow each
  // other, and a block does successive ones: it has one or two heads, and all heads of a window are in work at the
  // same time, for their rows share cache lines.
  SWIN_FAST_HOST_DEVICE int64_t first_round(int64_t block) const {
    return int64_t{problem.nH} * rounds * block / blocks;
  }
};

// The rows of a head, from where a pixel has them: the first one of an image or of a window. Pixels are counted from
// there. Their offsets are products of two unsigned numbers of 32 bits, one instruction each that adds as well.
struct HeadRows {
  const char* q;
  char* out;
  int head;

  SWIN_FAST_DEVICE static const char* at(const LargeFwdParams& p, const char* rows, Pixel pixel) {
    return rows + uint64_t{static_cast<uint32_t>(pixel.y)} * p.stride_y +
           uint64_t{static_cast<uint32_t>(pixel.x)} * p.stride_x;
  }
  SWIN_FAST_DEVICE static char* result(const LargeFwdParams& p, char* rows, Pixel at) {
    const uint32_t pixel =
        static_cast<uint32_t>(at.y) * static_cast<uint32_t>(p.problem.W) + static_cast<uint32_t>(at.x);
    return rows + uint64_t{pixel} * static_cast<uint32_t>(2 * p.problem.nH * p.problem.hd);
  }

  // A chunk of the rows of k and v of a token; zeros where not `valid`.
  struct Keys {
    const char *k, *v;
    bool valid;
  };
  // Without kPadded the token is a pixel.
  template <bool kPadded>
  SWIN_FAST_DEVICE Keys keys(const LargeFwdParams& p, Pixel at, int chunk) const {
    int64_t to_v = 2 * p.problem.qkv_stride[3];
    const char* from = HeadRows::at(p, q + (to_v + chunk * 16), at);  // of k
    bool valid = true;
    if (kPadded && at.y < 0) {
      valid = p.problem.pad_value != nullptr;
      to_v = valid ? int64_t{2} * p.problem.nH * p.problem.hd : 0;
      from = valid ? static_cast<const char*>(p.problem.pad_value) + to_v + 2 * head * p.problem.hd + chunk * 16 : q;
    }
    return {from, from + to_v, valid};
  }
};

// Begins to bring them to shared memory; of v zeros where not `exists`.
template <bool kAligned>
SWIN_FAST_DEVICE void fetch_keys(const HeadRows::Keys& from, char* k, char* v, bool exists) {
  fetch_chunk<kAligned>(k, reinterpret_cast<const uint16_t*>(from.k), from.valid);
  fetch_chunk<kAligned>(v, reinterpret_cast<const uint16_t*>(from.v), from.valid && exists);
}

SWIN_FAST_DEVICE HeadRows rows_of_head(const LargeFwdParams& p, int64_t b, int head) {
  const WindowAttentionFwdParams& problem = p.problem;
  return {static_cast<const char*>(problem.qkv) + 2 * (b * problem.qkv_stride[0] + head * problem.qkv_stride[4]),
          static_cast<char*>(problem.out) + 2 * (b * problem.H * problem.W * problem.nH + head) * problem.hd, head};
}

// The pixels of tokens first, first + step and so on of a window, to a table in shared memory; like padding from
// `tokens` to `end`. Gives whether one of them is padding.
SWIN_FAST_DEVICE bool tabulate(const LargeFwdParams& p, const Windows::Place& window, int tokens, int end, int columns,
                               int first, int step, char* table) {
  bool padded = false;
  SWIN_FAST_NO_UNROLL
  for (int token = first; token < end; token += step) {
    const int row = token / columns;
    Pixel at;
    if (token >= tokens || !p.all.pixel(window, row, token - row * columns, &at.y, &at.x)) {
      at = {-1, -1};
      padded = true;
    }
    store_shared(table + token * static_cast<int>(sizeof(Pixel)), at);
  }
  return padded;
}

SWIN_FAST_DEVICE Pixel pixel_of(const char* table, int token) {
  return load_shared<Pixel>(table + token * static_cast<int>(sizeof(Pixel)));
}

// Their regions, 16 bits each; 0 from `tokens` to `end`.
SWIN_FAST_DEVICE void tabulate_regions(const LargeFwdParams& p, const Windows::Place& window, int tokens, int end,
                                       int columns, int first, int step, char* table) {
  SWIN_FAST_NO_UNROLL
  for (int token = first; token < end; token += step) {
    const int row = token / columns;
    const int region = token < tokens ? p.all.region(window, row, token - row * columns) : 0;
    store_shared(table + token * 2, static_cast<uint16_t>(region));
  }
}

// The queries of tokens from `first` on; zeros where there is none.
template <bool kAligned, class T, int kHd, int kTiles, int kKeyTiles, bool kCosine>
SWIN_FAST_DEVICE void load_queries(const LargeFwdParams& p, RowTiles<T, kHd, kTiles, kKeyTiles, kCosine>* rows,
                                   const HeadRows& from, const char* table, int first) {
  const int lane = rows->lane;
  const char* const origin = from.q + (lane & 3) * 16;
  SWIN_FAST_UNROLL
  for (int i = 0; i < 2 * kTiles; ++i) {
    const Pixel at = pixel_of(table, first + i * 8 + (lane >> 2));
    const bool real = at.y >= 0 && (kHd != 16 || (lane & 3) < 2);
    const char* const row = real ? HeadRows::at(p, origin, at) : from.q;
    SWIN_FAST_UNROLL
    for (int slab = 0; slab < KeyRows<kHd>::kSlabs; ++slab) {
      // Read in any case and then selected: nvcc leaves four words that come from one load in four neighbouring
      // registers, from where it took 118 moves a block of keys to those where mma wants them.
      const UInt4 chunk = load_chunk<kAligned>(reinterpret_cast<const uint16_t*>(row + slab * 64));
      rows->set_query(i >> 1, i & 1, slab,
                      {real ? chunk.x : 0, real ? chunk.y : 0, real ? chunk.z : 0, real ? chunk.w : 0});
    }
  }
}

template <bool kPadded, class T, int kHd, int kTiles, int kKeyTiles, bool kCosine, bool kStaged>
SWIN_FAST_DEVICE void store_results(const LargeFwdParams& p,
                                    const RowTiles<T, kHd, kTiles, kKeyTiles, kCosine, kStaged>& rows,
                                    const HeadRows& to, char* staging, const char* table, int first) {
  const int lane = rows.lane;
  char* const origin = to.out + (lane & 3) * 16;
  SWIN_FAST_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    SWIN_FAST_UNROLL
    for (int slab = 0; slab < KeyRows<kHd>::kSlabs; ++slab) {
      UInt4 chunk[2];
      rows.results(staging, tile, slab, chunk);
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        const Pixel at = pixel_of(table, first + tile * 16 + i * 8 + (lane >> 2));
        char* const row = HeadRows::result(p, origin, at) + slab * 64;
        if ((!kPadded || at.y >= 0) && (kHd != 16 || (lane & 3) < 2)) store_global(row, chunk[i]);
      }
    }
  }
}

}  // namespace swin_fast::cuda
