// SPDX-License-Identifier: Apache-2.0
//
// The CUDA kernels, executed by the emulator: against the definition in double, under every order of threads and
// copies, on guarded memory, with both models of the tensor cores.
#include <algorithm>
#include <cstdio>
#include <iterator>
#include <string>
#include <vector>

#include "../../csrc/cuda/window_attention_fwd.h"
#include "../cpp/kernel_runner.h"
#include "../cpp/problems.h"
#include "cusim.h"

namespace swin_fast_test {
namespace {

using swin_fast::cuda::BFloat16;
using swin_fast::cuda::Half16;
using swin_fast::cuda::SmallSizes;

#ifdef SWIN_FAST_ONE_TYPE
constexpr ScalarType kTested[] = {ScalarType::kBFloat16};
#else
constexpr ScalarType kTested[] = {ScalarType::kFloat16, ScalarType::kBFloat16};
#endif

struct Schedule {
  uint64_t seed;
  cusim::AsyncCopies copies;
  cusim::Math math;
  int multiprocessors;
};

constexpr Schedule kSchedules[] = {
    {0, cusim::AsyncCopies::latest, cusim::Math::exact, 1},
    {0, cusim::AsyncCopies::earliest, cusim::Math::exact, 1},
    {7, cusim::AsyncCopies::latest, cusim::Math::exact, 3},
    {8, cusim::AsyncCopies::earliest, cusim::Math::exact, 100},
};
constexpr Schedule kLikeHardware = {9, cusim::AsyncCopies::latest, cusim::Math::hardware_like, 2};

void judge_report(const cusim::Report& ran) {
  for (const cusim::Fault& fault : ran.faults) {
    swin_fast_test::report().fail(std::string(cusim::name_of(fault.kind)) + " at " + fault.site.text() + ", block " +
                                  std::to_string(fault.block) + ", thread " + std::to_string(fault.thread) + ": " +
                                  fault.message);
  }
  report().check(ran.faults.empty(), "faults");
  report().check(ran.counters.ldmatrix_bank_conflicts == 0, "bank conflicts of ldmatrix");
  report().check(ran.counters.uninitialised_reads == 0, "reads of shared memory that nobody wrote");
}

template <class T, int kWindow, bool kCosine, bool kAligned>
cusim::Report run_small(const swin_fast::WindowAttentionFwdParams& problem, const Schedule& schedule) {
  using namespace swin_fast::cuda;
  const SmallFwdParams p = cut_small_fwd<kWindow>(problem, schedule.multiprocessors, 227 * 1024);
  cusim::Options options;
  options.seed = schedule.seed;
  options.async_copies = schedule.copies;
  options.math = schedule.math;
  return cusim::launch(options, static_cast<unsigned>(p.groups * p.blocks),
                       static_cast<unsigned>(32 * p.heads * p.windows),
                       SmallSizes<kWindow>::shared_bytes(p.heads, p.windows),
                       [&] { small_windows_fwd<T, kWindow, kCosine, kAligned>(p); });
}

template <class T, int kWindow>
cusim::Report run_window(const swin_fast::WindowAttentionFwdParams& p, bool aligned, const Schedule& schedule) {
  if (p.logit_scale != nullptr) {
    return aligned ? run_small<T, kWindow, true, true>(p, schedule) : run_small<T, kWindow, true, false>(p, schedule);
  }
  return aligned ? run_small<T, kWindow, false, true>(p, schedule) : run_small<T, kWindow, false, false>(p, schedule);
}

template <class T>
cusim::Report run_type(const swin_fast::WindowAttentionFwdParams& p, bool aligned, const Schedule& schedule) {
  const bool square = p.window_size[0] == p.window_size[1];
  if (square && p.window_size[0] == 7) return run_window<T, 7>(p, aligned, schedule);
  if (square && p.window_size[0] == 8) return run_window<T, 8>(p, aligned, schedule);
  return run_window<T, 0>(p, aligned, schedule);
}

Tensor run(const Problem& problem, const EncodedInputs& in, const Layout& layout, bool aligned,
           const Schedule& schedule) {
  const GuardSide side = schedule.seed % 2 == 0 ? GuardSide::kEnd : GuardSide::kBegin;
  const auto qkv = output_buffer(qkv_extent(problem, layout), problem.dtype, side);
  place_qkv(problem, layout, in, qkv->data(), [](int64_t, int64_t) {});
  qkv->make_read_only();
  const auto bias = constant_input(in.bias, side);
  const auto logit_scale = constant_input(in.logit_scale, side);
  const auto pad_value = constant_input(in.pad_value, side);
  const auto out = output_buffer(problem.out_size(), problem.dtype, side);
  swin_fast::WindowAttentionFwdParams p{};
  static_cast<swin_fast::WindowAttentionParams&>(p) = make_params(problem, layout);
  p.qkv = qkv->data();
  p.bias = problem.bias_form == BiasForm::kNone ? nullptr : reinterpret_cast<const float*>(bias->data());
  p.logit_scale = problem.cosine ? reinterpret_cast<const float*>(logit_scale->data()) : nullptr;
  p.pad_value = problem.has_pad_value ? pad_value->data() : nullptr;
  p.out = out->data();
#ifdef SWIN_FAST_ONE_TYPE  // for planted bugs: half the time to compile
  judge_report(run_type<BFloat16>(p, aligned, schedule));
#else
  judge_report(problem.dtype == ScalarType::kFloat16 ? run_type<Half16>(p, aligned, schedule)
                                                     : run_type<BFloat16>(p, aligned, schedule));
#endif
  return take(out.get(), problem.dtype);
}

void check_out(const Problem& problem, const Tensor& got, const Expected& expected, const char* model) {
  double& worst =
      report().worst[std::string(model) + (problem.dtype == ScalarType::kFloat16 ? " float16" : " bfloat16")];
  double here = 0;
  for (int64_t i = 0; i < problem.out_size(); ++i) here = std::max(here, judge(problem, true, got, expected, i));
  worst = std::max(worst, here);
  ++report().num_checks;
  if (here > 1) report().fail("out is off by " + std::to_string(here) + " x tolerance, " + model);
}

void test_problem(const Problem& problem, uint64_t seed) {
  set_context(problem.name());
  const Inputs inputs = make_inputs(problem, seed);
  const EncodedInputs in(problem, inputs);
  const Results results = oracle(problem, inputs);
  const Layout layout = contiguous_layout(problem);
  const Tensor first = run(problem, in, layout, true, kSchedules[0]);
  check_out(problem, first, results.out, "exact");
  for (const Schedule& schedule : kSchedules) {
    const Tensor again = run(problem, in, layout, true, schedule);
    report().check(same_bits(first, 0, again, 0, first.size()), "out", " depends on the schedule");
  }
  const Tensor strided = run(problem, in, spaced_layout(problem), false, kSchedules[2]);
  report().check(same_bits(first, 0, strided, 0, first.size()), "out", " depends on strides or alignment");
  check_out(problem, run(problem, in, layout, true, kLikeHardware), results.out, "hardware-like");
}

// A row of scores that is wholly -inf gives 0, whatever v holds.
void test_dead_rows() {
  Problem problem;
  problem.dtype = ScalarType::kBFloat16;
  problem.bias_form = BiasForm::kDense;
  set_context(problem.name() + ", a row of its bias -inf");
  Inputs inputs = make_inputs(problem, 5);
  std::fill_n(inputs.bias.begin() + 3 * problem.area(), problem.area(), -INFINITY);
  const Tensor got = run(problem, EncodedInputs(problem, inputs), contiguous_layout(problem), true, kSchedules[0]);
  for (int64_t d = 0; d < problem.hd; ++d) report().check(got[3 * problem.hd + d] == 0, "out", " of a dead row");
  check_out(problem, got, oracle(problem, inputs).out, "exact");
}

int test_all(bool quick) {
  std::vector<Problem> problems;
  for (const ScalarType dtype : kTested) {
    for (const int window : {7, 8}) add_window_problems(window, dtype, &problems);
  }
  std::vector<Problem> others;
  add_generic_problems(quick, &others);
  add_extreme_problems(quick, &others);
  for (const Problem& problem : others) {
    const bool tested = std::find(std::begin(kTested), std::end(kTested), problem.dtype) != std::end(kTested);
    if (tested && problem.hd == 32 && problem.area() <= 64) problems.push_back(problem);
  }
  uint64_t seed = 1;
  for (const Problem& problem : problems) test_problem(problem, seed++);
  test_dead_rows();
  for (const auto& [what, ratio] : report().worst) std::printf("%s: %.2f x tolerance\n", what.c_str(), ratio);
  std::printf("%zu problems, %lld checks, %lld failures\n", problems.size(),
              static_cast<long long>(report().num_checks), static_cast<long long>(report().num_failures));
  return report().num_failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace swin_fast_test

// quick: fewer problems, and the first failure ends it.
int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::string(argv[1]) == "quick";
  swin_fast_test::report().fail_fast = quick;
  return swin_fast_test::test_all(quick);
}
