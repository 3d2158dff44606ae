// SPDX-License-Identifier: Apache-2.0
//
// Runs the CPU kernels on guarded memory, in a chosen layout and cutting of the parallel loop, and judges the results.
#pragma once

#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/window_attention.h"
#include "float_formats.h"
#include "guarded_buffer.h"
#include "oracle.h"

namespace swin_fast_test {

// How a ParallelFor cuts its range. Threads: every piece on one of its own.
struct Cutting {
  int pieces = 1;
  bool reversed = false, threads = false;
};

inline Cutting& current_cutting() {
  static Cutting cutting;
  return cutting;
}

inline void cutting_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                        void* context) {
  const Cutting cutting = current_cutting();
  if (begin >= end) return;
  const int64_t length = end - begin;
  const int64_t piece = std::max({int64_t{1}, grain, (length + cutting.pieces - 1) / cutting.pieces});
  std::vector<std::thread> threads;
  const int64_t count = (length + piece - 1) / piece;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t first = begin + (cutting.reversed ? count - 1 - n : n) * piece;
    const int64_t last = std::min(first + piece, end);
    if (cutting.threads) {
      threads.emplace_back(body, first, last, context);
    } else {
      body(first, last, context);
    }
  }
  for (std::thread& thread : threads) thread.join();
}

// Element strides of the (B, H, W, 3, nH) axes of qkv and the (B, H, W) axes of grad_out.
struct Layout {
  int64_t qkv[5];
  int64_t grad_out[3];
};

inline Layout contiguous_layout(const Problem& p) {
  const int64_t C = int64_t{p.nH} * p.hd;
  return {{p.H * p.W * 3 * C, p.W * 3 * C, 3 * C, C, p.hd}, {p.H * p.W * C, p.W * C, C}};
}

// Every axis with room behind it, odd, so that no row is aligned.
inline Layout spaced_layout(const Problem& p) {
  Layout layout;
  layout.qkv[4] = p.hd + 1;
  layout.qkv[3] = p.nH * layout.qkv[4] + 2;
  layout.qkv[2] = 3 * layout.qkv[3] + 3;
  layout.qkv[1] = p.W * layout.qkv[2] + 1;
  layout.qkv[0] = p.H * layout.qkv[1] + 6;
  layout.grad_out[2] = int64_t{p.nH} * p.hd + 3;
  layout.grad_out[1] = p.W * layout.grad_out[2] + 2;
  layout.grad_out[0] = p.H * layout.grad_out[1] + 5;
  return layout;
}

// The axes in another order: (3, nH, B, W, H, hd) and (B, W, H, C).
inline Layout permuted_layout(const Problem& p) {
  const int64_t plane = p.H * p.W * p.hd, C = int64_t{p.nH} * p.hd;
  return {{plane, p.hd, p.H * p.hd, p.nH * p.B * plane, p.B * plane}, {p.H * p.W * C, C, p.H * C}};
}

inline int64_t qkv_extent(const Problem& p, const Layout& layout) {
  if (p.tokens() == 0) return 0;
  return (p.B - 1) * layout.qkv[0] + (p.H - 1) * layout.qkv[1] + (p.W - 1) * layout.qkv[2] + 2 * layout.qkv[3] +
         (p.nH - 1) * layout.qkv[4] + p.hd;
}

inline int64_t grad_out_extent(const Problem& p, const Layout& layout) {
  if (p.tokens() == 0) return 0;
  return (p.B - 1) * layout.grad_out[0] + (p.H - 1) * layout.grad_out[1] + (p.W - 1) * layout.grad_out[2] +
         int64_t{p.nH} * p.hd;
}

// Calls visit(index in the contiguous tensor, index in the layout) for the first element of every row of hd.
template <typename Visit>
void for_each_qkv_row(const Problem& p, const Layout& layout, Visit visit) {
  int64_t row = 0;
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t y = 0; y < p.H; ++y) {
      for (int64_t x = 0; x < p.W; ++x) {
        for (int which = 0; which < 3; ++which) {
          for (int head = 0; head < p.nH; ++head, row += p.hd) {
            visit(row, b * layout.qkv[0] + y * layout.qkv[1] + x * layout.qkv[2] + which * layout.qkv[3] +
                           head * layout.qkv[4]);
          }
        }
      }
    }
  }
}

