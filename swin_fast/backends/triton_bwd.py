# SPDX-License-Identifier: Apache-2.0
"""The backward kernels in Triton. Everything is recomputed from the inputs, and nothing is added atomically.

Gradients that are sums over windows (bias, logit_scale, pad_value) have owners: a program goes through a fixed,
contiguous range of the windows of one head and leaves its sum as a part; `fold` adds the parts in their order.
"""

# No `from __future__ import annotations`: Triton reads the annotation tl.constexpr.

import triton
import triton.language as tl

from .triton_fwd import UNSPECIALIZED
from .triton_window import (
    COSINE_EPS,
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
    unknown_zero,
    windows_of,
)


@triton.jit
def row_gradient(summed, rows, inverse, factor, COSINE: tl.constexpr):
    """(the gradient of rows x, that of the factor of their scores) from `summed`, dS times the other side of q.k.

    With cosine attention the other side is normalized, and u = x / max(|x|, eps) has the gradient g = factor * summed;
    that of x is (g - u (u.g)) / |x|, as du = (dx - u (u.dx)) / |x|, where a row below eps is divided by a constant.
    """
    if COSINE:
        wide = rows.to(tl.float32)
        radial = tl.sum(wide * summed, 1) * inverse
        kept = tl.where(inverse < 1.0 / COSINE_EPS, radial, 0.0)
        gradient = (summed - wide * (kept * inverse)[:, None]) * (factor * inverse)[:, None]
    else:
        radial = 0.0
        gradient = summed * factor
    return gradient, radial


@triton.jit
def add_dbias(
    parts, part, rows, keys, ds, more, ALL_ROWS: tl.constexpr, ALL_KEYS: tl.constexpr, HAS_BIAS: tl.constexpr
):
    """Adds a tile to an owner's part of dbias; its first window, where not `more`, finds no sum there yet."""
    if HAS_BIAS:
        at = parts + part * (ALL_ROWS * ALL_KEYS) + rows[:, None] * ALL_KEYS + keys[None, :]
        if more:
            ds += tl.load(at)
        tl.store(at, ds)


@triton.jit
def add_to_row(row, gradient, pad, d, HD: tl.constexpr):
    """Adds the gradients of tokens that are padding to an owner's part of dpad_value, which begins as zero."""
    found = tl.sum(tl.where(pad[:, None], gradient, 0.0), 0)
    tl.store(row + d, tl.load(row + d, mask=d < HD, other=0.0) + found, mask=d < HD)
    tl.debug_barrier()  # what the next window adds may be in another thread's hands


