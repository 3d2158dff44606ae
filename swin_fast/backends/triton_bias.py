# SPDX-License-Identifier: Apache-2.0
"""Kernels in Triton beside the attention: the dense bias of a relative one, and sums of parts in a fixed order."""

# No `from __future__ import annotations`: Triton reads the annotation tl.constexpr.

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("parts", "size"))
def fold(parts_of_heads, sums, parts, size, BLOCK: tl.constexpr):
    """Computes: sums[head, i], the sum of parts_of_heads[head, part, i] over the parts, in their order.
    Grid: (nH * ceil(size / BLOCK),).
    Memory: the parts once.
    Numerics: float32, one addition after the other: bit-equal from run to run.
    Source: written for this project.
    """
    blocks = tl.cdiv(size, BLOCK)
    head = tl.program_id(0) // blocks
    i = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    at = parts_of_heads + head.to(tl.int64) * parts * size + i
    found = tl.zeros((BLOCK,), tl.float32)
    for _part in range(0, parts):
        found += tl.load(at, mask=i < size, other=0.0)
        at += size
    tl.store(sums + head.to(tl.int64) * size + i, found, mask=i < size)


@triton.jit
def lay_out_bias(
    bias,
    tiles,
    WH: tl.constexpr,
    WW: tl.constexpr,
    RELATIVE: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    ALL_KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes: the dense bias (nH, ALL_ROWS, ALL_KEYS) of a relative one (nH, 2WH-1, 2WW-1) or a dense one (nH, N, N).
    ALL_ROWS and ALL_KEYS are whole tiles of the kernel that reads it: it needs no mask, and loads neighbours at once.
    Grid: (nH * ALL_ROWS,), a program for each row.
    Memory: writes 4 ALL_ROWS ALL_KEYS bytes a head.
    Numerics: copies; zero outside of the window.
    Source: Liu et al. 2021, Swin Transformer, section 3.2, equation 4.
    """
    N: tl.constexpr = WH * WW
    ENTRIES: tl.constexpr = (2 * WH - 1) * (2 * WW - 1)
    head = tl.program_id(0) // ALL_ROWS
    row = tl.program_id(0) % ALL_ROWS
    for start in range(0, ALL_KEYS, BLOCK):
        key = start + tl.arange(0, BLOCK)
        if RELATIVE:
            entry = (row // WW - key // WW + WH - 1) * (2 * WW - 1) + row % WW - key % WW + WW - 1
            at = bias + head * ENTRIES + entry
        else:
            at = bias + (head * N + row).to(tl.int64) * N + key
        value = tl.load(at, mask=(row < N) & (key < N), other=0.0)
        tl.store(tiles + (head * ALL_ROWS + row).to(tl.int64) * ALL_KEYS + key, value, mask=key < ALL_KEYS)


@triton.jit
def gather_dbias(
    tiles,
    relative,
    WH: tl.constexpr,
    WW: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    ALL_KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes: the gradient of a relative bias, each entry the sum over the pairs of tokens that share it, from the
    dense gradient (nH, ALL_ROWS, ALL_KEYS).
    Grid: (nH * (2WH-1) * (2WW-1),), a program for each entry.
    Memory: reads 4 N**2 bytes a head.
    Numerics: float32, a sum in a fixed order: bit-equal from run to run.
    Source: written for this project.
    """
    N: tl.constexpr = WH * WW
    ENTRIES: tl.constexpr = (2 * WH - 1) * (2 * WW - 1)
    head = tl.program_id(0) // ENTRIES
    entry = tl.program_id(0) % ENTRIES
    dy = entry // (2 * WW - 1) - (WH - 1)
    dx = entry % (2 * WW - 1) - (WW - 1)
    row = tl.arange(0, BLOCK)
    y = row // WW - dy
    x = row % WW - dx
    pair = (row < N) & (y >= 0) & (y < WH) & (x >= 0) & (x < WW)
    values = tl.load(tiles + (head * ALL_ROWS + row).to(tl.int64) * ALL_KEYS + y * WW + x, mask=pair, other=0.0)
    tl.store(relative + head * ENTRIES + entry, tl.sum(values, 0))