template <typename Visit>
void for_each_grad_out_row(const Problem& p, const Layout& layout, Visit visit) {
  int64_t row = 0;
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t y = 0; y < p.H; ++y) {
      for (int64_t x = 0; x < p.W; ++x, row += int64_t{p.nH} * p.hd) {
        visit(row, b * layout.grad_out[0] + y * layout.grad_out[1] + x * layout.grad_out[2]);
      }
    }
  }
}

inline swin_fast::WindowAttentionParams make_params(const Problem& p, const Layout& layout) {
  swin_fast::WindowAttentionParams params{};
  params.B = p.B;
  params.H = p.H;
  params.W = p.W;
  params.nH = p.nH;
  params.hd = p.hd;
  params.window_size[0] = p.wh;
  params.window_size[1] = p.ww;
  params.shift_size[0] = p.sh;
  params.shift_size[1] = p.sw;
  params.pad_order = p.pad_order;
  params.dtype = p.dtype;
  params.bias_form = p.bias_form;
  params.scale = p.cosine ? NAN : p.scale;  // unused then: make sure of it
  params.mask_value = p.mask_value;
  std::copy(layout.qkv, layout.qkv + 5, params.qkv_stride);
  return params;
}

// A result tensor as the kernel left it.
struct Tensor {
  ScalarType type = ScalarType::kFloat32;
  std::vector<char> bytes;
  int64_t size() const { return static_cast<int64_t>(bytes.size()) / size_of(type); }
  double operator[](int64_t i) const { return load(type, bytes.data(), i); }
};

struct Outputs {
  Tensor out, dqkv, dbias, dlogit_scale, dpad_value;
};

struct NamedTensor {
  const char* name;
  Tensor Outputs::* got;
  Expected Results::* expected;
};
constexpr NamedTensor kTensors[] = {{"out", &Outputs::out, &Results::out},
                                    {"dqkv", &Outputs::dqkv, &Results::dqkv},
                                    {"dbias", &Outputs::dbias, &Results::dbias},
                                    {"dlogit_scale", &Outputs::dlogit_scale, &Results::dlogit_scale},
                                    {"dpad_value", &Outputs::dpad_value, &Results::dpad_value}};

// What is running, for the message of a crash; and the tally.
struct Report {
  char context[512] = "";
  int64_t num_checks = 0, num_failures = 0;
  bool fail_fast = false;
  std::map<std::string, double> worst;  // of error / tolerance, by path, dtype and tensor

  void fail(const std::string& what) {
    if (++num_failures <= 40) std::printf("FAILED %s\n       in %s\n", what.c_str(), context);
    if (fail_fast) {
      std::fflush(stdout);
      std::_Exit(EXIT_FAILURE);
    }
  }
  void check(bool ok, const char* what) {
    ++num_checks;
    if (!ok) fail(what);
  }
  void check(bool ok, const char* tensor, const char* what) {
    ++num_checks;
    if (!ok) fail(std::string(tensor) + what);
  }
};

inline Report& report() {
  static Report instance;
  return instance;
}

inline void set_context(const std::string& text) {
  std::snprintf(report().context, sizeof report().context, "%s", text.c_str());
}

