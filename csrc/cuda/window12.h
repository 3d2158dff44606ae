// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of 12 x 12: how it is cut, what lies where in shared memory, and what all of its warps know.
#pragma once

#include <cstddef>
#include <cstdint>

#include "one_pass_bwd.h"
#include "primitives.h"
#include "row_tiles.h"
#include "windows.h"

namespace swin_fast::cuda {

struct Window12BwdParams {
  WindowAttentionBwdParams problem;
  Windows all;
  bool aligned;    // rows of qkv and grad_out stand at multiples of 16 bytes, and so does pad_value
  bool in_pieces;  // aligned, and no image is padded
  // Strides of qkv and grad_out in 16 bytes, where in_pieces: 32 bits go as far as 64 GB of one image.
  uint32_t pieces_y[2], pieces_x[2];
  Parts parts;  // in scratch memory, of parts.bytes
};

// The window as 3 x 3 patches of 4 x 4 tokens, each a tile of 16 rows in all that follows. Three patches, one below the
// other, are a strip of 48 rows. So the entries of the relative bias depend on how far two strips are apart, and of two
// patches of them on how far one lies below the other: rows lane / 4 and lane / 4 + 8 of a fragment are two rows of the
// window apart, and so are its columns of eight. Of two strips a lane has 11 pairs of entries in 18 fragments.
struct Window12 {
  static constexpr int kSide = 12, kTokens = kSide * kSide, kHd = 32;
  static constexpr int kPatch = 4, kStrips = kSide / kPatch, kTiles = kStrips, kStrip = 16 * kTiles;
  static constexpr int kSteps = kTokens / 16;                    // of 16 queries or keys
  static constexpr int kScoreWarps = kStrips * kStrips;          // of a strip of queries and one of keys each
  static constexpr int kThreads = 32 * (kScoreWarps + kStrips);  // and of a strip of dk and dv each
  static constexpr int kEntries = 2 * 2 * kTiles - 1;            // pairs of entries of the bias
  static constexpr int kPairs = kEntries * 32 * sizeof(Float2);  // of all lanes
  static constexpr int kWeightRow = 2 * kTokens, kWeights = kTokens * kWeightRow;  // of P, and of dS
  using Tile = RowTile<kHd>;
  static constexpr int kPairBytes = 2 * kTokens * Tile::kRowBytes;  // of q and dO, or of k and v
  static constexpr int kResultTile = 16 * Tile::kRowBytes;
  static constexpr int kNorm = 4 * kTokens;
  static constexpr int kSumsOfStrip = kTokens * sizeof(Float2);

  // Shared memory. Stages are of one window, and of the one before or behind it.
  static constexpr int kStage = 2 * kPairBytes;
  static constexpr int kAtWeights = 2 * kStage;
  static constexpr int kAtResults = kAtWeights + 2 * kWeights;  // tiles of dq, and of a strip of dk or dv of a warp
  static constexpr int kAtTable = kAtResults + 2 * kSteps * kResultTile;  // the bias, times log2(e)
  static constexpr int kAtBiasSums = kAtTable + (2 * kStrips - 1) * kPairs;
  static constexpr int kAtSums = kAtBiasSums + kScoreWarps * kPairs;  // of weights, and delta
  static constexpr int kAtNorms = kAtSums + kStrips * kSumsOfStrip;
  static constexpr int kAtPlaces = kAtNorms + 2 * 4 * kNorm;
  static constexpr int kAtRegions = kAtPlaces + 2 * 4 * kTokens;
  static constexpr int kAtPadSums = kAtRegions + 2 * 2 * kTokens;  // of dpad_value
  static constexpr int kAtImages = kAtPadSums + kStrips * 2 * kHd * 4;
  static constexpr int kAtBorders = kAtImages + 2 * 8;  // of a stage, whether the window has one
  static constexpr size_t kSharedBytes = kAtBorders + 16;