@triton.jit
def power_of_two(inverse):
    """The largest power of two that is not above a positive float32."""
    return (inverse.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def other_side(rows, again, inverse, COSINE: tl.constexpr):
    """What gradients of scores are multiplied with: rows of q or k, in float16 with cosine attention near unit length.

    1 / |row| may be 1e12, which float16 does not hold. Its power of two goes to the row, where it rounds nothing, and
    the rest, between 1 and 2, to the gradient of the scores: `for_other_side`. Other dtypes take it there whole.
    """
    if COSINE and rows.dtype == tl.float16:
        rows = (again.to(tl.float32) * power_of_two(inverse)[:, None]).to(rows.dtype)
    return rows


@triton.jit
def for_other_side(ds, inverse, AXIS: tl.constexpr, COSINE: tl.constexpr, DTYPE: tl.constexpr):
    """Gradients of scores, in the dtype of the rows, whose 1 / |row| runs along AXIS."""
    if COSINE:
        if DTYPE == tl.float16:
            inverse = inverse / power_of_two(inverse)
        ds = ds * tl.expand_dims(inverse, 1 - AXIS)
    return ds.to(DTYPE)


@triton.jit
def store_keys(
    dk,
    dv,
    k,
    inverse,
    factor,
    key_rows,
    C,
    at,
    real,
    pad,
    padded,
    dpad_row,
    d,
    HD: tl.constexpr,
    COSINE: tl.constexpr,
    PADDED: tl.constexpr,
):
    """The gradients of keys and values: stored where a token is a pixel, added up where it is padding."""
    store_rows(key_rows + C, at, dv, real, d, HD)
    if PADDED:
        if padded:
            add_to_row(dpad_row + HD, dv, pad, d, HD)
    dk, _radial = row_gradient(dk, k, inverse, factor, COSINE)
    store_rows(key_rows, at, dk, real, d, HD)
    if PADDED:
        if padded:
            add_to_row(dpad_row, dk, pad, d, HD)


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "owners"))
def small_windows_bwd(
    grad_out,
    qkv,
    bias,
    logit_scale,
    pad_value,
    dqkv,
    dbias_parts,
    dlogit_scale_parts,
    dpad_value_parts,
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
):
    """Computes: dqkv of windows of up to ROWS tokens, and the parts of dbias, dlogit_scale and dpad_value.
    Grid: (nH * owners,), heads fastest; an owner has the windows [i U / owners, (i + 1) U / owners) of its head.
    Memory: 2 (4 HD reads + 3 HD writes) bytes a token and head in 16 bits; scores and dbias stay in registers.
    Numerics: as the forward; probabilities and the gradients of scores rounded to the input dtype for products, sums
    over windows in float32. `delta`, the sum of P dP, from both as they are, so nothing is saved by the forward.
    Source: Dao et al. 2022, FlashAttention, for dS = P (dP - delta); written for this project.
    """
    N: tl.constexpr = WH * WW
    head = tl.program_id(0) % nH
    owner = tl.program_id(0) // nH
    first, last = windows_of(owner, owners, U)
    rows = tl.arange(0, ROWS)
    d = tl.arange(0, D)
    C = nH * HD
    grid = (nWh, nWw, H, W, Hp, Wp, sh, sw)
    q_base, k_base, v_base, k_pad = pointers_of(qkv, pad_value, head, nH, stride_three, stride_head, HD)
    factor = scale
    if COSINE:
        factor = tl.load(logit_scale + head)
    dbias = tl.zeros((ROWS, ROWS), tl.float32)
    dlogit_scale = tl.zeros((ROWS,), tl.float32)
    part = (head * owners + owner).to(tl.int64)
    for unit in tl.range(first, last, disable_licm=COSINE or PADDED):
        b = (unit // nW).to(tl.int64)
        window = unit % nW
        image = b * stride_b
        own = b * H * W * (3 * C) + head * HD
        border = has_border(window, grid)
        padded = has_padding(window, grid, WH, WW, ROLL_PAD)
        y, x, real, pad = tokens_of(window, rows, grid, WH, WW, ROLL_PAD)
        at = row_offsets(y, x, stride_y, stride_x, WIDE)
        q = load_rows(q_base + image, at, real, d, HD)
        k = load_padded(k_base + image, at, real, pad, k_pad, padded, d, HD, PADDED)
        v = load_padded(v_base + image, at, real, pad, k_pad + (C + unknown_zero(window)), padded, d, HD, PADDED)
        grad_at = row_offsets(y, x, grad_stride_y, grad_stride_x, WIDE)
        do = load_rows(grad_out + b * grad_stride_b + head * HD, grad_at, real, d, HD)
        q_inverse = inverse_norms(q, COSINE)
        k_inverse = inverse_norms(k, COSINE)
        s = scores_of(
            q,
            k,
            factor,
            q_inverse,
            k_inverse,
            load_bias(bias, head, rows, rows, ROWS, ROWS, HAS_BIAS),
            rows,
            rows,
            window,
            grid,
            border,
            mask_value,
            WH,
            WW,
            COSINE,
            SHIFTED,
            ROWS > N,
            PRECISION,
        )
        p = exponentials(s, finite_top(tl.max(s, 1)))
        total = tl.sum(p, 1)
        # Rows that are no query, or may attend to nothing, weigh nothing: 0 * NaN shall not reach the keys.
        alive = real & (total != 0.0)
        p = tl.where(alive[:, None], p * (1.0 / total)[:, None], 0.0)
        own_at = row_offsets(y, x, W * (3 * C), 3 * C, WIDE)
        dv = tl.dot(tl.trans(p.to(do.dtype)), do, input_precision=PRECISION)
        store_rows(dqkv + own + 2 * C, own_at, dv, real, d, HD)
        if PADDED:
            if padded:
                add_to_row(dpad_value_parts + (2 * part + 1) * HD, dv, pad, d, HD)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        delta = tl.sum(p * dp, 1)
        ds = tl.where(alive[:, None], p * (dp - delta[:, None]), 0.0)
        if HAS_BIAS:
            dbias += ds
        q_again, k_again = q, k
        if COSINE:
            k_again = load_padded(k_base + image, at, real, pad, k_pad, padded, d, HD, PADDED, True)
            k_inverse = inverse_norms(k_again, COSINE)
        for_k = for_other_side(ds, k_inverse, 1, COSINE, q.dtype)
        dq = tl.dot(for_k, other_side(k, k_again, k_inverse, COSINE), input_precision=PRECISION)
        if COSINE:
            q_again = load_rows(q_base + image, at, real, d, HD, True)
        dq, radial = row_gradient(dq, q_again, q_inverse, factor, COSINE)
        store_rows(dqkv + own, own_at, dq, real, d, HD)
        if COSINE:
            dlogit_scale += radial
        for_q = tl.trans(for_other_side(ds, q_inverse, 0, COSINE, q.dtype))
        dk = tl.dot(for_q, other_side(q, q_again, q_inverse, COSINE), input_precision=PRECISION)
        dk, _radial = row_gradient(dk, k_again, k_inverse, factor, COSINE)
        store_rows(dqkv + own + C, own_at, dk, real, d, HD)
        if PADDED:
            if padded:
                add_to_row(dpad_value_parts + 2 * part * HD, dk, pad, d, HD)
    if HAS_BIAS:
        tl.store(dbias_parts + part * (ROWS * ROWS) + rows[:, None] * ROWS + rows[None, :], dbias)
    if COSINE:
        tl.store(dlogit_scale_parts + part, tl.sum(dlogit_scale, 0))


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "owners", "span"))
def whole_windows_bwd(
    grad_out,
    qkv,
    bias,
    logit_scale,
    pad_value,
    dqkv,
    dbias_parts,
    dlogit_scale_parts,
    dpad_value_parts,
    scale,
    mask_value,
    owners,
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
    MORE_KEYS: tl.constexpr,
):
    """Computes: dqkv of windows whose keys and values, and their gradients, fit on the chip, and the parts of dbias,
    dlogit_scale and dpad_value.
    Grid: (span * ceil(owners / floor(span / nH)),); owners as in small_windows_bwd, heads as in whole_windows.
    Memory: as small_windows_bwd, and the owner's part of dbias is added to in the L2 cache: 8 N**2 bytes a window.
    Numerics: as small_windows_bwd. Queries come in tiles of ROWS, keys as KEYS and MORE_KEYS at once.
    Source: as small_windows_bwd.
    """
    N: tl.constexpr = WH * WW
    ALL_ROWS: tl.constexpr = (N + ROWS - 1) // ROWS * ROWS
    ALL_KEYS: tl.constexpr = KEYS + MORE_KEYS
    head, owner = head_of(tl.program_id(0), span, nH)
    first, last = windows_of(owner, owners, U)
    if owner >= owners:
        last = first
    rows = tl.arange(0, ROWS)
    keys = tl.arange(0, KEYS)
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
        own = b * H * W * (3 * C) + head * HD
        border = has_border(window, grid)
        padded = has_padding(window, grid, WH, WW, ROLL_PAD)
        y, x, real, pad = tokens_of(window, keys, grid, WH, WW, ROLL_PAD)
        at = row_offsets(y, x, stride_y, stride_x, WIDE)
        k = load_padded(k_base + image, at, real, pad, k_pad, padded, d, HD, PADDED)
        v = load_padded(v_base + image, at, real, pad, k_pad + C, padded, d, HD, PADDED)
        k_inverse = inverse_norms(k, COSINE)
        k_side = other_side(k, k, k_inverse, COSINE)
        dk = tl.zeros((KEYS, D), tl.float32)
        dv = tl.zeros((KEYS, D), tl.float32)
        if MORE_KEYS > 0:
            keys2 = KEYS + tl.arange(0, MORE_KEYS)
            y, x, real, pad = tokens_of(window, keys2, grid, WH, WW, ROLL_PAD)
            at = row_offsets(y, x, stride_y, stride_x, WIDE)
            k2 = load_padded(k_base + image, at, real, pad, k_pad, padded, d, HD, PADDED)
            v2 = load_padded(v_base + image, at, real, pad, k_pad + C, padded, d, HD, PADDED)
            k_inverse2 = inverse_norms(k2, COSINE)
            k_side2 = other_side(k2, k2, k_inverse2, COSINE)
            dk2 = tl.zeros((MORE_KEYS, D), tl.float32)
            dv2 = tl.zeros((MORE_KEYS, D), tl.float32)
        for start in tl.range(0, N, ROWS, disable_licm=True):
            row = start + rows
            qy, qx, q_real, _pad = tokens_of(window, row, grid, WH, WW, ROLL_PAD)
            q_at = row_offsets(qy, qx, stride_y, stride_x, WIDE)
            q = load_rows(q_base + image, q_at, q_real, d, HD)
            grad_at = row_offsets(qy, qx, grad_stride_y, grad_stride_x, WIDE)
            do = load_rows(grad_out + b * grad_stride_b + head * HD, grad_at, q_real, d, HD)
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
            if MORE_KEYS > 0:
                p2 = exponentials(s2, top)
                total += tl.sum(p2, 1)
            alive = q_real & (total != 0.0)
            share = 1.0 / total
            p = tl.where(alive[:, None], p * share[:, None], 0.0)
            dv = tl.dot(tl.trans(p.to(do.dtype)), do, dv, input_precision=PRECISION)
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            delta = tl.sum(p * dp, 1)
            if MORE_KEYS > 0:
                p2 = tl.where(alive[:, None], p2 * share[:, None], 0.0)
                dv2 = tl.dot(tl.trans(p2.to(do.dtype)), do, dv2, input_precision=PRECISION)
                dp2 = tl.dot(do, tl.trans(v2), input_precision=PRECISION)
                delta += tl.sum(p2 * dp2, 1)
            ds = tl.where(alive[:, None], p * (dp - delta[:, None]), 0.0)
            add_dbias(dbias_parts, part, row, keys, ds, unit > first, ALL_ROWS, ALL_KEYS, HAS_BIAS)
            q_again = q
            if COSINE:  # twice, for the rows would fill registers from here to there
                q_again = load_rows(q_base + image, q_at, q_real, d, HD, True)
            q_side = other_side(q, q_again, q_inverse, COSINE)
            for_q = tl.trans(for_other_side(ds, q_inverse, 0, COSINE, q.dtype))
            dk = tl.dot(for_q, q_side, dk, input_precision=PRECISION)
            dq = tl.dot(for_other_side(ds, k_inverse, 1, COSINE, q.dtype), k_side, input_precision=PRECISION)
            if MORE_KEYS > 0:
                ds = tl.where(alive[:, None], p2 * (dp2 - delta[:, None]), 0.0)
                add_dbias(dbias_parts, part, row, keys2, ds, unit > first, ALL_ROWS, ALL_KEYS, HAS_BIAS)
                for_k = for_other_side(ds, k_inverse2, 1, COSINE, q.dtype)
                dq = tl.dot(for_k, k_side2, dq, input_precision=PRECISION)
                for_q = tl.trans(for_other_side(ds, q_inverse, 0, COSINE, q.dtype))
                dk2 = tl.dot(for_q, q_side, dk2, input_precision=PRECISION)
            if COSINE:
                q_again = load_rows(q_base + image, q_at, q_real, d, HD, True)
            dq, radial = row_gradient(dq, q_again, q_inverse, factor, COSINE)
            if COSINE:
                dlogit_scale += radial
            store_rows(dqkv + own, row_offsets(qy, qx, W * (3 * C), 3 * C, WIDE), dq, q_real, d, HD)
        zero = unknown_zero(window)  # or what was known of the keys above fills registers until here
        key_rows = dqkv + own + C
        dpad_row = dpad_value_parts + part * (2 * HD)
        if MORE_KEYS > 0:
            y, x, real, pad = tokens_of(window, keys2 + zero, grid, WH, WW, ROLL_PAD)
            at = row_offsets(y, x, W * (3 * C), 3 * C, WIDE)
            if COSINE:
                again = row_offsets(y, x, stride_y, stride_x, WIDE)
                k2 = load_padded(k_base + image, again, real, pad, k_pad, padded, d, HD, PADDED, True)
                k_inverse2 = inverse_norms(k2, COSINE)
            store_keys(
                dk2, dv2, k2, k_inverse2, factor, key_rows, C, at, real, pad, padded, dpad_row, d, HD, COSINE, PADDED
            )
        y, x, real, pad = tokens_of(window, keys + zero, grid, WH, WW, ROLL_PAD)
        at = row_offsets(y, x, W * (3 * C), 3 * C, WIDE)
        if COSINE:
            again = row_offsets(y, x, stride_y, stride_x, WIDE)
            k = load_padded(k_base + image, again, real, pad, k_pad, padded, d, HD, PADDED, True)
            k_inverse = inverse_norms(k, COSINE)
        store_keys(dk, dv, k, k_inverse, factor, key_rows, C, at, real, pad, padded, dpad_row, d, HD, COSINE, PADDED)
        tl.debug_barrier()  # what the next window adds to dbias may be in another thread's hands
    if COSINE:
        if owner < owners:
            tl.store(dlogit_scale_parts + part, tl.sum(dlogit_scale, 0))
