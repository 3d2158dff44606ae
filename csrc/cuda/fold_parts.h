// SPDX-License-Identifier: Apache-2.0
//
// Gradients that are sums over windows, without atomics. Windows of a head are cut among *owners*; each leaves its sum
// as a part, in float32, and the kernels here add the parts in an order that depends on nothing but their number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../window_attention.h"
#include "primitives.h"

namespace swin_fast::cuda {

SWIN_FAST_HOST_DEVICE inline int32_t relative_entries(const WindowAttentionParams& problem) {
  return (2 * problem.window_size[0] - 1) * (2 * problem.window_size[1] - 1);
}

// What an owner leaves of dbias: the sum of each pair of query and key, or the gradient in the form of the bias.
enum class PartOfBias { kDense, kReady };

// The parts of all heads and owners, in one piece of scratch memory. Each owner writes each of its parts whole; no
// owners, no parts: the gradients are then zeros.
struct Parts {
  int32_t owners = 0;             // of each head
  int32_t bias_size = 0;          // of a part of dbias: N * N, or the entries of a relative bias
  float* dbias = nullptr;         // (nH, owners, bias_size); null without a bias
  float* dlogit_scale = nullptr;  // (nH, owners); null without logit_scale
  float* dpad_value = nullptr;    // (nH, owners, 2, hd), of k and v; null without pad_value
  float* dbias_sum = nullptr;     // (nH, N, N), which a relative bias is gathered from; null where parts are ready
  size_t bytes = 0;               // that they take

  // At a multiple of 16 bytes; nullptr where only `bytes` is asked for.
  static Parts at(void* scratch, const WindowAttentionParams& problem, int32_t owners,
                  PartOfBias form = PartOfBias::kDense) {
    Parts made;
    made.owners = owners;
    const bool relative = problem.bias_form == BiasForm::kRelative;
    made.bias_size = relative && form == PartOfBias::kReady ? relative_entries(problem)
                                                            : problem.window_area() * problem.window_area();
    const auto take = [&](bool wanted, size_t floats) {
      if (!wanted) return static_cast<float*>(nullptr);
      char* const here = static_cast<char*>(scratch) + made.bytes;
      made.bytes += (floats + 3) / 4 * 16;
      return reinterpret_cast<float*>(here);
    };
    const size_t heads = static_cast<size_t>(problem.nH), parts = heads * static_cast<size_t>(owners);
    const auto bias_size = static_cast<size_t>(made.bias_size);
    made.dbias = take(problem.bias_form != BiasForm::kNone, parts * bias_size);
    made.dlogit_scale = take(problem.logit_scale != nullptr, parts);
    made.dpad_value = take(problem.pad_value != nullptr, parts * 2 * static_cast<size_t>(problem.hd));
    made.dbias_sum = take(relative && form == PartOfBias::kDense, heads * bias_size);
    return made;
  }
};

// An entry of a relative bias: that of the pairs whose query lies so many rows and columns behind the key.
struct RelativeEntry {
  int Ww, N, dy, dx, rows, columns;

  SWIN_FAST_DEVICE RelativeEntry(const WindowAttentionParams& problem, int entry)
      : Ww(problem.window_size[1]),
        N(problem.window_area()),
        dy(entry / (2 * Ww - 1) - (problem.window_size[0] - 1)),
        dx(entry % (2 * Ww - 1) - (Ww - 1)),
        rows(problem.window_size[0] - (dy < 0 ? -dy : dy)),
        columns(Ww - (dx < 0 ? -dx : dx)) {}

  // Where a pair stands among all, in the order of queries.
  SWIN_FAST_DEVICE int pair(int row, int column) const {
    const int query = (row + (dy > 0 ? dy : 0)) * Ww + column + (dx > 0 ? dx : 0);
    return query * N + query - dy * Ww - dx;
  }
};

// Leaves a part of dbias that is ready, from the sum of each pair in shared memory. By the whole block.
SWIN_FAST_DEVICE void leave_dbias(const WindowAttentionParams& problem, const char* sums, const Parts& parts,
                                  int64_t part) {
  float* const to = parts.dbias + part * parts.bias_size;
  for (int i = static_cast<int>(threadIdx.x); i < parts.bias_size; i += static_cast<int>(blockDim.x)) {
    float sum = 0.0f;
    if (problem.bias_form == BiasForm::kRelative) {
      const RelativeEntry entry(problem, i);
      for (int row = 0; row < entry.rows; ++row) {
        for (int column = 0; column < entry.columns; ++column) {
          sum += load_shared<float>(sums + entry.pair(row, column) * 4);
        }
      }
    } else {
      sum = load_shared<float>(sums + i * 4);
    }
    store_global(to + i, sum);
  }
}

// An element of a tensor.
template <class T>
using Stored = std::conditional_t<is_float<T>, float, uint16_t>;

template <class T>
SWIN_FAST_DEVICE Stored<T> stored(float value) {
  if constexpr (is_float<T>) {
    return value;
  } else {
    return from_float<T>(value);
  }
}

constexpr int kFoldThreads = 512;
constexpr int kFoldWarps = kFoldThreads / 32;
constexpr int kFoldLoads = 8;  // under way at once in a thread

struct FoldParams {
  WindowAttentionBwdParams problem;
  Parts parts;
  int32_t chunks[3];  // of 32 elements a block: of a head's dbias, dlogit_scale and dpad_value
  int32_t entries;    // of a head's relative bias, where parts are dense

