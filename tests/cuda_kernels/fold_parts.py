# SPDX-License-Identifier: Apache-2.0
"""The kernels that add the parts of gradients that are sums over windows."""

from cuda_kernels.kernel import Bug, Kernel

HEADER = "csrc/cuda/fold_parts.h"

INSTANCES = """
template __global__ void fold_parts<Half16>(const FoldParams);  // no products
template __global__ void fold_parts<BFloat16>(const FoldParams);  // no products
template __global__ void fold_parts<Float32>(const FoldParams);  // no products
template __global__ void fold_relative<256>(const FoldParams);  // no products
"""

BUGS = {
    "no barrier before warps are added": Bug("  sync_threads();\n  if (warp", "  if (warp"),
    "one warp is left out": Bug("for (int i = 1; i < kFoldWarps; ++i)", "for (int i = 1; i < kFoldWarps - 1; ++i)"),
    "owners are left out": Bug("owner += kFoldLoads * kFoldWarps", "owner += (kFoldLoads + 1) * kFoldWarps"),
    "owners that do not exist are read": Bug("part[i] = at < owners ?", "part[i] = at <= owners ?"),
    "elements that do not exist are read": Bug("const bool exists = element < size;", "const bool exists = true;"),
    "parts of the first head for all": Bug("from + head * owners * size + element", "from + element"),
    "dlogit_scale from another's parts": Bug("of_scale ? p.parts.dlogit_scale", "of_scale ? p.parts.dpad_value"),
    "a chunk of dpad_value is left out": Bug("(2 * problem.hd + 31) / 32 : 0", "2 * problem.hd / 32 : 0"),
    "the gradient of a padded query is left out": Bug("store_global(to, Stored<T>{0});", ""),
    "elements of float32 are of 16 bits": Bug("std::conditional_t<is_float<T>, float, uint16_t>", "uint16_t"),
    "dv of padding in the place of dk": Bug("to + 2 * row - problem.hd", "to + row - problem.hd"),
    "the dense gradient of a relative bias": Bug(
        "p.entries > 0 ? p.parts.dbias_sum : problem.dbias", "p.parts.dbias_sum != nullptr ? problem.dbias : nullptr"
    ),
    "pieces of scratch memory overlap": Bug("(floats + 3) / 4 * 16", "floats / 4 * 16"),
    "entries of the first head for all": Bug(
        "p.parts.dbias_sum + int64_t{head} * p.parts.bias_size", "p.parts.dbias_sum"
    ),
    "query and key swapped": Bug("query - dy * Ww - dx", "query + dy * Ww + dx"),
    "rows of pairs of another difference": Bug("(row + (dy > 0 ? dy : 0)) * Ww", "(row + (dy < 0 ? -dy : 0)) * Ww"),
    "lanes are left out": Bug("for (int mask = 16; mask > 0", "for (int mask = 8; mask > 0"),
    "a shuffle of some lanes": Bug(
        "mask /= 2) sum += shuffle_xor(sum, mask);", "mask /= 2) if (lane < 16) sum += shuffle_xor(sum, mask);"
    ),
}

KERNEL = Kernel(HEADER, INSTANCES, BUGS)
