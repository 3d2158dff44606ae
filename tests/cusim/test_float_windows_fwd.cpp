// SPDX-License-Identifier: Apache-2.0
//
// csrc/cuda/float_windows_fwd.h in the emulator.
#include "../../csrc/cuda/float_windows_fwd.h"
#include "kernel_checks.h"

namespace swin_fast_test {
namespace {

using swin_fast::WindowAttentionFwdParams;

template <int kHd>
void launch(const WindowAttentionFwdParams& problem, bool aligned, const Schedule& schedule) {
  using namespace swin_fast::cuda;
  FloatFwdPlan plan = cut_float_fwd<kHd>(problem, schedule.multiprocessors);
  report().check(plan.shared_bytes <= 99 * 1024, "more shared memory than every GPU has");
  if (plan.params.all.of_all == 0) return;
  const auto fragments = output_buffer(plan.workspace_bytes() / 4, ScalarType::kFloat32, schedule.side());
  plan.arrange.fragments = fragments->data();
  plan.params.fragments = fragments->data();
  const Launcher run{schedule};
  if (plan.workspace_bytes() > 0) {
    run(arrange_bias<256>, plan.arrange.blocks(256), 256, 0, plan.arrange);
  }
  fragments->make_read_only();
  with_constant(problem.logit_scale != nullptr, [&](auto cosine) {
    with_alignment(aligned, [&](auto chunks) {
      run(float_windows_fwd<kHd, cosine(), chunks()>, plan.params.blocks, plan.threads, plan.shared_bytes, plan.params);
    });
  });
}

void float_windows(const WindowAttentionFwdParams& p, bool aligned, const Schedule& schedule) {
  const auto run = [&](auto head_dim) { launch<head_dim()>(p, aligned, schedule); };
  if constexpr (kFirstLook) {
    swin_fast::cuda::with_head_dim<16, 32, 96>(p, run);
  } else {
    swin_fast::cuda::with_head_dim<16, 32, 64, 96, 128>(p, run);
  }
}

bool takes(const Problem& p) {
  if (kFirstLook) return p.hd == 16 || p.hd == 32 || p.hd == 96;
  return swin_fast::cuda::has_large_kernels(p.hd);
}

// What the common problems lack: head_dim 96; windows of several rounds of queries and chunks of keys, the last not
// full; scores that grow from chunk to chunk; masks of -inf, and of little.
std::vector<Problem> own_problems(bool quick) {
  std::vector<Problem> problems;
  Problem p;
  p.nH = 2;
  p.wh = 6;  // 66 tokens: five tiles
  p.ww = 11;
  p.H = 8;
  p.W = 12;
  p.sh = 2;
  p.sw = 5;
  p.mask_value = -3;
  p.has_pad_value = true;
  p.bias_form = BiasForm::kRelative;
  for (const int hd : {16, 32, 64, 96, 128}) {
    p.hd = hd;
    p.B = hd == 16 ? 3 : 1;  // more windows than blocks
    p.cosine = hd == 96;
    p.pad_order = hd == 32 ? PadOrder::kRollPad : PadOrder::kPadRoll;
    p.amplitude = hd == 128 ? 8 : 1;
    problems.push_back(p);
  }
  p = Problem();  // 65 tokens: the last tile has one
  p.wh = 13;
  p.ww = 5;
  p.H = 14;
  p.W = 9;
  p.sw = 3;
  p.bias_form = BiasForm::kDense;
  p.mask_value = -INFINITY;
  problems.push_back(p);
  p = Problem();
  p.wh = p.ww = 12;
  p.nH = 3;
  p.H = p.W = 24;  // one window whole, and three that the image ends in
  p.sh = 6;
  p.sw = 11;
  p.bias_form = BiasForm::kRelative;
  p.mask_value = -INFINITY;
  p.amplitude = 30;  // scores up to some 1e3
  problems.push_back(p);
  if (quick) return problems;
  p = Problem();  // the largest window
  p.wh = p.ww = 32;
  p.H = 32;
  p.W = 20;
  p.sh = 5;
  p.hd = 16;
  p.bias_form = BiasForm::kRelative;
  problems.push_back(p);
  return problems;
}

Tensor forward(const Problem& problem, const Inputs& inputs) { return run_forward(float_windows, problem, inputs); }

// NaN in the value of padding reaches no window that has none, though its last tile may have rows without tokens.
void test_nan_in_padding(Problem problem) {
  problem.H = problem.wh;
  problem.W = 2 * problem.ww - 1;
  problem.has_pad_value = true;
  set_context(problem.name() + ", NaN in its padding");
  Inputs inputs = make_inputs(problem, 3);
  const Tensor before = forward(problem, inputs);
  std::fill(inputs.pad_value.begin(), inputs.pad_value.end(), NAN);
  const Tensor after = forward(problem, inputs);
  const int64_t row = int64_t{problem.nH} * problem.hd;
  for (int64_t pixel = 0; pixel < problem.H * problem.W; ++pixel) {
    if (pixel % problem.W < problem.ww) {
      report().check(same_bits(before, pixel * row, after, pixel * row, row), "out", " of a window without padding");
    } else {
      report().check(std::isnan(after[pixel * row]), "out", " of a window with padding");
    }
  }
}

// Infinities do what they do in the definition, although numbers are split: a query whose scores are all -inf gives 0;
// a key whose scores are -inf has no weight; an infinite value is the result of all who see it, and of its channel.
void test_infinities(Problem problem) {
  problem.H = problem.wh;
  problem.W = problem.ww;
  set_context(problem.name() + ", infinities");
  const Inputs inputs = make_inputs(problem, 4);
  const int64_t hd = problem.hd, last = problem.area() - 1;
  Inputs with_query = inputs, with_key = inputs, with_value = inputs;
  for (int64_t pixel = 0; pixel <= last; ++pixel) {
    with_query.qkv[(pixel * 3 + 1) * hd] = -1;  // whose lower part is 0
    with_key.qkv[pixel * 3 * hd] = pixel % 2 == 0 ? 1 : round_to(problem.dtype, 0.3);
  }
  with_query.qkv[5 * 3 * hd] = INFINITY;
  for (const int64_t of : {6, 12}) with_key.qkv[(of * 3 + 1) * hd] = -INFINITY;  // one of each tile of a product
  with_value.qkv[(last * 3 + 2) * hd] = INFINITY;
  Outputs query, key, value;
  query.out = forward(problem, with_query);
  key.out = forward(problem, with_key);
  value.out = forward(problem, with_value);
  for (int64_t d = 0; d < hd; ++d) report().check(query.out[5 * hd + d] == 0, "out", " of an infinite query");
  check_tensor(problem, kTensors[0], query, oracle(problem, with_query), "exact");
  check_tensor(problem, kTensors[0], key, oracle(problem, with_key), "exact");
  for (int64_t i = 0; i < key.out.size(); ++i) {
    report().check(std::isfinite(key.out[i]), "out", " with an infinite key");
  }
  for (int64_t pixel = 0; pixel <= last; ++pixel) {
    report().check(value.out[pixel * hd] == INFINITY, "out", " of an infinite value");
    for (int64_t d = 1; d < hd; ++d) report().check(std::isfinite(value.out[pixel * hd + d]), "out", " beside it");
  }
}

// Numbers that round to infinity in 11 bits are numbers.
void test_largest_numbers(Problem problem) {
  set_context(problem.name() + ", the largest numbers");
  Inputs inputs = make_inputs(problem, 8);
  const int64_t hd = problem.hd;
  inputs.qkv[2 * hd + 1] = static_cast<double>(std::numeric_limits<float>::max());
  inputs.qkv[4 * 3 * hd + 2] = -static_cast<double>(std::numeric_limits<float>::max());
  for (int64_t i = 0; i < problem.area(); ++i) inputs.qkv[(i * 3 + 1) * hd + 2] = 0;
  const Tensor out = forward(problem, inputs);
  for (int64_t i = 0; i < out.size(); ++i) report().check(std::isfinite(out[i]), "out", " with the largest numbers");
}

size_t test_all(bool quick) {
  Problem p;
  for (const int hd : {32, 96, 16}) {
    p.wh = p.ww = p.H = p.W = hd == 32 ? 12 : 9;
    p.hd = hd;
    p.bias_form = BiasForm::kDense;
    test_dead_row(float_windows, p);
    p.bias_form = BiasForm::kRelative;
    test_nan_stays(float_windows, p);
    test_nan_in_padding(p);
    test_largest_numbers(p);
    p.bias_form = BiasForm::kNone;
    test_infinities(p);
  }
  std::vector<Problem> problems;
  for (const Problem& problem : own_problems(quick)) {
    if (takes(problem)) problems.push_back(problem);
  }
  for (const Problem& problem : problems_for(quick, {ScalarType::kFloat32}, {7, 12}, takes)) {
    problems.push_back(problem);
  }
  test_forward(float_windows, problems, quick);
  return problems.size();
}

}  // namespace
}  // namespace swin_fast_test

int main(int argc, char** argv) { return swin_fast_test::run_driver(argc, argv, swin_fast_test::test_all); }
