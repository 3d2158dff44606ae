// SPDX-License-Identifier: Apache-2.0
//
// The table of kernels: what each takes and how it is launched. Dispatch, build facts and documents follow from it.
//
// To plug kernels in: a struct here, its .cu file (as small_windows_fwd.cu), a row in kernels.cpp, the file's name in
// CMakeLists.txt.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "../window_attention.h"

namespace swin_fast::cuda {

struct Half16;  // element types, as in primitives.h, which host compilers do not read
struct BFloat16;
struct Float32;

struct Gpu {
  int multiprocessors;
  size_t shared_memory;  // that a block can have
  void* stream;          // a cudaStream_t
};

// Scratch memory and launches of one element type; both null where there are no kernels for it.
template <class Params>
struct Launches {
  size_t (*scratch_bytes)(const Params& problem, const Gpu& gpu) = nullptr;
  void (*launch)(const Params& problem, const Gpu& gpu, void* scratch) = nullptr;
};

template <class Params>
struct Kernels {
  const char* name;
  int32_t least_area, most_area;  // of a window, in tokens
  std::vector<int32_t> head_dims;
  Launches<Params> float32, half, bfloat16;

  const Launches<Params>& of(ScalarType dtype) const {
    return dtype == ScalarType::kFloat32 ? float32 : dtype == ScalarType::kFloat16 ? half : bfloat16;
  }
  bool take(const Params& p) const {
    const int32_t area = p.window_area();
    return of(p.dtype).launch != nullptr && least_area <= area && area <= most_area &&
           std::find(head_dims.begin(), head_dims.end(), p.hd) != head_dims.end();
  }
};

// Whether kernels of large windows are built for a head dimension.
constexpr bool has_large_kernels(int hd) { return hd == 16 || hd == 32 || hd == 64 || hd == 96 || hd == 128; }

// The largest window of the backward that has a cut on every GPU, where a head's row has so many bytes: beyond it, a
// block would take more than the 99 KB of shared memory that it can have on sm_86, sm_89 and sm_120.
constexpr int32_t large_bwd_most_area(int row_bytes) {
  return row_bytes <= 192 ? kMaxWindowArea : row_bytes <= 256 ? 976 : row_bytes <= 384 ? 816 : 656;
}

// In the order of preference: the first that takes a problem computes it.
const std::vector<Kernels<WindowAttentionFwdParams>>& forward_kernels();
const std::vector<Kernels<WindowAttentionBwdParams>>& backward_kernels();

// Each is defined in the .cu file of its name, which is compiled once for each element type.
template <class T>
struct SmallWindowsFwd {
  static size_t scratch_bytes(const WindowAttentionFwdParams& problem, const Gpu& gpu);
  static void launch(const WindowAttentionFwdParams& problem, const Gpu& gpu, void* scratch);
};

template <class T>
struct LargeWindowsFwd {
  static size_t scratch_bytes(const WindowAttentionFwdParams& problem, const Gpu& gpu);
  static void launch(const WindowAttentionFwdParams& problem, const Gpu& gpu, void* scratch);
};

// The one of its .cu file, for float32.
struct FloatWindowsFwd {
  static size_t scratch_bytes(const WindowAttentionFwdParams& problem, const Gpu& gpu);
  static void launch(const WindowAttentionFwdParams& problem, const Gpu& gpu, void* scratch);
};

template <class T>
struct SmallWindowsBwd {
  static size_t scratch_bytes(const WindowAttentionBwdParams& problem, const Gpu& gpu);
  static void launch(const WindowAttentionBwdParams& problem, const Gpu& gpu, void* scratch);
};

// Windows of 12 x 12 and of 16 x 16 tokens, where LargeWindowsBwd finds room for them.
template <class T>
struct Window12Bwd {
  static size_t scratch_bytes(const WindowAttentionBwdParams& problem, const Gpu& gpu);
  static void launch(const WindowAttentionBwdParams& problem, const Gpu& gpu, void* scratch);
};

template <class T>
struct Window16Bwd {
  static size_t scratch_bytes(const WindowAttentionBwdParams& problem, const Gpu& gpu);
  static void launch(const WindowAttentionBwdParams& problem, const Gpu& gpu, void* scratch);
};

template <class T>
struct LargeWindowsBwd {
  static size_t scratch_bytes(const WindowAttentionBwdParams& problem, const Gpu& gpu);
  static void launch(const WindowAttentionBwdParams& problem, const Gpu& gpu, void* scratch);
};

}  // namespace swin_fast::cuda
