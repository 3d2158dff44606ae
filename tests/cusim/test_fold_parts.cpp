// SPDX-License-Identifier: Apache-2.0
//
// csrc/cuda/fold_parts.h in the emulator, on parts that nobody computed.
#include <random>

#include "../../csrc/cuda/fold_parts.h"
#include "../cpp/problems.h"
#include "kernel_checks.h"

namespace swin_fast_test {
namespace {

using swin_fast::cuda::PartOfBias;
using swin_fast::cuda::Parts;

struct Folded {
  Tensor dbias, dlogit_scale, dpad_value;
};

// The parts, in memory that ends or begins where they do.
Folded fold(const Problem& problem, int owners, PartOfBias form, const std::vector<float>& values, uint64_t seed) {
  Schedule schedule = kSchedule;
  schedule.seed = seed;
  const GuardSide side = schedule.side();
  const auto dbias = output_buffer(problem.bias_size(), ScalarType::kFloat32, side);
  const auto dlogit_scale = output_buffer(problem.logit_scale_size(), ScalarType::kFloat32, side);
  const auto dpad_value = output_buffer(problem.pad_size(), problem.dtype, side);
  swin_fast::WindowAttentionBwdParams p{};
  static_cast<swin_fast::WindowAttentionParams&>(p) = make_params(problem, contiguous_layout(problem));
  const float unread = NAN;
  p.bias = problem.bias_form != BiasForm::kNone ? &unread : nullptr;
  p.logit_scale = problem.cosine ? &unread : nullptr;
  p.pad_value = problem.has_pad_value ? &unread : nullptr;
  p.dbias = reinterpret_cast<float*>(dbias->data());
  p.dlogit_scale = reinterpret_cast<float*>(dlogit_scale->data());
  p.dpad_value = dpad_value->data();
  const auto scratch =
      output_buffer(static_cast<int64_t>(Parts::at(nullptr, p, owners, form).bytes / 4), ScalarType::kFloat32, side);
  const Parts parts = Parts::at(scratch->data(), p, owners, form);
  const float* next = values.data();
  const auto fill = [&](float* part, int64_t size) {
    if (part == nullptr) return;
    std::copy_n(next, size * problem.nH * owners, part);
    next += size * problem.nH * owners;
  };
  if (problem.bias_form != BiasForm::kNone) fill(parts.dbias, parts.bias_size);
  if (problem.cosine) fill(parts.dlogit_scale, 1);
  if (problem.has_pad_value) fill(parts.dpad_value, 2 * problem.hd);
  const auto run = [&](auto element) { swin_fast::cuda::fold_all<decltype(element)>(p, parts, Launcher{schedule}); };
  problem.dtype == ScalarType::kFloat32 ? run(swin_fast::cuda::Float32{}) : with_element(problem.dtype, run);
  return {take(dbias.get(), ScalarType::kFloat32), take(dlogit_scale.get(), ScalarType::kFloat32),
          take(dpad_value.get(), problem.dtype)};
}

void check_sums(const Tensor& got, const Expected& expected, const char* name) {
  double worst = 0;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double unit = float_format(got.type).unit() * 1.01, want = expected.value[i];
    const double tolerance = unit * std::fabs(want) + 0x1p-24 * 16 * expected.accumulation[i];
    const double error = std::fabs(got[i] - want);
    worst = std::max(worst, error == 0 ? 0.0 : std::isfinite(error) ? error / tolerance : INFINITY);
  }
  report().check(worst <= 1, name, " is not the sum of its parts");
  double& of_all = report().worst[name];
  of_all = std::max(of_all, worst);
}

void test_fold(const Problem& problem, int owners, PartOfBias form = PartOfBias::kDense) {
  const bool ready = form == PartOfBias::kReady;
  set_context(problem.name() + " owners=" + std::to_string(owners) + (ready ? ", ready" : ""));
  std::mt19937_64 generator(problem.area() * 31 + owners);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(problem.nH * owners) *
                            static_cast<size_t>(problem.area() * problem.area() + 1 + 2 * problem.hd));
  for (float& value : values) value = normal(generator);

  Results expected;
  expected.dbias.resize(problem.bias_size());
  expected.dlogit_scale.resize(problem.logit_scale_size());
  expected.dpad_value.resize(problem.pad_size());
  const float* next = values.data();
  const auto sum_up = [&](bool wanted, int64_t size, Expected* to, auto index) {
    if (!wanted) return;
    for (int head = 0; head < problem.nH; ++head) {
      for (int owner = 0; owner < owners; ++owner) {
        for (int64_t i = 0; i < size; ++i, ++next) to->add(index(head, i), *next, std::fabs(*next), 0);
      }
    }
  };
  const int64_t area = problem.area();
  const int64_t of_head = ready ? problem.bias_size() / problem.nH : area * area;
  sum_up(problem.bias_form != BiasForm::kNone, of_head, &expected.dbias, [&](int head, int64_t pair) {
    if (ready || problem.bias_form == BiasForm::kDense) return head * of_head + pair;
    const int64_t query = pair / area, key = pair % area;
    const int64_t dy = query / problem.ww - key / problem.ww, dx = query % problem.ww - key % problem.ww;
    return (int64_t{head} * (2 * problem.wh - 1) + dy + problem.wh - 1) * (2 * problem.ww - 1) + dx + problem.ww - 1;
  });
  sum_up(problem.cosine, 1, &expected.dlogit_scale, [](int head, int64_t) { return int64_t{head}; });
  sum_up(problem.has_pad_value, 2 * problem.hd, &expected.dpad_value,
         [&](int head, int64_t i) { return ((1 + i / problem.hd) * problem.nH + head) * problem.hd + i % problem.hd; });

  const Folded first = fold(problem, owners, form, values, 0);
  check_sums(first.dbias, expected.dbias, "dbias");
  check_sums(first.dlogit_scale, expected.dlogit_scale, "dlogit_scale");
  check_sums(first.dpad_value, expected.dpad_value, "dpad_value");
  const Folded again = fold(problem, owners, form, values, 7);
  for (const auto& part : {&Folded::dbias, &Folded::dlogit_scale, &Folded::dpad_value}) {
    report().check(same_bits(first.*part, 0, again.*part, 0, (first.*part).size()), "a sum depends on the schedule");
  }
}

size_t test_all(bool quick) {
  size_t count = 0;
  Problem p;
  std::vector<ScalarType> types(std::begin(kTested), std::end(kTested));
  types.push_back(ScalarType::kFloat32);
  for (const ScalarType dtype : types) {
    for (const BiasForm form : kBiasForms) {
      for (const int owners : {0, 1, 9, 150}) {
        p.dtype = dtype;
        p.bias_form = form;
        p.nH = 3;
        p.wh = owners == 9 ? 7 : 3;
        p.ww = owners == 150 ? 2 : 7;
        p.hd = owners == 9 ? 32 : 6;
        p.cosine = owners != 9;
        p.has_pad_value = owners != 1;
        test_fold(p, owners);
        test_fold(p, owners, PartOfBias::kReady);
        count += 2;
      }
    }
  }
  p = Problem();
  p.dtype = kTested[0];
  p.bias_form = BiasForm::kRelative;
  p.wh = 16;
  p.ww = quick ? 5 : 16;
  p.hd = 128;
  p.has_pad_value = true;
  test_fold(p, 2);
  return count + 1;
}

}  // namespace
}  // namespace swin_fast_test

int main(int argc, char** argv) { return swin_fast_test::run_driver(argc, argv, swin_fast_test::test_all); }
