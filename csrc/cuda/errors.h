// SPDX-License-Identifier: Apache-2.0
//
// Errors of the CUDA runtime, in words for users.
#pragma once

#ifdef SWIN_FAST_CUSIM
#include "cusim/emulated_runtime.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace swin_fast::cuda {

// Throws std::runtime_error unless `error` is success; `what` could not be done.
void check(cudaError_t error, const char* what);

}  // namespace swin_fast::cuda
