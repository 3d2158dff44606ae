# SPDX-License-Identifier: Apache-2.0
"""The backward of windows of 12 x 12 tokens at head_dim 32. What it takes from row_tiles.h is tested with others."""

from cuda_kernels.kernel import Bug, Kernel

HEADER = "csrc/cuda/window12_bwd.h"

INSTANCES = """
template __global__ void window12_bwd<BFloat16, false>(const Window12BwdParams);
template __global__ void window12_bwd<BFloat16, true>(const Window12BwdParams);
template __global__ void window12_bwd<Half16, false>(const Window12BwdParams);
template __global__ void window12_bwd<Half16, true>(const Window12BwdParams);
"""

BUGS = {
    "weights in the same banks": Bug("piece / 2 * 32 + ((piece ^ row >> 2) & 1) * 16", "piece * 16"),
    "a dense bias is taken for a relative one": Bug("problem.bias_form != BiasForm::kDense &&", ""),
    "owners share a window": Bug("p.parts.owners - first);", "p.parts.owners - first) + 1;"),
    "heads are those of the block before": Bug("% problem.nH, owner", "/ problem.nH, owner"),
    "one stage for two windows": Bug("    stage = 2 * Window12::kPairBytes - stage;\n", ""),
    "rows of the same window again": Bug("b + p.all.advance(&next);", "b;"),
    "the window after the next": Bug(
        "b += p.all.advance(&place);", "p.all.advance(&place), b += p.all.advance(&place);"
    ),
    "rows of other warps are read before they are seen": Bug(
        "    sync_threads();  // all see all rows, and are done with the window before\n", ""
    ),
    "a wait that is too weak": Bug("copy_async_wait<0>();", "copy_async_wait<1>();"),
    "it ends with copies on their way": Bug("if (windows > 1) {", "if (windows > 0) {"),
    "regions of half of the tokens": Bug("if (border && lane < 16) {", "if (border && lane < 8) {"),
    "no mask": Bug("s[j >> 1][j & 1][e] += problem.mask_value;", "s[j >> 1][j & 1][e] += 0;"),
    "regions of the neighbour": Bug("? two >> 16 : two & 0xffffu", "? two & 0xffffu : two >> 16"),
    "entry of the bias of the neighbour": Bug("- 4 * (before + (e & 1));", "- 4 * before;"),
    "keys of two rows take the bias of one": Bug("key % Window12::kSide == 8 ? along + further : along", "along"),
    "queries in one row": Bug(
        "along = token[i] + row * (Window12::kReach - Window12::kSide);\n    entries", "along = token[i];\n    entries"
    ),
    "largest score of two lanes": Bug("      top[i] = fmaxf(top[i], shuffle_xor(top[i], 2));\n", ""),
    "sum of two lanes": Bug("for (int mask = 1; mask < 4; mask *= 2) {", "for (int mask = 1; mask < 2; mask *= 2) {"),
    "delta of the other row": Bug("ds *= dp[j][e] - delta[e >> 1];", "ds *= dp[j][e] - delta[e & 1];"),
    "a row wholly -inf is NaN": Bug("if (!alive[i >> 1 & 1]) s", "if (false) s"),
    "a dead row takes NaN from v": Bug("if (kDead && !alive[e >> 1]) ds = 0.0f;", ""),
    "P is read before all see it": Bug("    sync_threads();  // all see P\n", ""),
    "P is overwritten while it is read": Bug("    sync_threads();  // nobody reads P, k or v any more\n", ""),
    "dS is read before all see it": Bug("    sync_threads();  // all see dS\n", ""),
    "weights of the keys of another warp": Bug(
        "2 * warp + ((lane >> 3) & 1)", "2 * ((warp + 1) % 9) + ((lane >> 3) & 1)"
    ),
    "P not transposed": Bug("ldmatrix_x4_trans(\n            a", "ldmatrix_x4(\n            a"),
    "dv from q": Bug("times_own_weights(dv, queries + Tile::kSecond);", "times_own_weights(dv, queries);"),
    "dbias of the last window": Bug("Float4{before.x + s[step][j][0],", "Float4{s[step][j][0],"),
    "dS for keys without the norm of q": Bug(
        "s[step][e >> 2][e & 3] *= q_norm[e >> 1 & 1];", "s[step][e >> 2][e & 3] *= 1.0f;"
    ),
    "dS for queries without the norm of k": Bug("ds * ((e & 1) != 0 ? norm.y : norm.x) : ds", "ds : ds"),
    "gradients of keys scaled as queries": Bug("of_own(scale, kKeyScales);", ""),
    "padding of one row of two": Bug("padding[1] = pixel_of(place, 1).y < 0;", "padding[1] = false;"),
    "dpad_value of one warp": Bug(
        "other < Window12::kWarps; ++other) {\n      sum", "other < 1; ++other) {\n      sum"
    ),
    "dlogit_scale of one warp": Bug("other < Window12::kWarps; ++other) dlogit", "other < 1; ++other) dlogit"),
    "sums of warps before all have left theirs": Bug("  sync_threads();  // sums of all warps\n", ""),
    "dq and dv exchanged": Bug(
        "{results + own, keys + own, results + own + Tile::kSecond}",
        "{results + own + Tile::kSecond, keys + own, results + own}",
    ),
}

#: Nine warps have 168 registers a thread, of which scores take 72. Only sm_90 and sm_100 have the shared memory for it.
KERNEL = Kernel(
    HEADER,
    INSTANCES,
    BUGS,
    known_spills={"sm_80": 40, "sm_86": 40, "sm_89": 40, "sm_90": 24, "sm_100": 128, "sm_120": 32},
)
