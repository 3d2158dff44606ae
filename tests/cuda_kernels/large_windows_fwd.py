# SPDX-License-Identifier: Apache-2.0
"""The forward of windows of up to 1,024 tokens at head dimensions 16, 32, 64, 96 and 128."""

from cuda_kernels.kernel import Bug, Kernel

HEADER = "csrc/cuda/large_windows_fwd.h"
SQUARE = "csrc/cuda/square_windows_fwd.h"
STREAM = "csrc/cuda/stream_windows_fwd.h"
ROWS = "csrc/cuda/large_fwd_rows.h"
TILES = "csrc/cuda/query_tiles.h"
BIAS = "csrc/cuda/bias_fragments.h"

INSTANCES = """
template __global__ void arrange_bias<256>(const ArrangeParams);
template __global__ void square_windows_fwd<BFloat16, 12, false, true, true>(const LargeFwdParams);
template __global__ void square_windows_fwd<Half16, 12, true, true, true>(const LargeFwdParams);
template __global__ void square_windows_fwd<Half16, 12, false, true, false>(const LargeFwdParams);
template __global__ void square_windows_fwd<BFloat16, 12, true, false, false>(const LargeFwdParams);
template __global__ void square_windows_fwd<BFloat16, 16, false, true, true>(const LargeFwdParams);
template __global__ void square_windows_fwd<Half16, 16, true, true, true>(const LargeFwdParams);
template __global__ void square_windows_fwd<Half16, 16, true, false, false>(const LargeFwdParams);
template __global__ void stream_windows_fwd<BFloat16, 16, true, false>(const LargeFwdParams);
template __global__ void stream_windows_fwd<BFloat16, 32, false, true>(const LargeFwdParams);
template __global__ void stream_windows_fwd<Half16, 32, true, false>(const LargeFwdParams);
template __global__ void stream_windows_fwd<BFloat16, 64, true, false>(const LargeFwdParams);
template __global__ void stream_windows_fwd<Half16, 96, true, false>(const LargeFwdParams);
template __global__ void stream_windows_fwd<BFloat16, 128, true, false>(const LargeFwdParams);
"""

