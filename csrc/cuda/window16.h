// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of 16 x 16: how it is cut, what lies where in shared memory, and how rows come there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "one_pass_bwd.h"
#include "primitives.h"
#include "row_tiles.h"
#include "windows.h"

namespace swin_fast::cuda {

struct Window16BwdParams {
  WindowAttentionBwdParams problem;
  Windows all;
  bool aligned;  // rows of qkv and grad_out stand at multiples of 16 bytes, and so does pad_value
  Parts parts;   // in scratch memory, of parts.bytes
};

// A tile of 16 rows is a row of the window. A warp has two of keys, and the queries of a step are two: how many columns
// a query lies behind a key is 2 * (lane % 4) - lane / 4 + {0, 1} + {-8, 0, 8}, and how many rows 2 * (step - warp) +
// {-1, 0, 1}. So a lane has nine pairs of entries of the relative bias for 32 scores.
struct Window16 {
  static constexpr int kSide = 16, kTokens = kSide * kSide, kHd = 32;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kRows = kTokens / kWarps;  // keys of a warp, and queries of a step
  static constexpr int kTiles = kRows / 16;
  static constexpr int kSteps = kTokens / kRows;
  static constexpr int kReach = 2 * kSide - 1;
  using Tile = RowTile<kHd>;

  static constexpr int kApart = kSteps + kWarps - 1;  // differences of a step and a warp
  static constexpr int kEntries = 9;                  // pairs of entries of a lane, for one of these
  static constexpr int kPairs = kEntries * 32 * sizeof(Float2);
  // Of them: of tiles of keys and of queries, and of their halves.
  static SWIN_FAST_DEVICE constexpr int entries(int key_tile, int query_tile, int of_keys, int of_queries) {
    return (query_tile - key_tile + 1) * 3 + of_queries - of_keys + 1;
  }
  static SWIN_FAST_DEVICE int columns_apart(int lane) { return 2 * (lane & 3) - (lane >> 2); }

  // Shared memory. Stages are of one window, and of the one before or behind it; v, which is read once, has one. Of
  // steps there is one that writes and one that is read.
  static constexpr int kStage = 2 * kTokens * Tile::kRowBytes;  // of q and dO
  static constexpr int kAtKeys = 2 * kStage;                    // 16 rows of one stage follow on 16 of the other
  static constexpr int kAtValues = kAtKeys + 2 * kTokens * Tile::kRowBytes;
  static constexpr int kAtWeights = kAtValues + kTokens * Tile::kRowBytes;  // dS, a row of 32 queries for each key
  static constexpr int kHalf = kRows * kHd * 4;                             // dq of a step from half of the keys
  static constexpr int kAtQueries = kAtWeights + 2 * kTokens * Tile::kRowBytes;
  static_assert(kAtWeights % (2 * Tile::kSecond) == 0 && kAtKeys % (2 * Tile::kSecond) == 0, "by an exclusive or");
  static_assert(kAtQueries % (4 * kHalf) == 0, "by an exclusive or");
  static constexpr int kAtResults = kAtQueries + 2 * 2 * kHalf;  // a tile of each warp, on its way to dqkv
  static constexpr int kAtTable = kAtResults + kWarps * 16 * Tile::kRowBytes;  // the bias, times log2(e)
  static constexpr int kAtBiasSums = kAtTable + (kReach * kReach * 4 + 15) / 16 * 16;
  static constexpr int kSums = kRows * sizeof(Float2);  // of weights, and delta: of the keys of a warp
  static constexpr int kAtSums = kAtBiasSums + kApart * kPairs;
  static constexpr int kAtShares = kAtSums + 2 * kWarps * kSums;  // of all keys, for each warp
  static constexpr int kNorm = 4 * kTokens;
  static constexpr int kAtNorms = kAtShares + kWarps * kSums;
  static constexpr int kAtPlaces = kAtNorms + 2 * 4 * kNorm;
  static constexpr int kAtRegions = kAtPlaces + 2 * 4 * kTokens;
  static constexpr int kAtPadSums = kAtRegions + 2 * 2 * kTokens;  // of dpad_value
  static constexpr int kAtImages = kAtPadSums + kWarps * 2 * kHd * 4;
  static constexpr int kAtBorders = kAtImages + 2 * 8;  // of a stage, whether the window has one
  static constexpr size_t kSharedBytes = kAtBorders + 16;

