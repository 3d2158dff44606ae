# SPDX-License-Identifier: Apache-2.0
"""The backward of windows of up to 64 tokens."""

from cuda_kernels.kernel import Bug, Kernel

HEADER = "csrc/cuda/small_windows_bwd.h"
CUT = "csrc/cuda/small_bwd_cut.h"
FETCH = "csrc/cuda/small_bwd_fetch.h"
SHARED = "csrc/cuda/small_windows.h"
WINDOWS = "csrc/cuda/windows.h"

INSTANCES = """
template __global__ void small_windows_bwd<BFloat16, 7, false, true>(const SmallBwdParams);
template __global__ void small_windows_bwd<BFloat16, 7, true, true>(const SmallBwdParams);
template __global__ void small_windows_bwd<Half16, 7, false, true>(const SmallBwdParams);
template __global__ void small_windows_bwd<Half16, 8, false, true>(const SmallBwdParams);
template __global__ void small_windows_bwd<Half16, 8, true, true>(const SmallBwdParams);
template __global__ void small_windows_bwd<BFloat16, 0, true, false>(const SmallBwdParams);  // no copies
template __global__ void small_windows_bwd<Half16, 0, true, false>(const SmallBwdParams);  // no copies
"""

BUGS = {
    "rows read before other warps' copies are seen": Bug("    sync_threads();  // this window's rows", "    // rows"),
    "scores read before other warps have left them": Bug("    sync_threads();  // the scores", "    // the scores"),
    "a wait that is too weak": Bug("copy_async_wait<0>();", "copy_async_wait<1>();"),
    "one set of rows for two windows": Bug("fetch.next(self.set ^ Sizes::kSet);", "fetch.next(self.set);"),
    "pixels of another window": Bug("Sizes::kPixels + set * 4 + of_token * 4", "Sizes::kPixels + of_token * 4"),
    "the fetch goes on before all lanes know where it stands": Bug(
        "    sync_warp();  // all have read it\n", "", FETCH
    ),
    "rows that do not exist are not zero": Bug(
        "for (int tile = 0; tile < 4; ++tile) {\n    clear", "for (int tile = 0; tile < 0; ++tile) {\n    clear"
    ),
    "rows behind the last are read": Bug("(lane & 8) * Sizes::kTokenBytes : 0);", "0 : 0);"),
    "the sums of padding begin with what was there": Bug("  clear(Sizes::kSums, Sizes::kInverses);\n", ""),
    "dbias is left where rows are still read": Bug("  sync_threads();  // nobody needs rows", "  // nobody needs rows"),
    "the sums of warps are read before they are there": Bug(
        "  sync_threads();\n  if (problem.bias_form", "  if (problem.bias_form"
    ),
    "queries that do not exist take part": Bug("const int from = exist ? at", "const int from = true ? at"),
    "scores are not turned from row to row": Bug(
        "Sizes::chunk(lane, has_one_left() ? upper : right)", "(has_one_left() ? upper : right) * 16"
    ),
    "P in the place of dS": Bug("memory + (own_scores ^ (32 * step)) + which", "memory + (own_scores ^ (32 * step))"),
    "keys of the neighbouring warp": Bug("4 * (warp & 1) + ((lane >> 3) & 1)", "4 * (~warp & 1) + ((lane >> 3) & 1)"),
    "halves of queries swapped": Bug("stmatrix(to, {a[0], a[1]});", "stmatrix(to, {a[1], a[0]});"),
    "P not transposed": Bug("ldmatrix_x4_trans(a[i], memory", "ldmatrix_x4(a[i], memory"),
    "P of the last queries not transposed": Bug("ldmatrix_x2_trans(two, memory", "ldmatrix_x2(two, memory"),
    "k not transposed": Bug("ldmatrix_x4_trans(b, memory + (square", "ldmatrix_x4(b, memory + (square"),
    "the last keys not transposed": Bug("ldmatrix_x4_trans(b, memory + strip", "ldmatrix_x4(b, memory + strip"),
    "dP from q": Bug(
        "times_keys(Sizes::kGradOut, Sizes::kV, d);\n    float", "times_keys(0, Sizes::kV, d);\n    float"
    ),
    "the mask is left out": Bug("s[j][e] += problem.mask_value * kLog2E;", "s[j][e] += 0.0f;"),
    "regions of the neighbour": Bug("(2 * j + (e & 1)) & 1", "(2 * j + (~e & 1)) & 1", SHARED),
    "regions are cut along rows alone": Bug("(grid.column(query) >= column ? ~columns : columns)", "0u"),
    "regions where there is no border": Bug("row < p.all.y.window ? keys.x : 0", "keys.x"),
    "a border that is not told": Bug("p.all.border_row(place.window) << 8 |", "p.all.y.window << 8 |", FETCH),
    "the bias is not in base 2": Bug("limited(value[e]) * kLog2E", "limited(value[e])"),
    "a bias in base 2 is not finite": Bug("limited(value[e]) * kLog2E", "value[e] * kLog2E"),
    "probabilities are not divided by their sum": Bug("s[j][e] * share;", "s[j][e];"),
    "large scores are not noticed": Bug("relative = any_lane(!fits);", "relative = false;"),
    "lanes go apart over large scores": Bug("relative = any_lane(!fits);", "relative = !fits;"),
    "rows that do not exist have large scores": Bug("if (exists) fits = ", "fits = "),
    "the largest score is not taken off": Bug("      take_off_top<kHalves>(s);\n", ""),
    "the largest score of two lanes": Bug("      top = fmaxf(top, shuffle_xor(top, 2));\n", ""),
    "delta of two lanes": Bug(
        "delta[i] += shuffle_xor(delta[i], mask);", "delta[i] += mask == 1 ? shuffle_xor(delta[i], mask) : 0.0f;"
    ),
    "no delta": Bug("(d[j][e] - delta[e >> 1])", "d[j][e]"),
    "a dead row has gradients": Bug("d[j][2 * i] = d[j][2 * i + 1] = 0.0f;", "continue;"),
    "dbias of the last window": Bug("dbias[j][e] += d[j][e];", "dbias[j][e] = d[j][e];"),
    "dbias transposed": Bug("(query * self.tokens + key) * 4, dbias", "(key * self.tokens + query) * 4, dbias"),
    "no scale in dq and dk": Bug("        d[c][2 * i] *= of_row;\n        d[c][2 * i + 1] *= of_row;\n", ""),
    "dv scaled, dk not": Bug("if (sums_up_k()) row_gradients", "if (!sums_up_k()) row_gradients"),
    "dv in the place of dk": Bug("(sums_up_k() ? 1 : 2) * problem.nH", "(sums_up_k() ? 2 : 1) * problem.nH"),
    "the part of dq along q stays": Bug("        kept = inverse < 1.0f / kNormFloor ?", "        kept = false ?"),
    "rows of clamped norm are projected": Bug("inverse < 1.0f / kNormFloor ? radial", "true ? radial"),
    "norms of two windows in one place": Bug("tensor * 256 + set * 8", "tensor * 256"),
    "the norms of keys are left out of dq": Bug("{ return norms_of_keys(j); }", "{ return Float2{1.0f, 1.0f}; }"),
    "the norms of queries are left out of dk": Bug(
        "leave_scores<kHalves>(Sizes::kGradients, d, of_row);",
        "leave_scores<kHalves>(Sizes::kGradients, d, {1.0f, 1.0f});",
    ),
    "dlogit_scale of one warp": Bug(
        "for (int i = 0; i < kSmallBwdWarps; ++i) {\n      sum += load_shared<float>(self.memory + Sizes::kInverses",
        "for (int i = 0; i < 1; ++i) {\n      sum += load_shared<float>(self.memory + Sizes::kInverses",
    ),
    "dlogit_scale of half the rows": Bug("*dlogit_scale += radial[0] + radial[1];", "*dlogit_scale += radial[0];"),
    "padding is added where it is not": Bug(
        "float sum = pixels[0] == kPadding ? d[c][e] : 0.0f;", "float sum = d[c][e];"
    ),
    "dv of padding for dk": Bug("(thread ^ kHeadDim) / kHeadDim", "thread / kHeadDim"),
    "padding of some lanes": Bug("        sum += shuffle_xor(sum, 16);\n", ""),
    "padding has no value": Bug("which > 0 && padding != nullptr", "false", FETCH),
    "a padded query is not zero": Bug("which > 0 && padding != nullptr", "padding != nullptr", FETCH),
    "padding of the first head for all": Bug(
        "(which * problem.nH + place.head) * kRowBytes", "which * kRowBytes", FETCH
    ),
    "grad_out of padding is not zero": Bug("real ? token : grad_out, real)", "real ? token : grad_out, true)", FETCH),
    "results of padding are stored": Bug("if (pixels[i] >= 0) store_global", "if (pixels[i] > kNoToken) store_global"),
    "neighbours swap too much": Bug("{odd ? other : left, odd ? right : other}", "{left, other}"),
    "dqkv of every image goes to the first": Bug("if (news >= kNextImage) image += p.image_bytes;", ""),
    "every image's rows are the first's": Bug(
        "if (next_image) {\n      rows.qkv", "if (next_image && false) {\n      rows.qkv", FETCH
    ),
    "windows behind a row of them": Bug("    if (++at->y <", "    if (at->y <", WINDOWS),
    "windows that end behind the image are whole": Bug(
        "static_cast<int32_t>(y.roll) <=", "static_cast<int32_t>(y.roll) - 1 <=", WINDOWS
    ),
    "a window is left out": Bug(
        "(owner + 1) * p.all.of_all / p.parts.owners - first",
        "(owner + 1) * p.all.of_all / p.parts.owners - first - (first > 0)",
    ),
    "owners of other heads": Bug(
        "int64_t{self.head} * p.parts.owners + owner", "int64_t{owner} * problem.nH + self.head"
    ),
    "more owners than windows": Bug("std::min(owners, p.all.of_all)", "owners", CUT),
}

#: Spilled on some architectures: a register or two, of 128, where four blocks of N = 49 share a multiprocessor.
KERNEL = Kernel(HEADER, INSTANCES, BUGS, known_spills={"sm_86": 16, "sm_89": 16, "sm_100": 16, "sm_120": 48})
