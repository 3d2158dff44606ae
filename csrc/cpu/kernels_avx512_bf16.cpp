// SPDX-License-Identifier: Apache-2.0
//
// AVX-512 with bfloat16 dot products (Zen 4, Cooper Lake, Sapphire Rapids): bfloat16 only.
#define SWIN_FAST_ISA_AVX512_BF16
#include "instances.h"

namespace swin_fast::cpu {

const Kernels kernels_avx512_bf16 = Path<PairOperands>::table("avx512_bf16");

}  // namespace swin_fast::cpu
