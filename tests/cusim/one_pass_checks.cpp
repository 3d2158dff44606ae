// SPDX-License-Identifier: Apache-2.0
//
// What backward kernels of one pass are put through, see one_pass_checks.h.
#include "one_pass_checks.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

namespace swin_fast_test {
namespace {

Problem window_of(const OnePass& tested) {
  Problem p;
  p.dtype = ScalarType::kBFloat16;
  p.wh = p.ww = p.H = p.W = tested.side;
  p.bias_form = BiasForm::kRelative;
  return p;
}

// Rows of scores that are wholly -inf have no gradient, and give none, whatever v holds.
void test_dead_rows(const OnePass& tested) {
  const Problem p = window_of(tested);
  set_context(p.name() + ", bias -inf");
  Inputs inputs = make_inputs(p, 5);
  std::fill(inputs.bias.begin(), inputs.bias.end(), -INFINITY);
  inputs.qkv[2 * p.hd] = INFINITY;
  const Outputs outputs = run_backward(tested.kernel, p, inputs);
  for (int64_t i = 0; i < outputs.dqkv.size(); ++i) report().check(outputs.dqkv[i] == 0, "dqkv", " of dead rows");
  for (int64_t i = 0; i < outputs.dbias.size(); ++i) report().check(outputs.dbias[i] == 0, "dbias", " of dead rows");
}

// Weights relative to the largest score of a row are taken where the sum of exp(score) is not exact: very large scores,
// of which some are masked, and scores that are all small.
void test_exact_weights(const OnePass& tested, Problem p, bool quick) {
  p.B = p.nH = 1;
  for (const double added : {0.0, -90.0, 90.0}) {
    p.amplitude = added == 0 ? 30 : 1;
    set_context(p.name() + ", added to the bias: " + std::to_string(added));
    Inputs inputs = make_inputs(p, 4);
    for (double& entry : inputs.bias) entry = round_to(ScalarType::kFloat32, entry + added);
    const Outputs outputs = run_backward(tested.kernel, p, inputs);
    const Results results = oracle(p, inputs);
    for (size_t i = 1; i < std::size(kTensors); ++i) check_tensor(p, kTensors[i], outputs, results, "exact");
    if (added == 0 && !quick) test_backward(tested.kernel, p, 3);
  }
}

void test_what_is_taken(const OnePass& tested) {
  set_context("what is taken");
  swin_fast::WindowAttentionParams p{};
  p.window_size[0] = p.window_size[1] = tested.side;
  p.hd = 32;
  p.bias_form = BiasForm::kRelative;
  report().check(tested.takes(p, kSharedMemory), "it is made for this");
  report().check(!tested.takes(p, 163 * 1024), "too little shared memory");
  p.bias_form = BiasForm::kDense;
  report().check(!tested.takes(p, kSharedMemory), "a dense bias");
  p.bias_form = BiasForm::kRelative;
  p.window_size[1] = tested.side - 1;
  report().check(!tested.takes(p, kSharedMemory), "another window");
}

}  // namespace

size_t test_one_pass(const OnePass& tested, bool quick) {
  test_what_is_taken(tested);
  test_dead_rows(tested);
  Problem other = window_of(tested);
  other.B = 2;
  other.H = tested.side + 1;
  other.sh = 3;
  other.nH = 2;
  other.has_pad_value = true;
  if (!quick) test_isolation(tested.kernel, other);
  Problem alone = other;
  alone.B = alone.nH = 1;
  test_vast_bias(tested.kernel, alone);
  test_exact_weights(tested, other, quick);
  test_clamped_norms(tested.kernel, other);
  std::vector<Problem> problems;
  for (Problem problem : problems_for(quick, {tested.side}, [](const Problem&) { return false; })) {
    if (problem.bias_form == BiasForm::kDense) problem.bias_form = BiasForm::kRelative;
    if (problem.B == 2) {
      problem.nH = 1;  // twelve windows: the emulator takes seconds for them
      problem.sw = 5;  // or two neighbours are always of one region
    }
    if (problem.H % tested.side == 0 && problem.W % tested.side == 0) {  // that end between two rows of a window
      problem.sh = 5;
      problem.sw = 7;
    }
    problems.push_back(problem);
  }
  test_backward(tested.kernel, problems, quick);
  return problems.size();
}

}  // namespace swin_fast_test
