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
template __global__ void small_windows_bwd<BFloat16, 0, true, false>(const SmallBwdParams);
template __global__ void small_windows_bwd<Half16, 0, true, false>(const SmallBwdParams);
"""

BUGS = {
    "rows read before other warps' copies are seen": Bug("    sync_threads();  // this window's rows", "    // rows"),
    "scores read before other warps have left them": Bug("    sync_threads();  // the scores", "    // the scores"),
    "a wait that is too weak": Bug("copy_async_wait<0>();", "copy_async_wait<1>();"),
    "results of q are read before they are written": Bug(
        "      self.leave_result(0, dq);\n      sync_warp();\n", "      self.leave_result(0, dq);\n"
    ),
    "results of k are read before they are written": Bug(
        "      self.leave_result(1, dk);\n      sync_warp();\n", "      self.leave_result(1, dk);\n"
    ),
    "dv in the place of dk": Bug("self.leave_result(1, dk);", "self.leave_result(0, dk);"),
    "one set of rows for two windows": Bug("    to ^= Sizes::kSetBytes;\n", "", FETCH),
    "rows that do not exist are not zero": Bug("at / kRowBytes % 64 < self.tokens) continue", "true) continue"),
    "the sums of padding begin with what was there": Bug(
        "at < Sizes::kInverses; at += 16", "at < Sizes::kSums; at += 16"
    ),
    "the sums of warps are read before they are there": Bug(
        "  sync_threads();\n  if (kCosine && threadIdx.x == 0)", "  if (kCosine && threadIdx.x == 0)"
    ),
    "queries that do not exist take part": Bug("a, memory + (exist ? at", "a, memory + (true ? at"),
    "scores are not turned from row to row": Bug(
        "pair() * 2;\n    own_results", "pair() * 2 - quad() * 16;\n    own_results"
    ),
    "P in the place of dS": Bug("(own_scores ^ (16 * j) ^ (which * Sizes::kScoreBytes))", "(own_scores ^ (16 * j))"),
    "keys of the neighbouring warp": Bug(
        "chunk = 2 * warp + ((lane >> 3) & 1)", "chunk = 2 * (warp ^ 1) + ((lane >> 3) & 1)"
    ),
    "P not transposed": Bug("ldmatrix_x4_trans(a, memory", "ldmatrix_x4(a, memory"),
    "k not transposed": Bug("ldmatrix_x4_trans(b, memory + square", "ldmatrix_x4(b, memory + square"),
    "dP from q": Bug("times_keys(3, 2, d);", "times_keys(0, 2, d);"),
    "the mask is left out": Bug("s[j][e] += problem.mask_value;", "s[j][e] += 0.0f;"),
    "regions of the neighbour": Bug("(2 * j + (e & 1)) & 1", "(2 * j + (~e & 1)) & 1", SHARED),
    "regions are cut along rows alone": Bug(
        "query) >= column ? ~behind_column : behind_column", "query) < 0 ? 1u : 0u", SHARED
    ),
    "a border that is not told": Bug("p.all.border_row(window) << 8 |", "p.all.y.window << 8 |", FETCH),
    "probabilities are not divided by their sum": Bug("s[j][e] *= share[e >> 1];", "s[j][e] *= 1.0f;"),
    "delta of two lanes": Bug("      delta[i] += shuffle_xor(delta[i], 2);\n", ""),
    "no delta": Bug("(d[j][e] - delta[e >> 1])", "d[j][e]"),
    "a dead row has gradients": Bug("dead[e >> 1] ? 0.0f : d[j][e];", "d[j][e];"),
    "dbias of the last window": Bug("dbias[j][e] += d[j][e];", "dbias[j][e] = d[j][e];"),
    "dbias transposed": Bug("to + query * self.tokens + key", "to + key * self.tokens + query"),
    "no scale in dq and dk": Bug("        d[c][2 * i] *= of_row;\n        d[c][2 * i + 1] *= of_row;\n", ""),
    "the part of dq along q stays": Bug("        kept = inverse < 1.0f / kNormFloor ?", "        kept = false ?"),
    "rows of clamped norm are projected": Bug("inverse < 1.0f / kNormFloor ? radial", "true ? radial"),
    "the norms of keys are left out of dq": Bug(
        "of_key = {self.left_of(of_key.x), self.left_of(of_key.y)};", "of_key = {1.0f, 1.0f};"
    ),
    "the norms of queries are left out of dk": Bug(
        "self.leave_scores(1, d, of_row);", "self.leave_scores(1, d, ones);"
    ),
    "dlogit_scale of one warp": Bug(
        "for (int i = 0; i < kSmallBwdWarps; ++i) {\n      sum += load_shared<float>(self.memory + Sizes::kInverses",
        "for (int i = 0; i < 1; ++i) {\n      sum += load_shared<float>(self.memory + Sizes::kInverses",
    ),
    "dlogit_scale of half the rows": Bug("dlogit_scale += radial[0] + radial[1];", "dlogit_scale += radial[0];"),
    "padding is added where it is not": Bug(
        "float sum = pixels[0] == kPadding ? d[c][e] : 0.0f;", "float sum = d[c][e];"
    ),
    "dv of padding for dk": Bug("self.add_padding(0, dk, pixels);", "self.add_padding(0, dv, pixels);"),
    "padding of some lanes": Bug("        sum += shuffle_xor(sum, 16);\n", ""),
    "padding has no value": Bug("which > 0 && padding != nullptr", "false", SHARED),
    "a padded query is not zero": Bug("which > 0 && padding != nullptr", "padding != nullptr", SHARED),
    "grad_out of padding is not zero": Bug(
        "real ? grad_out + grad_offset : grad_out, real)", "real ? grad_out + grad_offset : grad_out, true)", FETCH
    ),
    "results of padding are stored": Bug(
        "if (pixels[half] >= 0) store_global", "if (pixels[half] > kNoToken) store_global"
    ),
    "dqkv of every image goes to the first": Bug("if (next_image) image += p.image_bytes;", ""),
    "every image's rows are the first's": Bug("if (next_image) fetch.next_image();", ""),
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

#: Spilled: two registers of cosine attention at a window of 8, read back three times in some thousand instructions. A
#: third block on each multiprocessor is worth more.
KERNEL = Kernel(HEADER, INSTANCES, BUGS, known_spills={"sm_90": 8})
