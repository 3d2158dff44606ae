// SPDX-License-Identifier: Apache-2.0
//
// What every launch goes through. Included by the .cu files alone, which nvcc compiles, or g++ for the emulator.
#pragma once

#include <cstdint>
#include <type_traits>

#include "errors.h"
#include "kernels.h"

namespace swin_fast::cuda {

// Whether the rows of the inputs may be read 16 bytes at a time: pointers, strides of axes longer than 1, and rows.
inline bool in_chunks(const void* data, const int64_t* sizes, const int64_t* strides, int axes,
                      const WindowAttentionParams& p) {
  const int chunk = 16 / element_bytes(p.dtype);
  bool whole = reinterpret_cast<uintptr_t>(data) % 16 == 0 && p.hd % chunk == 0;
  for (int axis = 0; axis < axes; ++axis) whole = whole && (sizes[axis] <= 1 || strides[axis] % chunk == 0);
  return whole;
}

inline bool aligned(const WindowAttentionParams& p) {
  const int64_t sizes[5] = {p.B, p.H, p.W, 3, p.nH};
  return in_chunks(p.qkv, sizes, p.qkv_stride, 5, p) && reinterpret_cast<uintptr_t>(p.pad_value) % 16 == 0;
}

inline bool aligned(const WindowAttentionBwdParams& p) {
  const int64_t sizes[3] = {p.B, p.H, p.W};
  return aligned(static_cast<const WindowAttentionParams&>(p)) && in_chunks(p.grad_out, sizes, p.grad_out_stride, 3, p);
}

// Calls f(std::true_type) or f(std::false_type): a choice of the call, to be a constant of an instance.
template <class F>
void with_constant(bool value, const F& f) {
  if (value) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

// Calls f(integral_constant) with the side of a square window that has instances of its own, or 0.
template <int... kWindows, class F>
void with_window(const WindowAttentionParams& p, const F& f) {
  const bool square = p.window_size[0] == p.window_size[1];
  const bool found =
      ((square && p.window_size[0] == kWindows && (f(std::integral_constant<int, kWindows>{}), true)) || ...);
  if (!found) f(std::integral_constant<int, 0>{});
}

// Calls f(integral_constant) with the head dimension, which is one of them.
template <int... kHeadDims, class F>
void with_head_dim(const WindowAttentionParams& p, const F& f) {
  ((p.hd == kHeadDims ? f(std::integral_constant<int, kHeadDims>{}) : void()), ...);
}

// launch(kernel, blocks, threads, bytes of shared memory, params), one behind the other on the stream of the call.
struct Launcher {
  const char* name;
  const Gpu& gpu;

  template <class Params>
  void operator()(void (*kernel)(Params), int64_t blocks, int64_t threads, size_t shared_bytes,
                  const Params& params) const {
    constexpr size_t kWithoutAsking = 48 * 1024;
    if (shared_bytes > kWithoutAsking) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
            name);
    }
    const auto grid = static_cast<unsigned>(blocks), block = static_cast<unsigned>(threads);
#ifdef SWIN_FAST_CUSIM
    cusim::launch_and_judge(grid, block, shared_bytes, name, [&] { kernel(params); });
#else
    kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(gpu.stream)>>>(params);
#endif
    check(cudaGetLastError(), name);
  }
};

}  // namespace swin_fast::cuda
