# SPDX-License-Identifier: Apache-2.0
"""The forward kernels in Triton: windows of up to a few hundred tokens, and larger ones."""

# No `from __future__ import annotations`: Triton reads the annotation tl.constexpr.

import triton
import triton.language as tl

from .triton_window import (
    LOG2_E,
    add_product,
    exponentials,
    finite_top,
    has_border,
    has_padding,
    head_of,
    inverse_norms,
    load_bias,
    load_padded,
    load_rows,
    pointers_of,
    row_offsets,
    scores_of,
    store_rows,
    tokens_of,
)

#: Arguments whose values are no reason to compile again; strides are, where they are multiples of 16.
UNSPECIALIZED = ("U", "nW", "nWh", "nWw", "H", "W", "Hp", "Wp", "sh", "sw", "nH")


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "units", "span"))
def whole_windows(
    qkv,
    bias,
    logit_scale,
    pad_value,
    out,
    scale,
    mask_value,
    units,
    span,
    U,
    nW,
    nWh,
    nWw,
    H,
    W,
    Hp,
    Wp,
    sh,
    sw,
    nH,
    stride_b,
    stride_y,
    stride_x,
    stride_three,
    stride_head,
    WH: tl.constexpr,
    WW: tl.constexpr,
    HD: tl.constexpr,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    COSINE: tl.constexpr,
    PADDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    ROLL_PAD: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    MORE_KEYS: tl.constexpr,
):
    """Computes: out of `units` windows of one head, keys and values of a whole window on the chip.
    Grid: (span * ceil(ceil(U / units) / floor(span / nH)),), heads fastest, so that the heads of a window, whose rows
    share cache lines, run together, and `span` programs apart the same head, whose bias is read again. U windows of all
    images.
    Memory: 2 (3 HD reads + HD writes) bytes a token and head in 16 bits; a bias of one tile stays in registers.
    Numerics: products in the input dtype, accumulated in float32; softmax in float32 in one pass, probabilities rounded
    to the input dtype for the product with v and divided by their sum after it. No sum depends on B or units.
    Source: written for this project; masks and padding as csrc/window.h.
    """
    N: tl.constexpr = WH * WW
    ALL_ROWS: tl.constexpr = (N + ROWS - 1) // ROWS * ROWS
    ALL_KEYS: tl.constexpr = KEYS + MORE_KEYS
    head, number = head_of(tl.program_id(0), span, nH)
    first = number * units
    rows = tl.arange(0, ROWS)
    keys = tl.arange(0, KEYS)
    d = tl.arange(0, D)
    C = nH * HD
    grid = (nWh, nWw, H, W, Hp, Wp, sh, sw)
    q_base, k_base, v_base, k_pad = pointers_of(qkv, pad_value, head, nH, stride_three, stride_head, HD)
    factor = scale
    if COSINE:
        factor = tl.load(logit_scale + head)
    if N <= ROWS:
        bias_tile = load_bias(bias, head, rows, keys, ALL_ROWS, ALL_KEYS, HAS_BIAS)
    for unit in tl.range(first, min(first + units, U), disable_licm=PADDED or COSINE):
        b = (unit // nW).to(tl.int64)
        window = unit % nW
        image = b * stride_b
        border = has_border(window, grid)
        padded = has_padding(window, grid, WH, WW, ROLL_PAD)
        y, x, real, pad = tokens_of(window, keys, grid, WH, WW, ROLL_PAD)
        at = row_offsets(y, x, stride_y, stride_x, WIDE)
        k = load_padded(k_base + image, at, real, pad, k_pad, padded, d, HD, PADDED)
        v = load_padded(v_base + image, at, real, pad, k_pad + C, padded, d, HD, PADDED)
        k_inverse = inverse_norms(k, COSINE)
        if MORE_KEYS > 0:
            keys2 = KEYS + tl.arange(0, MORE_KEYS)
            y, x, real, pad = tokens_of(window, keys2, grid, WH, WW, ROLL_PAD)
            at = row_offsets(y, x, stride_y, stride_x, WIDE)
            k2 = load_padded(k_base + image, at, real, pad, k_pad, padded, d, HD, PADDED)
            v2 = load_padded(v_base + image, at, real, pad, k_pad + C, padded, d, HD, PADDED)
            k_inverse2 = inverse_norms(k2, COSINE)
        for start in range(0, N, ROWS):
            row = start + rows
            qy, qx, q_real, _pad = tokens_of(window, row, grid, WH, WW, ROLL_PAD)
            q = load_rows(q_base + image, row_offsets(qy, qx, stride_y, stride_x, WIDE), q_real, d, HD)
            q_inverse = inverse_norms(q, COSINE)
            if N > ROWS:
                bias_tile = load_bias(bias, head, row, keys, ALL_ROWS, ALL_KEYS, HAS_BIAS)
            s = scores_of(
                q,
                k,
                factor,
                q_inverse,
                k_inverse,
                bias_tile,
                row,
                keys,
                window,
                grid,
                border,
                mask_value,
                WH,
                WW,
                COSINE,
                SHIFTED,
                KEYS > N,
                PRECISION,
            )
            top = tl.max(s, 1)
            if MORE_KEYS > 0:
                s2 = scores_of(
                    q,
                    k2,
                    factor,
                    q_inverse,
                    k_inverse2,
                    load_bias(bias, head, row, keys2, ALL_ROWS, ALL_KEYS, HAS_BIAS),
                    row,
                    keys2,
                    window,
                    grid,
                    border,
                    mask_value,
                    WH,
                    WW,
                    COSINE,
                    SHIFTED,
                    KEYS + MORE_KEYS > N,
                    PRECISION,
                )
                top = tl.maximum(top, tl.max(s2, 1))
            top = finite_top(top)
            p = exponentials(s, top)
            total = tl.sum(p, 1)
            o = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
            if MORE_KEYS > 0:
                p = exponentials(s2, top)
                total += tl.sum(p, 1)
                o = tl.dot(p.to(v.dtype), v2, o, input_precision=PRECISION)
            o = o / tl.where(total == 0.0, 1.0, total)[:, None]
            q_at = row_offsets(qy, qx, W * C, C, WIDE)
            store_rows(out + b * H * W * C + head * HD, q_at, o, q_real, d, HD)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def rows_of_windows(
    qkv,
    bias,
    logit_scale,
    pad_value,
    out,
    scale,
    mask_value,
    U,
    nW,
    nWh,
    nWw,
    H,
    W,
    Hp,
    Wp,
    sh,
    sw,
    nH,
    stride_b,
    stride_y,
    stride_x,
    stride_three,
    stride_head,
    WH: tl.constexpr,
    WW: tl.constexpr,
    HD: tl.constexpr,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    COSINE: tl.constexpr,
    PADDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    ROLL_PAD: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Computes: out of ROWS queries of one window and head, for windows whose keys do not fit on the chip.
    Grid: (nH * U * ceil(N / ROWS),), the tiles of a window fastest: they read the same keys.
    Memory: as whole_windows, but keys and values come once for each tile of queries, mostly from the L2 cache.
    Numerics: as whole_windows, but the softmax goes over blocks of KEYS keys and corrects what it has when a larger
    score comes.
    Source: the online softmax of Milakov and Gimelshein 2018; written for this project.
    """
    N: tl.constexpr = WH * WW
    TILES: tl.constexpr = (N + ROWS - 1) // ROWS
    ALL_KEYS: tl.constexpr = (N + KEYS - 1) // KEYS * KEYS
    unit = tl.program_id(0) // TILES
    head = unit % nH
    unit = unit // nH
    b = (unit // nW).to(tl.int64)
    window = unit % nW
    image = b * stride_b
    row = (tl.program_id(0) % TILES) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, D)
    C = nH * HD
    grid = (nWh, nWw, H, W, Hp, Wp, sh, sw)
    q_base, k_base, v_base, k_pad = pointers_of(qkv, pad_value, head, nH, stride_three, stride_head, HD)
    factor = scale
    if COSINE:
        factor = tl.load(logit_scale + head)
    border = has_border(window, grid)
    padded = has_padding(window, grid, WH, WW, ROLL_PAD)
    y, x, real, _pad = tokens_of(window, row, grid, WH, WW, ROLL_PAD)
    q = load_rows(q_base + image, row_offsets(y, x, stride_y, stride_x, WIDE), real, d, HD)
    q_inverse = inverse_norms(q, COSINE)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    o = tl.zeros((ROWS, D), tl.float32)
    for start in range(0, N, KEYS):
        keys = start + tl.arange(0, KEYS)
        ky, kx, k_real, pad = tokens_of(window, keys, grid, WH, WW, ROLL_PAD)
        at = row_offsets(ky, kx, stride_y, stride_x, WIDE)
        k = load_padded(k_base + image, at, k_real, pad, k_pad, padded, d, HD, PADDED)
        v = load_padded(v_base + image, at, k_real, pad, k_pad + C, padded, d, HD, PADDED)
        s = scores_of(
            q,
            k,
            factor,
            q_inverse,
            inverse_norms(k, COSINE),
            load_bias(bias, head, row, keys, TILES * ROWS, ALL_KEYS, HAS_BIAS),
            row,
            keys,
            window,
            grid,
            border,
            mask_value,
            WH,
            WW,
            COSINE,
            SHIFTED,
            N % KEYS != 0,
            PRECISION,
        )
        higher = tl.maximum(top, tl.max(s, 1))
        shrunk = tl.exp2((top - finite_top(higher)) * LOG2_E)
        p = exponentials(s, finite_top(higher))
        total = total * shrunk + tl.sum(p, 1)
        o = add_product(o * shrunk[:, None], p.to(v.dtype), v, PRECISION)
        top = higher
    o = o / tl.where(total == 0.0, 1.0, total)[:, None]
    at = row_offsets(y, x, W * C, C, WIDE)
    store_rows(out + b * H * W * C + head * HD, at, o, real, d, HD)
