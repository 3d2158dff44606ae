// SPDX-License-Identifier: Apache-2.0
//
// AVX-512 F, BW, DQ, VL.
#define SWIN_FAST_ISA_AVX512
#include "instances.h"

namespace swin_fast::cpu {

const Kernels kernels_avx512 = Path<FloatOperands>::table("avx512");

}  // namespace swin_fast::cpu
