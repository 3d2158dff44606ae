// SPDX-License-Identifier: Apache-2.0
//
// The choice of an instruction-set path, made once at run time, and the facts of this build. Compiled for the base
// instruction set.
#include <atomic>
#include <cstring>

#include "kernels.h"
#include "window_attention.h"

namespace swin_fast::cpu {
namespace {

enum Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16, kIsaCount };
const char* const kNames[kIsaCount] = {"scalar", "avx2", "avx512", "avx512_bf16"};

bool runs_here(int isa) {
#ifdef SWIN_FAST_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case kAvx2: return avx2;
    case kAvx512: return avx512;
    case kAvx512Bf16: return avx512 && __builtin_cpu_supports("avx512bf16");
  }
#endif
  return isa == kScalar;
}

int best() {
  int isa = kIsaCount - 1;
  while (!runs_here(isa)) isa--;
  return isa;
}

std::atomic<int>& chosen() {
  static std::atomic<int> isa{best()};
  return isa;
}

}  // namespace

const char* isa() { return kNames[chosen()]; }

bool select_isa(const char* name) {
  for (int i = 0; i < kIsaCount; i++) {
    if (std::strcmp(name, kNames[i]) == 0 && runs_here(i)) {
      chosen() = i;
      return true;
    }
  }
  return false;
}

const Kernels& kernels_for([[maybe_unused]] ScalarType dtype) {
  switch (chosen()) {
#ifdef SWIN_FAST_X86
    case kAvx2: return kernels_avx2;
    case kAvx512: return kernels_avx512;
    case kAvx512Bf16: return dtype == ScalarType::kBFloat16 ? kernels_avx512_bf16 : kernels_avx512;
#endif
    default: return kernels_scalar;
  }
}

#define SWIN_FAST_STRING_(x) #x
#define SWIN_FAST_STRING(x) SWIN_FAST_STRING_(x)
#ifndef SWIN_FAST_VERSION
#define SWIN_FAST_VERSION unknown
#endif
#if defined(__clang__)
#define SWIN_FAST_COMPILER "clang " __clang_version__
#else
#define SWIN_FAST_COMPILER "gcc " __VERSION__
#endif

#ifdef SWIN_FAST_X86
#define SWIN_FAST_PATHS R"("scalar", "avx2", "avx512", "avx512_bf16")"
#else
#define SWIN_FAST_PATHS R"("scalar")"
#endif

const char* build_info() {
  // clang-format off
  return R"({"version": ")" SWIN_FAST_STRING(SWIN_FAST_VERSION)
         R"(", "compiler": ")" SWIN_FAST_COMPILER
         R"(", "isa_compiled": [)" SWIN_FAST_PATHS
         R"(], "instances": [[49, 32], [64, 32], [144, 32]], "max_window_area": 1024, "max_head_dim": 128,)"
         R"( "torch_target": "2.10"})";
  // clang-format on
}

}  // namespace swin_fast::cpu
