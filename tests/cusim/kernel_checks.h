// SPDX-License-Identifier: Apache-2.0
//
// What every CUDA kernel is put through in the emulator: runs on guarded memory under every order of threads and
// copies, which must agree in every bit, and are judged against the definition in double, with both models of the
// tensor cores. A driver is a program of its own kernels, compiled anew for each planted bug, and of kernel_checks.cpp,
// which knows none of them and is compiled once, as are all that it needs: headers hold declarations.
#pragma once

#include <cstdint>
#include <iterator>
#include <type_traits>
#include <vector>

#include "../../csrc/cuda/launch.h"
#include "../../csrc/cuda/primitives.h"
#include "../cpp/harness.h"
#include "cusim.h"

extern template class std::vector<swin_fast_test::Problem>;  // in kernel_checks.cpp

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

  GuardSide side() const { return seed % 2 == 0 ? GuardSide::kEnd : GuardSide::kBegin; }
};

// Results may depend on the number of multiprocessors where they are sums over windows, as those of a backward are.
constexpr Schedule kSchedule = {0, cusim::AsyncCopies::latest, cusim::Math::exact, 1};
constexpr Schedule kOtherSchedules[] = {
    {7, cusim::AsyncCopies::latest, cusim::Math::exact, 3},
    {8, cusim::AsyncCopies::earliest, cusim::Math::exact, 100},
};
constexpr Schedule kOtherOrder = {11, cusim::AsyncCopies::earliest, cusim::Math::exact, 1};  // of the same sums
constexpr Schedule kLikeHardware = {9, cusim::AsyncCopies::latest, cusim::Math::hardware_like, 2};

// Runs `kernel(context)` as every thread. Every fault is a failure, and so are bank conflicts of ldmatrix.
void launch(const Schedule& schedule, int64_t blocks, int64_t threads, size_t shared_bytes,
            void (*kernel)(const void* context), const void* context);

// launch(kernel, blocks, threads, bytes of shared memory, params), as that of csrc/cuda/launch.h.
struct Launcher {
  const Schedule& schedule;

  template <class Params>
  void operator()(void (*kernel)(Params), int64_t blocks, int64_t threads, size_t shared_bytes,
                  const Params& params) const {
    struct Call {
      void (*kernel)(Params);
      const Params& params;
    } call{kernel, params};
    const auto run = [](const void* context) {
      const Call& of = *static_cast<const Call*>(context);
      of.kernel(of.params);
    };
    launch(schedule, blocks, threads, shared_bytes, run, &call);
  }
};

// A kernel under test: launches it (or them) on params, with 16-byte accesses of the inputs where `aligned`.
using Forward = void (*)(const swin_fast::WindowAttentionFwdParams&, bool aligned, const Schedule&);
using Backward = void (*)(const swin_fast::WindowAttentionBwdParams&, bool aligned, const Schedule&);

Tensor run_forward(Forward kernel, const Problem& problem, const EncodedInputs& in, const Layout& layout, bool aligned,
                   const Schedule& schedule);

Outputs run_backward(Backward kernel, const Problem& problem, const EncodedInputs& in, const Layout& layout,
                     bool aligned, const Schedule& schedule);

// The same as most tests want it: contiguous and aligned, in the first schedule.
Tensor run_forward(Forward kernel, const Problem& problem, const Inputs& inputs);
Outputs run_backward(Backward kernel, const Problem& problem, const Inputs& inputs);

// Every element against the definition; the worst of each model, dtype and tensor is printed in the end.
void check_tensor(const Problem& problem, const NamedTensor& tensor, const Outputs& outputs, const Results& results,
                  const char* model);

void test_forward(Forward kernel, const Problem& problem, uint64_t seed);

// NaN in k and v of one window reaches the results of this window, all of them, and no other.
void test_nan_stays(Forward kernel, Problem problem);

// A row of scores that is wholly -inf gives 0, whatever v holds. `problem` has a dense bias and one window.
void test_dead_row(Forward kernel, const Problem& problem);

// The same in a backward: the query of such a row has no gradient, nor has its bias. Nor do queries that do not exist
// bring in anything: here 0 times the infinite key, which has a score of -inf for all that do.
void test_dead_row(Backward kernel, const Problem& problem);

// A bias of nothing but one vast number, the least one or -1e30, which is that of the mask as well: each query weighs
// all keys of its region alike. `problem` has a bias and a border, and no cosine attention.
void test_vast_bias(Forward kernel, const Problem& problem);
void test_vast_bias(Backward kernel, const Problem& problem);

// Rows of q and k just below the clamp of their norm: their gradient is not projected, which would be seen.
// `problem` is bfloat16, for float16 has no such numbers.
void test_clamped_norms(Backward kernel, Problem problem);

// What is not finite in one head of one window reaches no other head or window, and an image has the same gradients
// alone as among others.
void test_isolation(Backward kernel, const Problem& problem);

// What every backward is put through. Sums over windows are cut by the number of multiprocessors: those alone may
// differ in their last bits between schedules of different numbers, and have to agree in another order of one number.
void test_backward(Backward kernel, const Problem& problem, uint64_t seed);

// test_forward or test_backward of each; where `quick`, the smallest first: most bugs show in them.
void test_forward(Forward kernel, const std::vector<Problem>& problems, bool quick);
void test_backward(Backward kernel, const std::vector<Problem>& problems, bool quick);

// How many products there are in one of the matrix products of a problem.
int64_t work(const Problem& p);

// The problems that a kernel of some element types, window areas and head dimensions is tested on; without types: of
// kTested.
std::vector<Problem> problems_for(bool quick, const std::vector<ScalarType>& types, const std::vector<int>& windows,
                                  bool (*takes)(const Problem&));
std::vector<Problem> problems_for(bool quick, const std::vector<int>& windows, bool (*takes)(const Problem&));

// The main function of a driver. "quick": fewer problems, and the first failure ends it.
int run_driver(int argc, char** argv, size_t (*test_all)(bool quick));

}  // namespace swin_fast_test
