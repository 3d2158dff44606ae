// SPDX-License-Identifier: Apache-2.0
//
// What the tests of the CPU kernels and those of the CUDA kernels in the emulator have in common: inputs, laid out in
// guarded memory; results, and how they are judged; the tally.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "float_formats.h"
#include "guarded_buffer.h"
#include "oracle.h"

namespace swin_fast_test {

// Element strides of the (B, H, W, 3, nH) axes of qkv and the (B, H, W) axes of grad_out.
struct Layout {
  int64_t qkv[5];
  int64_t grad_out[3];
};

Layout contiguous_layout(const Problem& p);

// Every axis with room behind it, odd, so that no row is aligned.
Layout spaced_layout(const Problem& p);

int64_t qkv_extent(const Problem& p, const Layout& layout);

int64_t grad_out_extent(const Problem& p, const Layout& layout);

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

swin_fast::WindowAttentionParams make_params(const Problem& p, const Layout& layout);

// A result tensor as the kernel left it.
struct Tensor {
  ScalarType type = ScalarType::kFloat32;
  std::vector<char> bytes;
  int64_t size() const { return static_cast<int64_t>(bytes.size()) / size_of(type); }
  double operator[](int64_t i) const;
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

  void fail(const std::string& what);
  void check(bool ok, const char* what);
  void check(bool ok, const char* tensor, const char* what);
};

Report& report();

void set_context(const std::string& text);

Inputs make_inputs(const Problem& p, uint64_t seed);

std::vector<char> encode(const std::vector<double>& values, ScalarType type);

// Inputs as the kernels take them, contiguous.
struct EncodedInputs {
  std::vector<char> qkv, bias, logit_scale, pad_value, grad_out;
  EncodedInputs(const Problem& p, const Inputs& in);
};

std::unique_ptr<GuardedBuffer> constant_input(const std::vector<char>& bytes, GuardSide side);

// Filled with NaN, which all ones are in every type: an element the kernel leaves out cannot pass for a result.
std::unique_ptr<GuardedBuffer> output_buffer(int64_t size, ScalarType type, GuardSide side);

Tensor take(GuardedBuffer* buffer, ScalarType type);

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

// Multiples of the unit roundoff allowed to a float32 sum over a window. Its errors mostly cancel, but equal terms,
// which padding makes, all round the same way. At most 2e-5 in all.
double accumulation_factor(const Problem& p);

// Error over tolerance of one element, at most 1 where it passes. Anything not finite counts as infinite, unless the
// exact result is not finite either, or rounds to that infinity in the tensor's type.
double judge(const Problem& p, bool rounds_operands, const Tensor& got, const Expected& expected, int64_t i);

// Bit for bit, where any NaN equals any other.
bool same_bits(const Tensor& a, int64_t a_begin, const Tensor& b, int64_t b_begin, int64_t count);

void check_same(const Outputs& a, const Outputs& b, const char* what);

}  // namespace swin_fast_test
