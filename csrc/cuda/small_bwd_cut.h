// SPDX-License-Identifier: Apache-2.0
//
// The backward of windows of up to 64 tokens: how its work is cut, and what a block has in shared memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "fold_parts.h"
#include "small_windows.h"

namespace swin_fast::cuda {

struct SmallBwdParams {
  WindowAttentionBwdParams problem;
  Windows all;
  uint32_t stride_y, stride_x;            // of qkv, in bytes
  uint32_t grad_stride_y, grad_stride_x;  // of grad_out
  int32_t row_bytes;                      // of dqkv: of q, k and v of all heads of a pixel
  int64_t image_bytes;                    // of dqkv
  Parts parts;                            // how many owners a head has, and where they leave their sums
};

// The four warps of a block have 16 queries each. Then two of them sum up dv and two dk, each of 32 keys.
constexpr int kSmallBwdWarps = 4;
constexpr int kSmallBwdThreads = 32 * kSmallBwdWarps;

// Blocks that run on a multiprocessor at the same time: registers are for so many. Where a window's side is not known,
// its tokens and columns take some too, and three blocks would have to spill.
template <int kWindow, bool kCosine>
constexpr int kSmallBwdBlocks = kWindow == 0               ? 2
                                : kWindow == 7 && !kCosine ? 4
                                                           : 3;

// A block's shared memory, in bytes. Rows of tokens that do not exist are zeros, written once: no step asks whether
// they do.
template <int kWindow>
struct SmallBwdSizes : SmallSizes<kWindow> {
  using Base = SmallSizes<kWindow>;
  // Of N = 49 the last tile of 16 rows has a single one, and so has the last tile of 8 keys. The last warp computes
  // half as much for its queries, and brings the rows of the next window instead.
  static constexpr bool kOneLeft = kWindow != 0 && Base::kTokens % 16 == 1;

  // q, k, v and grad_out, a tile each. A token has 128 bytes of it: its row of one window and that of the next, 64
  // bytes apart, but for an exclusive or of 16-byte chunks that gives eight neighbouring tokens eight groups of banks.
  static constexpr int kTokenBytes = 128;
  static constexpr int kSet = 64;
  static constexpr int kTileBytes = Base::kKeyTiles * 8 * kTokenBytes;
  static SWIN_FAST_HOST_DEVICE int chunk(int token, int number) { return ((number ^ token) & 7) * 16; }
  static constexpr int kQ = 0, kK = kTileBytes, kV = 2 * kTileBytes, kGradOut = 3 * kTileBytes;

  // P and dS of a query, of 64 keys each, their chunks mixed alike.
  static constexpr int kScoreBytes = 256;
  static constexpr int kGradients = 128;  // from P to dS
  static constexpr int kScores = 4 * kTileBytes;
  static constexpr int kZeros = kScores + Base::kKeyTiles * 8 * kScoreBytes;  // the P or dS of no query

  // The bias in the order of accumulators: of each tile of 8 keys, of each warp 16 bytes a lane. Where one row is left
  // it has 4 lanes, and the last tile is that of a single key: a number for each query.
  static constexpr int kBias = kZeros + 128;
  static constexpr int kBiasTiles = Base::kKeyTiles - kOneLeft;
  static constexpr int kBiasTileBytes = kOneLeft ? 3 * 512 + 64 : 4 * 512;
  static constexpr int kBiasOfLast = kBias + kBiasTiles * kBiasTileBytes;

  static constexpr int kSums = kBiasOfLast + (kOneLeft ? 4 * 64 : 0);      // dv and dk of padding, of each warp
  static constexpr int kInverses = kSums + kSmallBwdWarps * kHeadDim * 4;  // 1 / |row| of q and k of two windows
  static constexpr int kPixels = kInverses + 2 * 2 * 64 * 4;               // of the tokens of both
  static constexpr int kNews = kPixels + 2 * 64 * 4;                       // of both: see SmallBwdFetch
  static constexpr int kBehind = kNews + 16;                               // see bring_borders
  static constexpr int kStates = kBehind + 4 * 8;                          // of SmallBwdFetch
  static constexpr size_t kBytes = kStates + kSmallBwdWarps * 32;
};

// How the work of a problem is cut for a GPU of so many multiprocessors with room for so much shared memory a block.
// What has to be done then, on one stream:
//   1. scratch memory of p.parts.bytes, at a multiple of 16 bytes:
//      p.parts = Parts::at(scratch, problem, p.parts.owners, PartOfBias::kReady)
//   2. small_windows_bwd<T, kWindow, kCosine, kAligned>(p) in nH * p.parts.owners blocks of kSmallBwdThreads threads
//      with SmallBwdSizes<kWindow>::kBytes of shared memory; nothing where there are no owners, as without images
//   3. fold_all<T>(problem, p.parts, launch)
template <int kWindow>
SmallBwdParams cut_small_bwd(const WindowAttentionBwdParams& problem, int multiprocessors, size_t shared_memory) {
  SmallBwdParams p{problem,
                   Windows(problem),
                   static_cast<uint32_t>(2 * problem.qkv_stride[1]),
                   static_cast<uint32_t>(2 * problem.qkv_stride[2]),
                   static_cast<uint32_t>(2 * problem.grad_out_stride[1]),
                   static_cast<uint32_t>(2 * problem.grad_out_stride[2]),
                   3 * problem.nH * kRowBytes,
                   problem.H * problem.W * 3 * problem.nH * kRowBytes,
                   {}};
  p.problem.mask_value = limited(problem.mask_value);
  // A multiprocessor has 1 KB more than a block can have, and keeps as much for itself of each block.
  const auto beside = static_cast<int64_t>((shared_memory + 1024) / (SmallBwdSizes<kWindow>::kBytes + 1024));
  const int most = problem.logit_scale != nullptr ? kSmallBwdBlocks<kWindow, true> : kSmallBwdBlocks<kWindow, false>;
  const int64_t blocks = std::clamp(beside, int64_t{1}, int64_t{most}) * multiprocessors;
  const int64_t owners = std::max(int64_t{1}, blocks / problem.nH);
  p.parts = Parts::at(nullptr, problem, static_cast<int32_t>(std::min(owners, p.all.of_all)), PartOfBias::kReady);
  return p;
}

}  // namespace swin_fast::cuda
