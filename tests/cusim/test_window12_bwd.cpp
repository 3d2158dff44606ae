// SPDX-License-Identifier: Apache-2.0
//
// csrc/cuda/window12_bwd.h in the emulator.
#include "../../csrc/cuda/window12_bwd.h"
#include "kernel_checks.h"

namespace swin_fast_test {
namespace {

void window12(const swin_fast::WindowAttentionBwdParams& problem, bool aligned, const Schedule& schedule) {
  using namespace swin_fast::cuda;
  report().check(takes_window12_bwd(problem, kSharedMemory), "a problem is not taken");
  const auto cut = [&](void* scratch) { return cut_window12_bwd(problem, aligned, schedule.multiprocessors, scratch); };
  const auto scratch =
      output_buffer(static_cast<int64_t>(cut(nullptr).parts.bytes) / 4, ScalarType::kFloat32, schedule.side());
  with_element(problem.dtype, [&](auto element) {
    launch_window12_bwd<decltype(element)>(
        cut(scratch->data()), [&](auto kernel, uint32_t blocks, int threads, size_t shared_bytes, const auto& params) {
          judge_report(cusim::launch(schedule.options(), blocks, static_cast<unsigned>(threads), shared_bytes,
                                     [&] { kernel(params); }));
        });
  });
  report().check(scratch->rest_is_untouched(), "write outside the scratch memory");
}

// Rows of scores that are wholly -inf have no gradient, and give none, whatever v holds.
void test_dead_rows() {
  Problem p;
  p.dtype = ScalarType::kBFloat16;
  p.wh = p.ww = p.H = p.W = 12;
  p.bias_form = BiasForm::kRelative;
  set_context(p.name() + ", bias -inf");
  Inputs inputs = make_inputs(p, 5);
  std::fill(inputs.bias.begin(), inputs.bias.end(), -INFINITY);
  inputs.qkv[2 * p.hd] = INFINITY;
  const Outputs outputs = run_backward(window12, p, EncodedInputs(p, inputs), contiguous_layout(p), true, kSchedule);
  for (int64_t i = 0; i < outputs.dqkv.size(); ++i) report().check(outputs.dqkv[i] == 0, "dqkv", " of dead rows");
  for (int64_t i = 0; i < outputs.dbias.size(); ++i) report().check(outputs.dbias[i] == 0, "dbias", " of dead rows");
}

// Weights relative to the largest score of a row are taken where the sum of exp(score) is not exact: very large scores,
// of which some are masked, and scores that are all small.
void test_exact_weights(Problem p, bool quick) {
  p.B = p.nH = 1;
  for (const double added : {0.0, -90.0, 90.0}) {
    p.amplitude = added == 0 ? 30 : 1;
    set_context(p.name() + ", added to the bias: " + std::to_string(added));
    Inputs inputs = make_inputs(p, 4);
    for (double& entry : inputs.bias) entry = round_to(ScalarType::kFloat32, entry + added);
    const Outputs outputs = run_backward(window12, p, EncodedInputs(p, inputs), contiguous_layout(p), true, kSchedule);
    const Results results = oracle(p, inputs);
    for (size_t i = 1; i < std::size(kTensors); ++i) check_tensor(p, kTensors[i], outputs, results, "exact");
    if (added == 0 && !quick) test_backward(window12, p, 3);
  }
}

void test_what_is_taken() {
  set_context("what is taken");
  swin_fast::WindowAttentionParams p{};
  p.window_size[0] = p.window_size[1] = 12;
  p.hd = 32;
  p.bias_form = BiasForm::kRelative;
  report().check(swin_fast::cuda::takes_window12_bwd(p, kSharedMemory), "it is made for this");
  report().check(!swin_fast::cuda::takes_window12_bwd(p, 163 * 1024), "too little shared memory");
  p.bias_form = BiasForm::kDense;
  report().check(!swin_fast::cuda::takes_window12_bwd(p, kSharedMemory), "a dense bias");
}

size_t test_all(bool quick) {
  test_what_is_taken();
  test_dead_rows();
  Problem other;
  other.dtype = ScalarType::kBFloat16;
  other.wh = other.ww = other.W = 12;
  other.B = 2;
  other.H = 13;
  other.sh = 3;
  other.nH = 2;
  other.bias_form = BiasForm::kRelative;
  other.has_pad_value = true;
  if (!quick) test_isolation(window12, other);
  Problem alone = other;
  alone.B = alone.nH = 1;
  test_vast_bias(window12, alone);
  test_exact_weights(other, quick);
  test_clamped_norms(window12, other);
  std::vector<Problem> problems;
  for (Problem problem : problems_for(quick, {12}, [](const Problem&) { return false; })) {
    if (problem.bias_form == BiasForm::kDense) problem.bias_form = BiasForm::kRelative;
    if (problem.B == 2) {
      problem.nH = 1;  // twelve windows: the emulator takes seconds for them
      problem.sw = 5;  // or two neighbours are always of one region
    }
    if (problem.H % 12 == 0 && problem.W % 12 == 0) {  // images that end between two rows of a window
      problem.sh = 5;
      problem.sw = 7;
    }
    problems.push_back(problem);
  }
  std::rotate(problems.begin(), problems.begin() + 2, problems.end());
  uint64_t seed = 1;
  for (const Problem& problem : problems) test_backward(window12, problem, seed++);
  return problems.size();
}

}  // namespace
}  // namespace swin_fast_test

int main(int argc, char** argv) { return swin_fast_test::run_driver(argc, argv, swin_fast_test::test_all); }
