// SPDX-License-Identifier: Apache-2.0
//
// The driver of the CPU backend: lays the bias out for the kernels, cuts the strips among threads, and folds the sums
// of the backward. Torch-free, compiled for the base instruction set.
#include "window_attention.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define SWIN_FAST_HAS_FORK 1
#endif

namespace swin_fast::cpu {
namespace {

#ifdef SWIN_FAST_HAS_FORK
// A forked child inherits the thread pool's bookkeeping but none of its threads: to enter it would wait for ever.
bool forked = false;
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#else
constexpr bool forked = false;
#endif

struct AlignedFree {
  void operator()(void* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
template <class U>
using Aligned = std::unique_ptr<U[], AlignedFree>;

template <class U>
Aligned<U> allocate(int64_t count) {
  return Aligned<U>(static_cast<U*>(
      ::operator new[](sizeof(U) * static_cast<size_t>(std::max<int64_t>(count, 1)), std::align_val_t{64})));
}

template <class F>
void run(ParallelFor parallel_for, int64_t count, const F& f) {
  (forked ? serial_for : parallel_for)(
      0, count, 1, [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

int64_t padded_columns(int64_t n) { return (n + kColumnPad - 1) / kColumnPad * kColumnPad; }

// Sizes of the bias of one head, as given and as laid out (kernels.h).
struct BiasShape {
  int64_t Wh, Ww, N, rows_y, rows_x;
  BiasForm form;
  explicit BiasShape(const WindowAttentionParams& p)
      : Wh(p.window_size[0]),
        Ww(p.window_size[1]),
        N(Wh * Ww),
        rows_y(2 * Wh - 1),
        rows_x(2 * Ww - 1),
        form(p.bias_form) {}
  int64_t given() const { return form == BiasForm::kDense ? N * N : rows_y * rows_x; }
  int64_t strip() const { return rows_y * Ww; }
  int64_t head_stride() const {
    switch (form) {
      case BiasForm::kNone: return 0;
      case BiasForm::kDense: return N * padded_columns(N);
      case BiasForm::kRelative: return padded_columns(Ww * strip() + kColumnPad);
    }
    return 0;
  }
  int64_t row_offset(int64_t y, int64_t x) const {
    switch (form) {
      case BiasForm::kNone: return 0;
      case BiasForm::kDense: return (y * Ww + x) * padded_columns(N);
      case BiasForm::kRelative: return x * strip() + (Wh - 1 - y) * Ww;
    }
    return 0;
  }
};

struct Bias {
  std::vector<int32_t> row_offset;
  Aligned<float> data;
  BiasLayout layout;

  explicit Bias(const WindowAttentionParams& p) {
    const BiasShape shape(p);
    row_offset.resize(static_cast<size_t>(shape.N));
    for (int64_t y = 0, i = 0; y < shape.Wh; y++)
      for (int64_t x = 0; x < shape.Ww; x++, i++)
        row_offset[static_cast<size_t>(i)] = static_cast<int32_t>(shape.row_offset(y, x));
    layout = {row_offset.data(), shape.head_stride()};
    const int64_t count = shape.form == BiasForm::kNone ? padded_columns(shape.N) : p.nH * layout.head_stride;
    data = allocate<float>(count);
    if (shape.form != BiasForm::kDense) std::memset(data.get(), 0, sizeof(float) * static_cast<size_t>(count));
    for (int64_t h = 0; h < p.nH; h++) {
      const float* given = p.bias + h * shape.given();
      float* out = data.get() + h * layout.head_stride;
      if (shape.form == BiasForm::kDense) {
        const int64_t columns = padded_columns(shape.N);
        for (int64_t i = 0; i < shape.N; i++) {
          std::memcpy(out + i * columns, given + i * shape.N, sizeof(float) * static_cast<size_t>(shape.N));
          std::fill(out + i * columns + shape.N, out + (i + 1) * columns, 0.f);
        }
      } else if (shape.form == BiasForm::kRelative) {
        for (int64_t x = 0; x < shape.Ww; x++)
          for (int64_t u = 0; u < shape.rows_y; u++) {
            const float* entry = given + strip_entry(shape, x, u);
            for (int64_t kx = 0; kx < shape.Ww; kx++) *out++ = entry[-kx];
          }
      }
    }
  }

  // Entry of the relative bias of one head that element (u, key x = 0) of the strip of query column x repeats; that of
  // key x stands as many before it. The row of query y starts at u = Wh-1-y, so u counts Wh-1 - (query y - key y).
  static int64_t strip_entry(const BiasShape& shape, int64_t x, int64_t u) {
    return (2 * (shape.Wh - 1) - u) * shape.rows_x +
           relative_index(static_cast<int32_t>(x), 0, static_cast<int32_t>(shape.Ww));
  }
};

int64_t strips(const WindowAttentionParams& p) { return p.B * p.axis_y().num_windows; }

// Slices of the backward: they depend on shape alone, so that sums over the batch are bit-equal whatever the thread
// count. At most 32, and no more than hold the sums in 32 MB.
int64_t slice_count(const WindowAttentionParams& p, int64_t bias_elements) {
  const int64_t bytes = std::max<int64_t>(bias_elements * static_cast<int64_t>(sizeof(float)), 1);
  const int64_t fit = std::max<int64_t>((int64_t{32} << 20) / bytes, 1);
  return std::max<int64_t>(std::min({strips(p), int64_t{32}, fit}), 1);
}

}  // namespace

void serial_for(int64_t begin, int64_t end, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
  if (begin < end) body(begin, end, context);
}

void window_attention_fwd(const WindowAttentionFwdParams& params, ParallelFor parallel_for) {
  const Bias bias(params);
  const FwdTask task{&params, bias.layout, bias.data.get()};
  const Kernels& kernels = kernels_for(params.dtype);
  const size_t scratch_bytes = kernels.fwd_scratch_bytes(task);
  run(parallel_for, strips(params), [&](int64_t begin, int64_t end) {
    const Aligned<char> scratch = allocate<char>(static_cast<int64_t>(scratch_bytes));
    kernels.fwd(task, begin, end, scratch.get());
  });
}

void window_attention_bwd(const WindowAttentionBwdParams& params, ParallelFor parallel_for) {
  const Bias bias(params);
  const BwdTask task{&params, bias.layout, bias.data.get()};
  const Kernels& kernels = kernels_for(params.dtype);
  const size_t scratch_bytes = kernels.bwd_scratch_bytes(task);

  const BiasShape shape(params);
  const int64_t nH = params.nH, pad_elements = 2 * nH * params.hd;
  const int64_t bias_elements = params.dbias != nullptr ? nH * shape.head_stride() : 0;
  const int64_t slices = slice_count(params, bias_elements), count = strips(params);
  Aligned<float> dbias = allocate<float>(slices * bias_elements);
  std::vector<double> dlogit_scale(static_cast<size_t>(params.dlogit_scale != nullptr ? slices * nH : 0));
  std::vector<double> dpad_value(static_cast<size_t>(params.dpad_value != nullptr ? slices * pad_elements : 0));

  run(parallel_for, slices, [&](int64_t begin, int64_t end) {
    const Aligned<char> scratch = allocate<char>(static_cast<int64_t>(scratch_bytes));
    for (int64_t slice = begin; slice < end; slice++) {
      BwdSums sums;
      sums.dbias = params.dbias != nullptr ? dbias.get() + slice * bias_elements : nullptr;
      sums.dlogit_scale = params.dlogit_scale != nullptr ? dlogit_scale.data() + slice * nH : nullptr;
      sums.dpad_value = params.dpad_value != nullptr ? dpad_value.data() + slice * pad_elements : nullptr;
      if (sums.dbias != nullptr) std::memset(sums.dbias, 0, sizeof(float) * static_cast<size_t>(bias_elements));
      kernels.bwd(task, count * slice / slices, count * (slice + 1) / slices, sums, scratch.get());
    }
  });

  if (params.dbias != nullptr) {
    run(parallel_for, nH, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; h++) {
        float* total = dbias.get() + h * shape.head_stride();
        for (int64_t slice = 1; slice < slices; slice++) {
          const float* part = dbias.get() + slice * bias_elements + h * shape.head_stride();
          for (int64_t e = 0; e < shape.head_stride(); e++) total[e] += part[e];
        }
        float* out = params.dbias + h * shape.given();
        if (shape.form == BiasForm::kDense) {
          for (int64_t i = 0; i < shape.N; i++)
            std::memcpy(out + i * shape.N, total + i * padded_columns(shape.N),
                        sizeof(float) * static_cast<size_t>(shape.N));
        } else {
          std::fill(out, out + shape.given(), 0.f);
          for (int64_t x = 0; x < shape.Ww; x++)
            for (int64_t u = 0; u < shape.rows_y; u++) {
              float* entry = out + Bias::strip_entry(shape, x, u);
              for (int64_t kx = 0; kx < shape.Ww; kx++) entry[-kx] += *total++;
            }
        }
      }
    });
  }
  if (params.dlogit_scale != nullptr) {
    for (int64_t h = 0; h < nH; h++) {
      double total = 0.;
      for (int64_t slice = 0; slice < slices; slice++) total += dlogit_scale[static_cast<size_t>(slice * nH + h)];
      params.dlogit_scale[h] = static_cast<float>(total);
    }
  }
  if (params.dpad_value != nullptr) {
    for (int64_t slice = 1; slice < slices; slice++)
      for (int64_t e = 0; e < pad_elements; e++)
        dpad_value[static_cast<size_t>(e)] += dpad_value[static_cast<size_t>(slice * pad_elements + e)];
    const int64_t part = nH * params.hd;
    // The store reads whole vectors, so both have room for one.
    const std::vector<float> zeros(static_cast<size_t>(padded_columns(part)), 0.f);
    std::vector<float> values(static_cast<size_t>(padded_columns(pad_elements)));
    std::copy(dpad_value.begin(), dpad_value.begin() + pad_elements, values.begin());
    kernels.store(params.dtype, zeros.data(), part, params.dpad_value, 0);
    kernels.store(params.dtype, values.data(), pad_elements, params.dpad_value, part);
  }
}

}  // namespace swin_fast::cpu
