// SPDX-License-Identifier: Apache-2.0
//
// How the work of the backward of large windows is cut: what the host decides for the kernels of large_windows_bwd.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "bias_fragments.h"
#include "fold_parts.h"
#include "primitives.h"
#include "windows.h"

namespace swin_fast::cuda {

// How one of the kernels is cut: tiles of 16 * warps own rows, one after the other, of which owners have all in their
// windows [i U / owners, (i + 1) U / owners).
struct LargeCut {
  int32_t warps = 0, tiles = 0, owners = 0;
  int32_t chunk = 0, slots = 0;  // rows of the other side brought at once, and how many chunks there is room for
  size_t shared_bytes = 0;

  SWIN_FAST_HOST_DEVICE int32_t rows() const { return 16 * warps * tiles; }  // at least those of all steps
  SWIN_FAST_HOST_DEVICE int64_t parts_of_head() const { return int64_t{owners} * tiles; }
};

struct LargeBwdParams {
  WindowAttentionBwdParams problem;
  Windows all;
  bool aligned;                      // rows of qkv and grad_out stand at multiples of 16 bytes, and so does pad_value
  int32_t rows = 0;                  // N, up to whole steps of a product: a multiple of 16
  LargeCut queries = {}, keys = {};  // warps = 0: a block can not have as much shared memory as it takes
  Parts of_bias = {}, of_logit_scale = {}, of_pad_value = {};
  float* statistics = nullptr;  // (U, nH, 3, rows): the largest score; 1 / the sum, or 0; and delta of a query
  BiasFragments bias = {};
  char *query_bias = nullptr, *key_bias = nullptr;  // fragments for rows that are queries, and that are keys
  size_t scratch_bytes = 0;                         // of all of these

  // The problem with one of the gradients that are sums over windows, each of which has parts of a number of its own:
  // of bias, of logit_scale or of pad_value.
  WindowAttentionBwdParams alone(int which) const {
    WindowAttentionBwdParams one = problem;
    if (which != 0) one.bias_form = BiasForm::kNone;
    if (which != 1) one.logit_scale = nullptr;
    if (which != 2) one.pad_value = nullptr;
    return one;
  }
};

// Where things lie in the shared memory of a block.
struct LargeLayout {
  int32_t pixels, regions, own, chunks, norms, statistics, sums, bytes;

