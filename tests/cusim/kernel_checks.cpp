// SPDX-License-Identifier: Apache-2.0
//
// What every CUDA kernel is put through in the emulator, see kernel_checks.h.
#include "kernel_checks.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "../cpp/problems.h"

template class std::vector<swin_fast_test::Problem>;

namespace swin_fast_test {
namespace {

// Inputs on guarded, read-only memory, and what the kernels are told of them.
class GuardedInputs {
 public:
  GuardedInputs(const Problem& problem, const EncodedInputs& in, const Layout& layout, GuardSide side)
      : qkv_(output_buffer(qkv_extent(problem, layout), problem.dtype, side)),
        grad_out_(output_buffer(grad_out_extent(problem, layout), problem.dtype, side)),
        bias_(constant_input(in.bias, side)),
        logit_scale_(constant_input(in.logit_scale, side)),
        pad_value_(constant_input(in.pad_value, side)),
        params(make_params(problem, layout)) {
    place_qkv(problem, layout, in, qkv_->data(), [](int64_t, int64_t) {});
    place_grad_out(problem, layout, in, grad_out_->data(), [](int64_t, int64_t) {});
    qkv_->make_read_only();
    grad_out_->make_read_only();
    params.qkv = qkv_->data();
    params.bias = problem.bias_form == BiasForm::kNone ? nullptr : reinterpret_cast<const float*>(bias_->data());
    params.logit_scale = problem.cosine ? reinterpret_cast<const float*>(logit_scale_->data()) : nullptr;
    params.pad_value = problem.has_pad_value ? pad_value_->data() : nullptr;
    grad_out = grad_out_->data();
  }

 private:
  std::unique_ptr<GuardedBuffer> qkv_, grad_out_, bias_, logit_scale_, pad_value_;

