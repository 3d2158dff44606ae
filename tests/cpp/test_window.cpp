// SPDX-License-Identifier: Apache-2.0
//
// Tests of csrc/window.h against brute force: the padded and rolled grid is built as an explicit array of pixel
// numbers, and the region map by the slice assignments of the original Swin code. Then sizes beyond 2^31, with 128-bit
// integers as the judge (build with -fsanitize=undefined to have signed overflow reported too).
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/window.h"

namespace {

using swin_fast::PadOrder;
using swin_fast::WindowAxis;

int64_t num_checks = 0;
int64_t num_failures = 0;

void check(bool ok, const char* what, const WindowAxis& axis, int64_t at) {
  ++num_checks;
  if (ok) return;
  if (++num_failures > 20) return;
  std::printf("FAILED %s: size %lld, window %d, shift %d, %s, at %lld\n", what, static_cast<long long>(axis.size),
              axis.window, axis.shift, axis.pad_order == PadOrder::kPadRoll ? "pad_roll" : "roll_pad",
              static_cast<long long>(at));
}

// Computes  np.roll(values, -shift).
std::vector<int64_t> roll_back(const std::vector<int64_t>& values, int64_t shift) {
  std::vector<int64_t> rolled;
  const int64_t n = static_cast<int64_t>(values.size());
  for (int64_t i = 0; i < n; ++i) rolled.push_back(values[(i + shift) % n]);
  return rolled;
}

// Pixel number at every position of the padded and rolled axis, -1 for padding.
std::vector<int64_t> brute_force_grid(int64_t size, int64_t window, int64_t shift, PadOrder pad_order) {
  std::vector<int64_t> pixels(size);
  std::iota(pixels.begin(), pixels.end(), 0);
  if (pad_order == PadOrder::kRollPad) pixels = roll_back(pixels, shift);
  while (pixels.size() % window != 0) pixels.push_back(-1);
  if (pad_order == PadOrder::kPadRoll) pixels = roll_back(pixels, shift);
  return pixels;
}

// Assigns  values[start:stop] = value  with Python's meaning of negative bounds.
void assign_slice(std::vector<int64_t>* values, int64_t start, int64_t stop, int64_t value) {
  const int64_t n = static_cast<int64_t>(values->size());
  if (start < 0) start = std::max<int64_t>(0, start + n);
  if (stop < 0) stop = std::max<int64_t>(0, stop + n);
  for (int64_t i = start; i < std::min(stop, n); ++i) (*values)[i] = value;
}

// Region number at every position:  for number, s in enumerate((slice(0, -window), slice(-window, -shift),
// slice(-shift, None))): regions[s] = number. With shift 0 these are slice(-window, 0), which is empty, and slice(0,
// None).
std::vector<int64_t> brute_force_regions(int64_t padded, int64_t window, int64_t shift) {
  std::vector<int64_t> regions(padded, -1);
  assign_slice(&regions, 0, -window, 0);
  assign_slice(&regions, -window, shift == 0 ? 0 : -shift, 1);
  assign_slice(&regions, shift == 0 ? 0 : -shift, padded, 2);
  return regions;
}

void test_axis(int64_t size, int32_t window, int32_t shift, PadOrder pad_order) {
  const WindowAxis axis{size, window, shift, pad_order};
  const std::vector<int64_t> grid = brute_force_grid(size, window, shift, pad_order);
  const int64_t padded = static_cast<int64_t>(grid.size());
  check(axis.padded_size == padded, "padded_size", axis, padded);
  check(axis.num_windows * window == padded, "num_windows", axis, padded);
  if (axis.padded_size != padded) return;

  std::vector<int> covered(size, 0);
  const std::vector<int64_t> regions = brute_force_regions(padded, window, shift);
  for (int64_t i = 0; i < padded; ++i) {
    const int64_t pixel = axis.pixel(i);
    check(pixel == grid[i], "pixel", axis, i);
    if (pixel >= 0 && pixel < size) ++covered[pixel];
    const int32_t region = axis.region(i);
    check(region >= 0 && region < 3, "region range", axis, i);
    // Region numbers are labels: what counts is which positions share one.
    for (int64_t j = i - i % window; j < i; ++j) {
      check((region == axis.region(j)) == (regions[i] == regions[j]), "region", axis, i);
    }
  }
  for (int64_t p = 0; p < size; ++p) check(covered[p] == 1, "pixel covered once", axis, p);
  for (int64_t w = 0; w < padded / window; ++w) {
    const std::set<int64_t> held(regions.begin() + w * window, regions.begin() + (w + 1) * window);
    check(axis.has_border(w) == (held.size() > 1), "has_border", axis, w);
    const bool has_pixel = std::any_of(grid.begin() + w * window, grid.begin() + (w + 1) * window,
                                       [](int64_t pixel) { return pixel >= 0; });
    check(has_pixel, "every window holds a pixel", axis, w);
  }
}

// The mask of two axes: tokens of a window differ in combine_regions exactly where they differ in the 3 x 3 map that
// the original code numbers with one counter over both axes' slices.
void test_image(const WindowAxis& y_axis, const WindowAxis& x_axis) {
  const int64_t rows = y_axis.padded_size, columns = x_axis.padded_size;
  std::vector<std::vector<int64_t>> image_mask(rows, std::vector<int64_t>(columns, -1));
  int64_t count = 0;
  for (int64_t y_part = 0; y_part < 3; ++y_part) {
    for (int64_t x_part = 0; x_part < 3; ++x_part, ++count) {
      const std::vector<int64_t> y_regions = brute_force_regions(rows, y_axis.window, y_axis.shift);
      const std::vector<int64_t> x_regions = brute_force_regions(columns, x_axis.window, x_axis.shift);
      for (int64_t y = 0; y < rows; ++y) {
        for (int64_t x = 0; x < columns; ++x) {
          if (y_regions[y] == y_part && x_regions[x] == x_part) image_mask[y][x] = count;
        }
      }
    }
  }
  for (int64_t wy = 0; wy < y_axis.num_windows; ++wy) {
    for (int64_t wx = 0; wx < x_axis.num_windows; ++wx) {
      std::vector<std::pair<int64_t, int32_t>> tokens;  // (original number, ours)
      for (int64_t y = wy * y_axis.window; y < (wy + 1) * y_axis.window; ++y) {
        for (int64_t x = wx * x_axis.window; x < (wx + 1) * x_axis.window; ++x) {
          tokens.emplace_back(image_mask[y][x], swin_fast::combine_regions(y_axis.region(y), x_axis.region(x)));
        }
      }
      bool masked = false;
      for (const auto& a : tokens) {
        for (const auto& b : tokens) {
          check((a.first == b.first) == (a.second == b.second), "combine_regions", y_axis, wy);
          masked = masked || a.first != b.first;
        }
      }
      check(masked == (y_axis.has_border(wy) || x_axis.has_border(wx)), "has_border of an image", x_axis, wx);
    }
  }
}

// relative_position_index of the original code: coordinates of all tokens, subtracted pairwise (query minus key), moved
// to start at 0, row times (2 Ww - 1) plus column.
void test_relative_index(int32_t wh, int32_t ww) {
  const WindowAxis axis{wh, ww, 0, PadOrder::kPadRoll};  // only to be named in a failure
  std::vector<std::pair<int, int>> coords;
  for (int y = 0; y < wh; ++y) {
    for (int x = 0; x < ww; ++x) coords.emplace_back(y, x);
  }
  std::vector<int> used((2 * wh - 1) * (2 * ww - 1), 0);
  for (const auto& query : coords) {
    for (const auto& key : coords) {
      const int expected = (query.first - key.first + wh - 1) * (2 * ww - 1) + (query.second - key.second + ww - 1);
      const int32_t row = swin_fast::relative_index(query.first, key.first, wh);
      const int32_t column = swin_fast::relative_index(query.second, key.second, ww);
      check(row * (2 * ww - 1) + column == expected, "relative_index", axis, expected);
      ++used[expected];
    }
  }
  check(*std::min_element(used.begin(), used.end()) > 0, "every relative entry is used", axis, 0);
}

__extension__ using Wide = __int128;

// Positions near every boundary of an axis that is far too long to walk along.
void test_long_axis(int64_t size, int32_t window, int32_t shift, PadOrder pad_order) {
  const WindowAxis axis{size, window, shift, pad_order};
  const Wide windows = (static_cast<Wide>(size) + window - 1) / window;
  const Wide padded = windows * window;
  check(axis.num_windows == windows, "num_windows, long axis", axis, 0);
  check(axis.padded_size == padded, "padded_size, long axis", axis, 0);
  const Wide anchors[] = {0,      shift,         size / 2,     size - shift, size, padded - window, padded - shift,
                          padded, Wide{1} << 31, Wide{1} << 32};
  for (const Wide anchor : anchors) {
    for (Wide position = anchor - 2 * window; position <= anchor + 2 * window; ++position) {
      if (position < 0 || position >= padded) continue;
      const int64_t at = static_cast<int64_t>(position);
      Wide pixel = -1;
      if (pad_order == PadOrder::kPadRoll) {
        pixel = (position + shift) % padded;
        if (pixel >= size) pixel = -1;
      } else if (position < size) {
        pixel = (position + shift) % size;
      }
      check(axis.pixel(at) == pixel, "pixel, long axis", axis, at);
      const int region = shift == 0 ? 0 : position >= padded - shift ? 2 : position >= padded - window ? 1 : 0;
      check(axis.region(at) == region, "region, long axis", axis, at);
    }
  }
  check(axis.has_border(axis.num_windows - 1) == (shift != 0), "has_border, long axis", axis, 0);
  check(!axis.has_border(axis.num_windows - 2), "has_border, long axis", axis, 1);
}

// Offsets of rows whose tensor has more than 2^31 and 2^32 elements, in several layouts.
void test_token_offset() {
  const WindowAxis axis{1, 1, 0, PadOrder::kPadRoll};  // only to be named in a failure
  struct Shape {
    int64_t b, h, w, row;
  };
  const Shape shapes[] = {
      {2, 3, 5, 96},                 // small
      {128, 192, 192, 3 * 192},      // 2.7e9 elements, beyond 2^31
      {256, 192, 192, 3 * 192},      // 5.4e9 elements, beyond 2^32
      {70000, 56, 56, 3 * 96},       // 6.3e10
      {1, 40000, 40000, 3 * 1024},   // one image, 4.9e12
      {1, 1, int64_t{1} << 33, 96},  // one row of pixels
      {int64_t{1} << 33, 1, 1, 96},  // many images of one pixel
      {3, 70000, 1, 3 * 16384},      // a column of pixels
  };
  for (const Shape& s : shapes) {
    const int64_t strides[][3] = {
        {s.h * s.w * s.row, s.w * s.row, s.row},  // contiguous
        {s.h * s.w * s.row, s.row, s.h * s.row},  // width before height
        {s.row, s.b * s.w * s.row, s.b * s.row},  // batch innermost
        {0, s.w * s.row, s.row},                  // expanded over the batch
    };
    for (const auto& stride : strides) {
      for (const int64_t b : {int64_t{0}, s.b / 2, s.b - 1}) {
        for (const int64_t y : {int64_t{0}, s.h / 2, s.h - 1}) {
          for (const int64_t x : {int64_t{0}, s.w / 2, s.w - 1}) {
            const Wide expected = Wide{b} * stride[0] + Wide{y} * stride[1] + Wide{x} * stride[2];
            const int64_t got = swin_fast::token_offset(b, y, x, stride[0], stride[1], stride[2]);
            check(got == expected, "token_offset", axis, got);
          }
        }
      }
    }
  }
}

void test_ceil_div() {
  const WindowAxis axis{1, 1, 0, PadOrder::kPadRoll};  // only to be named in a failure
  for (int64_t a = 0; a <= 100; ++a) {
    for (int64_t b = 1; b <= 40; ++b) {
      int64_t expected = 0;
      while (expected * b < a) ++expected;
      check(swin_fast::ceil_div(a, b) == expected, "ceil_div", axis, a * 1000 + b);
    }
  }
}

}  // namespace

