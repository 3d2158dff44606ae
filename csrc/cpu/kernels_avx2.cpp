// SPDX-License-Identifier: Apache-2.0
//
// AVX2, FMA and F16C: x86-64 from Haswell and Zen on.
#define SWIN_FAST_ISA_AVX2
#include "instances.h"

namespace swin_fast::cpu {

const Kernels kernels_avx2 = Path<FloatOperands>::table("avx2");

}  // namespace swin_fast::cpu
