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


@triton.jit
def normalized_gradient(along, rows, factor, grad):
    """The gradient of a row x from `grad`, that of x / max(|x|, eps), and `along`, its part in the direction of x.

    d(x/|x|) = (dx - x/|x| (x/|x| . dx)) / |x|; a row below eps is divided by a constant.
    """
    unit = rows.to(tl.float32) * factor[:, None]
    radial = tl.where(factor < 1.0 / COSINE_EPS, along, 0.0)
    return (grad - unit * radial[:, None]) * factor[:, None]


@triton.jit
def store_rows(base, at, rows, real, d, HD: tl.constexpr):
    tl.store(base + at[:, None] + d[None, :], rows.to(base.dtype.element_ty), mask=real[:, None] & (d < HD)[None, :])


@triton.jit
def add_dbias(parts, part, rows, keys, ds, more, N: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Adds a tile to an owner's part of dbias; its first window, where not `more`, finds no sum there yet."""
    if HAS_BIAS:
        at = parts + part * (N * N) + rows[:, None] * N + keys[None, :]
        inside = (rows < N)[:, None] & (keys < N)[None, :]
        tl.store(at, tl.load(at, mask=inside & more, other=0.0) + ds, mask=inside)


@triton.jit
def power_of_two(factor):
    """The largest power of two that is not above the factor, a positive float32."""
    return (factor.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def times_power(rows, factor, COSINE: tl.constexpr):
    """What gradients of scores are multiplied with: the rows, with cosine attention near unit length.

    The factor of a row, 1 / |row|, may be 1e12. Its power of two goes to the row, where it rounds nothing, and the
    rest, between 1 and 2, to the gradient of the scores: `times_rest`.
    """
    if COSINE:
        rows = (rows.to(tl.float32) * power_of_two(factor)[:, None]).to(rows.dtype)
    return rows


@triton.jit
def times_rest(ds, factor, AXIS: tl.constexpr, COSINE: tl.constexpr):
    if COSINE:
        ds = ds * tl.expand_dims(factor / power_of_two(factor), AXIS)
    return ds


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
    HAS_PAD: tl.constexpr,
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
    first = (owner.to(tl.int64) * U // owners).to(tl.int32)
    last = ((owner + 1).to(tl.int64) * U // owners).to(tl.int32)
    rows = tl.arange(0, ROWS)
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
    bias_tile = load_bias(bias, head, rows, rows, N, HAS_BIAS)
    dbias = tl.zeros((ROWS, ROWS), tl.float32)
    dlogit_scale = tl.zeros((ROWS,), tl.float32)
    dk_pad = tl.zeros((D,), tl.float32)
    dv_pad = tl.zeros((D,), tl.float32)
    for unit in range(first, last):
        b = (unit // nW).to(tl.int64)
        window = unit % nW
        image = b * stride_b
        grad_image = b * grad_stride_b + head * HD
        own = b * H * W * (3 * C) + head * HD
        border = has_border(window, nWw, nWh, sh, sw)
        y, x, region, real, pad = tokens_of(window, rows, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
        at = row_offsets(y, x, stride_y, stride_x, WIDE)
        q = load_rows(q_base + image, at, real, d, HD)
        k = with_padding(load_rows(k_base + image, at, real, d, HD), pad, k_pad, d, HD, PADDED, HAS_PAD)
        v = with_padding(load_rows(v_base + image, at, real, d, HD), pad, v_pad, d, HD, PADDED, HAS_PAD)
        grad_at = row_offsets(y, x, grad_stride_y, grad_stride_x, WIDE)
        do = load_rows(grad_out + grad_image, grad_at, real, d, HD)
        product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        q_factor = inverse_norms(q)
        k_factor = inverse_norms(k)
        if COSINE:
            product = cosines_of(product, q_factor, k_factor)
        s = scores_of(product, factor, bias_tile, region, region, rows, border, mask_value, N, SHIFTED, ROWS > N)
        top = tl.max(s, 1)
        p = exponentials(s, finite_top(top))
        total = tl.sum(p, 1)
        # Rows that are no query, or may attend to nothing, weigh nothing: 0 * NaN shall not reach the keys.
        alive = real & (total != 0.0)
        p = tl.where(alive[:, None], p / total[:, None], 0.0)
        dv = tl.dot(tl.trans(p.to(do.dtype)), do, input_precision=PRECISION)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        delta = tl.sum(p * dp, 1)
        ds = tl.where(alive[:, None], p * (dp - delta[:, None]), 0.0)
        if HAS_BIAS:
            dbias += ds
        for_k = times_rest(ds, k_factor, 0, COSINE).to(q.dtype)
        dq = tl.dot(for_k, times_power(k, k_factor, COSINE), input_precision=PRECISION) * factor
        for_q = times_rest(ds, q_factor, 1, COSINE).to(q.dtype)
        dk = tl.dot(tl.trans(for_q), times_power(q, q_factor, COSINE), input_precision=PRECISION) * factor
        if COSINE:
            turned = ds * product
            dlogit_scale += tl.sum(turned, 1)
            turned *= factor
            dq = normalized_gradient(tl.sum(turned, 1), q, q_factor, dq)
            dk = normalized_gradient(tl.sum(turned, 0), k, k_factor, dk)
        at = row_offsets(y, x, W * (3 * C), 3 * C, WIDE)
        store_rows(dqkv + own, at, dq, real, d, HD)
        store_rows(dqkv + own + C, at, dk, real, d, HD)
        store_rows(dqkv + own + 2 * C, at, dv, real, d, HD)
        if PADDED and HAS_PAD:
            dk_pad += tl.sum(tl.where(pad[:, None], dk, 0.0), 0)
            dv_pad += tl.sum(tl.where(pad[:, None], dv, 0.0), 0)
    part = (head * owners + owner).to(tl.int64)
    if HAS_BIAS:
        inside = (rows < N)[:, None] & (rows < N)[None, :]
        tl.store(dbias_parts + part * (N * N) + rows[:, None] * N + rows[None, :], dbias, mask=inside)
    if COSINE:
        tl.store(dlogit_scale_parts + part, tl.sum(dlogit_scale, 0))
    if HAS_PAD:
        tl.store(dpad_value_parts + part * (2 * HD) + d, dk_pad, mask=d < HD)
        tl.store(dpad_value_parts + part * (2 * HD) + HD + d, dv_pad, mask=d < HD)


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "owners"))
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
    """Computes: dqkv of windows whose keys and values, and their gradients, fit on the chip, and the parts of dbias,
    dlogit_scale and dpad_value.
    Grid: (nH * owners,), as small_windows_bwd.
    Memory: as small_windows_bwd, and the owner's part of dbias is added to in the L2 cache: 8 N**2 bytes a window.
    Numerics: as small_windows_bwd. Queries come in tiles of ROWS, keys as KEYS and MORE_KEYS at once.
    Source: as small_windows_bwd.
    """
    N: tl.constexpr = WH * WW
    head = tl.program_id(0) % nH
    owner = tl.program_id(0) // nH
    first = (owner.to(tl.int64) * U // owners).to(tl.int32)
    last = ((owner + 1).to(tl.int64) * U // owners).to(tl.int32)
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
    part = (head * owners + owner).to(tl.int64)
    dlogit_scale = tl.zeros((ROWS,), tl.float32)
    dk_pad = tl.zeros((D,), tl.float32)
    dv_pad = tl.zeros((D,), tl.float32)
    for unit in range(first, last):
        b = (unit // nW).to(tl.int64)
        window = unit % nW
        image = b * stride_b
        grad_image = b * grad_stride_b + head * HD
        own = b * H * W * (3 * C) + head * HD
        border = has_border(window, nWw, nWh, sh, sw)
        ky, kx, k_region, k_real, pad = tokens_of(window, keys, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
        k_at = row_offsets(ky, kx, stride_y, stride_x, WIDE)
        k = with_padding(load_rows(k_base + image, k_at, k_real, d, HD), pad, k_pad, d, HD, PADDED, HAS_PAD)
        v = with_padding(load_rows(v_base + image, k_at, k_real, d, HD), pad, v_pad, d, HD, PADDED, HAS_PAD)
        k_factor = inverse_norms(k)
        dk = tl.zeros((KEYS, D), tl.float32)
        dv = tl.zeros((KEYS, D), tl.float32)
        along = tl.zeros((KEYS,), tl.float32)
        if MORE_KEYS > 0:
            keys2 = KEYS + tl.arange(0, MORE_KEYS)
            ky2, kx2, k_region2, k_real2, pad2 = tokens_of(window, keys2, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
            k_at2 = row_offsets(ky2, kx2, stride_y, stride_x, WIDE)
            k2 = with_padding(load_rows(k_base + image, k_at2, k_real2, d, HD), pad2, k_pad, d, HD, PADDED, HAS_PAD)
            v2 = with_padding(load_rows(v_base + image, k_at2, k_real2, d, HD), pad2, v_pad, d, HD, PADDED, HAS_PAD)
            k_factor2 = inverse_norms(k2)
            dk2 = tl.zeros((MORE_KEYS, D), tl.float32)
            dv2 = tl.zeros((MORE_KEYS, D), tl.float32)
            along2 = tl.zeros((MORE_KEYS,), tl.float32)
        for start in range(0, N, ROWS):
            row = start + rows
            y, x, q_region, real, _pad = tokens_of(window, row, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
            q = load_rows(q_base + image, row_offsets(y, x, stride_y, stride_x, WIDE), real, d, HD)
            grad_at = row_offsets(y, x, grad_stride_y, grad_stride_x, WIDE)
            do = load_rows(grad_out + grad_image, grad_at, real, d, HD)
            q_factor = inverse_norms(q)
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if COSINE:
                product = cosines_of(product, q_factor, k_factor)
            bias_tile = load_bias(bias, head, row, keys, N, HAS_BIAS)
            s = scores_of(
                product, factor, bias_tile, q_region, k_region, keys, border, mask_value, N, SHIFTED, KEYS > N
            )
            top = tl.max(s, 1)
            if MORE_KEYS > 0:
                product2 = tl.dot(q, tl.trans(k2), input_precision=PRECISION)
                if COSINE:
                    product2 = cosines_of(product2, q_factor, k_factor2)
                bias_tile = load_bias(bias, head, row, keys2, N, HAS_BIAS)
                s2 = scores_of(
                    product2,
                    factor,
                    bias_tile,
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
            if MORE_KEYS > 0:
                p2 = exponentials(s2, top)
                total += tl.sum(p2, 1)
            alive = real & (total != 0.0)
            share = 1.0 / total
            p = tl.where(alive[:, None], p * share[:, None], 0.0)
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            delta = tl.sum(p * dp, 1)
            dv = tl.dot(tl.trans(p.to(do.dtype)), do, dv, input_precision=PRECISION)
            if MORE_KEYS > 0:
                p2 = tl.where(alive[:, None], p2 * share[:, None], 0.0)
                dp2 = tl.dot(do, tl.trans(v2), input_precision=PRECISION)
                delta += tl.sum(p2 * dp2, 1)
                dv2 = tl.dot(tl.trans(p2.to(do.dtype)), do, dv2, input_precision=PRECISION)
            ds = tl.where(alive[:, None], p * (dp - delta[:, None]), 0.0)
            add_dbias(dbias_parts, part, row, keys, ds, unit > first, N, HAS_BIAS)
            for_k = times_rest(ds, k_factor, 0, COSINE).to(q.dtype)
            dq = tl.dot(for_k, times_power(k, k_factor, COSINE), input_precision=PRECISION)
            for_q = times_rest(ds, q_factor, 1, COSINE).to(q.dtype)
            q_power = times_power(q, q_factor, COSINE)
            dk = tl.dot(tl.trans(for_q), q_power, dk, input_precision=PRECISION)
            if COSINE:
                turned = ds * product
                q_along = tl.sum(turned, 1)
                along += tl.sum(turned, 0)
            if MORE_KEYS > 0:
                ds2 = tl.where(alive[:, None], p2 * (dp2 - delta[:, None]), 0.0)
                add_dbias(dbias_parts, part, row, keys2, ds2, unit > first, N, HAS_BIAS)
                for_k2 = times_rest(ds2, k_factor2, 0, COSINE).to(q.dtype)
                dq = tl.dot(for_k2, times_power(k2, k_factor2, COSINE), dq, input_precision=PRECISION)
                for_q2 = times_rest(ds2, q_factor, 1, COSINE).to(q.dtype)
                dk2 = tl.dot(tl.trans(for_q2), q_power, dk2, input_precision=PRECISION)
                if COSINE:
                    turned2 = ds2 * product2
                    q_along += tl.sum(turned2, 1)
                    along2 += tl.sum(turned2, 0)
            dq *= factor
            if COSINE:
                dlogit_scale += q_along
                dq = normalized_gradient(q_along * factor, q, q_factor, dq)
            at = row_offsets(y, x, W * (3 * C), 3 * C, WIDE)
            store_rows(dqkv + own, at, dq, real, d, HD)
        dk *= factor
        if COSINE:
            dk = normalized_gradient(along * factor, k, k_factor, dk)
        at = row_offsets(ky, kx, W * (3 * C), 3 * C, WIDE)
        store_rows(dqkv + own + C, at, dk, k_real, d, HD)
        store_rows(dqkv + own + 2 * C, at, dv, k_real, d, HD)
        if PADDED and HAS_PAD:
            dk_pad += tl.sum(tl.where(pad[:, None], dk, 0.0), 0)
            dv_pad += tl.sum(tl.where(pad[:, None], dv, 0.0), 0)
        if MORE_KEYS > 0:
            dk2 *= factor
            if COSINE:
                dk2 = normalized_gradient(along2 * factor, k2, k_factor2, dk2)
            at = row_offsets(ky2, kx2, W * (3 * C), 3 * C, WIDE)
            store_rows(dqkv + own + C, at, dk2, k_real2, d, HD)
            store_rows(dqkv + own + 2 * C, at, dv2, k_real2, d, HD)
            if PADDED and HAS_PAD:
                dk_pad += tl.sum(tl.where(pad2[:, None], dk2, 0.0), 0)
                dv_pad += tl.sum(tl.where(pad2[:, None], dv2, 0.0), 0)
        tl.debug_barrier()  # what the next window adds to dbias may be in another thread's hands
    if COSINE:
        tl.store(dlogit_scale_parts + part, tl.sum(dlogit_scale, 0))
    if HAS_PAD:
        tl.store(dpad_value_parts + part * (2 * HD) + d, dk_pad, mask=d < HD)
        tl.store(dpad_value_parts + part * (2 * HD) + HD + d, dv_pad, mask=d < HD)
