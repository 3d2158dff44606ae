# SPDX-License-Identifier: Apache-2.0
"""The forward of windows of up to 64 tokens."""

from cuda_kernels.kernel import Bug, Kernel

HEADER = "csrc/cuda/small_windows_fwd.h"
SHARED = "csrc/cuda/small_windows.h"
WINDOWS = "csrc/cuda/windows.h"

INSTANCES = """
template __global__ void small_windows_fwd<BFloat16, 7, false, true>(const SmallFwdParams);
template __global__ void small_windows_fwd<BFloat16, 7, true, true>(const SmallFwdParams);
template __global__ void small_windows_fwd<Half16, 8, false, true>(const SmallFwdParams);
template __global__ void small_windows_fwd<Half16, 8, true, true>(const SmallFwdParams);
template __global__ void small_windows_fwd<BFloat16, 0, true, false>(const SmallFwdParams);
"""

BUGS = {
    "no barrier before the bias is read": Bug("  sync_threads();\n\n  const float factor", "\n  const float factor"),
    "rows read before other lanes' copies are seen": Bug(
        "    copy_async_wait<0>();\n    sync_warp();  // rows that other lanes fetched\n", "    copy_async_wait<0>();\n"
    ),
    "a wait that is too weak": Bug("copy_async_wait<0>();", "copy_async_wait<1>();"),
    "the next rows overwrite those being read": Bug(
        "    sync_warp();  // k, v and the other q may be written now\n", ""
    ),
    "the result is read before it is written": Bug("    sync_warp();\n    self.store", "    self.store"),
    "one q for two windows": Bug("fetch<kAligned>(next, next_q_rows)", "fetch<kAligned>(next, q_rows)"),
    "the swizzle is lost": Bug("return ((chunk ^ (row >> 1)) & 3) * 16;", "return chunk * 16;", SHARED),
    "an odd number of rows": Bug("(Sizes::kTokens + 1) / 2 * 2 * kRowBytes", "Sizes::kTokens * kRowBytes"),
    "rows that do not exist are not zero": Bug("i < kZeroBytes / 4;", "i < 0;"),
    "rows behind the window are read": Bug("return row < count() ? base", "return row < count() + 15 ? base"),
    "halves of a fragment swapped": Bug("k[tile][half][0] = four[0];", "k[tile][half][0] = four[1];"),
    "v not transposed": Bug("ldmatrix_x4_trans(four", "ldmatrix_x4(four"),
    "probabilities of the upper rows twice": Bug("e = 2 * (i & 1);", "e = 0;"),
    "bias of the wrong row": Bug("of_lane / 4 + (place & 2) * 4", "of_lane / 4 + (place & 2) * 2", SHARED),
    "bias of the first head for all": Bug("size_t{4} * Sizes::kBiasFloats * head_slot + lane", "lane"),
    "bias transposed": Bug(
        "(head * tokens + query) * tokens + key", "(head * tokens + key) * tokens + query", "csrc/cuda/windows.h"
    ),
    "no mask": Bug("s[j][e] += problem.mask_value;", "s[j][e] += 0.0f;"),
    "regions of the neighbour": Bug("(2 * j + (e & 1)) & 1", "(2 * j + (~e & 1)) & 1", SHARED),
    "keys that do not exist take part": Bug(
        "+ (e & 1) >= tokens) s[j][e] = -INFINITY;", "+ (e & 1) >= tokens) s[j][e] = 0;", SHARED
    ),
    "largest score of one lane": Bug("top[i] = fmaxf(top[i], shuffle_xor(top[i], 2));", "", SHARED),
    "sum of two lanes": Bug("sum[i] += shuffle_xor(sum[i], 2);", "", SHARED),
    "a row wholly -inf is NaN": Bug("sum[i] == 0.0f ? 0.0f : ", "", SHARED),
    "a shuffle of some lanes": Bug(
        "of_key[0] = shuffle(key_inverse[j], pair * 4);",
        "if (lane != 5) of_key[0] = shuffle(key_inverse[j], pair * 4);",
    ),
    "norm of another key": Bug("shuffle(key_inverse[j], pair * 4 + 4)", "shuffle(key_inverse[j], pair * 4)"),
    "padding has no value": Bug("which > 0 && padding != nullptr", "false", SHARED),
    "padding of v is that of k": Bug("padding + which * padding_stride", "padding + padding_stride", SHARED),
    "results of padding are stored": Bug("if (!real) return;", "if (y < 0) return;"),
    "a window of another row of windows": Bug("at->y += step.y + next_row;", "at->y += step.y;", WINDOWS),
    "a window of another image": Bug("at->b += step.b + next_image;", "at->b += step.b;", WINDOWS),
    "every image is the first": Bug("b * problem.qkv_stride[0]", "0 * problem.qkv_stride[0]", SHARED),
    "windows are left out": Bug("int64_t{p.blocks} * p.windows", "int64_t{p.blocks} * p.windows + 1"),
    "it ends with copies on their way": Bug("if (left > 1) self", "if (left > 0) self"),
}

KERNEL = Kernel(HEADER, INSTANCES, BUGS)
