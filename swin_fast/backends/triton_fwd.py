# SPDX-License-Identifier: Apache-2.0
"""The forward kernels in Triton: windows of up to a few hundred tokens, and larger ones."""

# No `from __future__ import annotations`: Triton reads the annotation tl.constexpr.

import triton
import triton.language as tl

from .triton_window import (
    LOG2_E,
    cosines_of,
    exponentials,
    finite_top,
    has_border,
    inverse_norms,
    load_bias,
    load_rows,
    row_offsets,
    scores_of,
    tokens_of,
    with_padding,
)

#: Arguments whose values are no reason to compile again; strides are, where they are multiples of 16.
UNSPECIALIZED = ("U", "nW", "nWh", "nWw", "H", "W", "Hp", "Wp", "sh", "sw", "nH")


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "units"))
def whole_windows(
    qkv,
    bias,
    logit_scale,
    pad_value,
    out,
    scale,
    mask_value,
    units,
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
    HAS_PAD: tl.constexpr,
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
    Grid: (nH * ceil(U / units),), heads fastest, so that the heads of a window, whose rows share cache lines, run
    together. U windows of all images.
    Memory: 2 (3 HD reads + HD writes) bytes a token and head in 16 bits; a bias of one tile stays in registers.
    Numerics: products in the input dtype, accumulated in float32; softmax in float32 in one pass, probabilities rounded
    to the input dtype for the product with v and divided by their sum after it. No sum depends on B or units.
    Source: written for this project; masks and padding as csrc/window.h.
    """
    N: tl.constexpr = WH * WW
    head = tl.program_id(0) % nH
    first = (tl.program_id(0) // nH) * units
    rows = tl.arange(0, ROWS)
    keys = tl.arange(0, KEYS)
    d = tl.arange(0, D)
    C = nH * HD
    q_base = qkv + head.to(tl.int64) * stride_head
    k_base = q_base + stride_three
    v_base = k_base + stride_three
    k_pad = pad_value + (nH + head) * HD
    v_pad = k_pad + C
    factor = scale
    if COSINE:
        factor = tl.load(logit_scale + head)
    if N <= ROWS:
        bias_tile = load_bias(bias, head, rows, keys, N, HAS_BIAS)
    for unit in range(first, min(first + units, U)):
        b = (unit // nW).to(tl.int64)
        window = unit % nW
        image = b * stride_b
        border = has_border(window, nWw, nWh, sh, sw)
        ky, kx, k_region, k_real, pad = tokens_of(window, keys, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
        k_at = row_offsets(ky, kx, stride_y, stride_x, WIDE)
        k = with_padding(load_rows(k_base + image, k_at, k_real, d, HD), pad, k_pad, d, HD, PADDED, HAS_PAD)
        v = with_padding(load_rows(v_base + image, k_at, k_real, d, HD), pad, v_pad, d, HD, PADDED, HAS_PAD)
        if COSINE:
            k_factor = inverse_norms(k)
        if MORE_KEYS > 0:
            keys2 = KEYS + tl.arange(0, MORE_KEYS)
            y2, x2, k_region2, real2, pad2 = tokens_of(window, keys2, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
            at2 = row_offsets(y2, x2, stride_y, stride_x, WIDE)
            k2 = with_padding(load_rows(k_base + image, at2, real2, d, HD), pad2, k_pad, d, HD, PADDED, HAS_PAD)
            v2 = with_padding(load_rows(v_base + image, at2, real2, d, HD), pad2, v_pad, d, HD, PADDED, HAS_PAD)
            if COSINE:
                k_factor2 = inverse_norms(k2)
        for start in range(0, N, ROWS):
            row = start + rows
            y, x, q_region, real, _pad = tokens_of(window, row, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
            q = load_rows(q_base + image, row_offsets(y, x, stride_y, stride_x, WIDE), real, d, HD)
            if N > ROWS:
                bias_tile = load_bias(bias, head, row, keys, N, HAS_BIAS)
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if COSINE:
                q_factor = inverse_norms(q)
                product = cosines_of(product, q_factor, k_factor)
            s = scores_of(
                product, factor, bias_tile, q_region, k_region, keys, border, mask_value, N, SHIFTED, KEYS > N
            )
            top = tl.max(s, 1)
            if MORE_KEYS > 0:
                product = tl.dot(q, tl.trans(k2), input_precision=PRECISION)
                if COSINE:
                    product = cosines_of(product, q_factor, k_factor2)
                tile = load_bias(bias, head, row, keys2, N, HAS_BIAS)
                s2 = scores_of(
                    product,
                    factor,
                    tile,
                    q_region,
                    k_region2,
                    keys2,
                    border,
                    mask_value,
                    N,
                    SHIFTED,
                    KEYS + MORE_KEYS > N,
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
            at = row_offsets(y, x, W * C, C, WIDE)
            tl.store(
                out + b * H * W * C + head * HD + at[:, None] + d[None, :],
                o.to(out.dtype.element_ty),
                mask=real[:, None] & (d < HD)[None, :],
            )


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
    HAS_PAD: tl.constexpr,
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
    unit = tl.program_id(0) // TILES
    head = unit % nH
    unit = unit // nH
    b = (unit // nW).to(tl.int64)
    window = unit % nW
    image = b * stride_b
    row = (tl.program_id(0) % TILES) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, D)
    C = nH * HD
    q_base = qkv + head.to(tl.int64) * stride_head
    k_base = q_base + stride_three
    v_base = k_base + stride_three
    k_pad = pad_value + (nH + head) * HD
    v_pad = k_pad + C
    factor = scale
    if COSINE:
        factor = tl.load(logit_scale + head)
    border = has_border(window, nWw, nWh, sh, sw)
    y, x, q_region, real, _pad = tokens_of(window, row, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
    q = load_rows(q_base + image, row_offsets(y, x, stride_y, stride_x, WIDE), real, d, HD)
    if COSINE:
        q_factor = inverse_norms(q)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    o = tl.zeros((ROWS, D), tl.float32)
    for start in range(0, N, KEYS):
        keys = start + tl.arange(0, KEYS)
        ky, kx, k_region, k_real, pad = tokens_of(window, keys, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
        at = row_offsets(ky, kx, stride_y, stride_x, WIDE)
        k = with_padding(load_rows(k_base + image, at, k_real, d, HD), pad, k_pad, d, HD, PADDED, HAS_PAD)
        v = with_padding(load_rows(v_base + image, at, k_real, d, HD), pad, v_pad, d, HD, PADDED, HAS_PAD)
        product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if COSINE:
            product = cosines_of(product, q_factor, inverse_norms(k))
        tile = load_bias(bias, head, row, keys, N, HAS_BIAS)
        s = scores_of(product, factor, tile, q_region, k_region, keys, border, mask_value, N, SHIFTED, N % KEYS != 0)
        higher = tl.maximum(top, tl.max(s, 1))
        shrunk = tl.exp2((top - finite_top(higher)) * LOG2_E)
        p = exponentials(s, finite_top(higher))
        total = total * shrunk + tl.sum(p, 1)
        o = tl.dot(p.to(v.dtype), v, o * shrunk[:, None], input_precision=PRECISION)
        top = higher
    o = o / tl.where(total == 0.0, 1.0, total)[:, None]
    at = row_offsets(y, x, W * C, C, WIDE)
    tl.store(
        out + b * H * W * C + head * HD + at[:, None] + d[None, :],
        o.to(out.dtype.element_ty),
        mask=real[:, None] & (d < HD)[None, :],
    )