  static constexpr int kReach = 2 * kSide - 1;
  // How many rows and columns a query lies behind a key: of a lane, a pair of entries, and one of the two.
  static SWIN_FAST_DEVICE int rows_apart(int lane, int entries) {
    return 2 * (entries - kEntries / 2) + (lane >> 4) - ((lane >> 1) & 1);
  }
  static SWIN_FAST_DEVICE int columns_apart(int lane, int strips, int e) {
    return kPatch * strips + ((lane >> 2) & 3) - 2 * (lane & 1) - e;
  }
  // Of a tile of queries and eight columns of a tile of keys, rows lane / 4 or those behind.
  static SWIN_FAST_DEVICE constexpr int entries(int query_tile, int half, int key_tile, int eight) {
    return 2 * (query_tile - key_tile) + half - eight + kEntries / 2;
  }

  // Of a piece of a row of weights, so that eight rows of 288 bytes have theirs in eight groups of banks.
  static SWIN_FAST_DEVICE int weight(int row, int piece) {
    return row * kWeightRow + piece / 2 * 32 + ((piece ^ row >> 2) & 1) * 16;
  }
};

// On GPUs with 220 KB of shared memory a block, as of sm_90.
inline bool takes_window12_bwd(const WindowAttentionParams& problem, size_t shared_memory) {
  return takes_one_pass<Window12>(problem, shared_memory);
}

// Scratch memory: at a multiple of 16 bytes, or nullptr where only parts.bytes is asked for.
inline Window12BwdParams cut_window12_bwd(const WindowAttentionBwdParams& problem, bool aligned, int multiprocessors,
                                          void* scratch) {
  const auto pieces = [](int64_t stride) { return static_cast<uint32_t>(stride / 8); };
  Window12BwdParams p{problem,
                      Windows(problem),
                      aligned,
                      aligned && problem.H % Window12::kSide == 0 && problem.W % Window12::kSide == 0,
                      {pieces(problem.qkv_stride[1]), pieces(problem.grad_out_stride[1])},
                      {pieces(problem.qkv_stride[2]), pieces(problem.grad_out_stride[2])},
                      {}};
  p.problem.mask_value = limited(problem.mask_value);
  p.parts = one_pass_parts(problem, p.all, multiprocessors, scratch);
  return p;
}

// What all warps know.
template <class T, bool kCosine>
struct Window12Warp {
  using Tile = Window12::Tile;
  static constexpr int kTiles = Window12::kTiles, kStrip = Window12::kStrip, kHd = Window12::kHd;
  // What is left of 1 / max(|row|, eps) where rows took its power of two, and the whole of it behind.
  static constexpr int kKeyNorms = 0, kQueryNorms = Window12::kNorm, kWhole = 2 * Window12::kNorm;

  const Window12BwdParams& p;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, quad = lane >> 2, pair = (lane & 3) * 2;
  const int head = static_cast<int>(blockIdx.x) % p.problem.nH;
  const float factor = kCosine ? load_global<float>(p.problem.logit_scale + head) : p.problem.scale;
  char* const memory = shared_memory();

  SWIN_FAST_DEVICE explicit Window12Warp(const Window12BwdParams& p_) : p(p_) {}

  SWIN_FAST_DEVICE char* queries(int stage, int row) const {  // and dO
    return memory + stage * Window12::kStage + Tile::sixteen(row);
  }
  SWIN_FAST_DEVICE char* keys(int stage, int row) const {  // and v
    return queries(stage, row) + Window12::kPairBytes;
  }
  SWIN_FAST_DEVICE char* norms(int stage) const { return memory + Window12::kAtNorms + stage * 4 * Window12::kNorm; }
  SWIN_FAST_DEVICE char* places(int stage) const {
    return memory + Window12::kAtPlaces + stage * 4 * Window12::kTokens;
  }
  // Where dq of its first pixel lies in dqkv, in elements.
  SWIN_FAST_DEVICE char* image(int stage) const { return memory + Window12::kAtImages + 8 * stage; }
  SWIN_FAST_DEVICE char* borders(int stage) const { return memory + Window12::kAtBorders + 4 * stage; }
  SWIN_FAST_DEVICE char* regions(int stage) const {
    return memory + Window12::kAtRegions + stage * 2 * Window12::kTokens;
  }
};

}  // namespace swin_fast::cuda
