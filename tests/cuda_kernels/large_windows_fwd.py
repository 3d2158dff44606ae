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
template __global__ void arrange_bias<256>(const ArrangeParams);  // no products
template __global__ void square_windows_fwd<BFloat16, 12, false, true, true>(const LargeFwdParams);
template __global__ void square_windows_fwd<Half16, 12, true, true, true>(const LargeFwdParams);
template __global__ void square_windows_fwd<Half16, 12, false, true, false>(const LargeFwdParams);
template __global__ void square_windows_fwd<BFloat16, 12, true, false, false>(const LargeFwdParams);  // no copies
template __global__ void square_windows_fwd<BFloat16, 16, false, true, true>(const LargeFwdParams);
template __global__ void square_windows_fwd<Half16, 16, true, true, true>(const LargeFwdParams);
template __global__ void square_windows_fwd<Half16, 16, true, false, false>(const LargeFwdParams);  // no copies
template __global__ void stream_windows_fwd<BFloat16, 16, true, false>(const LargeFwdParams);  // no copies
template __global__ void stream_windows_fwd<BFloat16, 32, false, true>(const LargeFwdParams);
template __global__ void stream_windows_fwd<Half16, 32, true, false>(const LargeFwdParams);  // no copies
template __global__ void stream_windows_fwd<BFloat16, 64, true, false>(const LargeFwdParams);  // no copies
template __global__ void stream_windows_fwd<Half16, 96, true, false>(const LargeFwdParams);  // no copies
template __global__ void stream_windows_fwd<BFloat16, 128, true, false>(const LargeFwdParams);  // no copies
"""

BUGS = {
    "the bias is read before it is there": Bug(
        "    copy_async_wait<0>();\n    sync_threads();\n", "    copy_async_wait<0>();\n", SQUARE
    ),
    "the bias is replaced while it is read": Bug("      sync_threads();  // all have read the bias\n", "", SQUARE),
    "the bias of the first head for all": Bug("      fetch_bias(now ^ 1);\n", "", SQUARE),
    "a wait that is too weak": Bug(
        "    copy_async_wait<Sizes::kBlocks - 2>();\n    if (kCosine && exists) invert_norms(0);",
        "    copy_async_wait<Sizes::kBlocks - 1>();\n    if (kCosine && exists) invert_norms(0);",
        SQUARE,
    ),
    "a wait that is too weak, in the window": Bug(
        "copy_async_wait<Sizes::kBlocks - 2>();\n        if",
        "copy_async_wait<Sizes::kBlocks - 1>();\n        if",
        SQUARE,
    ),
    "rows read before other warps' copies are seen": Bug(
        "        sync();  // this block has landed, and all have read the one before\n", "", SQUARE
    ),
    "the last block overwrites the one being read": Bug(
        "    sync();  // the first block and the queries have landed, and all have read the last block of the window "
        "before\n",
        "    sync_warp();\n",
        SQUARE,
    ),
    "a team that does not wait for each other": Bug("sync_team(slot, 32 * Sizes::kTeam);", "sync_warp();", SQUARE),
    "a team waits for another": Bug("sync_team(slot,", "sync_team(slot == 0,", SQUARE),
    "the next window in the place of this one": Bug(
        "left_of(now) - 1, !was_last, now ^ 1);", "left_of(now) - 1, !was_last, now);", SQUARE
    ),
    "queries overwrite those being read": Bug(
        "    sync_warp();\n  };\n  const auto head_of", "  };\n  const auto head_of", SQUARE
    ),
    "groups of copies are not counted": Bug(
        "        fetch_block(now ^ 1, block - 1);\n        copy_async_commit();\n",
        "        fetch_block(now ^ 1, block - 1);\n",
        SQUARE,
    ),
    "it ends with copies on their way": Bug("left > 0 && at.b < problem.B;", "at.b < problem.B;", SQUARE),
    "a window comes twice": Bug("same_image = !p.all.advance(&at);", "same_image = true;", SQUARE),
    "rows of the image before": Bug(
        "same_image = !p.all.advance(&at);", "p.all.advance(&at), same_image = true;", SQUARE
    ),
    "windows behind the last": Bug("left > 0 && at.b < problem.B;", "left > 0 && at.b <= problem.B;", SQUARE),
    "padding that is not told": Bug("flags |= kPadded;", "flags |= 0;", SQUARE),
    "every window is whole": Bug("if (exists && p.all.is_whole(at)) {", "if (exists) {", SQUARE),
    "a corner without the roll": Bug("at.x * kWindow + static_cast<int32_t>(p.all.x.roll)", "at.x * kWindow", SQUARE),
    "norms of the first keys for all": Bug("norms + tile * 64, row_regions", "norms, row_regions", SQUARE),
    "a panel too far": Bug("return (apart + kRowTiles / kPanel - 1)", "return (apart + kRowTiles / kPanel)", SQUARE),
    "panels mirrored": Bug(
        "const int apart = member * (kTiles / kPanel) -", "const int apart = -member * (kTiles / kPanel) -", SQUARE
    ),
    "all fragments in the order of the few": Bug(
        "if (!kCompact) return r * 2 * kRowTiles +", "if (!kCompact) return r * 2 * kPanel +", SQUARE
    ),
    "rows out of range stay so": Bug(
        "if (!kOnline && any_lane(!rows.sums_in_range())) {", "if (!kOnline && false) {", SQUARE
    ),
    "some lanes compute once more": Bug("any_lane(!rows.sums_in_range())", "!rows.sums_in_range()", SQUARE),
    "once more, upon the sums before": Bug(
        "        begin_rows();\n        SWIN_FAST_NO_UNROLL", "        SWIN_FAST_NO_UNROLL", SQUARE
    ),
    "rows overwritten once more while they are read": Bug(
        "          sync_warp();  // what lay there has been read\n", "", SQUARE
    ),
    "the last rows overwritten while they are read": Bug(
        "        sync_warp();  // the last rows have been read\n", "", SQUARE
    ),
    "the next queries do not come again": Bug(
        "        fetch_queries(now ^ 1);\n        copy_async_commit();\n        copy_async_wait<0>();\n", "", SQUARE
    ),
    "large sums are good": Bug(" && sum[r][2 * i] <= kMost;", ";", TILES),
    "small sums are good": Bug("sum[r][2 * i] >= 1.0f / kMost &&", "sum[r][2 * i] > 0.0f &&", TILES),
    "the right half of queries twice": Bug(
        "Rows::at(lane & 15, 2 * i + (lane >> 4))", "Rows::at(lane & 15, 2 + (lane >> 4))", TILES
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
    "rows of v behind the window": Bug("from.valid && exists);", "from.valid);", ROWS),
    "keys behind the window are zeros": Bug(
        "fetch_chunk<kAligned>(k, reinterpret_cast<const uint16_t*>(from.k), from.valid);",
        "fetch_chunk<kAligned>(k, reinterpret_cast<const uint16_t*>(from.k), from.valid && exists);",
        ROWS,
    ),
    "padding has no value": Bug("valid = p.problem.pad_value != nullptr;", "valid = false;", ROWS),
    "padding of v is that of k": Bug("int64_t{2} * p.problem.nH * p.problem.hd : 0;", "0 : 0;", ROWS),
    "results of padding are stored": Bug("if ((!kPadded || at.y >= 0) && (kHd != 16", "if ((kHd != 16", ROWS),
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
    "a bias in base 2 is not finite": Bug("entry : limited(entry) * p.factor", "entry : entry * p.factor", BIAS),
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

#: Spilled: a few registers of the instances of square windows in float16, with cosine attention or with all fragments
#: of a dense bias; of those with a relative bias in bfloat16 none on sm_80 to sm_90.
KERNEL = Kernel(
    HEADER,
    INSTANCES,
    BUGS,
    known_spills={"sm_80": 72, "sm_86": 48, "sm_89": 48, "sm_90": 64, "sm_100": 208, "sm_120": 264},
    for_each_product={
        "square_windows_fwd<BFloat16, 12, false, true, true>": 4.23,
        "square_windows_fwd<BFloat16, 16, false, true, true>": 4.11,
    },
)
