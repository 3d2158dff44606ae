// SPDX-License-Identifier: Apache-2.0
//
// All index arithmetic of shifted-window attention, once, for host and device: which pixel a window token stands on,
// which shift region it lies in, and which entry of the relative bias belongs to a pair of tokens. Everything is per
// axis; two axes make an image, and a third would be one more call. Tested against brute force in tests/cpp.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SWIN_FAST_HOST_DEVICE __host__ __device__
#else
#define SWIN_FAST_HOST_DEVICE
#endif

namespace swin_fast {

enum class PadOrder : int32_t {
  kPadRoll = 0,  // pad to a multiple of the window, then roll the padded grid (Microsoft, torchvision, OpenMMLab, ...)
  kRollPad = 1,  // roll the real grid, then pad (timm)
};

// Computes  ceil(a / b) for a >= 0, b > 0.
SWIN_FAST_HOST_DEVICE inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One image axis cut into windows. A *grid position* is a coordinate on the padded and rolled axis, so window i owns
// the positions [i * window, (i + 1) * window); a *pixel* is a coordinate on the image axis.
struct WindowAxis {
  int64_t size;    // pixels, >= 1
  int32_t window;  // window_size on this axis, >= 1
  int32_t shift;   // shift_size on this axis, 0 <= shift < window
  PadOrder pad_order;
  // What follows from these, made once, as a GPU shall not divide for every token.
  int64_t num_windows = ceil_div(size, window);
  int64_t padded_size = num_windows * window;
  // The roll: by how many positions, and of how many. The real axis may be shorter than the shift, hence the modulo.
  int64_t roll = pad_order == PadOrder::kPadRoll ? shift : shift % size;
  int64_t rolled_size = pad_order == PadOrder::kPadRoll ? padded_size : size;

  // The pixel at a grid position, or -1 where the position is padding. Index: int32_t for who knows that the axis fits.
  template <class Index>
  SWIN_FAST_HOST_DEVICE Index pixel(Index position) const {
    Index p = position + static_cast<Index>(roll);
    if (p >= static_cast<Index>(rolled_size)) p -= static_cast<Index>(rolled_size);  // the roll is shorter than this
    return (pad_order == PadOrder::kPadRoll ? p : position) < static_cast<Index>(size) ? p : -1;
  }

  // The shift region of a grid position: tokens of one window attend unmasked only within equal regions. Regions are
  // cut on the padded axis: [0, P - window), [P - window, P - shift), [P - shift, P). An unshifted axis is one region.
  template <class Index>
  SWIN_FAST_HOST_DEVICE int32_t region(Index position) const {
    if (shift == 0) return 0;
    const auto padded = static_cast<Index>(padded_size);
    return position < padded - window ? 0 : position < padded - shift ? 1 : 2;
  }

  // Whether the window holds more than one region: only the last one of a shifted axis does.
  SWIN_FAST_HOST_DEVICE bool has_border(int64_t window_index) const {
    return shift != 0 && window_index == num_windows - 1;
  }
};

// One region id for a token from its per-axis regions.
SWIN_FAST_HOST_DEVICE inline int32_t combine_regions(int32_t region_y, int32_t region_x) {
  return region_y * 3 + region_x;
}

// The index of (query, key) on one axis of the relative bias, whose entries run over query - key from 1 - window to
// window - 1.
SWIN_FAST_HOST_DEVICE inline int32_t relative_index(int32_t query, int32_t key, int32_t window) {
  return query - key + window - 1;
}

// Row of a token in a (B, H, W) tensor of rows, 64-bit because B * H * W * row length passes 2^31 elements.
SWIN_FAST_HOST_DEVICE inline int64_t token_offset(int64_t b, int64_t y, int64_t x, int64_t stride_b, int64_t stride_y,
                                                  int64_t stride_x) {
  return b * stride_b + y * stride_y + x * stride_x;
}

}  // namespace swin_fast