inline Inputs make_inputs(const Problem& p, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  Inputs in;
  const auto fill = [&](std::vector<double>* values, int64_t size, ScalarType type) {
    values->resize(size);
    for (double& x : *values) x = round_to(type, normal(generator));
  };
  fill(&in.qkv, p.qkv_size(), p.dtype);
  fill(&in.bias, p.bias_size(), ScalarType::kFloat32);
  fill(&in.logit_scale, p.logit_scale_size(), ScalarType::kFloat32);
  fill(&in.pad_value, p.pad_size(), p.dtype);
  fill(&in.grad_out, p.out_size(), p.dtype);
  for (double& x : in.logit_scale) {
    x = round_to(ScalarType::kFloat32, p.logit_scale * std::uniform_real_distribution<>(0.3, 1.0)(generator));
  }
  for (int64_t row = 0; row * p.hd < p.qkv_size(); ++row) {
    if (row / p.nH % 3 == 2) continue;  // v
    double factor = p.amplitude;
    if (p.degenerate_rows) {
      const uint64_t draw = generator() % 8;
      factor *= draw == 0 ? 0.0 : draw == 1 ? 1e-14 : draw == 2 ? 1e-11 : 1.0;
    }
    for (int64_t d = 0; d < p.hd; ++d) in.qkv[row * p.hd + d] = round_to(p.dtype, in.qkv[row * p.hd + d] * factor);
  }
  if (p.degenerate_rows && p.has_pad_value) std::fill_n(in.pad_value.begin() + p.nH * p.hd, p.hd, 0.0);  // k, head 0
  return in;
}

inline std::vector<char> encode(const std::vector<double>& values, ScalarType type) {
  std::vector<char> bytes(values.size() * static_cast<size_t>(size_of(type)));
  for (size_t i = 0; i < values.size(); ++i) store(type, bytes.data(), static_cast<int64_t>(i), values[i]);
  return bytes;
}

// Inputs as the kernels take them, contiguous.
struct EncodedInputs {
  std::vector<char> qkv, bias, logit_scale, pad_value, grad_out;
  EncodedInputs(const Problem& p, const Inputs& in)
      : qkv(encode(in.qkv, p.dtype)),
        bias(encode(in.bias, ScalarType::kFloat32)),
        logit_scale(encode(in.logit_scale, ScalarType::kFloat32)),
        pad_value(encode(in.pad_value, p.dtype)),
        grad_out(encode(in.grad_out, p.dtype)) {}
};

inline std::unique_ptr<GuardedBuffer> constant_input(const std::vector<char>& bytes, GuardSide side) {
  auto buffer = std::make_unique<GuardedBuffer>(static_cast<int64_t>(bytes.size()), side);
  std::copy(bytes.begin(), bytes.end(), buffer->data());
  buffer->make_read_only();
  return buffer;
}

// Filled with NaN, which all ones are in every type: an element the kernel leaves out cannot pass for a result.
inline std::unique_ptr<GuardedBuffer> output_buffer(int64_t size, ScalarType type, GuardSide side) {
  auto buffer = std::make_unique<GuardedBuffer>(size * size_of(type), side);
  std::fill(buffer->data(), buffer->data() + buffer->bytes(), '\xff');
  return buffer;
}

inline Tensor take(GuardedBuffer* buffer, ScalarType type) {
  report().check(buffer->rest_is_untouched(), "write outside an output tensor");
  Tensor tensor;
  tensor.type = type;
  tensor.bytes.assign(buffer->data(), buffer->data() + buffer->bytes());
  return tensor;
}

