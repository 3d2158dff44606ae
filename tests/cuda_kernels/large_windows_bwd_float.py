# SPDX-License-Identifier: Apache-2.0
"""The backward of windows of up to 1024 tokens in float32: what it has of its own, and of what it shares some."""

from cuda_kernels.kernel import Bug, Kernel

HEADER = "csrc/cuda/large_windows_bwd.h"
ROWS = "csrc/cuda/float_rows.h"
TILES = "csrc/cuda/row_tiles.h"
NORMS = "csrc/cuda/windows.h"
CUT = "csrc/cuda/large_bwd_cut.h"

INSTANCES = "".join(
    f"template __global__ void large_{side}_bwd<Float32, {hd}, {cosine}>(const LargeBwdParams);\n"
    for hd in (16, 32, 64, 96, 128)
    for cosine in ("false", "true")
    for side in ("queries", "keys")
)

BUGS = {
    "the lower part of a left side is lost": Bug("  mma_m16n8k8_tf32(d, a.lower, b0.upper, b1.upper);\n", "", ROWS),
    "the lower part of a right side is lost": Bug("  mma_m16n8k8_tf32(d, a.upper, b0.lower, b1.lower);\n", "", ROWS),
    "rows of weights in another order": Bug(
        "(i >> 1) * 8 + (lane & 3) * 2 + (i & 1)", "(i >> 1) * 8 + (lane & 3) + (i & 1) * 4", ROWS
    ),
    "large products of the first eight rows alone": Bug("  add_large(to, a[1], b[2], b[3]);\n", "", ROWS),
    "infinite scores are NaN": Bug("    if (is_finite(all)) return;\n", "    return;\n", ROWS),
    "channels of sums in another order": Bug("(2 * (lane & 3) + e) * kSlab", "((lane & 3) + 4 * e) * kSlab", ROWS),
    "the part along the row stays": Bug("(sums[c][2 * i + e] - own(i, c, e) * along)", "sums[c][2 * i + e]", ROWS),
    "a clamped norm is projected": Bug(
        "whole[i] < 1.0f / kNormFloor ? radial[i] * inverse[i] : 0.0f", "radial[i] * inverse[i]", ROWS
    ),
    "radial of two lanes": Bug("      radial[i] += shuffle_xor(radial[i], 2);\n", "", ROWS),
    "the norm of a part of a row": Bug("piece < Tile::kPieces / 4; ++piece", "piece < 1; ++piece", ROWS),
    "norms corrected the wrong way": Bug(
        "fmaf(-squares * inverse, inverse, 1.0f)", "fmaf(squares * inverse, inverse, 1.0f)", NORMS
    ),
    "norms of one side": Bug("(inverse * own_factor[e >> 1]) * block.factor", "inverse * block.factor"),
    "norms that are no numbers": Bug("!(0.0f < inverse && inverse < 1.0f / kNormFloor)", "!(0.0f < inverse)", NORMS),
    "rows are put while they are read": Bug(
        "    using Sums = FloatSums<kHd>;\n    sync_warp();\n", "    using Sums = FloatSums<kHd>;\n", ROWS
    ),
    "rows are stored before they are put": Bug("    }\n    sync_warp();\n  }\n};\n", "    }\n  }\n};\n", ROWS),
    "the upper rows in place of the lower": Bug("(lane >> 2) + 8 * lower, Sums", "(lane >> 2), Sums", ROWS),
    "strides of 16 bits": Bug("kWords * problem.qkv_stride[1], kWords", "problem.qkv_stride[1], kWords", TILES),
    "strides of grad_out of 16 bits": Bug(
        "kWords * problem.grad_out_stride[1], kWords", "problem.grad_out_stride[1], kWords", TILES
    ),
    "rows of 16 bits": Bug("kWords = kHd * kElementBytes<T> / 2;", "kWords = kHd;"),
    "room for rows of 16 bits": Bug(
        "row_bytes = element_bytes(problem.dtype) * problem.hd;", "row_bytes = 2 * problem.hd;", CUT
    ),
    "differences of products": Bug(
        "exp2_approx((score - other) * kLog2E)",
        "exp2_approx(fmaf(score, kLog2E, -(other * kLog2E)))",
        "csrc/cuda/windows.h",
    ),
    "delta of the neighbour": Bug("(odd ? delta.y : delta.x)", "(odd ? delta.x : delta.y)"),
    "a chunk is used before all see it": Bug(
        "share_chunk(int chunk, int slot) const {\n    sync_threads();\n", "share_chunk(int chunk, int slot) const {\n"
    ),
}

#: Spilled: owners of keys at head_dim 96 and 128, of whose 255 registers dk and dv take 96 and 128.
KERNEL = Kernel(
    HEADER,
    INSTANCES,
    BUGS,
    known_spills={"sm_80": 224, "sm_86": 232, "sm_89": 232, "sm_90": 240, "sm_100": 272, "sm_120": 352},
    for_each_product={
        "large_queries_bwd<Float32, 32, false>": 6.31,
        "large_keys_bwd<Float32, 32, false>": 5.88,
    },
    variant="_float",
)