 public:
  swin_fast::WindowAttentionParams params;
  const void* grad_out;
};

}  // namespace

void launch(const Schedule& schedule, int64_t blocks, int64_t threads, size_t shared_bytes,
            void (*kernel)(const void* context), const void* context) {
  cusim::Options options;
  options.seed = schedule.seed;
  options.async_copies = schedule.copies;
  options.math = schedule.math;
  const cusim::Report ran = cusim::launch(options, static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                                          shared_bytes, kernel, context);
  for (const cusim::Fault& fault : ran.faults) {
    report().fail(std::string(cusim::name_of(fault.kind)) + " at " + fault.site.text() + ", block " +
                  std::to_string(fault.block) + ", thread " + std::to_string(fault.thread) + ": " + fault.message);
  }
  report().check(ran.faults.empty(), "faults");
  report().check(ran.counters.ldmatrix_bank_conflicts == 0, "bank conflicts of ldmatrix");
  report().check(ran.counters.uninitialised_reads == 0, "reads of shared memory that nobody wrote");
}

Tensor run_forward(Forward kernel, const Problem& problem, const EncodedInputs& in, const Layout& layout, bool aligned,
                   const Schedule& schedule) {
  const GuardedInputs inputs(problem, in, layout, schedule.side());
  const auto out = output_buffer(problem.out_size(), problem.dtype, schedule.side());
  swin_fast::WindowAttentionFwdParams p{};
  static_cast<swin_fast::WindowAttentionParams&>(p) = inputs.params;
  p.out = out->data();
  kernel(p, aligned, schedule);
  return take(out.get(), problem.dtype);
}

Outputs run_backward(Backward kernel, const Problem& problem, const EncodedInputs& in, const Layout& layout,
                     bool aligned, const Schedule& schedule) {
  const GuardSide side = schedule.side();
  const GuardedInputs inputs(problem, in, layout, side);
  const auto dqkv = output_buffer(problem.qkv_size(), problem.dtype, side);
  const auto dbias = output_buffer(problem.bias_size(), ScalarType::kFloat32, side);
  const auto dlogit_scale = output_buffer(problem.logit_scale_size(), ScalarType::kFloat32, side);
  const auto dpad_value = output_buffer(problem.pad_size(), problem.dtype, side);
  swin_fast::WindowAttentionBwdParams p{};
  static_cast<swin_fast::WindowAttentionParams&>(p) = inputs.params;
  p.grad_out = inputs.grad_out;
  std::copy(layout.grad_out, layout.grad_out + 3, p.grad_out_stride);
  p.dqkv = dqkv->data();
  p.dbias = p.bias != nullptr ? reinterpret_cast<float*>(dbias->data()) : nullptr;
  p.dlogit_scale = p.logit_scale != nullptr ? reinterpret_cast<float*>(dlogit_scale->data()) : nullptr;
  p.dpad_value = p.pad_value != nullptr ? dpad_value->data() : nullptr;
  kernel(p, aligned, schedule);
  Outputs outputs;
  outputs.dqkv = take(dqkv.get(), problem.dtype);
  outputs.dbias = take(dbias.get(), ScalarType::kFloat32);
  outputs.dlogit_scale = take(dlogit_scale.get(), ScalarType::kFloat32);
  outputs.dpad_value = take(dpad_value.get(), problem.dtype);
  return outputs;
}

Tensor run_forward(Forward kernel, const Problem& problem, const Inputs& inputs) {
  return run_forward(kernel, problem, EncodedInputs(problem, inputs), contiguous_layout(problem), true, kSchedule);
}

Outputs run_backward(Backward kernel, const Problem& problem, const Inputs& inputs) {
  return run_backward(kernel, problem, EncodedInputs(problem, inputs), contiguous_layout(problem), true, kSchedule);
}

void check_tensor(const Problem& problem, const NamedTensor& tensor, const Outputs& outputs, const Results& results,
                  const char* model) {
  const Tensor& got = outputs.*tensor.got;
  const Expected& expected = results.*tensor.expected;
  const char* const types[] = {" float32 ", " float16 ", " bfloat16 "};
  double& worst = report().worst[model + (types[static_cast<int>(problem.dtype)] + std::string(tensor.name))];
  double here = 0;
  for (int64_t i = 0; i < got.size(); ++i)
    here = std::max(here, judge(problem, problem.dtype != ScalarType::kFloat32, got, expected, i));
  worst = std::max(worst, here);
  ++report().num_checks;
  if (here > 1)
    report().fail(std::string(tensor.name) + " is off by " + std::to_string(here) + " x tolerance, " + model);
}

void test_forward(Forward kernel, const Problem& problem, uint64_t seed) {
  set_context(problem.name());
  const Inputs inputs = make_inputs(problem, seed);
  const EncodedInputs in(problem, inputs);
  const Results results = oracle(problem, inputs);
  const Layout layout = contiguous_layout(problem);
  Outputs first, like_hardware;
  first.out = run_forward(kernel, problem, in, layout, true, kSchedule);
  check_tensor(problem, kTensors[0], first, results, "exact");
  if (kFirstLook) return;
  for (const Schedule& schedule : kOtherSchedules) {
    const Tensor again = run_forward(kernel, problem, in, layout, true, schedule);
    report().check(same_bits(first.out, 0, again, 0, first.out.size()), "out", " depends on the schedule");
  }
  const Tensor strided = run_forward(kernel, problem, in, spaced_layout(problem), false, kOtherSchedules[0]);
  report().check(same_bits(first.out, 0, strided, 0, first.out.size()), "out", " depends on strides or alignment");
  like_hardware.out = run_forward(kernel, problem, in, layout, true, kLikeHardware);
  check_tensor(problem, kTensors[0], like_hardware, results, "hardware-like");
}

void test_nan_stays(Forward kernel, Problem problem) {
  problem.H = problem.wh;
  problem.W = 2 * problem.ww;
  set_context(problem.name() + ", NaN in a window");
  Inputs inputs = make_inputs(problem, 3);
  const Tensor before = run_forward(kernel, problem, inputs);
  for (int which = 1; which < 3; ++which) inputs.qkv[((problem.W + 2) * 3 + which) * problem.nH * problem.hd] = NAN;
  const Tensor after = run_forward(kernel, problem, inputs);
  const int64_t row = int64_t{problem.nH} * problem.hd;
  for (int64_t pixel = 0; pixel < problem.H * problem.W; ++pixel) {
    if (pixel % problem.W < problem.ww) {
      report().check(std::isnan(after[pixel * row]), "out", " of a window with NaN");
    } else {
      report().check(same_bits(before, pixel * row, after, pixel * row, row), "out", " of another window");
    }
  }
}

void test_dead_row(Forward kernel, const Problem& problem) {
  set_context(problem.name() + ", a row of its bias -inf");
  Inputs inputs = make_inputs(problem, 5);
  std::fill_n(inputs.bias.begin() + 3 * problem.area(), problem.area(), -INFINITY);
  Outputs outputs;
  outputs.out = run_forward(kernel, problem, inputs);
  for (int64_t d = 0; d < problem.hd; ++d)
    report().check(outputs.out[3 * problem.hd + d] == 0, "out", " of a dead row");
  check_tensor(problem, kTensors[0], outputs, oracle(problem, inputs), "exact");
}

void test_dead_row(Backward kernel, const Problem& problem) {
  set_context(problem.name() + ", a row of its bias -inf, a key and a value infinite");
  Inputs inputs = make_inputs(problem, 5);
  const int64_t n = problem.area(), hd = problem.hd;
  std::fill_n(inputs.bias.begin() + 3 * n, n, -INFINITY);
  for (int64_t i = 0; i < n; ++i) {
    double& q = inputs.qkv[i * 3 * hd + 5];
    q = round_to(problem.dtype, std::fabs(q) + 1);
  }
  inputs.qkv[(10 * 3 + 1) * hd + 5] = -INFINITY;
  const Outputs outputs = run_backward(kernel, problem, inputs);
  const Results results = oracle(problem, inputs);
  for (size_t i = 1; i < std::size(kTensors); ++i) check_tensor(problem, kTensors[i], outputs, results, "exact");

  inputs.qkv[(20 * 3 + 2) * hd + 7] = INFINITY;
  const Outputs again = run_backward(kernel, problem, inputs);
  for (int64_t d = 0; d < hd; ++d) report().check(d == 5 || again.dqkv[9 * hd + d] == 0, "dq", " of a dead row");
  for (int64_t j = 0; j < n; ++j) report().check(again.dbias[3 * n + j] == 0, "dbias", " of a dead row");
}

namespace {

// Queries are zeros: so are all scores of the problem that the results are judged by.
template <class Run>
void with_vast_bias(Problem problem, const Run& run) {
  for (const float value : {-FLT_MAX, -1e30f}) {
    problem.mask_value = value;
    set_context(problem.name() + ", its bias the same");
    Inputs inputs = make_inputs(problem, 8);
    for (int64_t i = 0; i < problem.qkv_size(); ++i) {
      if (i / problem.hd / problem.nH % 3 == 0) inputs.qkv[i] = 0;
    }
    std::fill(inputs.bias.begin(), inputs.bias.end(), value);
    const Problem vast = problem;
    const EncodedInputs in(vast, inputs);
    Problem flat = problem;
    flat.mask_value = -INFINITY;
    std::fill(inputs.bias.begin(), inputs.bias.end(), 0.0);
    run(vast, in, flat, oracle(flat, inputs));
  }
}

}  // namespace

void test_vast_bias(Forward kernel, const Problem& problem) {
  with_vast_bias(problem,
                 [&](const Problem& vast, const EncodedInputs& in, const Problem& flat, const Results& results) {
                   Outputs outputs;
                   outputs.out = run_forward(kernel, vast, in, contiguous_layout(vast), true, kSchedule);
                   check_tensor(flat, kTensors[0], outputs, results, "exact");
                 });
}

void test_vast_bias(Backward kernel, const Problem& problem) {
  with_vast_bias(problem,
                 [&](const Problem& vast, const EncodedInputs& in, const Problem& flat, const Results& results) {
                   const Outputs outputs = run_backward(kernel, vast, in, contiguous_layout(vast), true, kSchedule);
                   for (size_t i = 1; i < std::size(kTensors); ++i)
                     check_tensor(flat, kTensors[i], outputs, results, "exact");
                 });
}

void test_clamped_norms(Backward kernel, Problem problem) {
  problem.cosine = true;
  set_context(problem.name() + ", norms below the clamp");
  Inputs inputs = make_inputs(problem, 7);
  for (int64_t i = 0; i < problem.qkv_size(); ++i) {
    const int64_t row = i / problem.hd / problem.nH;  // of the heads of q, k or v of a pixel
    if (row % 3 == 2 || row / 3 % 4 != 0) continue;
    inputs.qkv[i] = round_to(problem.dtype, inputs.qkv[i] * 1e-13);
  }
  const Outputs outputs = run_backward(kernel, problem, inputs);
  const Results results = oracle(problem, inputs);
  for (size_t i = 1; i < std::size(kTensors); ++i) check_tensor(problem, kTensors[i], outputs, results, "exact");
}

void test_isolation(Backward kernel, const Problem& problem) {
  const Inputs inputs = make_inputs(problem, 6);
  const Outputs whole = run_backward(kernel, problem, inputs);
  const Grid grid = make_grid(problem);
  std::vector<bool> of_window(problem.H * problem.W, false);
  for (int64_t i = 0; i < problem.area(); ++i) {
    const int64_t pixel = grid.pixel[i / problem.ww * grid.columns + i % problem.ww];
    if (pixel >= 0) of_window[pixel] = true;
  }
  const int64_t poisoned = grid.pixel[0], row = problem.hd;
  for (const int what : {0, 1, 2, 3}) {  // q, k, v, grad_out
    set_context(problem.name() + ", with NaN in tensor " + std::to_string(what));
    Inputs with_nan = inputs;
    (what == 3 ? with_nan.grad_out[poisoned * problem.nH * row]
               : with_nan.qkv[(poisoned * 3 + what) * problem.nH * row]) = NAN;
    const Outputs got = run_backward(kernel, problem, with_nan);
    bool same = true;
    for (int64_t i = 0; i < problem.tokens() * 3 * problem.nH; ++i) {
      const bool reached = i / (3 * problem.nH) < problem.H * problem.W && of_window[i / (3 * problem.nH)];
      if (!reached || i % problem.nH != 0) same = same && same_bits(whole.dqkv, i * row, got.dqkv, i * row, row);
    }
    report().check(same, "dqkv", " of another head or window has changed");
    check_tensor(problem, kTensors[1], got, oracle(problem, with_nan), "exact");
  }
  set_context(problem.name() + ", the query of its padding NaN");
  Inputs with_nan = inputs;
  std::fill_n(with_nan.pad_value.begin(), problem.nH * row, NAN);
  check_same(whole, run_backward(kernel, problem, with_nan), " depends on it");
  set_context(problem.name() + ", its last image alone");
  Problem alone = problem;
  alone.B = 1;
  Inputs of_one = inputs;
  of_one.qkv.assign(inputs.qkv.end() - alone.qkv_size(), inputs.qkv.end());
  of_one.grad_out.assign(inputs.grad_out.end() - alone.out_size(), inputs.grad_out.end());
  const Outputs got = run_backward(kernel, alone, of_one);
  report().check(same_bits(whole.dqkv, problem.qkv_size() - alone.qkv_size(), got.dqkv, 0, alone.qkv_size()), "dqkv",
                 " of an image depends on the batch");
}

void test_backward(Backward kernel, const Problem& problem, uint64_t seed) {
  set_context(problem.name());
  const Inputs inputs = make_inputs(problem, seed);
  const EncodedInputs in(problem, inputs);
  const Results results = oracle(problem, inputs);
  const Layout layout = contiguous_layout(problem);
  const auto judge_all = [&](const Outputs& outputs, const char* model) {
    for (size_t i = 1; i < std::size(kTensors); ++i) check_tensor(problem, kTensors[i], outputs, results, model);
    for (int64_t i = 0; i < outputs.dpad_value.size() / 3; ++i) {
      report().check(outputs.dpad_value[i] == 0, "dpad_value: the q part is not exactly 0");
    }
  };
  const Outputs first = run_backward(kernel, problem, in, layout, true, kSchedule);
  judge_all(first, "exact");
  if (kFirstLook) return;
  for (const Schedule& schedule : kOtherSchedules) {
    const Outputs again = run_backward(kernel, problem, in, layout, true, schedule);
    report().check(same_bits(first.dqkv, 0, again.dqkv, 0, first.dqkv.size()), "dqkv", " depends on the schedule");
    judge_all(again, "exact");
  }
  check_same(first, run_backward(kernel, problem, in, spaced_layout(problem), false, kOtherOrder),
             " depends on the order, strides or alignment");
  judge_all(run_backward(kernel, problem, in, layout, true, kLikeHardware), "hardware-like");
}

int64_t work(const Problem& p) {
  const int64_t windows = (p.H + p.wh - 1) / p.wh * ((p.W + p.ww - 1) / p.ww) * p.B;
  return windows * p.nH * p.area() * p.area() * p.hd;
}

namespace {

// Calls test(problem, seed). A problem has the same inputs wherever it stands.
template <class Test>
void test_each(const std::vector<Problem>& problems, bool quick, const Test& test) {
  std::vector<size_t> order(problems.size());
  std::iota(order.begin(), order.end(), size_t{0});
  if (quick) {
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return work(problems[a]) < work(problems[b]); });
  }
  for (const size_t i : order) test(problems[i], i + 1);
}

}  // namespace