// Forward and backward on guarded outputs, from qkv and grad_out (null: forward only) given as the caller laid them
// out.
inline Outputs run_on(const Problem& p, const EncodedInputs& in, const Layout& layout, const void* qkv,
                      const void* grad_out, GuardSide side) {
  const auto bias = constant_input(in.bias, side);
  const auto logit_scale = constant_input(in.logit_scale, side);
  const auto pad_value = constant_input(in.pad_value, side);
  swin_fast::WindowAttentionParams params = make_params(p, layout);
  params.qkv = qkv;
  params.bias = p.bias_form == BiasForm::kNone ? nullptr : reinterpret_cast<const float*>(bias->data());
  params.logit_scale = p.cosine ? reinterpret_cast<const float*>(logit_scale->data()) : nullptr;
  params.pad_value = p.has_pad_value ? pad_value->data() : nullptr;

  Outputs outputs;
  const auto out = output_buffer(p.out_size(), p.dtype, side);
  swin_fast::WindowAttentionFwdParams fwd{};
  static_cast<swin_fast::WindowAttentionParams&>(fwd) = params;
  fwd.out = out->data();
  swin_fast::cpu::window_attention_fwd(fwd, cutting_for);
  outputs.out = take(out.get(), p.dtype);
  if (grad_out == nullptr) return outputs;

  const auto dqkv = output_buffer(p.qkv_size(), p.dtype, side);
  const auto dbias = output_buffer(p.bias_size(), ScalarType::kFloat32, side);
  const auto dlogit_scale = output_buffer(p.logit_scale_size(), ScalarType::kFloat32, side);
  const auto dpad_value = output_buffer(p.pad_size(), p.dtype, side);
  swin_fast::WindowAttentionBwdParams bwd{};
  static_cast<swin_fast::WindowAttentionParams&>(bwd) = params;
  bwd.grad_out = grad_out;
  std::copy(layout.grad_out, layout.grad_out + 3, bwd.grad_out_stride);
  bwd.dqkv = dqkv->data();
  bwd.dbias = params.bias ? reinterpret_cast<float*>(dbias->data()) : nullptr;
  bwd.dlogit_scale = params.logit_scale ? reinterpret_cast<float*>(dlogit_scale->data()) : nullptr;
  bwd.dpad_value = params.pad_value ? dpad_value->data() : nullptr;
  swin_fast::cpu::window_attention_bwd(bwd, cutting_for);
  outputs.dqkv = take(dqkv.get(), p.dtype);
  outputs.dbias = take(dbias.get(), ScalarType::kFloat32);
  outputs.dlogit_scale = take(dlogit_scale.get(), ScalarType::kFloat32);
  outputs.dpad_value = take(dpad_value.get(), p.dtype);
  return outputs;
}

// Spreads the rows of contiguous inputs over memory laid out otherwise. `open` is told each row's place first.
template <typename Open>
void place_qkv(const Problem& p, const Layout& layout, const EncodedInputs& in, char* to, Open open) {
  const int64_t width = size_of(p.dtype), bytes = p.hd * width;
  for_each_qkv_row(p, layout, [&](int64_t from, int64_t at) {
    open(at * width, bytes);
    std::memcpy(to + at * width, in.qkv.data() + from * width, static_cast<size_t>(bytes));
  });
}

template <typename Open>
void place_grad_out(const Problem& p, const Layout& layout, const EncodedInputs& in, char* to, Open open) {
  const int64_t width = size_of(p.dtype), bytes = int64_t{p.nH} * p.hd * width;
  for_each_grad_out_row(p, layout, [&](int64_t from, int64_t at) {
    open(at * width, bytes);
    std::memcpy(to + at * width, in.grad_out.data() + from * width, static_cast<size_t>(bytes));
  });
}

// The same with guarded inputs too. The room between the rows of a strided input holds NaN.
inline Outputs run_kernels(const Problem& p, const EncodedInputs& in, const Layout& layout, GuardSide side,
                           const Cutting& cutting) {
  current_cutting() = cutting;
  const auto nothing = [](int64_t, int64_t) {};
  const auto qkv = output_buffer(qkv_extent(p, layout), p.dtype, side);
  place_qkv(p, layout, in, qkv->data(), nothing);
  qkv->make_read_only();
  const auto grad_out = output_buffer(grad_out_extent(p, layout), p.dtype, side);
  place_grad_out(p, layout, in, grad_out->data(), nothing);
  grad_out->make_read_only();
  return run_on(p, in, layout, qkv->data(), grad_out->data(), side);
}

// Multiples of the unit roundoff allowed to a float32 sum over a window. Its errors mostly cancel, but equal terms,
// which padding makes, all round the same way. At most 2e-5 in all.
inline double accumulation_factor(const Problem& p) {
  return std::min(8.0 + static_cast<double>(p.area()) / 2, 2e-5 / float_format(ScalarType::kFloat32).unit());
}

