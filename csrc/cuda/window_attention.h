// SPDX-License-Identifier: Apache-2.0
//
// Entry points of the CUDA backend. Torch-free: the stream and scratch memory come in as pointers. Whatever goes wrong
// is a std::runtime_error whose words are for users.
#pragma once

#include <cstddef>

#include "../window_attention.h"

namespace swin_fast::cuda {

// Bytes of scratch memory that a call wants, at a multiple of 16; its contents need not last beyond the call's kernels.
size_t window_attention_fwd_scratch(const WindowAttentionFwdParams& params, int device);
size_t window_attention_bwd_scratch(const WindowAttentionBwdParams& params, int device);

// Launches, and returns before the kernels have run. `stream` is a cudaStream_t of `device`.
void window_attention_fwd(const WindowAttentionFwdParams& params, int device, void* stream, void* scratch);
void window_attention_bwd(const WindowAttentionBwdParams& params, int device, void* stream, void* scratch);

// Facts of this build, as JSON: version, compilers, architectures, and for both directions which windows have kernels.
const char* build_info();

// The CUDA version of the installed driver, 1000 * major + 10 * minor, and 0 without one. Initialises nothing, so that
// a process may still fork after it.
int driver_version();

}  // namespace swin_fast::cuda
