// SPDX-License-Identifier: Apache-2.0
//
// What every CUDA kernel is put through in the emulator: runs on guarded memory under every order of threads and
// copies, which must agree in every bit, and are judged against the definition in double, with both models of the
// tensor cores. A driver is a program of its own kernels, compiled anew for each planted bug, and of kernel_checks.cpp,
// which knows none of them.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "../../csrc/cuda/launch.h"
#include "../../csrc/cuda/primitives.h"
#include "../cpp/kernel_runner.h"
#include "../cpp/problems.h"
#include "cusim.h"

namespace swin_fast_test {

// A planted bug is looked for twice. With SWIN_FAST_FIRST_LOOK, which most of them do not survive: few instances, as
// they take long to compile, and one order of threads and copies. Then, with SWIN_FAST_ONE_TYPE alone, in all orders.
#ifdef SWIN_FAST_FIRST_LOOK
#define SWIN_FAST_ONE_TYPE
constexpr bool kFirstLook = true;
#else
constexpr bool kFirstLook = false;
#endif
#ifdef SWIN_FAST_ONE_TYPE
constexpr ScalarType kTested[] = {ScalarType::kBFloat16};
#else
constexpr ScalarType kTested[] = {ScalarType::kFloat16, ScalarType::kBFloat16};
#endif

// Calls run(element type) for a dtype of kTested.
template <class Run>
auto with_element(ScalarType dtype, Run run) {
#ifndef SWIN_FAST_ONE_TYPE
  if (dtype == ScalarType::kFloat16) return run(swin_fast::cuda::Half16{});
#endif
  (void)dtype;
  return run(swin_fast::cuda::BFloat16{});
}

// Calls run(aligned), a constant.
template <class Run>
void with_alignment(bool aligned, const Run& run) {
  if constexpr (kFirstLook) {
    run(std::true_type{});
  } else {
    swin_fast::cuda::with_constant(aligned, run);
  }
}

// Calls run(window, cosine, aligned), constants of the instance that the launches pick for a small window.
template <class Run>
void with_small_instance(const swin_fast::WindowAttentionParams& p, bool aligned, const Run& run) {
  using namespace swin_fast::cuda;
  const auto with_rest = [&](auto window) {
    with_constant(p.logit_scale != nullptr,
                  [&](auto cosine) { with_alignment(aligned, [&](auto chunks) { run(window, cosine, chunks); }); });
  };
#ifdef SWIN_FAST_ONE_TYPE
  with_window<7>(p, with_rest);
#else
  with_window<7, 8>(p, with_rest);
#endif
}

constexpr size_t kSharedMemory = 227 * 1024;  // that a block of an H200 can have

struct Schedule {
  uint64_t seed;
  cusim::AsyncCopies copies;
  cusim::Math math;
  int multiprocessors;

  cusim::Options options() const {
    cusim::Options made;
    made.seed = seed;
    made.async_copies = copies;
    made.math = math;
    return made;
  }
  GuardSide side() const { return seed % 2 == 0 ? GuardSide::kEnd : GuardSide::kBegin; }
};

// Results may depend on the number of multiprocessors where they are sums over windows, as those of a backward are.
constexpr Schedule kSchedule = {0, cusim::AsyncCopies::latest, cusim::Math::exact, 1};
constexpr Schedule kOtherSchedules[] = {
    {0, cusim::AsyncCopies::earliest, cusim::Math::exact, 1},
    {7, cusim::AsyncCopies::latest, cusim::Math::exact, 3},
    {8, cusim::AsyncCopies::earliest, cusim::Math::exact, 100},
};
constexpr Schedule kLikeHardware = {9, cusim::AsyncCopies::latest, cusim::Math::hardware_like, 2};

// Every fault is a failure, and so are bank conflicts of ldmatrix.
void judge_report(const cusim::Report& ran);

// A kernel under test: launches it (or them) on params, with 16-byte accesses of the inputs where `aligned`, and gives
// its reports to judge_report.
using Forward = std::function<void(const swin_fast::WindowAttentionFwdParams&, bool aligned, const Schedule&)>;
using Backward = std::function<void(const swin_fast::WindowAttentionBwdParams&, bool aligned, const Schedule&)>;

Tensor run_forward(const Forward& kernel, const Problem& problem, const EncodedInputs& in, const Layout& layout,
                   bool aligned, const Schedule& schedule);

Outputs run_backward(const Backward& kernel, const Problem& problem, const EncodedInputs& in, const Layout& layout,
                     bool aligned, const Schedule& schedule);

// Every element against the definition; the worst of each model, dtype and tensor is printed in the end.
void check_tensor(const Problem& problem, const NamedTensor& tensor, const Outputs& outputs, const Results& results,
                  const char* model);

void test_forward(const Forward& kernel, const Problem& problem, uint64_t seed);

// NaN in k and v of one window reaches the results of this window, all of them, and no other.
void test_nan_stays(const Forward& kernel, Problem problem);

// A row of scores that is wholly -inf gives 0, whatever v holds. `problem` has a dense bias and one window.
void test_dead_row(const Forward& kernel, const Problem& problem);

// The same in a backward: the query of such a row has no gradient, nor has its bias. Nor do queries that do not exist
// bring in anything: here 0 times the infinite key, which has a score of -inf for all that do.
void test_dead_row(const Backward& kernel, const Problem& problem);

// A bias of nothing but one vast number, the least one or -1e30, which is that of the mask as well: each query weighs
// all keys of its region alike. `problem` has a bias and a border, and no cosine attention.
void test_vast_bias(const Forward& kernel, const Problem& problem);
void test_vast_bias(const Backward& kernel, const Problem& problem);

// Rows of q and k just below the clamp of their norm: their gradient is not projected, which would be seen.
// `problem` is bfloat16, for float16 has no such numbers.
void test_clamped_norms(const Backward& kernel, Problem problem);

// What is not finite in one head of one window reaches no other head or window, and an image has the same gradients
// alone as among others.
void test_isolation(const Backward& kernel, const Problem& problem);

// What every backward is put through. Sums over windows are cut by the number of multiprocessors: those alone may
// differ in their last bits between schedules of different numbers, and have to agree where the numbers do.
void test_backward(const Backward& kernel, const Problem& problem, uint64_t seed);

// The problems that a kernel of some element types, window areas and head dimensions is tested on.
std::vector<Problem> problems_for(bool quick, const std::vector<ScalarType>& types, const std::vector<int>& windows,
                                  const std::function<bool(const Problem&)>& takes);
inline std::vector<Problem> problems_for(bool quick, const std::vector<int>& windows,
                                         const std::function<bool(const Problem&)>& takes) {
  return problems_for(quick, {std::begin(kTested), std::end(kTested)}, windows, takes);
}

// The main function of a driver. "quick": fewer problems, and the first failure ends it.
int run_driver(int argc, char** argv, const std::function<size_t(bool quick)>& test_all);

}  // namespace swin_fast_test
