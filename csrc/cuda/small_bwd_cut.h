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
  int32_t stride_y, stride_x;                              // of qkv
  int32_t grad_stride_y, grad_stride_x;                    // of grad_out
  int32_t row_bytes;                                       // of dqkv: of q, k and v of all heads of a pixel
  int64_t image_bytes, qkv_image_bytes, grad_image_bytes;  // of dqkv, qkv and grad_out
  Parts parts;  // how many owners a head has, and where they leave their sums
};

// The four warps of a block have 16 queries each, and then the 16 keys of the same tokens.
constexpr int kSmallBwdWarps = 4;
constexpr int kSmallBwdThreads = 32 * kSmallBwdWarps;

// Blocks that run on a multiprocessor at the same time: registers are for so many. Where a window's side is not known,
// its tokens and columns take some too, and three blocks would have to spill.
template <int kWindow>
constexpr int kSmallBwdBlocks = kWindow == 0 ? 2 : 3;

// A block's shared memory, in bytes. Rows of tokens that do not exist are zeros, written once: no step asks whether
// they do.
template <int kWindow>
struct SmallBwdSizes : SmallSizes<kWindow> {
  static constexpr int kTileBytes = 64 * kRowBytes;  // 64 rows of q, k, v or grad_out
  static constexpr int kSetBytes = 4 * kTileBytes;   // of one window
  static constexpr int kScoreRowBytes = 128;         // 64 keys of a query
  static constexpr int kScoreBytes = 64 * kScoreRowBytes;
  static constexpr int kRows = 0;                             // two sets
  static constexpr int kScores = kRows + 2 * kSetBytes;       // two times: P and dS, or dS and P
  static constexpr int kResults = kScores + 2 * kScoreBytes;  // of each warp two times
  static constexpr int kResultBytes = 16 * kRowBytes;
  static constexpr int kZeros = kResults + kSmallBwdWarps * 2 * kResultBytes;  // a row of scores that do not exist
  static constexpr int kSums = kZeros + kScoreRowBytes;                        // dk and dv of padding, of each warp
  static constexpr int kInverses = kSums + kSmallBwdWarps * 2 * kHeadDim * 4;  // 1 / |row| of q and k
  static constexpr int kPixels = kInverses + 2 * 64 * 4;                       // of the tokens of two windows
  static constexpr int kBias = kPixels + 2 * 64 * 4;
  static constexpr size_t kBytes = kBias + size_t{4} * SmallSizes<kWindow>::kBiasFloats;
};

// How the work of a problem is cut for a GPU of so many multiprocessors with room for so much shared memory a block.
// What has to be done then, on one stream:
//   1. scratch memory of p.parts.bytes, at a multiple of 16 bytes:
//      p.parts = Parts::at(scratch, problem, p.parts.owners)
//   2. small_windows_bwd<T, kWindow, kCosine, kAligned>(p) in nH * p.parts.owners blocks of kSmallBwdThreads threads
//      with SmallBwdSizes<kWindow>::kBytes of shared memory; nothing where there are no owners, as without images
//   3. fold_all<T>(problem, p.parts, launch)
template <int kWindow>
SmallBwdParams cut_small_bwd(const WindowAttentionBwdParams& problem, int multiprocessors, size_t shared_memory) {
  SmallBwdParams p{problem,
                   Windows(problem),
                   static_cast<int32_t>(problem.qkv_stride[1]),
                   static_cast<int32_t>(problem.qkv_stride[2]),
                   static_cast<int32_t>(problem.grad_out_stride[1]),
                   static_cast<int32_t>(problem.grad_out_stride[2]),
                   3 * problem.nH * kRowBytes,
                   problem.H * problem.W * 3 * problem.nH * kRowBytes,
                   2 * problem.qkv_stride[0],
                   2 * problem.grad_out_stride[0],
                   {}};
  const auto beside = static_cast<int64_t>(shared_memory / SmallBwdSizes<kWindow>::kBytes);
  const int64_t blocks = std::clamp(beside, int64_t{1}, int64_t{kSmallBwdBlocks<kWindow>}) * multiprocessors;
  const int64_t owners = std::max(int64_t{1}, blocks / problem.nH);
  p.parts = Parts::at(nullptr, problem, static_cast<int32_t>(std::min(owners, p.all.of_all)));
  return p;
}

}  // namespace swin_fast::cuda