// Error over tolerance of one element, at most 1 where it passes. Anything not finite counts as infinite, unless the
// exact result is not finite either, or rounds to that infinity in the tensor's type.
inline double judge(const Problem& p, bool rounds_operands, const Tensor& got, const Expected& expected, int64_t i) {
  const double want = expected.value[i], have = got[i];
  if (!std::isfinite(want)) return std::isfinite(have) ? INFINITY : 0.0;
  const FloatFormat format = float_format(got.type), operand = float_format(p.dtype);
  double tolerance = std::max(format.smallest() / 2, 1e-36);  // gradual underflow; float32 may also flush to zero
  tolerance += accumulation_factor(p) * float_format(ScalarType::kFloat32).unit() * expected.accumulation[i];
  if (rounds_operands) tolerance += operand.unit() * expected.operand[i];
  tolerance += 1.01 * format.unit() * std::fabs(want);
  if (!std::isfinite(tolerance)) return std::isfinite(have) ? 0.0 : INFINITY;
  if (std::isinf(have)) {
    return (have > 0 ? want : -want) + tolerance >= format.max ? 0.0 : INFINITY;
  }
  const double error = std::fabs(have - want) / tolerance;
  return std::isfinite(error) ? error : INFINITY;
}

inline void check_against(const Problem& p, const Outputs& outputs, const Results& results, const std::string& path) {
  const char* const types[] = {"float32", "float16", "bfloat16"};
  // All other paths widen 16-bit inputs to float32, which is exact, and round the result alone.
  const bool rounds_operands = p.dtype == ScalarType::kBFloat16 && path == "avx512_bf16";
  for (const NamedTensor& tensor : kTensors) {
    const Tensor& got = outputs.*tensor.got;
    const Expected& expected = results.*tensor.expected;
    const int64_t size = static_cast<int64_t>(expected.value.size());
    double& worst = report().worst[path + " " + types[static_cast<int>(p.dtype)] + " " + tensor.name];
    double here = 0;
    int64_t bad = 0, at = 0;
    for (int64_t i = 0; i < size; ++i) {
      const double ratio = judge(p, rounds_operands, got, expected, i);
      bad += ratio > 1;
      if (ratio > here) {
        here = ratio;
        at = i;
      }
    }
    worst = std::max(worst, here);
    report().num_checks += size;
    if (bad > 0) {
      char text[256];
      std::snprintf(text, sizeof text,
                    "%s: %lld of %lld elements wrong; element %lld is %.9g, exact %.9g, %.3g x tolerance", tensor.name,
                    static_cast<long long>(bad), static_cast<long long>(size), static_cast<long long>(at), got[at],
                    expected.value[at], here);
      report().fail(text);
    }
  }
  // The query part of a padded position has no gradient at all, not a small one.
  for (int64_t i = 0; i < outputs.dpad_value.size() / 3; ++i) {
    report().check(outputs.dpad_value[i] == 0, "dpad_value: the q part is not exactly 0");
  }
}

// Bit for bit, where any NaN equals any other.
inline bool same_bits(const Tensor& a, int64_t a_begin, const Tensor& b, int64_t b_begin, int64_t count) {
  const int64_t width = size_of(a.type);
  if (count == 0) return true;
  if (std::memcmp(a.bytes.data() + a_begin * width, b.bytes.data() + b_begin * width,
                  static_cast<size_t>(count * width)) == 0) {
    return true;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (std::memcmp(a.bytes.data() + (a_begin + i) * width, b.bytes.data() + (b_begin + i) * width,
                    static_cast<size_t>(width)) != 0 &&
        !(std::isnan(a[a_begin + i]) && std::isnan(b[b_begin + i]))) {
      return false;
    }
  }
  return true;
}

inline void check_same(const Outputs& a, const Outputs& b, const char* what) {
  for (const NamedTensor& tensor : kTensors) {
    const Tensor &left = a.*tensor.got, &right = b.*tensor.got;
    report().check(left.size() == right.size() && same_bits(left, 0, right, 0, left.size()), tensor.name, what);
  }
}

}  // namespace swin_fast_test
