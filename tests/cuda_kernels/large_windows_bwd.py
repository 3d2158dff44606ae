# SPDX-License-Identifier: Apache-2.0
"""The backward of windows of up to 1024 tokens, at the head dimensions that the small one leaves."""

from cuda_kernels.kernel import Bug, Kernel

HEADER = "csrc/cuda/large_windows_bwd.h"
CUT = "csrc/cuda/large_bwd_cut.h"
TILES = "csrc/cuda/row_tiles.h"

INSTANCES = "".join(
    f"template __global__ void large_{side}_bwd<{element}, {hd}, {cosine}>(const LargeBwdParams);\n"
    for hd in (16, 32, 64, 96, 128)
    for element, cosine in (("BFloat16", "false"), ("BFloat16", "true"), ("Half16", "true"))
    for side in ("queries", "keys")
)

BUGS = {
    # Rows in shared memory
    "the swizzle is lost": Bug("(piece ^ (row / (8 / kGroup) & (kGroup - 1))) * 16", "piece * 16", TILES),
    "the swizzle of another head_dim": Bug(
        "kPieces % 8 == 0 ? 8 : kPieces % 4 == 0 ? 4 : 2", "kPieces % 8 == 0 ? 8 : 4", TILES
    ),
    "rows of the second tensor are those of the first": Bug("kSecond = 16 * kRowBytes;", "kSecond = 0;", TILES),
    "a side not transposed": Bug("ldmatrix_x4_trans(b", "ldmatrix_x4(b", TILES),
    "padding has no value": Bug("which > 0 && problem.pad_value != nullptr", "false", TILES),
    "padding of v is that of k": Bug(
        "(which * problem.nH + head) * problem.hd", "(problem.nH + head) * problem.hd", TILES
    ),
    "grad_out of the first image": Bug("b * problem.grad_out_stride[0]", "0 * problem.grad_out_stride[0]", TILES),
    "results of padding are stored": Bug("if (pixel.y < 0) continue;", "if (pixel.y < -1) continue;", TILES),
    "rows are stored before they are put": Bug("      }\n    }\n    sync_warp();\n  }", "      }\n    }\n  }", TILES),
    "weights of the upper rows twice": Bug(
        "pack<T>(weights[0][2], weights[0][3])", "pack<T>(weights[0][0], weights[0][1])", TILES
    ),
    "the part along the row stays": Bug("pair[0] - own.x * along[i & 1]", "pair[0]", TILES),
    "a clamped norm is projected": Bug(
        "whole[i] < 1.0f / kNormFloor ? radial[i] * inverse[i] : 0.0f", "radial[i] * inverse[i]", TILES
    ),
    "radial of two lanes": Bug("      radial[i] += shuffle_xor(radial[i], 2);\n", "", TILES),
    "pad_value of some quads": Bug(
        "for (int mask = 4; mask < 32; mask *= 2) found", "for (int mask = 4; mask < 16; mask *= 2) found", TILES
    ),
    "norms of half of the rows": Bug("row_ < rows_of_chunk(chunk); row_", "row_ < rows_of_chunk(chunk) / 2; row_"),
    # Both kernels
    "owners share a window": Bug(
        "last((owner + 1) * params.all.of_all / cut.owners)", "last((owner + 1) * params.all.of_all / cut.owners + 1)"
    ),
    "term of the bias transposed": Bug("of_key ? (dense ? along : -along)", "!of_key ? (dense ? along : -along)"),
    "rows behind the last one read the bias": Bug("token = token < tokens ? token : tokens - 1;", "token += 0;"),
    "tokens that do not exist are padding": Bug("if (token >= tokens) pixel.y = kNoToken;", ""),
    "differences of products": Bug(
        "exp2_approx((score - other) * kLog2E)",
        "exp2_approx(fmaf(score, kLog2E, -(other * kLog2E)))",
        "csrc/cuda/windows.h",
    ),
    "no mask": Bug("s[e] += block.p.problem.mask_value;", "s[e] += 0;"),
    "regions of the neighbour": Bug("? two >> 16 : two & 0xffffu", "? two & 0xffffu : two >> 16"),
    "regions of another row": Bug(
        "const int own = block.row + (block.lane >> 2) + 8 * (e >> 1);",
        "const int own = block.row + (block.lane >> 2);",
    ),
    "a chunk is used before all see it": Bug(
        "share_chunk(int chunk, int slot) const {\n    sync_threads();\n", "share_chunk(int chunk, int slot) const {\n"
    ),
    "norms are used before all see them": Bug(
        "norms(slot) + 4 * row_, lane);\n    }\n    sync_threads();", "norms(slot) + 4 * row_, lane);\n    }\n"
    ),
    "no shared memory is too much": Bug("rows, 2) > shared_memory) {", "rows, 2) > 2 * shared_memory) {", CUT),
    # Owners of queries
    "keys that do not exist take part": Bug("s[j][e] = -INFINITY;", "s[j][e] = 0.0f;"),
    "the sum is not corrected": Bug("            sum[i] *= shrunk;\n", ""),
    "delta is not corrected": Bug("            delta[i] *= shrunk;\n            SWIN", "            SWIN"),
    "largest score of two lanes": Bug("finite_top(fmaxf(largest, shuffle_xor(largest, 2)))", "finite_top(largest)"),
    "sum of two lanes": Bug("for (int mask = 1; mask < 4; mask *= 2) {", "for (int mask = 1; mask < 2; mask *= 2) {"),
    "a row wholly -inf is NaN": Bug("query < tokens && sum[i] != 0.0f ? reciprocal", "query < tokens ? reciprocal"),
    "queries that do not exist weigh": Bug("query < tokens && sum[i]", "sum[i]"),
    "a dead row takes NaN from v": Bug(
        "share[e >> 1] != 0.0f ? weight * (dp[j][e] - delta[e >> 1]) : 0.0f", "weight * (dp[j][e] - delta[e >> 1])"
    ),
    "dbias of the last window": Bug("Float4{before.x + s[j][0],", "Float4{s[j][0],"),
    "dbias with the norm of the key": Bug(
        "- pair + 8 * j) * 64;\n", "- pair + 8 * j) * 64;\n            s[j][0] *= norms[j].x;\n"
    ),
    "dbias of the wrong row": Bug(
        "const int row = block.row + (lane >> 2) + 8 * (e >> 1), column",
        "const int row = block.row + (lane >> 2) + 4 * (e >> 1), column",
    ),
    "dS without norms": Bug("s[j][e] *= (e & 1) != 0 ? norms[j].y : norms[j].x;", "s[j][e] *= 1.0f;"),
    "statistics of one row of two": Bug("store_global(to + p.rows, share[i]);", "store_global(to + p.rows, share[0]);"),
    "dlogit_scale of one warp": Bug(
        "for (int warp = 1; warp < block.cut.warps; ++warp) {\n      dlogit",
        "for (int warp = 1; warp < 1; ++warp) {\n      dlogit",
    ),
    "a wait that is too weak": Bug(
        "        copy_async_wait<0>();\n      }\n      if (!again",
        "        copy_async_wait<1>();\n      }\n      if (!again",
    ),
    "the next chunk overwrites this": Bug(
        "      if (!resident) sync_threads();  // the chunk may be overwritten\n", ""
    ),
    # Owners of keys
    "a dead query gives keys NaN": Bug("dp[j][e] = alive ? ds : 0.0f;", "dp[j][e] = ds;"),
    "delta of the neighbour": Bug("(odd ? delta.y : delta.x)", "(odd ? delta.x : delta.y)"),
    "the queries are overwritten": Bug(
        "lane);\n      }\n      sync_threads();  // the chunk may be overwritten\n", "lane);\n      }\n"
    ),
    "statistics of the first image": Bug(
        "p.statistics + block.statistics_of(window) + chunk", "p.statistics + block.statistics_of(0) + chunk"
    ),
    "padding of one row of two": Bug("load_shared<Pixel>(block.pixels(key + 8)).y == kPadding", "false"),
    "dpad_value of one warp": Bug(
        "for (int warp = 0; warp < block.cut.warps; ++warp) {\n      sum",
        "for (int warp = 0; warp < 1; ++warp) {\n      sum",
    ),
}

#: Spilled: owners of keys at head_dim 128 with cosine attention, of whose 255 registers dk and dv take 128.
KERNEL = Kernel(
    HEADER, INSTANCES, BUGS, known_spills={"sm_80": 48, "sm_86": 16, "sm_89": 16, "sm_100": 16, "sm_120": 16}
)
