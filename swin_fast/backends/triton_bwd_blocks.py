# SPDX-License-Identifier: Apache-2.0
"""The backward kernels in Triton for windows that do not fit on the chip: owners of queries, then owners of keys."""

# No `from __future__ import annotations`: Triton reads the annotation tl.constexpr.

import triton
import triton.language as tl

from .triton_bwd import add_dbias, for_other_side, other_side, row_gradient, store_keys
from .triton_fwd import UNSPECIALIZED
from .triton_window import (
    LOG2_E,
    add_product,
    exponentials,
    finite_top,
    has_border,
    has_padding,
    inverse_norms,
    load_bias,
    load_padded,
    load_rows,
    pointers_of,
    row_offsets,
    scores_of,
    store_rows,
    tokens_of,
    windows_of,
)


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "owners"))
def query_rows_bwd(
    grad_out,
    qkv,
    bias,
    logit_scale,
    pad_value,
    dqkv,
    dbias_parts,
    dlogit_scale_parts,
    statistics,
    scale,
    mask_value,
    owners,
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
    grad_stride_b,
    grad_stride_y,
    grad_stride_x,
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
    """Computes: dq of ROWS queries in a range of windows of one head, their parts of dbias and dlogit_scale, and for
    `key_rows_bwd` what makes a probability of a score: the largest score, one over the sum, and delta of each query.
    Grid: (nH * owners * ceil(N / ROWS),), tiles fastest, which read the same keys, then heads.
    Memory: q and dO once, k and v twice for each tile of queries, mostly from the L2 cache, where the owner's part of
    dbias is added to, too; 12 bytes of statistics a token and head.
    Numerics: as small_windows_bwd; the softmax and delta over blocks of KEYS keys, corrected when a larger score comes.
    Source: as small_windows_bwd.
    """
    N: tl.constexpr = WH * WW
    TILES: tl.constexpr = (N + ROWS - 1) // ROWS
    ALL_ROWS: tl.constexpr = TILES * ROWS
    ALL_KEYS: tl.constexpr = (N + KEYS - 1) // KEYS * KEYS
    tile = tl.program_id(0) % TILES
    head = (tl.program_id(0) // TILES) % nH
    owner = tl.program_id(0) // TILES // nH
    first, last = windows_of(owner, owners, U)
    row = tile * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, D)
    C = nH * HD
    grid = (nWh, nWw, H, W, Hp, Wp, sh, sw)
    q_base, k_base, v_base, k_pad = pointers_of(qkv, pad_value, head, nH, stride_three, stride_head, HD)
    factor = scale
    if COSINE:
        factor = tl.load(logit_scale + head)
    part = (head * owners + owner).to(tl.int64)
    dlogit_scale = tl.zeros((ROWS,), tl.float32)
    for unit in tl.range(first, last, disable_licm=True):
        b = (unit // nW).to(tl.int64)
        window = unit % nW
        image = b * stride_b
        grad_image = b * grad_stride_b + head * HD
        own = b * H * W * (3 * C) + head * HD
        border = has_border(window, grid)
        padded = has_padding(window, grid, WH, WW, ROLL_PAD)
        y, x, real, _pad = tokens_of(window, row, grid, WH, WW, ROLL_PAD)
        q_at = row_offsets(y, x, stride_y, stride_x, WIDE)
        q = load_rows(q_base + image, q_at, real, d, HD)
        do = load_rows(grad_out + grad_image, row_offsets(y, x, grad_stride_y, grad_stride_x, WIDE), real, d, HD)
        q_inverse = inverse_norms(q, COSINE)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        delta = tl.zeros((ROWS,), tl.float32)
        for start in range(0, N, KEYS):
            keys = start + tl.arange(0, KEYS)
            ky, kx, k_real, pad = tokens_of(window, keys, grid, WH, WW, ROLL_PAD)
            at = row_offsets(ky, kx, stride_y, stride_x, WIDE)
            k = load_padded(k_base + image, at, k_real, pad, k_pad, padded, d, HD, PADDED)
            v = load_padded(v_base + image, at, k_real, pad, k_pad + C, padded, d, HD, PADDED)
            k_inverse = inverse_norms(k, COSINE)
            s = scores_of(
                q,
                k,
                factor,
                q_inverse,
                k_inverse,
                load_bias(bias, head, row, keys, ALL_ROWS, ALL_KEYS, HAS_BIAS),
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
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            higher = tl.maximum(top, tl.max(s, 1))
            shrunk = tl.exp2((top - finite_top(higher)) * LOG2_E)
            p = exponentials(s, finite_top(higher))
            total = total * shrunk + tl.sum(p, 1)
            delta = delta * shrunk + tl.sum(p * dp, 1)
            top = higher
        alive = real & (total != 0.0)
        # Rounded: an error here is that of a whole row, and all keys of padding that are alike add it up.
        share = tl.where(alive, tl.div_rn(1.0, total), 0.0)
        delta = delta * share
        top = finite_top(top)
        dq = tl.zeros((ROWS, D), tl.float32)
        for start in range(0, N, KEYS):
            keys = start + tl.arange(0, KEYS)
            ky, kx, k_real, pad = tokens_of(window, keys, grid, WH, WW, ROLL_PAD)
            at = row_offsets(ky, kx, stride_y, stride_x, WIDE)
            k = load_padded(k_base + image, at, k_real, pad, k_pad, padded, d, HD, PADDED)
            v = load_padded(v_base + image, at, k_real, pad, k_pad + C, padded, d, HD, PADDED)
            k_inverse = inverse_norms(k, COSINE)
            s = scores_of(
                q,
                k,
                factor,
                q_inverse,
                k_inverse,
                load_bias(bias, head, row, keys, ALL_ROWS, ALL_KEYS, HAS_BIAS),
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
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            p = exponentials(s, top) * share[:, None]
            ds = tl.where(alive[:, None], p * (dp - delta[:, None]), 0.0)
            add_dbias(dbias_parts, part, row, keys, ds, unit > first, ALL_ROWS, ALL_KEYS, HAS_BIAS)
            for_k = for_other_side(ds, k_inverse, 1, COSINE, q.dtype)
            dq = add_product(dq, for_k, other_side(k, k, k_inverse, COSINE), PRECISION)
        if COSINE:
            q = load_rows(q_base + image, q_at, real, d, HD, True)
        dq, radial = row_gradient(dq, q, q_inverse, factor, COSINE)
        if COSINE:
            dlogit_scale += radial
        store_rows(dqkv + own, row_offsets(y, x, W * (3 * C), 3 * C, WIDE), dq, real, d, HD)
        at = statistics + (unit * nH.to(tl.int64) + head) * (3 * N) + row
        tl.store(at, top, mask=row < N)
        tl.store(at + N, share, mask=row < N)
        tl.store(at + 2 * N, delta, mask=row < N)
        tl.debug_barrier()  # as in whole_windows_bwd
    if COSINE:
        tl.store(dlogit_scale_parts + part * TILES + tile, tl.sum(dlogit_scale, 0))


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "owners"))
def key_rows_bwd(
    grad_out,
    qkv,
    bias,
    logit_scale,
    pad_value,
    dqkv,
    dpad_value_parts,
    statistics,
    scale,
    mask_value,
    owners,
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
    grad_stride_b,
    grad_stride_y,
    grad_stride_x,
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
    """Computes: dk and dv of KEYS keys in a range of windows of one head, and their parts of dpad_value.
    Grid: (nH * owners * ceil(N / KEYS),), tiles fastest, then heads.
    Memory: k and v once, q and dO once for each tile of keys, mostly from the L2 cache.
    Numerics: as small_windows_bwd, with the statistics of query_rows_bwd, which has to have run.
    Source: as small_windows_bwd.
    """
    N: tl.constexpr = WH * WW
    TILES: tl.constexpr = (N + KEYS - 1) // KEYS
    ALL_ROWS: tl.constexpr = (N + ROWS - 1) // ROWS * ROWS
    ALL_KEYS: tl.constexpr = TILES * KEYS
    tile = tl.program_id(0) % TILES
    head = (tl.program_id(0) // TILES) % nH
    owner = tl.program_id(0) // TILES // nH
    first, last = windows_of(owner, owners, U)
    keys = tile * KEYS + tl.arange(0, KEYS)
    d = tl.arange(0, D)
    C = nH * HD
    grid = (nWh, nWw, H, W, Hp, Wp, sh, sw)
    q_base, k_base, v_base, k_pad = pointers_of(qkv, pad_value, head, nH, stride_three, stride_head, HD)
    factor = scale
    if COSINE:
        factor = tl.load(logit_scale + head)
    part = (head * owners + owner).to(tl.int64)
    for unit in range(first, last):
        b = (unit // nW).to(tl.int64)
        window = unit % nW
        image = b * stride_b
        grad_image = b * grad_stride_b + head * HD
        own = b * H * W * (3 * C) + head * HD
        border = has_border(window, grid)
        padded = has_padding(window, grid, WH, WW, ROLL_PAD)
        y, x, k_real, pad = tokens_of(window, keys, grid, WH, WW, ROLL_PAD)
        at = row_offsets(y, x, stride_y, stride_x, WIDE)
        k = load_padded(k_base + image, at, k_real, pad, k_pad, padded, d, HD, PADDED)
        v = load_padded(v_base + image, at, k_real, pad, k_pad + C, padded, d, HD, PADDED)
        k_inverse = inverse_norms(k, COSINE)
        dk = tl.zeros((KEYS, D), tl.float32)
        dv = tl.zeros((KEYS, D), tl.float32)
        for start in range(0, N, ROWS):
            row = start + tl.arange(0, ROWS)
            qy, qx, real, _pad = tokens_of(window, row, grid, WH, WW, ROLL_PAD)
            q = load_rows(q_base + image, row_offsets(qy, qx, stride_y, stride_x, WIDE), real, d, HD)
            grad_at = row_offsets(qy, qx, grad_stride_y, grad_stride_x, WIDE)
            do = load_rows(grad_out + grad_image, grad_at, real, d, HD)
            q_inverse = inverse_norms(q, COSINE)
            s = scores_of(
                q,
                k,
                factor,
                q_inverse,
                k_inverse,
                load_bias(bias, head, row, keys, ALL_ROWS, ALL_KEYS, HAS_BIAS),
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
            stat_at = statistics + (unit * nH.to(tl.int64) + head) * (3 * N) + row
            top = tl.load(stat_at, mask=row < N, other=0.0)
            share = tl.load(stat_at + N, mask=row < N, other=0.0)
            delta = tl.load(stat_at + 2 * N, mask=row < N, other=0.0)
            alive = real & (share != 0.0)
            p = tl.where(alive[:, None], exponentials(s, top) * share[:, None], 0.0)
            dv = add_product(dv, tl.trans(p.to(do.dtype)), do, PRECISION)
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            ds = tl.where(alive[:, None], p * (dp - delta[:, None]), 0.0)
            for_q = tl.trans(for_other_side(ds, q_inverse, 0, COSINE, q.dtype))
            dk = add_product(dk, for_q, other_side(q, q, q_inverse, COSINE), PRECISION)
        if COSINE:
            k = load_padded(k_base + image, at, k_real, pad, k_pad, padded, d, HD, PADDED, True)
        at = row_offsets(y, x, W * (3 * C), 3 * C, WIDE)
        key_rows = dqkv + own + C
        dpad_row = dpad_value_parts + (part * TILES + tile) * (2 * HD)
        store_keys(dk, dv, k, k_inverse, factor, key_rows, C, at, k_real, pad, padded, dpad_row, d, HD, COSINE, PADDED)