  // row_bytes: of a head's row; own_floats: of a warp, in the end.
  SWIN_FAST_HOST_DEVICE LargeLayout(int row_bytes, const LargeCut& cut, bool cosine, bool reads_statistics,
                                    int own_floats) {
    int32_t taken = 0;
    const int rows = cut.rows();
    const auto take = [&taken](int32_t size) {
      const int32_t here = taken;
      taken += (size + 15) / 16 * 16;
      return here;
    };
    pixels = take(8 * rows);
    regions = take(2 * rows);
    own = take(2 * 16 * cut.warps * row_bytes);
    chunks = take(cut.slots * 2 * cut.chunk * row_bytes);
    norms = take(cosine ? cut.slots * cut.chunk * 4 : 0);
    statistics = take(reads_statistics ? cut.slots * 3 * cut.chunk * 4 : 0);
    sums = take(cut.warps * own_floats * 4);
    bytes = taken;
  }
};

// A warp's floats that are sums over windows: of the row owners dbias as fragments of 8 keys, and one of dlogit_scale;
// of the key owners dpad_value.
SWIN_FAST_HOST_DEVICE inline int large_query_floats(const WindowAttentionParams& problem, int rows) {
  return (problem.bias_form != BiasForm::kNone ? 16 * rows : 0) + 4;
}
SWIN_FAST_HOST_DEVICE inline int large_key_floats(int hd) { return 2 * hd; }

constexpr int kLargeWarps = 4;  // a block
// Blocks that a multiprocessor shall have at a time, for which it has the registers: 168 or 255 of each thread.
constexpr int large_blocks(int row_bytes) { return row_bytes <= 64 ? 3 : 2; }
constexpr int64_t kPartsBytes = 64 << 20;  // of dbias at most, but for the one owner that a head has at least

inline LargeCut cut_large(const LargeBwdParams& p, int multiprocessors, size_t shared_memory, bool of_keys) {
  const WindowAttentionBwdParams& problem = p.problem;
  const int row_tiles = p.rows / 16, row_bytes = element_bytes(problem.dtype) * problem.hd;
  const auto bytes = [&](LargeCut* cut, int warps, int chunk, int slots) {
    cut->tiles = static_cast<int32_t>(ceil_div(row_tiles, warps));
    cut->warps = static_cast<int32_t>(ceil_div(row_tiles, cut->tiles));
    cut->chunk = std::min(chunk, p.rows);
    cut->slots = std::min(slots, static_cast<int>(ceil_div(p.rows, cut->chunk)));
    const int floats = of_keys ? large_key_floats(problem.hd) : large_query_floats(problem, p.rows);
    const LargeLayout layout(row_bytes, *cut, problem.logit_scale != nullptr, of_keys, floats);
    return cut->shared_bytes = static_cast<size_t>(layout.bytes);
  };
  LargeCut cut;
  const int chunk = row_bytes <= 128 ? 64 : row_bytes <= 256 ? 32 : 16;
  // Queries go over the keys twice: better all of these stay, where that leaves room for other blocks.
  if (of_keys || bytes(&cut, kLargeWarps, chunk, p.rows / 16) > shared_memory / large_blocks(row_bytes)) {
    int warps = kLargeWarps, rows = chunk;
    while (bytes(&cut, warps, rows, 2) > shared_memory) {
      if (warps > 1) {
        --warps;
      } else if (rows > 16) {
        rows /= 2;
      } else {
        return LargeCut{};
      }
    }
  }
  const int64_t wanted = ceil_div(4 * int64_t{multiprocessors}, int64_t{problem.nH} * cut.tiles);
  int64_t owners = std::min(wanted, p.all.of_all);
  if (!of_keys && problem.bias_form != BiasForm::kNone) {
    const int64_t area = problem.window_area();
    owners = std::min(owners, std::max(int64_t{1}, kPartsBytes / (4 * problem.nH * area * area)));
  }
  cut.owners = static_cast<int32_t>(owners);
  return cut;
}

// How the work is cut for a GPU of so many multiprocessors with room for so much shared memory a block, and what lies
// where in scratch memory, at a multiple of 16 bytes; nullptr where only scratch_bytes is asked for.
inline LargeBwdParams cut_large_bwd(const WindowAttentionBwdParams& problem, bool aligned, int multiprocessors,
                                    size_t shared_memory, void* scratch) {
  LargeBwdParams p{problem, Windows(problem), aligned};
  if (problem.dtype != ScalarType::kFloat32) p.problem.mask_value = limited(problem.mask_value);  // as the bias is
  p.rows = static_cast<int32_t>(ceil_div(problem.window_area(), 16) * 16);
  p.queries = cut_large(p, multiprocessors, shared_memory, false);
  p.keys = cut_large(p, multiprocessors, shared_memory, true);
  p.statistics = static_cast<float*>(scratch);
  p.scratch_bytes = static_cast<size_t>(p.all.of_all) * static_cast<size_t>(problem.nH) * 12 * p.rows;
  const auto take = [&](const WindowAttentionBwdParams& of, int64_t owners) {
    const Parts parts = Parts::at(static_cast<char*>(scratch) + p.scratch_bytes, of, static_cast<int32_t>(owners));
    p.scratch_bytes += parts.bytes;
    return parts;
  };
  p.of_bias = take(p.alone(0), p.queries.owners);
  p.of_logit_scale = take(p.alone(1), p.queries.parts_of_head());
  p.of_pad_value = take(p.alone(2), p.keys.parts_of_head());
  p.bias = BiasFragments::of(problem);
  p.query_bias = static_cast<char*>(scratch) + p.scratch_bytes;
  p.key_bias = p.query_bias + p.bias.bytes();
  p.scratch_bytes += 2 * static_cast<size_t>(p.bias.bytes());
  return p;
}

}  // namespace swin_fast::cuda
