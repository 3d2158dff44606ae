# SPDX-License-Identifier: Apache-2.0
"""The backward of windows of 16 x 16 tokens at head_dim 32, and what it has in common with that of 12 x 12."""

from cuda_kernels.kernel import Bug, Kernel

HEADER = "csrc/cuda/window16_bwd.h"
COMMON = "csrc/cuda/one_pass_bwd.h"
SIZES = "csrc/cuda/window16.h"
KEYS = "csrc/cuda/window16_keys.h"
QUERIES = "csrc/cuda/window16_queries.h"

INSTANCES = """
template __global__ void window16_bwd<BFloat16, false>(const Window16BwdParams);
template __global__ void window16_bwd<BFloat16, true>(const Window16BwdParams);
template __global__ void window16_bwd<Half16, false>(const Window16BwdParams);
template __global__ void window16_bwd<Half16, true>(const Window16BwdParams);
"""

BUGS = {
    "a dense bias is taken for a relative one": Bug("problem.bias_form != BiasForm::kDense &&", "", COMMON),
    "any shared memory suffices": Bug("&& shared_memory >= Window::kSharedBytes", "", COMMON),
    "a window of another width is taken": Bug("&& problem.window_size[1] == Window::kSide", "", COMMON),
    "owners share a window": Bug("parts.owners - first);", "parts.owners - first) + 1;", COMMON),
    "heads are those of the block before": Bug(
        "head(static_cast<int>(blockIdx.x) % problem.nH)", "head(static_cast<int>(blockIdx.x) / problem.nH)", COMMON
    ),
    "gradients with both norms": Bug(
        "const float share = reciprocal_approx(left[i]);", "const float share = 1.0f;", COMMON
    ),
    "dlogit_scale of one warp": Bug("kAtSums, scales, 4)", "kAtSums, 1, 4)", COMMON),
    "dpad_value of one warp": Bug("4 * thread, pads,", "4 * thread, 1,", COMMON),
    "parts of dpad_value exchanged": Bug(
        "kAtPadSums + 4 * thread,", "kAtPadSums + 4 * (thread ^ Window::kHd),", COMMON
    ),
    "sums of dbias begin with anything": Bug("8 * i, Float2{0.0f, 0.0f});", "8 * i, Float2{1.0f, 0.0f});"),
    "a bias in base 2 is not finite": Bug("limited(load_global<float>(bias))", "load_global<float>(bias)"),
    "the bias of another head": Bug("(int64_t{work.head} * kReach", "(int64_t{0} * kReach"),
    "rows are not waited for": Bug("  queries.receive(stage);\n  sync_threads();\n", "  queries.receive(stage);\n"),
    "no barrier between sums and weights": Bug(
        "      sync_threads();\n      if (i > 0 || step > 1)", "      if (i > 0 || step > 1)"
    ),
    "halves of dq before they are there": Bug("queries.multiply(true);\n  sync_threads();", "queries.multiply(true);"),
    "dq of the last step but one is left too early": Bug(
        "  sync_threads();\n  queries.leave(1 - stage, kSteps - 2);", "  queries.leave(1 - stage, kSteps - 2);"
    ),
    "dq is left with the window behind": Bug("queries.leave(step > 1 ? stage : 1 - stage,", "queries.leave(stage,"),
    "dq with the keys of the window behind": Bug("queries.multiply(step == 0);", "queries.multiply(false);"),
    "rows are overwritten while dq is left": Bug("if (step == 2 && goes_on)", "if (step == 1 && goes_on)"),
    "one stage for two windows": Bug("queries.fetch(b, place, 1 - stage);", "queries.fetch(b, place, stage);"),
    "rows of the same window again": Bug("b += p.all.advance(&place);\n", "\n"),
    "rows are received too late": Bug("step == kSteps - 2 && goes_on", "step == kSteps - 1 && goes_on"),
    "sums of warps before all have left theirs": Bug(
        "  queries.leave_part();\n  sync_threads();", "  sync_threads();\n  queries.leave_part();"
    ),
    "dbias of one of two entries": Bug("of_lane < 64; ++of_lane", "of_lane < 64; of_lane += 2"),
    "dbias of every second row": Bug("rows = -1; rows <= 1; ++rows", "rows = 0; rows <= 0; ++rows"),
    "columns of dbias exchanged": Bug("columns / 8 + 1) * 256", "1 - columns / 8) * 256"),
    "entries of keys for those of queries": Bug(
        "(query_tile - key_tile + 1) * 3 + of_queries", "(key_tile - query_tile + 1) * 3 + of_queries", SIZES
    ),
    "eight keys behind take the bias of those before": Bug("of_queries - of_keys + 1;", "of_queries + 1;", SIZES),
    "columns apart by the other token": Bug("2 * (lane & 3) - (lane >> 2)", "(lane >> 2) - 2 * (lane & 3)", SIZES),
    "channels of two rows in one place": Bug("(piece ^ (row & 3) * 2) * 16", "(piece ^ (row & 3)) * 8", SIZES),
    "k and v exchanged": Bug(
        "to, pixel, of_qkv, k, lane & 3, p.aligned);", "to, pixel, of_qkv, v, lane & 3, p.aligned);", SIZES
    ),
    "grad_out with the strides of qkv": Bug("pixel, dout.offset(pixel), dout,", "pixel, of_qkv, dout,", SIZES),
    "rows of padding are the image's first": Bug("pixel.y = kPadding;", "pixel = {0, 0};", SIZES),
    "columns of the second half": Bug("column = i % 2 * 8 + quad,", "column = quad,", SIZES),
    "a border forgotten": Bug("borders(stage), border ? 1 : 0)", "borders(stage), 0)", SIZES),
    "regions of the row above": Bug("p.all.region(place, row, column)", "p.all.region(place, 0, column)", SIZES),
    "a wait that is too weak": Bug("copy_async_wait<0>();", "copy_async_wait<1>();", COMMON),
    "norms of keys are those of queries": Bug("kWhole, key);", "kWhole, query);", COMMON),
    "v of the other tile": Bug("{values(own + 16), lane}", "{values(own), lane}", KEYS),
    "half of the channels twice": Bug(
        "others.b[channels][2], others.b[channels][3]", "others.b[0][2], others.b[0][3]", KEYS
    ),
    "the bias of another warp's keys": Bug("4 * ((2 * (step - warp) +", "4 * ((2 * step +", KEYS),
    "scores without the norms of keys": Bug(
        "if (kCosine) of_key[i / 2][i % 2] *=", "if (false) of_key[i / 2][i % 2] *=", KEYS
    ),
    "scores without the norms of queries": Bug(
        "second = second * (kCosine ? of_key[m][half] * of_queries.y : of_key[m][half])",
        "second = second * of_key[m][half]",
        KEYS,
    ),
    "no mask": Bug("if (border) mask(step);", "", KEYS),
    "regions of the neighbour": Bug("if (two >> 16 != region)", "if ((two & 0xffffu) != region)", KEYS),
    "regions of the step before": Bug("2 * (step * kRows + 4 * c + pair)", "2 * (4 * c + pair)", KEYS),
    "sums of half of the lanes": Bug("for (int level = 2; level >= 0;", "for (int level = 2; level >= 1;", KEYS),
    "sums of queries exchanged": Bug("low = (upper ? high : low)", "low = (upper ? low : high)", KEYS),
    "sums of two steps in one place": Bug("((step & 1) * Window16::kWarps + of_warp)", "of_warp", KEYS),
    "delta of other channels": Bug(
        "queries(stage, step * kRows) + Tile::kSecond, r);", "queries(stage, step * kRows), r);", KEYS
    ),
    "sums of seven warps": Bug(
        "for (int of_warp = 0; of_warp < Window16::kWarps; ++of_warp) {\n      const auto two",
        "for (int of_warp = 0; of_warp < Window16::kWarps - 1; ++of_warp) {\n      const auto two",
        KEYS,
    ),
    "shares are read before they are there": Bug("all.y * share});\n    sync_warp();", "all.y * share});", KEYS),
    "small sums are taken for exact": Bug("all.x >= kLeast && all.x <= kMost", "all.x <= kMost", KEYS),
    "large sums are taken for exact": Bug("all.x >= kLeast && all.x <= kMost", "all.x >= kLeast", KEYS),
    "a row wholly -inf is NaN": Bug("if (of_all == -INFINITY) of_all = 0.0f;", "", KEYS),
    "the largest score of four lanes": Bug(
        "for (int mask = 4; mask < 32; mask *= 2) top", "for (int mask = 4; mask < 16; mask *= 2) top", KEYS
    ),
    "the largest score of own keys": Bug(
        "fmaxf(of_all, load_shared<float>(shares(of_warp)", "fmaxf(of_all, load_shared<float>(shares(warp)", KEYS
    ),
    "tops are read before all have left theirs": Bug("    sync_threads();\n    float of_all", "    float of_all", KEYS),
    "tops over one another": Bug(
        "char* const tops = shares(warp) + kRows * 4;", "char* const tops = shares(warp);", KEYS
    ),
    "tops before they are there": Bug(
        "store_shared(tops + 4 * lane, of_all);\n    sync_warp();", "store_shared(tops + 4 * lane, of_all);", KEYS
    ),
    "exact sums before all have left theirs": Bug(
        "    leave_sums(step);\n    sync_threads();", "    leave_sums(step);", KEYS
    ),
    "a dead row takes NaN from v": Bug("of_query(dp, i / 2, i % 2, c) = 0.0f;", ";", KEYS),
    "a dead row has an infinite share": Bug(
        "all.x == 0.0f ? 0.0f : reciprocal_approx(all.x)", "reciprocal_approx(all.x)", KEYS
    ),
    "dbias of the next warp": Bug(
        "(step - warp + Window16::kWarps - 1) * Window16::kPairs", "(step + warp) * Window16::kPairs", KEYS
    ),
    "dbias of the last window": Bug("to_bias[i][0] = two.x;", "to_bias[i][0] = 0.0f;", KEYS),
    "delta of the other query": Bug("share[j].y),", "share[j].w),", KEYS),
    "P with the sum of the other query": Bug("2 * half + 1] * share[j].z};", "2 * half + 1] * share[j].x};", KEYS),
    "dS without the norms of q": Bug("gradient[0] *= of_key * of_queries.x;", "gradient[0] *= of_key;", KEYS),
    "dS without the norms of k": Bug("gradient[1] *= of_key * of_queries.y;", "gradient[1] *= of_queries.y;", KEYS),
    "dS of two steps in one place": Bug(
        "kAtWeights + (step & 1) * Tile::kSecond + Tile::sixteen(own)", "kAtWeights + Tile::sixteen(own)", KEYS
    ),
    "dS of the other queries": Bug("2 * r + (lane >> 4)), ds[m]);", "2 * r + 1 - (lane >> 4)), ds[m]);", KEYS),
    "dv from q": Bug(
        "rows + Tile::sixteen(16 * r) + Tile::kSecond, lane);", "rows + Tile::sixteen(16 * r), lane);", KEYS
    ),
    "dk from P": Bug("add_tiles_times<T, kHd>(dk, ds,", "add_tiles_times<T, kHd>(dk, weight,", KEYS),
    "dk without the scale": Bug("scale_rows<kHd>(dk[m], factor);", "", KEYS),
    "padding of one row of two": Bug(
        "padding[2] = {place[0] < 0, place[1] < 0};", "padding[2] = {place[0] < 0, false};", KEYS
    ),
    "a tile is overwritten while it is read": Bug("    sync_warp();  // what was there has been read\n", "", KEYS),
    "dk and dv exchanged": Bug(
        "kWhich * p.problem.nH * kHd + (lane & 3) * 8;", "(3 - kWhich) * p.problem.nH * kHd + (lane & 3) * 8;", KEYS
    ),
    "padding is written": Bug("if (place[i] < 0) continue;", "", KEYS),
    "dS not transposed": Bug("ldmatrix_x4_trans(a, memory", "ldmatrix_x4(a, memory", QUERIES),
    "half of the keys twice": Bug("kAtKeys + Tile::sixteen(of_keys * kKeys)", "kAtKeys", QUERIES),
    "every second product is lost": Bug("first[e + 1] + second[e + 1]", "first[e + 1]", QUERIES),
    "halves of two steps in one place": Bug("    to_half ^= 2 * Window16::kHalf;\n", "", QUERIES),
    "dq of one half": Bug("memory + from_halves + Window16::kHalf)", "memory + from_halves)", QUERIES),
    "rows of q of the other tile": Bug("queries(stage, query & ~15)", "queries(stage, query & ~31)", QUERIES),
    "radial of four lanes": Bug("for (int mask = 1; mask < 8;", "for (int mask = 1; mask < 4;", QUERIES),
    "a row below the clamp is projected": Bug(
        "whole < 1.0f / kNormFloor ? radial * left : 0.0f", "radial * left", QUERIES
    ),
    "queries of padding are written": Bug("if (place < 0) return;", "", QUERIES),
    "dlogit_scale of eight lanes": Bug("kCosine && mask < 32;", "kCosine && mask < 16;", QUERIES),
}

#: Only sm_90 and sm_100 have the shared memory.
KERNEL = Kernel(
    HEADER,
    INSTANCES,
    BUGS,
    for_each_product={"window16_bwd<BFloat16, false>": 8.67, "window16_bwd<BFloat16, true>": 10.24},
)
