// SPDX-License-Identifier: Apache-2.0
//
// What the CUDA kernels of every size of window share: where windows, tokens and entries of the bias lie, how 16 bytes
// of a row come into shared memory, and norms of rows held as fragments.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "../window_attention.h"
#include "primitives.h"

namespace swin_fast::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kNormFloor = 1e-12f;

// A bias or mask_value that kernels multiply by log2(e): finite where it was. A row of nothing but the least number is
// weighed like one of zeros, and only where all are -inf does it weigh nothing.
SWIN_FAST_HOST_DEVICE inline float limited(float value) {
  constexpr float kMost = 0x1.6p127f;  // below FLT_MAX / log2(e)
  return fabsf(value) <= FLT_MAX ? fminf(fmaxf(value, -kMost), kMost) : value;
}

// Of a score relative to another. The difference comes first: of scores of -1e30, as a mask may make them, the rounding
// of a product with log2(e) would alone be more than any number has an exponential of.
SWIN_FAST_DEVICE float weight_of(float score, float other) { return exp2_approx((score - other) * kLog2E); }

// Computes  1 / sum.  In float32 with a step of Newton's: by the approximation a whole row would be off by up to 1 ulp.
template <class T>
SWIN_FAST_DEVICE float reciprocal(float sum) {
  const float share = reciprocal_approx(sum);
  return is_float<T> ? fmaf(fmaf(-sum, share, 1.0f), share, share) : share;
}

// Where a token stands on its image; both -1 where it is padding.
struct alignas(8) Pixel {
  int32_t y, x;
};

// In place of a pixel, or of its y.
constexpr int32_t kPadding = -1;
constexpr int32_t kNoToken = -2;  // the rows of a tile behind the last token of the window

// The windows of all images, the last axis fastest. The axes stand here ready made: a kernel shall not divide for them.
struct Windows {
  WindowAxis y, x;
  int64_t of_image, of_all;

  explicit Windows(const WindowAttentionParams& problem)
      : y(problem.axis_y()),
        x(problem.axis_x()),
        of_image(y.num_windows * x.num_windows),
        of_all(problem.B * of_image) {}

  struct Place {
    int32_t b, y, x;
  };
  SWIN_FAST_HOST_DEVICE Place place(int64_t window) const {
    const int64_t b = window / of_image;
    const auto in_image = static_cast<int32_t>(window - b * of_image);
    const int32_t along_y = in_image / static_cast<int32_t>(x.num_windows);
    return {static_cast<int32_t>(b), along_y, in_image - along_y * static_cast<int32_t>(x.num_windows)};
  }

  // On to the window behind, without a division; true where it is of another image.
  SWIN_FAST_DEVICE bool advance(Place* at) const {
    if (++at->x < static_cast<int32_t>(x.num_windows)) return false;
    at->x = 0;
    if (++at->y < static_cast<int32_t>(y.num_windows)) return false;
    at->y = 0;
    ++at->b;
    return true;
  }

  // The same for a step of many windows, given as the place of the window of that number.
  SWIN_FAST_DEVICE void advance(Place* at, const Place& step) const {
    at->x += step.x;
    const bool next_row = at->x >= static_cast<int32_t>(x.num_windows);
    if (next_row) at->x -= static_cast<int32_t>(x.num_windows);
    at->y += step.y + next_row;
    const bool next_image = at->y >= static_cast<int32_t>(y.num_windows);
    if (next_image) at->y -= static_cast<int32_t>(y.num_windows);
    at->b += step.b + next_image;
  }

  SWIN_FAST_DEVICE bool has_border(const Place& at) const { return y.has_border(at.y) || x.has_border(at.x); }

  // The row and the column of a window that another shift region begins with: behind the last where none does.
  SWIN_FAST_DEVICE int border_row(const Place& at) const { return y.has_border(at.y) ? y.window - y.shift : y.window; }
  SWIN_FAST_DEVICE int border_column(const Place& at) const {
    return x.has_border(at.x) ? x.window - x.shift : x.window;
  }

  // Whether the pixels of a window lie as its tokens do: none is padding, and the image does not end between two.
  SWIN_FAST_DEVICE bool is_whole(const Place& at) const {
    return (at.y + 1) * y.window + static_cast<int32_t>(y.roll) <= static_cast<int32_t>(y.size) &&
           (at.x + 1) * x.window + static_cast<int32_t>(x.roll) <= static_cast<int32_t>(x.size);
  }