  FoldParams(const WindowAttentionBwdParams& problem_, const Parts& parts_) : problem(problem_), parts(parts_) {
    chunks[0] = problem.bias_form != BiasForm::kNone ? (parts.bias_size + 31) / 32 : 0;
    chunks[1] = problem.logit_scale != nullptr ? 1 : 0;
    chunks[2] = problem.pad_value != nullptr ? (2 * problem.hd + 31) / 32 : 0;
    entries = parts.dbias_sum != nullptr ? relative_entries(problem) : 0;
  }
  SWIN_FAST_HOST_DEVICE int32_t chunks_of_head() const { return chunks[0] + chunks[1] + chunks[2]; }
};

// Computes: dbias, or the dense gradient of a relative bias, where parts are dense; dlogit_scale; dpad_value.
// Grid:     nH * chunks_of_head() of kFoldThreads; a block has 32 neighbouring elements of a head's gradients.
// Memory:   reads each part once, a warp 128 bytes at a time.
// Numerics: float32. Warp w adds the parts of owners w, w + 16, ...; the sums of the warps are added in order. Eight
//           loads are under way at once: one round of them where there are 128 owners.
// Source:   written for this project.
template <class T>
__global__ void __launch_bounds__(kFoldThreads) fold_parts(const FoldParams p) {
  const WindowAttentionBwdParams& problem = p.problem;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int head = blockIdx.x / p.chunks_of_head();
  int chunk = blockIdx.x - head * p.chunks_of_head();
  const bool of_bias = chunk < p.chunks[0];
  if (!of_bias) chunk -= p.chunks[0];
  const bool of_scale = !of_bias && chunk < p.chunks[1];
  if (!of_bias && !of_scale) chunk -= p.chunks[1];
  const int32_t size = of_bias ? p.parts.bias_size : of_scale ? 1 : 2 * problem.hd;
  const float* const from = of_bias ? p.parts.dbias : of_scale ? p.parts.dlogit_scale : p.parts.dpad_value;
  const int element = chunk * 32 + lane;
  const bool exists = element < size;
  float sum = 0.0f;
  if (exists) {
    const int64_t owners = p.parts.owners;
    const float* const own = from + head * owners * size + element;
    for (int64_t owner = warp; owner < owners; owner += kFoldLoads * kFoldWarps) {
      float part[kFoldLoads];
      SWIN_FAST_UNROLL
      for (int i = 0; i < kFoldLoads; ++i) {
        const int64_t at = owner + i * kFoldWarps;
        part[i] = at < owners ? load_global<float>(own + at * size) : 0.0f;
      }
      SWIN_FAST_UNROLL
      for (int i = 0; i < kFoldLoads; ++i) sum += part[i];
    }
  }
  char* const sums = shared_memory() + 4 * lane;
  store_shared(sums + 128 * warp, sum);
  sync_threads();
  if (warp != 0 || !exists) return;
  SWIN_FAST_UNROLL
  for (int i = 1; i < kFoldWarps; ++i) sum += load_shared<float>(sums + 128 * i);
  if (of_bias) {
    store_global((p.entries > 0 ? p.parts.dbias_sum : problem.dbias) + int64_t{head} * size + element, sum);
  } else if (of_scale) {
    store_global(problem.dlogit_scale + head, sum);
  } else {
    const int32_t row = problem.nH * problem.hd;
    auto* const to = static_cast<Stored<T>*>(problem.dpad_value) + head * problem.hd + element;
    if (element < problem.hd) {
      store_global(to, Stored<T>{0});  // the query of a padded position is dropped
      store_global(to + row, stored<T>(sum));
    } else {
      store_global(to + 2 * row - problem.hd, stored<T>(sum));
    }
  }
}

// Computes: dbias of a relative bias from the dense gradient: entry (dy, dx) is the sum over all pairs of query and key
//           that lie dy rows and dx columns apart.
// Grid:     ceil(nH * entries / (kThreads / 32)) of kThreads; a warp for each entry of each head.
// Memory:   reads each element of the dense gradient once, 4 bytes at a time: neighbouring pairs lie N + 1 apart.
// Numerics: float32. Lane l adds pairs l, l + 32, ... in the order of queries; lanes are added as a tree.
// Source:   written for this project.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) fold_relative(const FoldParams p) {
  const WindowAttentionBwdParams& problem = p.problem;
  const int lane = threadIdx.x & 31;
  const int64_t of_all = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + (threadIdx.x >> 5);
  if (of_all >= int64_t{problem.nH} * p.entries) return;
  const int head = static_cast<int>(of_all / p.entries), entry = static_cast<int>(of_all - int64_t{head} * p.entries);
  const RelativeEntry pairs(problem, entry);
  const float* const dense = p.parts.dbias_sum + int64_t{head} * p.parts.bias_size;
  float sum = 0.0f;
  for (int i = lane; i < pairs.rows * pairs.columns; i += 32) {
    const int row = i / pairs.columns;
    sum += load_global<float>(dense + pairs.pair(row, i - row * pairs.columns));
  }
  SWIN_FAST_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (lane == 0) store_global(problem.dbias + of_all, sum);
}

// Gives the kernels that fold parts to launch(kernel, blocks, threads, bytes of shared memory, params), in their order
// and behind the one that wrote the parts.
template <class T, class Launch>
void fold_all(const WindowAttentionBwdParams& problem, const Parts& parts, Launch launch) {
  const FoldParams p(problem, parts);
  const auto heads = static_cast<uint32_t>(problem.nH);
  if (p.chunks_of_head() > 0) {
    launch(fold_parts<T>, heads * static_cast<uint32_t>(p.chunks_of_head()), kFoldThreads, size_t{4} * kFoldThreads, p);
  }
  if (p.entries > 0) {
    const int64_t warps = int64_t{problem.nH} * p.entries;
    launch(fold_relative<kFoldThreads>, static_cast<uint32_t>(ceil_div(warps, kFoldWarps)), kFoldThreads, size_t{0}, p);
  }
}

}  // namespace swin_fast::cuda
