// SPDX-License-Identifier: Apache-2.0
//
// What one instruction-set path offers to the driver (window_attention.cpp), and what the driver hands to it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../window_attention.h"

namespace swin_fast::cpu {

// Rows of keys in a tile are padded to this many columns, whatever the vector width, so that layouts are one.
constexpr int kColumnPad = 16;

// The bias as kernels read it, and the layout in which they leave its gradient. Row i of head h starts at
// data[h * head_stride + row_offset[i]] and may be read up to a multiple of kColumnPad columns.
//   dense     rows padded to kColumnPad columns
//   relative  one strip of (2Wh-1) x Ww per query column x: the rows of all queries of that column are overlapping
//             slices of it, so a head takes 2.5 KB at 7x7 (12.5 KB dense) and 13 KB at 12x12 (83 KB dense): L1
//   none      one row of zeros
struct BiasLayout {
  const int32_t* row_offset;
  int64_t head_stride;
};

struct FwdTask {
  const WindowAttentionFwdParams* params;
  BiasLayout layout;
  const float* bias;
};

struct BwdTask {
  const WindowAttentionBwdParams* params;
  BiasLayout layout;
  const float* bias;
};

// Sums over the windows of one slice of strips.
struct BwdSums {
  float* dbias;          // nH * head_stride, or null without a bias
  double* dlogit_scale;  // nH, or null
  double* dpad_value;    // (2, nH, hd): k and v, or null
};

// One path. A strip is one row of windows of one image; strips are numbered b * windows_y + wy.
struct Kernels {
  const char* name;
  size_t (*fwd_scratch_bytes)(const FwdTask& task);
  void (*fwd)(const FwdTask& task, int64_t strip_begin, int64_t strip_end, void* scratch);
  size_t (*bwd_scratch_bytes)(const BwdTask& task);
  void (*bwd)(const BwdTask& task, int64_t strip_begin, int64_t strip_end, const BwdSums& sums, void* scratch);
  // dst[at + i] = src[i], rounded to dtype.
  void (*store)(ScalarType dtype, const float* src, int64_t count, void* dst, int64_t at);
};

extern const Kernels kernels_scalar;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;  // bfloat16 only; other types run kernels_avx512

// The path for a dtype under the instruction set in use.
const Kernels& kernels_for(ScalarType dtype);

}  // namespace swin_fast::cpu