  // The pixel of the token in a row and column of a window, or false where it is padding.
  SWIN_FAST_DEVICE bool pixel(const Place& at, int row, int column, int* pixel_y, int* pixel_x) const {
    *pixel_y = y.pixel<int32_t>(at.y * y.window + row);
    *pixel_x = x.pixel<int32_t>(at.x * x.window + column);
    return *pixel_y >= 0 && *pixel_x >= 0;
  }

  SWIN_FAST_DEVICE int32_t region(const Place& at, int row, int column) const {
    return combine_regions(y.region<int32_t>(at.y * y.window + row), x.region<int32_t>(at.x * x.window + column));
  }
};

// The bias of a pair of tokens, of which `columns` = Ww make a row of the window; 0 without a bias.
SWIN_FAST_DEVICE float bias_of(const WindowAttentionParams& problem, int64_t head, int query, int key, int columns) {
  if (problem.bias_form == BiasForm::kNone) return 0.0f;
  if (problem.bias_form == BiasForm::kDense) {
    const int tokens = problem.window_area();
    return load_global<float>(problem.bias + (head * tokens + query) * tokens + key);
  }
  const int Wh = problem.window_size[0], Ww = problem.window_size[1];
  const int64_t row = head * (2 * Wh - 1) + relative_index(query / columns, key / columns, Wh);
  return load_global<float>(problem.bias + row * (2 * Ww - 1) + relative_index(query % columns, key % columns, Ww));
}

// Eight elements of a row.
template <bool kAligned>
SWIN_FAST_DEVICE UInt4 load_chunk(const uint16_t* from) {
  if constexpr (kAligned) {
    return load_global<UInt4>(from);
  } else {
    uint32_t pairs[4];
    for (int i = 0; i < 4; ++i) {
      pairs[i] = load_global<uint16_t>(from + 2 * i) | static_cast<uint32_t>(load_global<uint16_t>(from + 2 * i + 1))
                                                           << 16;
    }
    return {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
}

// Begins to bring eight elements to shared memory, or zeros where not `valid`; `from` is then not read. Unaligned ones
// are there at once; whoever reads them waits the same way.
template <bool kAligned>
SWIN_FAST_DEVICE void fetch_chunk(char* to, const uint16_t* from, bool valid) {
  if constexpr (kAligned) {
    copy_async_16(to, from, valid);
  } else {
    store_shared(to, valid ? load_chunk<false>(from) : UInt4{0, 0, 0, 0});
  }
}

SWIN_FAST_DEVICE float with_bits(float value, uint32_t kept, uint32_t set) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  bits = (bits & kept) | set;
  __builtin_memcpy(&value, &bits, sizeof(bits));
  return value;
}

// A positive number as power * fraction, where 1 <= fraction < 2.
SWIN_FAST_DEVICE float power_of(float value) { return with_bits(value, 0x7f800000u, 0); }
SWIN_FAST_DEVICE float fraction_of(float value) { return with_bits(value, 0x007fffffu, 0x3f800000u); }

// The sum of squares of what the four lanes of a quad hold of a row, as 1 / max(|row|, eps). In float32 the 2 ulp of
// the approximation are more than all else that is rounded of a norm: one step of Newton's takes them away.
template <class T = BFloat16>
SWIN_FAST_DEVICE float inverse_norm(float squares) {
  squares += shuffle_xor(squares, 1);
  squares += shuffle_xor(squares, 2);
  const float inverse = rsqrt_approx(squares);
  const float clamped = inverse < 1.0f / kNormFloor ? inverse : 1.0f / kNormFloor;
  if (!is_float<T> || !(0.0f < inverse && inverse < 1.0f / kNormFloor)) return clamped;
  return fmaf(0.5f * inverse, fmaf(-squares * inverse, inverse, 1.0f), inverse);
}

template <class T>
SWIN_FAST_DEVICE float squares(uint32_t pair) {
  const Float2 two = unpack<T>(pair);
  return two.x * two.x + two.y * two.y;
}

// Of a piece of 16 bytes.
template <class T>
SWIN_FAST_DEVICE float squares(const UInt4& piece) {
  if constexpr (is_float<T>) {
    Float4 four;
    __builtin_memcpy(&four, &piece, sizeof(four));
    return fmaf(four.x, four.x, four.y * four.y) + fmaf(four.z, four.z, four.w * four.w);
  } else {
    return squares<T>(piece.x) + squares<T>(piece.y) + squares<T>(piece.z) + squares<T>(piece.w);
  }
}

}  // namespace swin_fast::cuda
