// SPDX-License-Identifier: Apache-2.0
//
// The CPU kernels against a brute-force double oracle, on guarded memory, on every path this CPU can run:
//   test_window_attention [--isa PATH] [--quick] [--seed N] [--only TEXT] [--fail-fast]
//   test_window_attention --huge   out and dqkv of more than 2^31 elements
//   test_window_attention --list   the paths that this CPU can run
// --only runs the problems whose printed name contains TEXT. The last line counts the checks; exit status 1 is a
// failure.
#include <csignal>
#include <cstdlib>
#include <functional>
#include <numeric>

#include "kernel_runner.h"
#include "nan_memory.h"
#include "problems.h"

namespace {

using namespace swin_fast_test;  // NOLINT

struct Options {
  std::vector<std::string> paths;
  bool quick = false, huge = false;
  uint64_t seed = 0;
  std::string only;
};

uint64_t input_seed(const Problem& p, uint64_t seed) { return std::hash<std::string>()(p.name()) ^ seed; }

void select(const std::string& path, const std::string& what) {
  set_context(path + ": " + what);
  if (!swin_fast::cpu::select_isa(path.c_str())) report().fail("select_isa refuses a path it took before");
}

// Against the oracle, then again in other layouts, against the other guard and with other cuttings: the same bits.
void test_problem(const Options& options, const Problem& p) {
  const Inputs in = make_inputs(p, input_seed(p, options.seed));
  const EncodedInputs encoded(p, in);
  const Results expected = oracle(p, in);
  for (const std::string& path : options.paths) {
    select(path, p.name());
    const Outputs outputs = run_kernels(p, encoded, contiguous_layout(p), GuardSide::kEnd, {});
    check_against(p, outputs, expected, path);
    check_same(outputs, run_kernels(p, encoded, spaced_layout(p), GuardSide::kBegin, {3, true, false}),
               " has other bits with spaced rows and three pieces in reverse");
    check_same(outputs, run_kernels(p, encoded, permuted_layout(p), GuardSide::kEnd, {5, false, true}),
               " has other bits with permuted axes and five threads");
    check_same(outputs, run_kernels(p, encoded, contiguous_layout(p), GuardSide::kBegin, {1 << 20, false, false}),
               " has other bits with as many pieces as the grain allows");
  }
}

int64_t test_problems(const Options& options) {
  int64_t count = 0;
  for (const Problem& p : make_problems(options.quick, options.seed)) {
    if (p.name().find(options.only) == std::string::npos) continue;
    ++count;
    test_problem(options, p);
  }
  return count;
}

// Results of an image do not depend on its company.
void test_batch_invariance(const Options& options) {
  for (const ScalarType dtype : kTypes) {
    for (const int window : {7, 5, 8, 12}) {
      if (options.quick && window > 7) continue;
      Problem p;
      p.dtype = dtype;
      p.B = 5;
      p.wh = p.ww = window;
      p.H = window + 1;
      p.W = window;
      p.sh = p.sw = 2;
      p.nH = 2;
      p.bias_form = BiasForm::kRelative;
      p.has_pad_value = true;
      p.cosine = window == 5;
      const Inputs in = make_inputs(p, input_seed(p, options.seed));
      for (const std::string& path : options.paths) {
        select(path, "batch invariance, " + p.name());
        const Outputs all = run_kernels(p, {p, in}, contiguous_layout(p), GuardSide::kEnd, {});
        for (int64_t b = 0; b < p.B; ++b) {
          Problem one = p;
          one.B = 1;
          Inputs image = in;
          image.qkv.assign(in.qkv.begin() + b * one.qkv_size(), in.qkv.begin() + (b + 1) * one.qkv_size());
          image.grad_out.assign(in.grad_out.begin() + b * one.out_size(),
                                in.grad_out.begin() + (b + 1) * one.out_size());
          const Outputs alone = run_kernels(one, {one, image}, contiguous_layout(one), GuardSide::kEnd, {});
          report().check(same_bits(alone.out, 0, all.out, b * one.out_size(), one.out_size()),
                         "out of an image depends on its batch");
          report().check(same_bits(alone.dqkv, 0, all.dqkv, b * one.qkv_size(), one.qkv_size()),
                         "dqkv of an image depends on its batch");
        }
      }
    }
  }
}

// A value that is not finite spoils what eager attention would spoil, and no bit of any other window or head.
void test_isolation(const Options& options) {
  struct Poison {
    int where;  // 0, 1, 2: q, k, v; 3: grad_out
    double value;
  };
  const Poison poisons[] = {{0, NAN},       {1, NAN},      {2, NAN},       {3, NAN},      {0, INFINITY},
                            {1, -INFINITY}, {2, INFINITY}, {3, -INFINITY}, {1, INFINITY}, {0, -INFINITY}};
  int turn = 0;
  for (const ScalarType dtype : kTypes) {
    for (const int window : {7, 4, 8, 12}) {
      if (options.quick && window > 7) continue;
      Problem p;
      p.dtype = dtype;
      p.wh = window;
      p.ww = window == 4 ? 9 : window;
      p.hd = window == 4 ? 18 : 32;
      p.B = 2;
      p.H = p.wh;
      p.W = p.ww + 2;
      p.sh = p.sw = 2;
      p.nH = 2;
      p.bias_form = window == 4 ? BiasForm::kRelative : BiasForm::kDense;
      p.has_pad_value = true;
      p.cosine = window == 8;
      const Inputs clean = make_inputs(p, input_seed(p, options.seed));
      const Grid grid = make_grid(p);
      std::vector<int64_t> window_of(p.H * p.W);  // of each pixel, within its image
      for (int64_t y = 0; y < grid.rows; ++y) {
        for (int64_t x = 0; x < grid.columns; ++x) {
          const int64_t pixel = grid.pixel[y * grid.columns + x];
          if (pixel >= 0) window_of[pixel] = y / p.wh * (grid.columns / p.ww) + x / p.ww;
        }
      }
      for (const Poison& poison : poisons) {
        ++turn;
        const int64_t token = turn * 37 % p.tokens(), image_size = p.H * p.W;
        const int head = turn % p.nH;
        const int64_t d = turn * 7 % p.hd;
        Inputs in = clean;
        if (poison.where == 3) {
          in.grad_out[(token * p.nH + head) * p.hd + d] = poison.value;
        } else {
          in.qkv[((token * 3 + poison.where) * p.nH + head) * p.hd + d] = poison.value;
        }
        const Results expected = oracle(p, in);
        const EncodedInputs encoded(p, in), encoded_clean(p, clean);
        for (const std::string& path : options.paths) {
          char what[64];
          std::snprintf(what, sizeof what, "%g in %s of token %d, ", poison.value,
                        poison.where == 0   ? "q"
                        : poison.where == 1 ? "k"
                        : poison.where == 2 ? "v"
                                            : "grad_out",
                        static_cast<int>(token));
          select(path, what + p.name());
          const Outputs before = run_kernels(p, encoded_clean, contiguous_layout(p), GuardSide::kEnd, {});
          const Outputs after = run_kernels(p, encoded, contiguous_layout(p), GuardSide::kEnd, {});
          check_against(p, after, expected, path);
          for (int64_t t = 0; t < p.tokens(); ++t) {
            for (int h = 0; h < p.nH; ++h) {
              const bool spoiled = h == head && t / image_size == token / image_size &&
                                   window_of[t % image_size] == window_of[token % image_size];
              if (spoiled) continue;
              const int64_t row = (t * p.nH + h) * p.hd;
              report().check(same_bits(before.out, row, after.out, row, p.hd), "out of another window has changed");
              for (int which = 0; which < 3; ++which) {
                const int64_t at = ((t * 3 + which) * p.nH + h) * p.hd;
                report().check(same_bits(before.dqkv, at, after.dqkv, at, p.hd), "dqkv of another window has changed");
              }
            }
          }
        }
      }
    }
  }
}

// Infinite biases: a row of scores that is wholly -inf gives zeros, exactly; with a NaN among them, NaN.
void test_infinite_bias(const Options& options) {
  for (const ScalarType dtype : kTypes) {
    for (const int window : {7, 5, 8, 12}) {
      if (options.quick && window > 7) continue;
      Problem p;
      p.dtype = dtype;
      p.wh = p.ww = window;
      p.H = window + 1;
      p.W = window;
      p.sh = 2;
      p.nH = 2;
      p.bias_form = BiasForm::kDense;
      p.has_pad_value = true;
      p.cosine = window == 8;
      const int64_t n = p.area();
      Inputs in = make_inputs(p, input_seed(p, options.seed));
      const auto bias = [&](Inputs* inputs, int head, int64_t i, int64_t j) -> double& {
        return inputs->bias[(head * n + i) * n + j];
      };
      for (int64_t j = 0; j < n; ++j) {
        bias(&in, 0, 1, j) = bias(&in, 0, n - 1, j) = bias(&in, 0, n / 2, j) = -INFINITY;  // dead rows of head 0
        if (j != 3) bias(&in, 0, 2, j) = -INFINITY;                                        // one key left
        bias(&in, 0, j, 4) = -INFINITY;                                                    // a key nobody sees
      }
      Inputs all_dead = in, poisoned = in, infinite = in;
      std::fill(all_dead.bias.begin(), all_dead.bias.end(), -INFINITY);
      for (int64_t y = 0; y < p.H; ++y) {  // k of head 0, one pixel of each row of pixels: in every window
        poisoned.qkv[((y * p.W + 5 % p.W) * 3 + 1) * p.nH * p.hd] = NAN;
      }
      bias(&infinite, 0, 5, 6) = INFINITY;
      bias(&infinite, 0, n - 1, 0) = NAN;
      const struct {
        const char* what;
        const Inputs& in;
      } variants[] = {{"dead rows", in},
                      {"all rows dead", all_dead},
                      {"NaN in dead rows", poisoned},
                      {"+inf and NaN bias", infinite}};
      for (const auto& variant : variants) {
        const Results expected = oracle(p, variant.in);
        const EncodedInputs encoded(p, variant.in);
        for (const std::string& path : options.paths) {
          select(path, std::string(variant.what) + ", " + p.name());
          const Outputs outputs = run_kernels(p, encoded, contiguous_layout(p), GuardSide::kEnd, {});
          check_against(p, outputs, expected, path);
          if (&variant.in != &all_dead) continue;
          for (const NamedTensor& tensor : kTensors) {
            const Tensor& got = outputs.*tensor.got;
            for (int64_t i = 0; i < got.size(); ++i) {
              report().check(got[i] == 0, tensor.name, " of dead rows is not exactly 0");
            }
          }
        }
      }
    }
  }
}

// Expanded inputs: the same image for the whole batch, the same gradient for every pixel.
void test_expanded(const Options& options) {
  for (const ScalarType dtype : kTypes) {
    Problem p;
    p.dtype = dtype;
    p.B = 3;
    p.H = 9;
    p.W = 8;
    p.sh = p.sw = 3;
    p.nH = 2;
    p.bias_form = BiasForm::kRelative;
    Inputs in = make_inputs(p, input_seed(p, options.seed));
    const int64_t image = p.qkv_size() / p.B, C = p.nH * p.hd;
    for (int64_t i = image; i < p.qkv_size(); ++i) in.qkv[i] = in.qkv[i - image];
    for (int64_t i = C; i < p.out_size(); ++i) in.grad_out[i] = in.grad_out[i - C];
    Layout expanded = contiguous_layout(p);
    expanded.qkv[0] = expanded.grad_out[0] = expanded.grad_out[1] = expanded.grad_out[2] = 0;
    const EncodedInputs encoded(p, in);
    for (const std::string& path : options.paths) {
      select(path, "expanded, " + p.name());
      check_same(run_kernels(p, encoded, contiguous_layout(p), GuardSide::kEnd, {}),
                 run_kernels(p, encoded, expanded, GuardSide::kEnd, {}), " has other bits with expanded inputs");
    }
  }
}

// Strides so large that rows lie beyond 2^31 and 2^32 elements; everything between the rows is unreadable.
void test_huge_strides(const Options& options) {
  constexpr int64_t k2To31 = int64_t{1} << 31;
  for (const ScalarType dtype : kTypes) {
    for (const int window : {7, 3}) {
      Problem p;
      p.dtype = dtype;
      p.B = 3;
      p.wh = p.ww = window;
      p.H = p.W = 4;
      p.sh = p.sw = 1;
      p.nH = 3;
      p.hd = window == 7 ? 32 : 14;
      p.bias_form = BiasForm::kRelative;
      p.has_pad_value = true;
      const EncodedInputs in(p, make_inputs(p, input_seed(p, options.seed)));
      for (int axis = 0; axis < 5; ++axis) {
        Layout layout = contiguous_layout(p);
        layout.qkv[axis] = k2To31 + 40;
        if (axis < 3) layout.grad_out[axis] = k2To31 + 24;
        const int64_t width = size_of(dtype);
        SparseBuffer qkv(qkv_extent(p, layout) * width), grad_out(grad_out_extent(p, layout) * width);
        place_qkv(p, layout, in, qkv.data(), [&](int64_t at, int64_t bytes) { qkv.open(at, bytes); });
        place_grad_out(p, layout, in, grad_out.data(), [&](int64_t at, int64_t bytes) { grad_out.open(at, bytes); });
        for (const std::string& path : options.paths) {
          select(path, "huge stride of axis " + std::to_string(axis) + ", " + p.name());
          const Outputs expected = run_kernels(p, in, contiguous_layout(p), GuardSide::kEnd, {});
          check_same(expected, run_on(p, in, layout, qkv.data(), grad_out.data(), GuardSide::kEnd),
                     " has other bits with huge strides");
        }
      }
    }
  }
}

// out and dqkv of more than 2^31 elements, on memory that repeats.
void test_huge_outputs(const Options& options) {
  Problem one;
  one.dtype = ScalarType::kBFloat16;
  one.nH = 8;
  one.sh = one.sw = 3;
  const EncodedInputs in(one, make_inputs(one, input_seed(one, options.seed)));
  const std::string& path = options.paths.back();
  select(path, "more than 2^31 elements, " + one.name());
  const Outputs expected = run_kernels(one, in, contiguous_layout(one), GuardSide::kEnd, {});
  for (const bool backward : {false, true}) {
    const int64_t image = backward ? one.qkv_size() : one.out_size(), image_bytes = image * size_of(one.dtype);
    const int64_t period = std::lcm(image_bytes, page_size());
    Problem p = one;
    p.B = ((int64_t{1} << 31) / image + 1) + 2 * period / image_bytes;
    const int64_t bytes = p.B * image_bytes;
    RepeatingBuffer repeating(period, bytes);
    std::fill(repeating.data(), repeating.data() + period, '\xff');  // NaN
    std::fill(repeating.tail(), repeating.tail() + period, '\xff');
    Layout layout = contiguous_layout(p);
    layout.qkv[0] = layout.grad_out[0] = 0;
    if (backward) {
      swin_fast::WindowAttentionBwdParams params{};
      static_cast<swin_fast::WindowAttentionParams&>(params) = make_params(p, layout);
      params.qkv = in.qkv.data();
      params.grad_out = in.grad_out.data();
      std::copy(layout.grad_out, layout.grad_out + 3, params.grad_out_stride);
      params.dqkv = repeating.data();
      swin_fast::cpu::window_attention_bwd(params, swin_fast::cpu::serial_for);
    } else {
      swin_fast::WindowAttentionFwdParams params{};
      static_cast<swin_fast::WindowAttentionParams&>(params) = make_params(p, layout);
      params.qkv = in.qkv.data();
      params.out = repeating.data();
      swin_fast::cpu::window_attention_fwd(params, swin_fast::cpu::serial_for);
    }
    const Tensor& want = backward ? expected.dqkv : expected.out;
    const int64_t tail_images = (p.B * image_bytes - (repeating.tail() - repeating.data())) / image_bytes;
    for (int64_t b = 0; b < period / image_bytes; ++b) {
      report().check(std::memcmp(repeating.data() + b * image_bytes, want.bytes.data(), image_bytes) == 0,
                     "an image of a huge tensor is wrong");
      if (b >= tail_images) continue;
      report().check(std::memcmp(repeating.tail() + b * image_bytes, want.bytes.data(), image_bytes) == 0,
                     "an image beyond 2^31 elements is wrong");
    }
  }
}

// The rest of the interface: choosing a path, build facts, the serial loop.
void test_interface(const Options& options) {
  for (const std::string& path : options.paths) {
    select(path, "interface");
    report().check(swin_fast::cpu::isa() == path, "isa() is not the selected path");
    for (const char* unknown : {"", "sse9", "AVX2", "avx512_"}) {
      report().check(!swin_fast::cpu::select_isa(unknown), "select_isa takes an unknown path");
    }
    report().check(swin_fast::cpu::isa() == path, "a refused select_isa changes the path");
    report().check(std::strstr(swin_fast::cpu::build_info(), ("\"" + path + "\"").c_str()) != nullptr,
                   "build_info() does not name the path");
  }
  std::vector<int64_t> pieces;
  const auto note = [](int64_t begin, int64_t end, void* context) {
    for (int64_t i = begin; i < end; ++i) static_cast<std::vector<int64_t>*>(context)->push_back(i);
  };
  swin_fast::cpu::serial_for(3, 3, 1, note, &pieces);
  report().check(pieces.empty(), "serial_for runs an empty range");
  swin_fast::cpu::serial_for(3, 6, 1, note, &pieces);
  report().check(pieces == std::vector<int64_t>{3, 4, 5}, "serial_for misses part of its range");
}

// The judge itself must not let anything pass: least of all NaN.
void test_the_judge() {
  set_context("self-test of the comparison");
  report().check(float_formats_are_sound(), "float16 or bfloat16 conversion");
  Problem p;
  for (const ScalarType dtype : kTypes) {
    p.dtype = dtype;
    Tensor got;
    got.type = dtype;
    got.bytes.resize(4);
    Expected expected;
    const auto ratio = [&](double have, double want) {
      store(dtype, got.bytes.data(), 0, have);
      expected.resize(0);
      expected.value = {want};
      expected.accumulation = expected.operand = {std::fabs(want)};
      return judge(p, dtype == ScalarType::kBFloat16, got, expected, 0);
    };
    report().check(ratio(1, 1) <= 1, "an exact result must pass");
    report().check(ratio(NAN, 1) > 1 && ratio(INFINITY, 1) > 1 && ratio(-INFINITY, 1) > 1, "not finite must fail");
    report().check(ratio(1, NAN) > 1 && ratio(0, INFINITY) > 1, "finite for not finite must fail");
    report().check(ratio(NAN, NAN) <= 1 && ratio(NAN, INFINITY) <= 1, "not finite for not finite must pass");
    report().check(ratio(INFINITY, 1e300) <= 1 && ratio(-INFINITY, 1e300) > 1, "overflow must keep its sign");
    const double step = float_format(dtype).unit();
    report().check(ratio(1 + 64 * step, 1) > 1 && ratio(0, 1) > 1 && ratio(-1, 1) > 1, "a wrong number must fail");
  }
}

void on_crash(int signal) {
  const char* const text = signal == SIGSEGV || signal == SIGBUS ? "FAILED out-of-bounds access\n       in "
                           : signal == SIGILL                    ? "FAILED illegal instruction\n       in "
                                                                 : "FAILED crash\n       in ";
  const char* const context = report().context;
  if (write(STDOUT_FILENO, text, std::strlen(text)) < 0 || write(STDOUT_FILENO, context, std::strlen(context)) < 0 ||
      write(STDOUT_FILENO, "\n", 1) < 0) {
    std::_Exit(EXIT_FAILURE);
  }
  std::_Exit(EXIT_FAILURE);
}

Options parse(int argc, char** argv) {
  Options options;
  std::string path;
  bool list = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = i + 1 < argc;
    if (argument == "--quick") {
      options.quick = true;
    } else if (argument == "--huge") {
      options.huge = true;
    } else if (argument == "--list") {
      list = true;
    } else if (argument == "--fail-fast") {
      report().fail_fast = true;
    } else if (argument == "--isa" && has_value) {
      path = argv[++i];
    } else if (argument == "--seed" && has_value) {
      options.seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (argument == "--only" && has_value) {
      options.only = argv[++i];
    } else {
      std::fprintf(stderr, "unknown option %s\n", argv[i]);
      std::exit(2);
    }
  }
  for (const char* name : {"scalar", "avx2", "avx512", "avx512_bf16"}) {
    if ((path.empty() || path == name) && swin_fast::cpu::select_isa(name)) options.paths.push_back(name);
  }
  if (list) {
    for (const std::string& name : options.paths) std::printf("%s\n", name.c_str());
    std::exit(EXIT_SUCCESS);
  }
  if (options.huge && !options.paths.empty()) options.paths = {options.paths.back()};  // the fastest, for time
  if (options.paths.empty()) {
    std::fprintf(stderr, "this build or CPU has no path %s\n", path.c_str());
    std::exit(2);
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
#ifndef __SANITIZE_ADDRESS__  // which has a better handler
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) std::signal(signal, on_crash);
#endif
  const Options options = parse(argc, argv);
  const int64_t num_problems = options.huge ? 1 : test_problems(options);
  if (options.huge) {
    test_huge_outputs(options);
  } else if (options.only.empty()) {
    test_the_judge();
    test_interface(options);
    test_batch_invariance(options);
    test_isolation(options);
    test_infinite_bias(options);
    test_expanded(options);
    test_huge_strides(options);
  }
  for (const auto& entry : report().worst) {
    std::printf("%-40s worst error %5.3f of its tolerance\n", entry.first.c_str(), entry.second);
  }
  std::string paths;
  for (const std::string& path : options.paths) paths += (paths.empty() ? "" : ", ") + path;
  const auto count = [](int64_t n) { return static_cast<long long>(n); };
  if (report().num_failures > 0) {
    std::printf("FAILED %lld of %lld checks\n", count(report().num_failures), count(report().num_checks));
    return EXIT_FAILURE;
  }
  std::printf("cpu kernels (%s): %lld problems, %lld checks passed\n", paths.c_str(), count(num_problems),
              count(report().num_checks));
  return EXIT_SUCCESS;
}
