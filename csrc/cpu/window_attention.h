// SPDX-License-Identifier: Apache-2.0
//
// Entry points of the CPU backend. Torch-free: threads come in as a ParallelFor.
#pragma once

#include "../window_attention.h"

namespace swin_fast::cpu {

void window_attention_fwd(const WindowAttentionFwdParams& params, ParallelFor parallel_for);
void window_attention_bwd(const WindowAttentionBwdParams& params, ParallelFor parallel_for);

// The instruction-set path in use: "scalar", "avx2", "avx512" or "avx512_bf16". Chosen once, the best this CPU runs.
const char* isa();
// Forces a path; false, and nothing changes, where it is unknown, not compiled in, or this CPU cannot run it.
// Not for use while a kernel runs on another thread.
bool select_isa(const char* name);
// Facts of this build, as JSON: compiler, paths compiled in, (N, hd) pairs with a compile-time instance, limits.
const char* build_info();

// A ParallelFor that stays on the calling thread.
void serial_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

}  // namespace swin_fast::cpu