  // Four channels of a row of kHalf, so that four rows have theirs in four groups of banks.
  static SWIN_FAST_DEVICE int of_query(int row, int piece) { return row * kHd * 4 + (piece ^ (row & 3) * 2) * 16; }
};

// On GPUs with 225 KB of shared memory a block, as of sm_90.
inline bool takes_window16_bwd(const WindowAttentionParams& problem, size_t shared_memory) {
  return takes_one_pass<Window16>(problem, shared_memory);
}

// Scratch memory: at a multiple of 16 bytes, or nullptr where only parts.bytes is asked for.
inline Window16BwdParams cut_window16_bwd(const WindowAttentionBwdParams& problem, bool aligned, int multiprocessors,
                                          void* scratch) {
  Window16BwdParams p{problem, Windows(problem), aligned, {}};
  p.problem.mask_value = limited(problem.mask_value);
  p.parts = one_pass_parts(problem, p.all, multiprocessors, scratch);
  return p;
}

// What a warp knows, and how it brings the rows of the tokens whose keys are its own.
template <class T, bool kCosine>
struct Window16Warp {
  using Tile = Window16::Tile;
  static constexpr int kHd = Window16::kHd, kRows = Window16::kRows, kTiles = Window16::kTiles;
  // What is left of 1 / max(|row|, eps) where rows took its power of two, and the whole of it behind.
  static constexpr int kKeyNorms = 0, kQueryNorms = Window16::kNorm, kWhole = 2 * Window16::kNorm;

  const Window16BwdParams& p;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, quad = lane >> 2, pair = (lane & 3) * 2;
  const int own = kRows * warp;
  const int head = static_cast<int>(blockIdx.x) % p.problem.nH;
  const float factor = kCosine ? load_global<float>(p.problem.logit_scale + head) : p.problem.scale;
  char* const memory = shared_memory();

  SWIN_FAST_DEVICE explicit Window16Warp(const Window16BwdParams& p_) : p(p_) {}

  SWIN_FAST_DEVICE char* queries(int stage, int row) const {  // and dO
    return memory + stage * Window16::kStage + Tile::sixteen(row);
  }
  SWIN_FAST_DEVICE char* keys(int stage, int row) const {
    return memory + Window16::kAtKeys + stage * Tile::kSecond + Tile::sixteen(row);
  }
  SWIN_FAST_DEVICE char* values(int row) const { return memory + Window16::kAtValues + row * Tile::kRowBytes; }
  SWIN_FAST_DEVICE char* norms(int stage) const { return memory + Window16::kAtNorms + stage * 4 * Window16::kNorm; }
  SWIN_FAST_DEVICE char* places(int stage) const {
    return memory + Window16::kAtPlaces + stage * 4 * Window16::kTokens;
  }
  SWIN_FAST_DEVICE char* regions(int stage) const {
    return memory + Window16::kAtRegions + stage * 2 * Window16::kTokens;
  }
  // Where dq of its first pixel lies in dqkv, in elements.
  SWIN_FAST_DEVICE char* image(int stage) const { return memory + Window16::kAtImages + 8 * stage; }
  SWIN_FAST_DEVICE char* borders(int stage) const { return memory + Window16::kAtBorders + 4 * stage; }
  SWIN_FAST_DEVICE char* pad_sums() const { return memory + Window16::kAtPadSums + warp * 2 * kHd * 4; }

  // Begins to bring them: of each row a lane has one piece of four.
  SWIN_FAST_DEVICE void fetch(int64_t b, const Windows::Place& place, int stage) const {
    const auto& problem = p.problem;
    const RowSource q = rows_of_qkv(problem, b, 0, head), dout = rows_of_grad_out(problem, b, head);
    const RowSource k = rows_of_qkv(problem, b, 1, head), v = rows_of_qkv(problem, b, 2, head);
    const bool border = p.all.has_border(place);
    SWIN_FAST_UNROLL
    for (int i = 0; i < kRows / 8; ++i) {
      const int row = Window16::kTiles * warp + i / 2, column = i % 2 * 8 + quad, token = own + i * 8 + quad;
      Pixel pixel;
      if (!p.all.pixel(place, row, column, &pixel.y, &pixel.x)) pixel.y = kPadding;
      const int to = Tile::offset(i % 2 * 8 + quad, lane & 3);
      const int64_t of_qkv = q.offset(pixel);
      fetch_piece(queries(stage, own + i / 2 * 16) + to, pixel, of_qkv, q, lane & 3, p.aligned);
      fetch_piece(queries(stage, own + i / 2 * 16) + Tile::kSecond + to, pixel, dout.offset(pixel), dout, lane & 3,
                  p.aligned);
      fetch_piece(keys(stage, own + i / 2 * 16) + to, pixel, of_qkv, k, lane & 3, p.aligned);
      fetch_piece(values(own + i / 2 * 16) + to, pixel, of_qkv, v, lane & 3, p.aligned);
      if (pair != 0) continue;
      const int of_image = pixel.y * static_cast<int>(problem.W) + pixel.x;  // below 0 for padding
      store_shared(places(stage) + 4 * token, of_image);
      if (border) store_shared(regions(stage) + 2 * token, static_cast<uint16_t>(p.all.region(place, row, column)));
    }
    copy_async_commit();
    if (threadIdx.x != 0) return;
    store_shared(borders(stage), border ? 1 : 0);
    const uint16_t* const to = row_of_dqkv<kHd>(problem, b, head, {0, 0});
    store_shared(image(stage), int64_t{to - static_cast<uint16_t*>(problem.dqkv)});
  }

  // Ends it.
  SWIN_FAST_DEVICE void receive(int stage) const { receive_rows<T, kCosine, kRows / 8>(*this, stage); }
};

}  // namespace swin_fast::cuda
