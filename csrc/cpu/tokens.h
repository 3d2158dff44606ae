// SPDX-License-Identifier: Apache-2.0
//
// Where the tokens of a window stand, computed from csrc/window.h once per window, and the walk over the windows of a
// range of strips. Included by each kernels_*.cpp after operands.h.
#pragma once

#include "operands.h"

namespace swin_fast::cpu {
namespace {

// A row of zeros for padded tokens without a pad_value, of any dtype.
alignas(64) const float kZeroRow[kMaxHeadDim] = {};

// Memory handed out piece by piece from one block; with a null block it only counts.
struct Arena {
  char* base;
  size_t used = 0;
  template <class U>
  U* take(int64_t count) {
    used = (used + 63) & ~static_cast<size_t>(63);
    U* p = reinterpret_cast<U*>(base + used);
    used += static_cast<size_t>(count) * sizeof(U);
    return p;
  }
};

// One window: for each token its row in the image, or none where it is padding.
struct WindowTokens {
  int64_t* row;       // (b * H + y) * W + x, or -1: padding
  const char** qkv;   // first element of the token's qkv, or null: padding
  const char** dout;  // the same in grad_out; unused forward
  int32_t* region;    // shift region, up to a multiple of kColumnPad
  bool border;        // more than one region

  void take(Arena& arena, int n, int columns) {
    row = arena.take<int64_t>(n);
    qkv = arena.take<const char*>(n);
    dout = arena.take<const char*>(n);
    region = arena.take<int32_t>(columns);
  }
};

// The windows of strips [strip, strip_end), one after another.
struct WindowWalk {
  const WindowAttentionParams* p;
  WindowAxis axis_y, axis_x;
  int64_t windows_y, windows_x;
  int64_t strip, strip_end, wx = 0;

  WindowWalk(const WindowAttentionParams& params, int64_t begin, int64_t end)
      : p(&params),
        axis_y(params.axis_y()),
        axis_x(params.axis_x()),
        windows_y(axis_y.num_windows),
        windows_x(axis_x.num_windows),
        strip(begin),
        strip_end(end) {}

  bool done() const { return strip >= strip_end; }
  bool ends_strip() const { return wx == windows_x - 1; }
  void advance() {
    if (++wx == windows_x) {
      wx = 0;
      strip++;
    }
  }

  void locate(WindowTokens& tokens, const void* dout, const int64_t* dout_stride) const {
    const int Wh = p->window_size[0], Ww = p->window_size[1];
    const int64_t b = strip / windows_y, wy = strip % windows_y;
    const int64_t size = element_size(p->dtype);
    const char* qkv = static_cast<const char*>(p->qkv);
    tokens.border = axis_y.has_border(wy) || axis_x.has_border(wx);
    for (int i = 0, n = 0; i < Wh; i++) {
      const int64_t gy = wy * Wh + i, y = axis_y.pixel(gy);
      const int32_t region_y = axis_y.region(gy);
      for (int j = 0; j < Ww; j++, n++) {
        const int64_t gx = wx * Ww + j, x = y < 0 ? -1 : axis_x.pixel(gx);
        tokens.region[n] = combine_regions(region_y, axis_x.region(gx));
        const bool real = x >= 0;
        tokens.row[n] = real ? token_offset(b, y, x, p->H * p->W, p->W, 1) : -1;
        tokens.qkv[n] =
            real ? qkv + size * token_offset(b, y, x, p->qkv_stride[0], p->qkv_stride[1], p->qkv_stride[2]) : nullptr;
        if (dout != nullptr)
          tokens.dout[n] = real ? static_cast<const char*>(dout) +
                                      size * token_offset(b, y, x, dout_stride[0], dout_stride[1], dout_stride[2])
                                : nullptr;
      }
    }
  }
};

// Asks for the lines of `bytes` bytes, into L2. For the window ahead, a few rows at a time between the products of this
// one: all rows at once fill the miss buffers and stall (9 % of a forward).
template <int kWrite>
SWIN_FAST_INLINE void prefetch(const void* p, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(static_cast<const char*>(p) + line, kWrite, 2);
}

}  // namespace
}  // namespace swin_fast::cpu
