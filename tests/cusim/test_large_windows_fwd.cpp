// SPDX-License-Identifier: Apache-2.0
//
// csrc/cuda/large_windows_fwd.h in the emulator.
#include "../../csrc/cuda/large_windows_fwd.h"
#include "kernel_checks.h"

namespace swin_fast_test {
namespace {

using swin_fast::WindowAttentionFwdParams;
using swin_fast::cuda::LargeFwdPlan;

// For planted bugs fewer instances: half the time to compile.
#ifdef SWIN_FAST_ONE_TYPE
constexpr bool kAllInstances = false;
#else
constexpr bool kAllInstances = true;
#endif

bool takes(const Problem& p) {
  const bool square = p.wh == p.ww && p.hd == 32 && (p.wh == 12 || p.wh == 16);
  if (!kAllInstances) return square ? p.wh == 12 : p.hd == 16 || p.hd == 96 || (p.hd == 128 && !kFirstLook);
  return swin_fast::cuda::has_large_kernels(p.hd) && (p.hd != 32 || p.area() > 64);
}

void launch(LargeFwdPlan plan, const Schedule& schedule, void (*kernel)(swin_fast::cuda::LargeFwdParams)) {
  if (plan.params.all.of_all == 0) return;
  const auto fragments = output_buffer(plan.workspace_bytes() / 4, ScalarType::kFloat32, schedule.side());
  plan.arrange.fragments = fragments->data();
  plan.params.fragments = fragments->data();
  const Launcher run{schedule};
  run(swin_fast::cuda::arrange_bias<256>, plan.arrange.blocks(256), 256, 0, plan.arrange);
  fragments->make_read_only();
  run(kernel, plan.params.blocks, plan.threads, plan.shared_bytes, plan.params);
}

template <class T, int kWindow, int kHd, bool kCosine, bool kAligned>
void run(const WindowAttentionFwdParams& problem, size_t shared_memory, const Schedule& schedule) {
  const LargeFwdPlan plan =
      swin_fast::cuda::cut_large_fwd<kWindow, kHd>(problem, schedule.multiprocessors, shared_memory);
  using namespace swin_fast::cuda;
  if constexpr (kWindow == 0) {
    launch(plan, schedule, stream_windows_fwd<T, kHd, kCosine, kAligned>);
  } else if (plan.compact) {
    launch(plan, schedule, square_windows_fwd<T, kWindow, kCosine, kAligned, true>);
  } else {
    launch(plan, schedule, square_windows_fwd<T, kWindow, kCosine, kAligned, false>);
  }
}

template <int kWindow, int kHd>
void with_flags(const WindowAttentionFwdParams& p, bool aligned, size_t shared_memory, const Schedule& schedule) {
  with_element(p.dtype, [&](auto element) {
    swin_fast::cuda::with_constant(p.logit_scale != nullptr, [&](auto cosine) {
      with_alignment(aligned, [&](auto chunks) {
        run<decltype(element), kWindow, kHd, cosine(), chunks()>(p, shared_memory, schedule);
      });
    });
  });
}

// With the shared memory that a block may have on an H200 (227 KB) or on sm_86, 89 and 120 (99 KB), which only changes
// how the work is cut.
void large_windows(const WindowAttentionFwdParams& p, bool aligned, const Schedule& schedule) {
  const size_t shared_memory = schedule.multiprocessors == 3 ? 99 * 1024 : kSharedMemory;
  const auto call = [&](auto window, auto hd) -> void {  // auto: to find it, all would be compiled
    with_flags<decltype(window)::value, decltype(hd)::value>(p, aligned, shared_memory, schedule);
  };
  using std::integral_constant;
  const integral_constant<int, 0> any;
  const integral_constant<int, 32> hd32;
  const int window = swin_fast::cuda::large_fwd_window(p);
  if constexpr (kAllInstances) {
    if (window == 16) return call(integral_constant<int, 16>{}, hd32);
    if (window == 0 && p.hd == 32) return call(any, hd32);
    if (p.hd == 64) return call(any, integral_constant<int, 64>{});
  }
  if (window == 12) return call(integral_constant<int, 12>{}, hd32);
  if (p.hd == 16) return call(any, integral_constant<int, 16>{});
  if (p.hd == 96) return call(any, integral_constant<int, 96>{});
  if constexpr (!kFirstLook) call(any, integral_constant<int, 128>{});
}

// What the common problems lack: other head dimensions and windows of several blocks of keys, the last one not full,
// with padding and shifts; scores that grow from block to block; masks of -inf, and of little. A handful, as large
// windows take their time.
std::vector<Problem> own_problems(bool quick) {
  std::vector<Problem> problems;
  for (const ScalarType dtype : kTested) {
    Problem p;
    p.dtype = dtype;
    p.nH = 2;
    p.wh = 6;  // 66 tokens: three blocks of keys, the last of two
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
    p = Problem();  // 65 tokens: the last block has one
    p.dtype = dtype;
    p.wh = 13;
    p.ww = 5;
    p.H = 14;
    p.W = 9;
    p.sw = 3;
    p.bias_form = BiasForm::kDense;
    p.mask_value = -INFINITY;
    problems.push_back(p);
    for (const int window : {12, 16}) {
      p = Problem();
      p.dtype = dtype;
      p.wh = p.ww = window;
      p.nH = 3;
      p.H = p.W = 2 * window;  // one window whole, and three that the image ends in
      p.sh = window / 2;
      p.sw = window - 1;
      p.bias_form = BiasForm::kRelative;
      p.mask_value = -INFINITY;
      p.amplitude = 30;  // scores up to some 1e3
      if (!quick || window == 12) problems.push_back(p);
      if (quick) continue;
      p.nH = 1;
      p.cosine = true;
      p.bias_form = BiasForm::kDense;
      p.has_pad_value = true;
      p.W = window + 4;
      p.mask_value = 3;
      p.amplitude = 1;
      p.logit_scale = 100;
      problems.push_back(p);
    }
  }
  if (!quick) {
    Problem p;  // the largest window
    p.dtype = ScalarType::kBFloat16;
    p.wh = p.ww = 32;
    p.H = 32;
    p.W = 20;
    p.sh = 5;
    p.hd = 16;
    p.bias_form = BiasForm::kRelative;
    problems.push_back(p);
  }
  return problems;
}

Tensor forward(const Problem& problem, const Inputs& inputs) { return run_forward(large_windows, problem, inputs); }

// Infinities do what they do in the definition, also where a block of keys has more than the window, or a slab more
// than a row: a query whose scores are all -inf gives 0; a key whose scores are -inf has no weight; an infinite value
// is the result of all who see it.
void test_infinities(Problem problem) {
  problem.H = problem.wh;
  problem.W = problem.ww;
  set_context(problem.name() + ", infinities");
  const Inputs inputs = make_inputs(problem, 4);
  const int64_t hd = problem.hd, last = problem.area() - 1;
  Inputs with_query = inputs, with_key = inputs, with_value = inputs;
  for (int64_t pixel = 0; pixel <= last; ++pixel) {
    with_query.qkv[(pixel * 3 + 1) * hd] = -1;
    with_key.qkv[pixel * 3 * hd] = 1;
  }
  with_query.qkv[5 * 3 * hd] = INFINITY;
  with_key.qkv[(6 * 3 + 1) * hd] = -INFINITY;
  with_value.qkv[(last * 3 + 2) * hd] = INFINITY;
  const Tensor query = forward(problem, with_query), key = forward(problem, with_key);
  const Tensor value = forward(problem, with_value);
  for (int64_t d = 0; d < hd; ++d) report().check(query[5 * hd + d] == 0, "out", " of an infinite query");
  for (int64_t i = 0; i < key.size(); ++i) report().check(std::isfinite(key[i]), "out", " with an infinite key");
  for (int64_t pixel = 0; pixel <= last; ++pixel) {
    report().check(value[pixel * hd] == INFINITY, "out", " of an infinite value");
  }
}

// All scores near -87: weights relative to 0 would be at the end of what bfloat16 has, or behind it.
void test_low_scores(const Problem& problem) {
  set_context(problem.name() + ", low scores");
  Inputs inputs = make_inputs(problem, 6);
  for (double& bias : inputs.bias) bias = round_to(ScalarType::kFloat32, bias - 87.5);
  Outputs outputs;
  outputs.out = run_forward(large_windows, problem, EncodedInputs(problem, inputs), contiguous_layout(problem), true,
                            kLikeHardware);
  check_tensor(problem, kTensors[0], outputs, oracle(problem, inputs), "hardware-like");
}

size_t test_all(bool quick) {
  Problem p;
  p.dtype = ScalarType::kBFloat16;
  for (const int hd : {32, 96, 16}) {
    p.wh = p.ww = p.H = p.W = hd == 32 ? 12 : 9;
    p.hd = hd;
    p.bias_form = BiasForm::kDense;
    test_dead_row(large_windows, p);
    p.bias_form = BiasForm::kRelative;
    test_low_scores(p);
    test_nan_stays(large_windows, p);
    p.sh = 3;
    test_vast_bias(large_windows, p);
    p.sh = 0;
    p.bias_form = BiasForm::kNone;
    test_infinities(p);
  }
  std::vector<Problem> problems;
  for (const Problem& problem : own_problems(quick)) {
    if (takes(problem)) problems.push_back(problem);
  }
  for (const Problem& problem : problems_for(quick, {12}, takes)) problems.push_back(problem);
  test_forward(large_windows, problems, quick);
  return problems.size();
}

}  // namespace
}  // namespace swin_fast_test

int main(int argc, char** argv) { return swin_fast_test::run_driver(argc, argv, swin_fast_test::test_all); }