BUGS = {
    "the bias is read before it is there": Bug(
        "        store_shared(resident + i, load_global<Float4>(fragments + i));\n      }\n      sync_threads();",
        "        store_shared(resident + i, load_global<Float4>(fragments + i));\n      }",
        SQUARE,
    ),
    "the bias is replaced while it is read": Bug(
        "    if (kCompact && new_head) {\n      sync_threads();", "    if (kCompact && new_head) {", SQUARE
    ),
    "the bias of the first head for all": Bug(
        "new_head = load_shared<int32_t>(table + kOfHead) == 0;", "new_head = false;", SQUARE
    ),
    "a wait that is too weak": Bug(
        "copy_async_wait<Sizes::kBlocks - 1>();\n", "copy_async_wait<Sizes::kBlocks>();\n", SQUARE
    ),
    "rows read before other warps' copies are seen": Bug(
        "copy_async_wait<Sizes::kBlocks - 1>();\n          sync_team();",
        "copy_async_wait<Sizes::kBlocks - 1>();",
        SQUARE,
    ),
    "a team that does not wait for each other": Bug(
        "    if (p.team == 1) {\n      sync_warp();", "    if (p.team >= 1) {\n      sync_warp();", SQUARE
    ),
    "the next rows overwrite those being read": Bug(
        "          sync_team();  // all have read this block of keys\n", "", SQUARE
    ),
    "the next table overwrites the one being read": Bug(
        "        sync_warp();  // the results of the window before have been stored\n", "", SQUARE
    ),
    "groups of copies are not counted": Bug(
        "if (is_first || is_last) copy_async_commit();", "if (is_last) copy_async_commit();", SQUARE
    ),
    "it ends with copies on their way": Bug("left > 0 && window", "left >= 0 && window", SQUARE),
    "a window is left out": Bug(
        "int64_t{of_head} * p.windows + slot;", "int64_t{of_head} * p.windows + slot + (of_head > 0);", SQUARE
    ),
    "windows behind the last": Bug("left > 0 && window < p.all.of_all;", "left > 0 && window <= p.all.of_all;", SQUARE),
    "padding that is not told": Bug("(any_padded ? kPadded : 0)", "0", SQUARE),
    "norms of the first block of keys for all": Bug(
        "rows.invert_norms(k_rows, norms + key * 4);", "rows.invert_norms(k_rows, norms);", SQUARE
    ),
    "a panel too far": Bug("return (apart + kRowTiles / kPanel - 1)", "return (apart + kRowTiles / kPanel)", SQUARE),
    "panels mirrored": Bug("block * (kKeyTiles / (2 * kPanel));", "-block * (kKeyTiles / (2 * kPanel));", SQUARE),
    "all fragments in the order of the few": Bug(
        "if (!kCompact) return r * 2 * kRowTiles + j;", "if (!kCompact) return r * 2 * kPanel + j;", SQUARE
    ),
    "the next block overwrites the one before": Bug(
        "        sync_threads();  // this block has landed, and all have read the one before\n", "", STREAM
    ),
    "the first block is not fetched again": Bug("round + p.warps < groups", "round + 2 * p.warps < groups", STREAM),
    "the next window's table too early": Bug(
        "    sync_threads();  // before the next window's table and rows\n", "", STREAM
    ),
    "rows are not yet there": Bug("        copy_async_wait<0>();\n", "        copy_async_wait<1>();\n", STREAM),
    "bias of the next row tile": Bug(
        "int64_t{group * Sizes::kTiles} * p.bias.key_tiles",
        "int64_t{group * Sizes::kTiles + 1} * p.bias.key_tiles",
        STREAM,
    ),
    "regions of the first keys": Bug("regions + block * Sizes::kKeys * 2,", "regions,", STREAM),
    "every image is the first": Bug(
        "2 * (b * problem.qkv_stride[0] + head", "2 * (0 * problem.qkv_stride[0] + head", ROWS
    ),
    "rows of v behind the window": Bug("valid && exists);", "valid);", ROWS),
    "keys behind the window are zeros": Bug(
        "fetch_chunk<kAligned>(k, reinterpret_cast<const uint16_t*>(from), valid);",
        "fetch_chunk<kAligned>(k, reinterpret_cast<const uint16_t*>(from), valid && exists);",
        ROWS,
    ),
    "padding has no value": Bug("valid = p.problem.pad_value != nullptr;", "valid = false;", ROWS),
    "padding of v is that of k": Bug("int64_t{2} * p.problem.nH * p.problem.hd : 0;", "0 : 0;", ROWS),
    "results of padding are stored": Bug("if (at.y >= 0 && (kHd != 16", "if ((kHd != 16", ROWS),
    "half a slab too much": Bug("if (kHd == 16 && (lane & 3) >= Rows::kChunks) return {0, 0, 0, 0};", "", TILES),
    "chunks are not turned": Bug("(chunk ^ turn) * 16", "(chunk ^ 0 * turn) * 16", TILES),
    "elements of a and b in different order": Bug(
        "q[tile][slab][0][half + 2] = chunk.y;\n    q[tile][slab][1][half] = chunk.z;",
        "q[tile][slab][0][half + 2] = chunk.z;\n    q[tile][slab][1][half] = chunk.y;",
        TILES,
    ),
    "sums are not shrunk": Bug("        sum[r][2 * i] *= shrunk;\n", "", TILES),
    "results are not shrunk": Bug("          o[r][c][2 * i + 1] *= shrunk;\n", "", TILES),
    "the top of one lane": Bug("largest[r][i] = fmaxf(largest[r][i], shuffle_xor(largest[r][i], 2));", "", TILES),
    "the top is never raised again": Bug(
        "largest[r][0] > top[r][0] + kLag", "(top[r][0] == -FLT_MAX && largest[r][0] > top[r][0] + kLag)", TILES
    ),
    "some lanes raise the top": Bug("if (any_lane(grown)) raise(largest);", "if (grown) raise(largest);", TILES),
    "the sum of the upper rows for all": Bug("reciprocal_approx(sum[r][2 * i])", "reciprocal_approx(sum[r][0])", TILES),
    "sums of a step too few": Bug(
        "mma_m16n8k16<T>(sum[r], weights[r], ones[0], ones[1]);",
        "mma_m16n8k16<T>(sum[r], weights[r], ones[0], 0);",
        TILES,
    ),
    "a row wholly -inf is NaN": Bug("sum[r][2 * i] == 0.0f ? 0.0f : ", "", TILES),
    "no mask": Bug("score[e] += mask;", ";", TILES),
    "regions of the neighbour": Bug("(regions >> 16 * (e & 1) & 0xffff)", "(regions >> 16 * (~e & 1) & 0xffff)", TILES),
    "probabilities of the upper rows twice": Bug("pack<T>(w[2], w[3]);", "pack<T>(w[0], w[1]);", TILES),
    "norm of the neighbour": Bug("of_key[1] = two.y;", "of_key[1] = two.x;", TILES),
    "norms are read before they are there": Bug(
        "store_shared(key_norms + (j * 8 + (lane >> 2)) * 4, inverse);\n    }\n    sync_warp();",
        "store_shared(key_norms + (j * 8 + (lane >> 2)) * 4, inverse);\n    }",
        TILES,
    ),
    "the result is read before it is written": Bug(
        "    sync_warp();\n    SWIN_FAST_UNROLL\n    for (int i = 0; i < 2; ++i) {\n      rows[i]",
        "    SWIN_FAST_UNROLL\n    for (int i = 0; i < 2; ++i) {\n      rows[i]",
        TILES,
    ),
    "the result is overwritten while it is read": Bug(
        "    sync_warp();  // the results before have been read\n", "", TILES
    ),
    "keys behind the window take part": Bug("key < tokens ? 0.0f : -INFINITY", "0.0f", BIAS),
    "bias of the wrong row": Bug("lane / 4 + (e >> 1) * 8", "lane / 4 + (e >> 1) * 4", BIAS),
    "panels apart the other way": Bug("(apart > 0 ? apart : 0) * panel", "(apart < 0 ? -apart : 0) * panel", BIAS),
    "no bias, but room for one of each head": Bug(
        "(heads == 1 ? 0 : int64_t{head}", "(heads == 0 ? 0 : int64_t{head}", BIAS
    ),
}

#: Spilled: one to four registers of the instances of 144 tokens with all fragments of a dense bias, for which ptxas
#: keeps 18 loads of 16 bytes on their way at a time.
KERNEL = Kernel(HEADER, INSTANCES, BUGS, known_spills={"sm_80": 16, "sm_86": 16, "sm_89": 16, "sm_120": 8})
