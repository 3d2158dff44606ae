# SPDX-License-Identifier: Apache-2.0
"""The forward of windows of up to 1,024 tokens in float32."""

from cuda_kernels.kernel import Bug, Kernel

HEADER = "csrc/cuda/float_windows_fwd.h"
ROWS = "csrc/cuda/float_rows.h"

INSTANCES = """
template __global__ void float_windows_fwd<16, false, true>(const FloatFwdParams);
template __global__ void float_windows_fwd<16, true, false>(const FloatFwdParams);  // no copies
template __global__ void float_windows_fwd<32, false, true>(const FloatFwdParams);
template __global__ void float_windows_fwd<32, true, true>(const FloatFwdParams);
template __global__ void float_windows_fwd<32, true, false>(const FloatFwdParams);  // no copies
template __global__ void float_windows_fwd<64, false, true>(const FloatFwdParams);
template __global__ void float_windows_fwd<64, true, true>(const FloatFwdParams);
template __global__ void float_windows_fwd<96, true, true>(const FloatFwdParams);
template __global__ void float_windows_fwd<128, true, true>(const FloatFwdParams);
"""

BUGS = {
    # Products of float32
    "the lower part of a left side is lost": Bug("  mma_m16n8k8_tf32(d, a.lower, b0.upper, b1.upper);\n", "", ROWS),
    "the lower part of a right side is lost": Bug("  mma_m16n8k8_tf32(d, a.upper, b0.lower, b1.lower);\n", "", ROWS),
    "what is left is left out": Bug("lower = value - upper;", "lower = 0.0f;", ROWS),
    "what is left of another number": Bug("0xffffe000u;  //", "0xfffff000u;  //", ROWS),
    "weights in the order of products": Bug(
        "{weights[half][0], weights[half][2], weights[half][1], weights[half][3]}",
        "{weights[half][0], weights[half][1], weights[half][2], weights[half][3]}",
        ROWS,
    ),
    "rows of weights in another order": Bug(
        "(i >> 1) * 8 + (lane & 3) * 2 + (i & 1)", "(i >> 1) * 8 + (lane & 3) + (i & 1) * 4", ROWS
    ),
    "the first eight rows twice": Bug("(i >> 1) * 8 + (lane & 3) * 2", "(lane & 3) * 2", ROWS),
    "small products of the first eight rows alone": Bug("  add_small(part, a[1], b[2], b[3]);\n", "", ROWS),
    "the right half of a tile twice": Bug(
        "add_large(part[j], a[i], b[i][2 * j], b[i][2 * j + 1])", "add_large(part[j], a[i], b[i][2], b[i][3])", ROWS
    ),
    "small products are not added": Bug("add_small(part[j], a[i], b[i][2 * j], b[i][2 * j + 1]);", "", ROWS),
    "the first 16 channels alone": Bug("product[e >> 2][e & 3] += sums[e >> 2][e & 3];", ";", ROWS),
    "eight of 16 channels twice": Bug("columns(values, rows, step + i);", "columns(values, rows, step);", ROWS),
    "large products apart are lost": Bug("e < 4 && kApart; ++e", "e < 0; ++e", ROWS),
    "two tiles of values twice": Bug(
        "multiply_tile<false, kApart>(parts[j], a, values, first + j)",
        "multiply_tile<false, kApart>(parts[j], a, values, j)",
        ROWS,
    ),
    "two tiles are mended as the others": Bug(
        "multiply_tile<true, kApart>(parts[j], a, again, first + j)",
        "multiply_tile<true, kApart>(parts[j], a, again, j)",
        ROWS,
    ),
    "channels of a half in the other's place": Bug(
        "const int e = 2 * i + half;", "const int e = 2 * i + 1 - half;", ROWS
    ),
    "halves apart": Bug("slab * 8 + 2 * (lane & 3) + half", "slab * 8 + (lane & 3) + 4 * half", ROWS),
    "a slab of head_dim 16 is as the others": Bug("(g & 1) * 8", "0", ROWS),
    # What is not finite
    "infinite scores are NaN": Bug("    if (is_finite(all)) return;\n", "    return;\n", ROWS),
    "another score in the place of an infinite one": Bug("if (e == which && !is_finite(", "if (!is_finite(", ROWS),
    "the product of another row": Bug("(lane_ >> 2) + 4 * (which & 2)", "(lane_ >> 2) + 8 * (which & 1)", ROWS),
    "the product of another key": Bug("(which & 4) * 2 + (lane_ & 3) * 2", "(lane_ & 3) * 2", ROWS),
    "infinite values are NaN": Bug("if (kMend && any_lane(!is_finite(all))) {", "if (false) {", ROWS),
    "some lanes compute once more": Bug("any_lane(!is_finite(all))", "!is_finite(all)", ROWS),
    "infinite values are zeros": Bug("b[i].upper = values[i][j];", "b[i].upper = 0.0f;", ROWS),
    "infinite values have small products": Bug(
        "if (kMend && !is_finite(b[i].upper)) b[i] = SplitFloat(0.0f);", "", ROWS
    ),
    "the largest numbers are infinite": Bug("b[i].upper = values[i][j];", "b[i].upper = values[i][j] * 2.0f;", ROWS),
    # Softmax
    "a share corrected the wrong way": Bug(
        "fmaf(fmaf(-sum, share, 1.0f), share, share)",
        "fmaf(fmaf(sum, share, 1.0f), share, share)",
        "csrc/cuda/windows.h",
    ),
    "sums are not shrunk": Bug("      sum[i] *= shrunk;\n", ""),
    "results are not shrunk": Bug("        o[c][2 * i + 1] *= shrunk;\n", ""),
    "the top of one lane": Bug("largest[i] = fmaxf(largest[i], shuffle_xor(largest[i], 2));", ""),
    "the top is never raised again": Bug(
        "largest[0] > top[0] + kLag", "(top[0] == -FLT_MAX && largest[0] > top[0] + kLag)"
    ),
    "some lanes raise the top": Bug(
        "if (any_lane(largest[0] > top[0] + kLag || largest[1] > top[1] + kLag)) raise",
        "if (largest[0] > top[0] + kLag || largest[1] > top[1] + kLag) raise",
    ),
    "differences of products": Bug(
        "exp2_approx((score - other) * kLog2E)",
        "exp2_approx(fmaf(score, kLog2E, -(other * kLog2E)))",
        "csrc/cuda/windows.h",
    ),
    "the sum of two lanes": Bug("      sum[i] += shuffle_xor(sum[i], 2);\n", ""),
    "a row wholly -inf is NaN": Bug("sum[i] == 0.0f ? 0.0f : o[c][e] * share", "o[c][e] * share"),
    "keys that do not exist take part": Bug("s[j][e] = -INFINITY;", "s[j][e] += 0.0f;"),
    "no mask": Bug("s[j][e] += problem.mask_value;", ";"),
    "regions of the neighbour": Bug("? two >> 16 : two & 0xffffu", "? two & 0xffffu : two >> 16"),
    "regions of the upper row": Bug("own_regions + 16 * (e >> 1)", "own_regions"),
    "the bias of the tile beside": Bug("((chunk + row) / 8 + j)", "((chunk + row) / 8 + 1 - j)"),
    "norm of the neighbour": Bug("of_key[1] = two.y;", "of_key[1] = two.x;"),
    "norms of half of the keys": Bug(
        "row < Sizes::kKeys; row += p.warps * 8", "row < Sizes::kKeys / 2; row += p.warps * 8"
    ),
    # Rows
    "every image is the first": Bug("4 * (b * problem.qkv_stride[0]", "4 * (0 * problem.qkv_stride[0]"),
    "padding has no value": Bug("padding(problem.pad_value == nullptr", "padding(true"),
    "padding of v is that of k": Bug("(padded ? padding_v : token", "(padded ? 0 : token"),
    "tokens that do not exist are padding": Bug("int64_t{token < tokens ? kPadding : kNoToken}", "int64_t{kPadding}"),
    "results of padding are stored": Bug("        if (pixel < 0) continue;\n", ""),
    "tiles that do not exist are stored": Bug("      if (!has_rows) continue;\n", ""),
    "windows behind the last": Bug("if (unit >= p.all.of_all", "if (unit > p.all.of_all"),
    # Order
    "the last window's places are overwritten": Bug(
        "    sync_threads();  // nobody reads pixels and rows of the window before any more\n", ""
    ),
    "places are read before they are there": Bug("    sync_threads();\n    const auto fetch", "    const auto fetch"),
    "keys are read before they are there": Bug(
        "        sync_threads();  // these keys have landed, and all have read the ones before\n", ""
    ),
    "a wait that is too weak": Bug(
        "        copy_async_wait<0>();\n        sync_threads();",
        "        copy_async_wait<1>();\n        sync_threads();",
    ),
    "the next keys in the place of these": Bug(
        "fetch(chunk + Sizes::kKeys, stage ^ 1);", "fetch(chunk + Sizes::kKeys, stage);"
    ),
    "norms are read before they are there": Bug(
        "          sync_threads();\n        }\n        stage ^= 1;", "        }\n        stage ^= 1;"
    ),
    "queries overwrite those being read": Bug("      sync_warp();  // the queries before have been read\n", ""),
    "queries of other lanes are not waited for": Bug("      sync_warp();  // rows that other lanes fetched\n", ""),
}

KERNEL = Kernel(
    HEADER,
    INSTANCES,
    BUGS,
    known_spills={"sm_90": 16, "sm_100": 8},
    for_each_product={"float_windows_fwd<32, false, true>": 7.55},
)