int main() {
  const PadOrder orders[] = {PadOrder::kPadRoll, PadOrder::kRollPad};
  test_ceil_div();
  for (const PadOrder order : orders) {
    for (int64_t size = 1; size <= 45; ++size) {
      for (int32_t window = 1; window <= 20; ++window) {
        for (int32_t shift = 0; shift < window; ++shift) test_axis(size, window, shift, order);
      }
      for (const int32_t window : {32, 64}) {
        for (const int32_t shift : {0, 1, window / 2, window - 1}) test_axis(size, window, shift, order);
      }
    }
    for (const int64_t size_y : {1, 3, 4, 5, 7, 8, 14}) {
      for (const int64_t size_x : {1, 2, 6, 7, 13}) {
        for (const int32_t wh : {1, 2, 3, 4, 7}) {
          for (const int32_t ww : {1, 2, 4, 5}) {
            for (const int32_t sh : std::set<int32_t>{0, wh / 2, wh - 1}) {
              for (const int32_t sw : std::set<int32_t>{0, ww / 2, ww - 1}) {
                test_image({size_y, wh, sh, order}, {size_x, ww, sw, order});
              }
            }
          }
        }
      }
    }
    for (const int64_t size : {int64_t{1} << 31, (int64_t{1} << 31) + 3, (int64_t{1} << 32) + 5,
                               (int64_t{1} << 31) * 49 + 1, (int64_t{1} << 40) - 1}) {
      for (const int32_t window : {1, 7, 12, 64, 1024}) {
        for (const int32_t shift : std::set<int32_t>{0, window / 2, window - 1}) {
          test_long_axis(size, window, shift, order);
        }
      }
    }
  }
  for (int32_t wh = 1; wh <= 12; ++wh) {
    for (int32_t ww = 1; ww <= 12; ++ww) test_relative_index(wh, ww);
  }
  test_relative_index(32, 32);
  test_token_offset();
  if (num_failures > 0) {
    std::printf("FAILED %lld of %lld checks\n", static_cast<long long>(num_failures),
                static_cast<long long>(num_checks));
    return EXIT_FAILURE;
  }
  std::printf("window.h: %lld checks passed\n", static_cast<long long>(num_checks));
  return EXIT_SUCCESS;
}