void test_forward(Forward kernel, const std::vector<Problem>& problems, bool quick) {
  test_each(problems, quick, [&](const Problem& problem, uint64_t seed) { test_forward(kernel, problem, seed); });
}

void test_backward(Backward kernel, const std::vector<Problem>& problems, bool quick) {
  test_each(problems, quick, [&](const Problem& problem, uint64_t seed) { test_backward(kernel, problem, seed); });
}

std::vector<Problem> problems_for(bool quick, const std::vector<ScalarType>& types, const std::vector<int>& windows,
                                  bool (*takes)(const Problem&)) {
  std::vector<Problem> problems, others;
  for (const ScalarType dtype : types) {
    for (const int window : windows) add_window_problems(window, dtype, &problems);
  }
  add_generic_problems(quick, &others);
  add_extreme_problems(quick, &others);
  for (const Problem& problem : others) {
    const bool tested = std::find(types.begin(), types.end(), problem.dtype) != types.end();
    if (tested && takes(problem)) problems.push_back(problem);
  }
  return problems;
}

std::vector<Problem> problems_for(bool quick, const std::vector<int>& windows, bool (*takes)(const Problem&)) {
  return problems_for(quick, {std::begin(kTested), std::end(kTested)}, windows, takes);
}

int run_driver(int argc, char** argv, size_t (*test_all)(bool quick)) {
  const bool quick = argc > 1 && std::string(argv[1]) == "quick";
  report().fail_fast = quick;
  const size_t count = test_all(quick);
  for (const auto& [what, ratio] : report().worst) std::printf("%s: %.2f x tolerance\n", what.c_str(), ratio);
  std::printf("%zu problems, %lld checks, %lld failures\n", count, static_cast<long long>(report().num_checks),
              static_cast<long long>(report().num_failures));
  return report().num_failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace swin_fast_test
