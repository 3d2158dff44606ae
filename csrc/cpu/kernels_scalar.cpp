// SPDX-License-Identifier: Apache-2.0
//
// Plain C++ for any CPU and compiler.
#define SWIN_FAST_ISA_SCALAR
#include "instances.h"

namespace swin_fast::cpu {

const Kernels kernels_scalar = Path<FloatOperands>::table("scalar");

}  // namespace swin_fast::cpu
