// SPDX-License-Identifier: Apache-2.0
//
// Inputs, memory and judgement of the tests of kernels, see harness.h.
#include "harness.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace swin_fast_test {

Layout contiguous_layout(const Problem& p) {
  const int64_t C = int64_t{p.nH} * p.hd;
  return {{p.H * p.W * 3 * C, p.W * 3 * C, 3 * C, C, p.hd}, {p.H * p.W * C, p.W * C, C}};
}

Layout spaced_layout(const Problem& p) {
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

int64_t qkv_extent(const Problem& p, const Layout& layout) {
  if (p.tokens() == 0) return 0;
  return (p.B - 1) * layout.qkv[0] + (p.H - 1) * layout.qkv[1] + (p.W - 1) * layout.qkv[2] + 2 * layout.qkv[3] +
         (p.nH - 1) * layout.qkv[4] + p.hd;
}

int64_t grad_out_extent(const Problem& p, const Layout& layout) {
  if (p.tokens() == 0) return 0;
  return (p.B - 1) * layout.grad_out[0] + (p.H - 1) * layout.grad_out[1] + (p.W - 1) * layout.grad_out[2] +
         int64_t{p.nH} * p.hd;
}

swin_fast::WindowAttentionParams make_params(const Problem& p, const Layout& layout) {
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

Report& report() {
  static Report instance;
  return instance;
}

void set_context(const std::string& text) {
  std::snprintf(report().context, sizeof report().context, "%s", text.c_str());
}

Inputs make_inputs(const Problem& p, uint64_t seed) {
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

std::vector<char> encode(const std::vector<double>& values, ScalarType type) {
  std::vector<char> bytes(values.size() * static_cast<size_t>(size_of(type)));
  for (size_t i = 0; i < values.size(); ++i) store(type, bytes.data(), static_cast<int64_t>(i), values[i]);
  return bytes;
}

std::unique_ptr<GuardedBuffer> constant_input(const std::vector<char>& bytes, GuardSide side) {
  auto buffer = std::make_unique<GuardedBuffer>(static_cast<int64_t>(bytes.size()), side);
  std::copy(bytes.begin(), bytes.end(), buffer->data());
  buffer->make_read_only();
  return buffer;
}

std::unique_ptr<GuardedBuffer> output_buffer(int64_t size, ScalarType type, GuardSide side) {
  auto buffer = std::make_unique<GuardedBuffer>(size * size_of(type), side);
  std::fill(buffer->data(), buffer->data() + buffer->bytes(), '\xff');
  return buffer;
}

Tensor take(GuardedBuffer* buffer, ScalarType type) {
  report().check(buffer->rest_is_untouched(), "write outside an output tensor");
  Tensor tensor;
  tensor.type = type;
  tensor.bytes.assign(buffer->data(), buffer->data() + buffer->bytes());
  return tensor;
}

double accumulation_factor(const Problem& p) {
  return std::min(8.0 + static_cast<double>(p.area()) / 2, 2e-5 / float_format(ScalarType::kFloat32).unit());
}

double judge(const Problem& p, bool rounds_operands, const Tensor& got, const Expected& expected, int64_t i) {
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

bool same_bits(const Tensor& a, int64_t a_begin, const Tensor& b, int64_t b_begin, int64_t count) {
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

void check_same(const Outputs& a, const Outputs& b, const char* what) {
  for (const NamedTensor& tensor : kTensors) {
    const Tensor &left = a.*tensor.got, &right = b.*tensor.got;
    report().check(left.size() == right.size() && same_bits(left, 0, right, 0, left.size()), tensor.name, what);
  }
}

double Tensor::operator[](int64_t i) const { return load(type, bytes.data(), i); }

void Report::fail(const std::string& what) {
  if (++num_failures <= 40) std::printf("FAILED %s\n       in %s\n", what.c_str(), context);
  if (fail_fast) {
    std::fflush(stdout);
    std::_Exit(EXIT_FAILURE);
  }
}

void Report::check(bool ok, const char* what) {
  ++num_checks;
  if (!ok) fail(what);
}

void Report::check(bool ok, const char* tensor, const char* what) {
  ++num_checks;
  if (!ok) fail(std::string(tensor) + what);
}

EncodedInputs::EncodedInputs(const Problem& p, const Inputs& in)
    : qkv(encode(in.qkv, p.dtype)),
      bias(encode(in.bias, ScalarType::kFloat32)),
      logit_scale(encode(in.logit_scale, ScalarType::kFloat32)),
      pad_value(encode(in.pad_value, p.dtype)),
      grad_out(encode(in.grad_out, p.dtype)) {}

}  // namespace swin_fast_test
