// SPDX-License-Identifier: Apache-2.0
//
// csrc/cuda/large_windows_bwd.h in the emulator; in float32 where test_large_windows_bwd_float.cpp includes this.
#include "../../csrc/cuda/large_windows_bwd.h"
#include "kernel_checks.h"

namespace swin_fast_test {
namespace {

#ifdef SWIN_FAST_FLOAT32
const std::vector<ScalarType> kTypes = {ScalarType::kFloat32};
const std::vector<int> kWindows = {7, 12};
constexpr int kBytes = 4;

bool takes(const Problem& p) { return swin_fast::cuda::has_large_kernels(p.hd); }

template <class Run>
void with_type(ScalarType, const Run& run) {
  run(swin_fast::cuda::Float32{});
}
#else
const std::vector<ScalarType> kTypes(std::begin(kTested), std::end(kTested));
const std::vector<int> kWindows = {12};
constexpr int kBytes = 2;

bool takes(const Problem& p) { return swin_fast::cuda::has_large_kernels(p.hd) && (p.hd != 32 || p.area() > 64); }

template <class Run>
void with_type(ScalarType dtype, const Run& run) {
  with_element(dtype, run);
}
#endif

constexpr size_t kSmallSharedMemory = 40 * 1024;

template <class T, int kHd>
void launch(const swin_fast::WindowAttentionBwdParams& problem, bool aligned, const Schedule& schedule) {
  using namespace swin_fast::cuda;
  // Small blocks, with fewer warps and chunks that do not all have a place, must give the same.
  const auto cut = [&](void* scratch) {
    if (schedule.multiprocessors == 3) {
      const LargeBwdParams small = cut_large_bwd(problem, aligned, 3, kSmallSharedMemory, scratch);
      if (small.queries.warps > 0 && small.keys.warps > 0) return small;
    }
    return cut_large_bwd(problem, aligned, schedule.multiprocessors, kSharedMemory, scratch);
  };
  const auto scratch =
      output_buffer(static_cast<int64_t>(cut(nullptr).scratch_bytes) / 4, ScalarType::kFloat32, schedule.side());
  launch_large_bwd<T, kHd>(cut(scratch->data()), Launcher{schedule});
  report().check(scratch->rest_is_untouched(), "write outside the scratch memory");
}

void large_windows(const swin_fast::WindowAttentionBwdParams& p, bool aligned, const Schedule& schedule) {
  with_type(p.dtype, [&](auto element) {
    const auto run = [&](auto head_dim) { launch<decltype(element), head_dim()>(p, aligned, schedule); };
    if constexpr (kFirstLook) {
      swin_fast::cuda::with_head_dim<16, 32, 96>(p, run);
    } else {
      swin_fast::cuda::with_head_dim<16, 32, 64, 96, 128>(p, run);
    }
  });
}

bool has_instances(const Problem& p) { return !kFirstLook || (p.hd != 64 && p.hd != 128); }

// What the lists of all kernels lack: head_dim 96; borders on both axes in a large window; masks of -inf, and of little
// more, where the first keys of a row are masked; a window with padding and several owners; norms of all kinds under
// cosine attention.
std::vector<Problem> own_problems() {
  std::vector<Problem> problems;
  for (const ScalarType dtype : kTypes) {
    Problem p;
    p.dtype = dtype;
    p.nH = 2;
    p.wh = 9;
    p.ww = 8;
    p.H = 7;
    p.W = 11;
    p.sh = p.sw = 3;
    p.hd = 96;
    p.bias_form = BiasForm::kDense;
    p.has_pad_value = true;
    problems.push_back(p);

    p.nH = 1;
    p.hd = 32;
    p.wh = p.ww = 12;
    p.H = p.W = 23;
    p.sh = p.sw = 5;
    p.pad_order = PadOrder::kRollPad;
    p.bias_form = BiasForm::kRelative;
    p.mask_value = -2.5f;
    problems.push_back(p);

    p.hd = 16;
    p.wh = 9;
    p.H = p.W = 14;
    for (const float mask : {-INFINITY, -1e30f}) {
      p.mask_value = mask;
      problems.push_back(p);
    }

    p.hd = 64;
    p.wh = 5;
    p.ww = 17;
    p.cosine = p.degenerate_rows = true;
    p.logit_scale = 100;
    p.mask_value = -100;
    problems.push_back(p);
  }
  return problems;
}

// Rows of scores that are wholly -inf have no gradient, and give none, whatever v holds.
void test_dead_rows_alone() {
  Problem p;
  p.dtype = kTypes.back();
  p.wh = p.H = 5;
  p.hd = 16;
  p.bias_form = BiasForm::kDense;
  set_context(p.name() + ", bias -inf");
  Inputs inputs = make_inputs(p, 5);
  std::fill(inputs.bias.begin(), inputs.bias.end(), -INFINITY);
  inputs.qkv[2 * p.hd] = INFINITY;
  const Outputs outputs = run_backward(large_windows, p, inputs);
  for (int64_t i = 0; i < outputs.dqkv.size(); ++i) report().check(outputs.dqkv[i] == 0, "dqkv", " of dead rows");
}

// So has a query whose products with all keys are -inf, and behind the window there are keys, whose product is NaN.
void test_infinite_query() {
  Problem p;
  p.dtype = kTypes.back();
  p.wh = p.H = 5;
  p.hd = 16;
  p.bias_form = BiasForm::kDense;
  set_context(p.name() + ", an infinite query");
  Inputs inputs = make_inputs(p, 6);
  for (int64_t i = 0; i < p.area(); ++i) {
    double& k = inputs.qkv[(3 * i + 1) * p.hd + 2];
    k = round_to(p.dtype, -std::fabs(k) - 1);
  }
  inputs.qkv[9 * p.hd + 2] = INFINITY;  // of the fourth pixel, whose token it is
  const Outputs outputs = run_backward(large_windows, p, inputs);
  for (int64_t d = 0; d < p.hd; ++d) report().check(outputs.dqkv[9 * p.hd + d] == 0, "dq", " of an infinite query");
  for (int64_t j = 0; j < p.area(); ++j) {
    report().check(outputs.dbias[3 * p.area() + j] == 0, "dbias", " of an infinite query");
  }
}

// The largest window, once: the definition alone takes seconds.
void test_largest(int hd) {
  Problem p;
  p.dtype = kTypes.back();
  p.wh = p.ww = p.H = 32;
  p.W = 20;
  p.sh = 5;
  p.hd = hd;
  p.bias_form = BiasForm::kRelative;
  p.has_pad_value = true;
  set_context(p.name());
  const Inputs inputs = make_inputs(p, 9);
  const Outputs outputs = run_backward(large_windows, p, inputs);
  const Results results = oracle(p, inputs);
  for (const NamedTensor& tensor : {kTensors[1], kTensors[2], kTensors[4]}) {
    check_tensor(p, tensor, outputs, results, "exact");
  }
}

// Every window has a cut, but the widest rows of the largest ones on GPUs of 99 KiB a block.
void test_cuts() {
  for (const int hd : {16, 32, 64, 96, 128}) {
    for (int area = 1; area <= 1024; ++area) {
      for (const size_t kilobytes : {99, 163, 227}) {
        Problem problem;
        problem.dtype = kTypes.back();
        problem.wh = area;
        problem.ww = 1;
        problem.hd = hd;
        problem.nH = 4;
        problem.cosine = true;
        problem.bias_form = BiasForm::kDense;
        set_context(problem.name());
        swin_fast::WindowAttentionBwdParams params{};
        static_cast<swin_fast::WindowAttentionParams&>(params) = make_params(problem, contiguous_layout(problem));
        const float some = 0;
        params.bias = params.logit_scale = &some;
        const auto cut = swin_fast::cuda::cut_large_bwd(params, true, 132, kilobytes * 1024, nullptr);
        const bool taken = cut.queries.warps > 0 && cut.keys.warps > 0;
        report().check(taken || area > swin_fast::cuda::large_bwd_most_area(kBytes * hd), "a window has no cut");
        if (!taken) continue;
        for (const swin_fast::cuda::LargeCut& each : {cut.queries, cut.keys}) {
          report().check(each.shared_bytes <= kilobytes * 1024, "more shared memory than there is");
          report().check(each.rows() >= cut.rows && each.rows() - 16 * each.warps < cut.rows, "rows without a tile");
          report().check(each.owners >= 1, "a head without an owner");
        }
        report().check(cut.of_bias.bytes <= swin_fast::cuda::kPartsBytes, "more than 64 MB of parts of dbias");
      }
    }
  }
}

size_t test_all(bool quick) {
  test_cuts();
  std::vector<Problem> problems;
  for (const Problem& p : own_problems()) {
    if (has_instances(p)) problems.push_back(p);
  }
  for (const Problem& p : problems_for(quick, kTypes, kWindows, takes)) {
    // What takes longest is left out: the definition and the emulator take seconds for it.
    if (has_instances(p) && work(p) < (quick ? 1'500'000 : 9'000'000)) problems.push_back(p);
  }
  test_dead_rows_alone();
  test_infinite_query();
  Problem other;
  other.dtype = kTypes.back();
  other.bias_form = BiasForm::kDense;
  other.hd = 16;
  test_dead_row(large_windows, other);
  test_clamped_norms(large_windows, other);
  other.sh = 3;
  test_vast_bias(large_windows, other);
  other.B = 3;
  other.H = 10;
  other.nH = 2;
  other.has_pad_value = true;
  test_isolation(large_windows, other);
  test_backward(large_windows, problems, quick);
  if (!quick) test_largest(16);
  return problems.size();
}

}  // namespace
}  // namespace swin_fast_test

int main(int argc, char** argv) { return swin_fast_test::run_driver(argc, argv, swin_fast_test::test_all); }
