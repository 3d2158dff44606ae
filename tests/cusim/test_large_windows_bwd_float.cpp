// SPDX-License-Identifier: Apache-2.0
//
// csrc/cuda/large_windows_bwd.h and csrc/cuda/float_rows.h in the emulator.
#define SWIN_FAST_FLOAT32
#include "test_large_windows_bwd.cpp"  // NOLINT: the same, with another element
