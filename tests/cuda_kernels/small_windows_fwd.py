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
template __global__ void small_windows_fwd<BFloat16, 0, true, false>(const SmallFwdParams);  // no copies
"""

BUGS = {
    "no barrier before the bias is read": Bug("  sync_threads();\n\n  const float factor", "\n  const float factor"),
    "the bias table where the first queries are": Bug("warps + 3 * Sizes::kTileBytes", "warps + 2 * Sizes::kTileBytes"),
    "a bias of another entry": Bug("+ grid.columns - 1;", "+ grid.columns;"),
    "no barrier before pixels are looked up": Bug(
        "  sync_threads();\n\n  const int64_t slot", "\n  const int64_t slot"
    ),
    "rows read before other lanes' copies are seen": Bug(
        "    copy_async_wait<0>();\n    sync_warp();  // rows that other lanes fetched\n", "    copy_async_wait<0>();\n"
    ),
    "a wait that is too weak": Bug("copy_async_wait<0>();", "copy_async_wait<1>();"),
    "the next rows overwrite those being read": Bug(
        "    sync_warp();  // k, v and the other q may be written now\n", ""
    ),
    "the result is read before it is written": Bug("    sync_warp();\n    self.store", "    self.store"),
    "one q for two windows": Bug("fetch<kAligned>(next, next_q_rows)", "fetch<kAligned>(next, q_rows)"),
    "the swizzle is lost": Bug("return ((chunk ^ (row >> 1)) & 3) * 16;", "return chunk * 16;"),
    "an odd number of rows": Bug("(Sizes::kTokens + 1) / 2 * 2 * kRowBytes", "Sizes::kTokens * kRowBytes"),
    "rows that do not exist are not zero": Bug("i < kZeroBytes / 4;", "i < 0;"),
    "rows behind the window are read": Bug("return row < tokens ? base", "return row < tokens + 15 ? base"),
    "halves of a fragment swapped": Bug("k[tile][half][0] = four[0];", "k[tile][half][0] = four[1];"),
    "v not transposed": Bug("ldmatrix_x4_trans(four", "ldmatrix_x4(four"),
    "probabilities of the upper rows twice": Bug("e = 2 * (i & 1);", "e = 0;"),
    "bias of the wrong row": Bug("const int q = row + (e & 2) * 4", "const int q = row + (e & 2) * 2"),
    "bias of the first head for all": Bug(
        "load_relative_bias(problem, head, table)", "load_relative_bias(problem, 0, table)"
    ),
    "bias transposed": Bug("* tokens + q) * tokens + k)", "* tokens + k) * tokens + q)"),
    "no mask": Bug("s[j][e] += masked;", "s[j][e] += 0.0f;"),
    "regions of the neighbour": Bug("(2 * j + (e & 1)) & 1", "(2 * j + (~e & 1)) & 1", SHARED),
    "keys that do not exist take part": Bug(
        "+ (e & 1) >= tokens) s[j][e] = -INFINITY;", "+ (e & 1) >= tokens) s[j][e] = 0;"
    ),
    "largest score of one lane": Bug("top[i] = fmaxf(top[i], shuffle_xor(top[i], 2));", ""),
    "sum of two lanes": Bug("sum[i] += shuffle_xor(sum[i], 2);", ""),
    "vast scores are taken for others": Bug("if (any_lane(largest > 0x1p25f)) {", "if (false) {"),
    "a bias over the scale is not finite": Bug("fabsf(value) <= kMost ? fminf", "false ? fminf"),
    "a row wholly -inf is NaN": Bug("sum[i] == 0.0f ? 0.0f : ", ""),
    "a shuffle of some lanes": Bug(
        "of_key[0] = shuffle(key_inverse[j], pair * 4);",
        "if (lane != 5) of_key[0] = shuffle(key_inverse[j], pair * 4);",
    ),
    "norm of another key": Bug("shuffle(key_inverse[j], pair * 4 + 4)", "shuffle(key_inverse[j], pair * 4)"),
    "padding has no value": Bug("which > 0 && row != nullptr", "false"),
    "padding of v is that of k": Bug("(which * problem.nH + head)", "(problem.nH + head)"),
    "results of padding are stored": Bug("if (pixel[i] < 0) continue;", "if (pixel[i] < -1) continue;"),
    "a window of another row of windows": Bug("at->y += step.y + next_row;", "at->y += step.y;", WINDOWS),
    "a window of another image": Bug("at->b += step.b + next_image;", "at->b += step.b;", WINDOWS),
    "every image is the first": Bug("window.b * problem.qkv_stride[0]", "0 * problem.qkv_stride[0]"),
    "windows are left out": Bug("place(p.slots)", "place(p.slots + 1)"),
    "windows in the middle are where the first is": Bug("{kind_y == 0 ? window.y * p.all.y.window : 0", "{0"),
    "windows in the middle are not rolled": Bug("token + static_cast<int32_t>(axis.roll)", "token"),
    "the last window but one is taken for one in the middle": Bug("num_windows) - kAxisKinds);", "num_windows) - 2);"),
    "padding is not looked for": Bug("if (p.padded) {", "if (false) {"),
    "a mask that is not divided": Bug("kDivided ? divided(problem.mask_value, inverse_scale)", "false ? 0"),
    "the half of a tile that exists is left out": Bug(
        "if (tile * 16 + 8 < Sizes::kTokens)", "if (tile * 16 + 32 < Sizes::kTokens)"
    ),
    "a negative scale divides": Bug(
        "return p.logit_scale != nullptr || (p.scale > 0x1p-60f && p.scale < 0x1p60f);", "(void)p;\n  return true;"
    ),
    "a border in windows that have none": Bug("if (place.x != p.border_x) cut.columns = 0;", ""),
    "queries before a border taken for those behind": Bug("cut << (15 - query)", "cut << (14 - query)"),
    "the last windows are left out": Bug("ceil_div(p.all.of_all - slot, p.slots)", "(p.all.of_all - slot) / p.slots"),
    "it ends with copies on their way": Bug("if (left > 1) self", "if (left > 0) self"),
}

#: Spilled: 15 registers of the instance for any window, cosine attention and unaligned rows.
KERNEL = Kernel(HEADER, INSTANCES, BUGS, known_spills={"sm_100": 64, "sm_120": 64})
