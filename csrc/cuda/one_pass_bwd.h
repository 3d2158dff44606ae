// SPDX-License-Identifier: Apache-2.0
//
// What the backward kernels of windows of 12 x 12 and of 16 x 16 have in common: one pass for each window and head, one
// block a multiprocessor. A Window says how large it is and what lies where in shared memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "fold_parts.h"
#include "primitives.h"
#include "row_tiles.h"
#include "windows.h"

namespace swin_fast::cuda {

// Whether the kernel of a Window takes a problem on a GPU with room for so much shared memory a block. Of a dense bias
// no two entries are the same, so that there is no room for it.
template <class Window>
bool takes_one_pass(const WindowAttentionParams& problem, size_t shared_memory) {
  return problem.window_size[0] == Window::kSide && problem.window_size[1] == Window::kSide &&
         problem.hd == Window::kHd && problem.bias_form != BiasForm::kDense && shared_memory >= Window::kSharedBytes;
}

// How the work is cut: an owner has the windows [i U / owners, (i + 1) U / owners) of its head.
inline Parts one_pass_parts(const WindowAttentionBwdParams& problem, const Windows& all, int multiprocessors,
                            void* scratch) {
  const int64_t owners = std::min<int64_t>(std::max(1, multiprocessors / problem.nH), all.of_all);
  return Parts::at(scratch, problem, static_cast<int32_t>(owners), PartOfBias::kReady);
}

// A block's owner and windows.
struct OnePassWork {
  int head, windows;  // at least one
  int64_t first, part;

  SWIN_FAST_DEVICE OnePassWork(const WindowAttentionParams& problem, const Windows& all, const Parts& parts)
      : head(static_cast<int>(blockIdx.x) % problem.nH) {
    const int owner = static_cast<int>(blockIdx.x) / problem.nH;
    first = owner * all.of_all / parts.owners;
    windows = static_cast<int>((owner + 1) * all.of_all / parts.owners - first);
    part = int64_t{head} * parts.owners + owner;
  }
};

// Ends the fetch of own rows of a warp, of which each lane has a piece of kCount, and finds their norms.
template <class T, bool kCosine, int kCount, class Warp>
SWIN_FAST_DEVICE void receive_rows(const Warp& warp, int stage) {
  copy_async_wait<0>();
  SWIN_FAST_UNROLL
  for (int i = 0; i < kCount && kCosine; ++i) {  // of each row a lane reads the piece that it has fetched
    const int row = 8 * i + warp.quad;
    char* const norm = warp.norms(stage) + 4 * (warp.own + row);
    char *const of_key = norm + Warp::kKeyNorms, *const of_query = norm + Warp::kQueryNorms;
    const float key = prepare_norm<T, Warp::kHd, true>(warp.keys(stage, warp.own), row, of_key, warp.lane);
    const float query = prepare_norm<T, Warp::kHd, true>(warp.queries(stage, warp.own), row, of_query, warp.lane);
    if (warp.pair != 0) continue;
    store_shared(of_key + Warp::kWhole, key);
    store_shared(of_query + Warp::kWhole, query);
  }
}

// Gradients of rows from sums of dS times rows of the other side, where dS came times the norms of both: `norm` is what
// is left of that of row lane / 4, the whole of it lies `whole` bytes behind, and both of the row + 8 are 32 bytes on.
template <class T, int kHd>
SWIN_FAST_DEVICE void through_both_norms(float (&sums)[2 * RowTile<kHd>::kSteps][4], const OwnRows<T, kHd>& rows,
                                         const char* norm, int whole, float factor, float (&radial)[2]) {
  float left[2], of_rows[2];
  SWIN_FAST_UNROLL
  for (int i = 0; i < 2; ++i) {
    left[i] = load_shared<float>(norm + 32 * i);
    of_rows[i] = load_shared<float>(norm + whole + 32 * i);
    const float share = reciprocal_approx(left[i]);
    SWIN_FAST_UNROLL
    for (int c = 0; c < 2 * RowTile<kHd>::kSteps; ++c) {
      sums[c][2 * i] *= share;
      sums[c][2 * i + 1] *= share;
    }
  }
  rows.through_norm(sums, left, of_rows, factor, radial);
}

// The parts of dlogit_scale, of which `scales` warps have left theirs at kAtSums, and of dpad_value, of which `pads`
// warps have at kAtPadSums. By the whole block.
template <class Window, bool kCosine>
SWIN_FAST_DEVICE void leave_sums_of_warps(const WindowAttentionBwdParams& problem, const Parts& parts, int64_t part,
                                          int scales, int pads) {
  constexpr int kRow = 2 * Window::kHd;  // of k and of v
  const auto thread = static_cast<int>(threadIdx.x);
  const auto add = [](const char* from, int count, int stride) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += load_shared<float>(from + i * stride);
    return sum;
  };
  if (kCosine && thread == 0) {
    store_global(parts.dlogit_scale + part, add(shared_memory() + Window::kAtSums, scales, 4));
  }
  if (problem.pad_value != nullptr && thread < kRow) {
    const float sum = add(shared_memory() + Window::kAtPadSums + 4 * thread, pads, 4 * kRow);
    store_global(parts.dpad_value + part * kRow + thread, sum);
  }
}

// Gives the kernels to launch(kernel, blocks, threads, bytes of shared memory, params), each behind the one before:
// where the batch is empty only those that write zeros.
template <class T, class Window, class Params, class Launch>
void launch_one_pass(void (*kernel)(Params), const Params& p, Launch launch) {
  if (p.all.of_all > 0) {
    launch(kernel, static_cast<uint32_t>(p.problem.nH) * static_cast<uint32_t>(p.parts.owners), Window::kThreads,
           Window::kSharedBytes, p);
  }
  fold_all<T>(p.problem, p.parts, launch);
}

}  // namespace swin_fast::cuda
