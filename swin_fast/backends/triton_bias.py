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
def expand_bias(relative, dense, WH: tl.constexpr, WW: tl.constexpr, KEYS: tl.constexpr):
    """Computes: the dense bias (nH, N, N) of a relative one (nH, 2WH-1, 2WW-1).
    Grid: (nH * N,), a program for each row.
    Memory: writes 4 N**2 bytes a head.
    Numerics: copies.
    Source: Liu et al. 2021, Swin Transformer, section 3.2, equation 4.
    """
    N: tl.constexpr = WH * WW
    ENTRIES: tl.constexpr = (2 * WH - 1) * (2 * WW - 1)
    head = tl.program_id(0) // N
    row = tl.program_id(0) % N
    for start in range(0, N, KEYS):
        key = start + tl.arange(0, KEYS)
        entry = (row // WW - key // WW + WH - 1) * (2 * WW - 1) + row % WW - key % WW + WW - 1
        value = tl.load(relative + head * ENTRIES + entry, mask=key < N, other=0.0)
        tl.store(dense + (head * N + row).to(tl.int64) * N + key, value, mask=key < N)


@triton.jit
def gather_dbias(dense, relative, WH: tl.constexpr, WW: tl.constexpr, ROWS: tl.constexpr):
    """Computes: the gradient of a relative bias, each entry the sum over the pairs of tokens that share it.
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
    row = tl.arange(0, ROWS)
    y = row // WW - dy
    x = row % WW - dx
    pair = (row < N) & (y >= 0) & (y < WH) & (x >= 0) & (x < WW)
    values = tl.load(dense + (head * N + row).to(tl.int64) * N + y * WW + x, mask=pair, other=0.0)
    tl.store(relative + head * ENTRIES + entry, tl.sum(values, 0))
