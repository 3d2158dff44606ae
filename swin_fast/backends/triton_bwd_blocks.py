# SPDX-License-Identifier: Apache-2.0
"""The backward kernels in Triton for windows that do not fit on the chip: owners of queries, then owners of keys."""

# No `from __future__ import annotations`: Triton reads the annotation tl.constexpr.

import triton
import triton.language as tl

from .triton_bwd import add_dbias, normalized_gradient, store_rows, times_power, times_rest
from .triton_fwd import UNSPECIALIZED
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
    HAS_PAD: tl.constexpr,
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
    tile = tl.program_id(0) % TILES
    head = (tl.program_id(0) // TILES) % nH
    owner = tl.program_id(0) // TILES // nH
    first = (owner.to(tl.int64) * U // owners).to(tl.int32)
    last = ((owner + 1).to(tl.int64) * U // owners).to(tl.int32)
    row = tile * ROWS + tl.arange(0, ROWS)
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
    for unit in range(first, last):
        b = (unit // nW).to(tl.int64)
        window = unit % nW
        image = b * stride_b
        grad_image = b * grad_stride_b + head * HD
        own = b * H * W * (3 * C) + head * HD
        border = has_border(window, nWw, nWh, sh, sw)
        y, x, q_region, real, _pad = tokens_of(window, row, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
        q = load_rows(q_base + image, row_offsets(y, x, stride_y, stride_x, WIDE), real, d, HD)
        grad_at = row_offsets(y, x, grad_stride_y, grad_stride_x, WIDE)
        do = load_rows(grad_out + grad_image, grad_at, real, d, HD)
        q_factor = inverse_norms(q)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        delta = tl.zeros((ROWS,), tl.float32)
        for start in range(0, N, KEYS):
            keys = start + tl.arange(0, KEYS)
            ky, kx, k_region, k_real, pad = tokens_of(window, keys, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
            at = row_offsets(ky, kx, stride_y, stride_x, WIDE)
            k = with_padding(load_rows(k_base + image, at, k_real, d, HD), pad, k_pad, d, HD, PADDED, HAS_PAD)
            v = with_padding(load_rows(v_base + image, at, k_real, d, HD), pad, v_pad, d, HD, PADDED, HAS_PAD)
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if COSINE:
                product = cosines_of(product, q_factor, inverse_norms(k))
            bias_tile = load_bias(bias, head, row, keys, N, HAS_BIAS)
            s = scores_of(
                product, factor, bias_tile, q_region, k_region, keys, border, mask_value, N, SHIFTED, N % KEYS != 0
            )
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            higher = tl.maximum(top, tl.max(s, 1))
            shrunk = tl.exp2((top - finite_top(higher)) * LOG2_E)
            p = exponentials(s, finite_top(higher))
            total = total * shrunk + tl.sum(p, 1)
            delta = delta * shrunk + tl.sum(p * dp, 1)
            top = higher
        alive = real & (total != 0.0)
        share = tl.where(alive, 1.0 / total, 0.0)
        delta = delta * share
        top = finite_top(top)
        dq = tl.zeros((ROWS, D), tl.float32)
        along = tl.zeros((ROWS,), tl.float32)
        for start in range(0, N, KEYS):
            keys = start + tl.arange(0, KEYS)
            ky, kx, k_region, k_real, pad = tokens_of(window, keys, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
            at = row_offsets(ky, kx, stride_y, stride_x, WIDE)
            k = with_padding(load_rows(k_base + image, at, k_real, d, HD), pad, k_pad, d, HD, PADDED, HAS_PAD)
            v = with_padding(load_rows(v_base + image, at, k_real, d, HD), pad, v_pad, d, HD, PADDED, HAS_PAD)
            k_factor = inverse_norms(k)
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if COSINE:
                product = cosines_of(product, q_factor, k_factor)
            bias_tile = load_bias(bias, head, row, keys, N, HAS_BIAS)
            s = scores_of(
                product, factor, bias_tile, q_region, k_region, keys, border, mask_value, N, SHIFTED, N % KEYS != 0
            )
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            p = exponentials(s, top) * share[:, None]
            ds = tl.where(alive[:, None], p * (dp - delta[:, None]), 0.0)
            add_dbias(dbias_parts, part, row, keys, ds, unit > first, N, HAS_BIAS)
            for_k = times_rest(ds, k_factor, 0, COSINE).to(q.dtype)
            dq = tl.dot(for_k, times_power(k, k_factor, COSINE), dq, input_precision=PRECISION)
            if COSINE:
                along += tl.sum(ds * product, 1)
        dq *= factor
        if COSINE:
            dlogit_scale += along
            dq = normalized_gradient(along * factor, q, q_factor, dq)
        at = row_offsets(y, x, W * (3 * C), 3 * C, WIDE)
        store_rows(dqkv + own, at, dq, real, d, HD)
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
    HAS_PAD: tl.constexpr,
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
    tile = tl.program_id(0) % TILES
    head = (tl.program_id(0) // TILES) % nH
    owner = tl.program_id(0) // TILES // nH
    first = (owner.to(tl.int64) * U // owners).to(tl.int32)
    last = ((owner + 1).to(tl.int64) * U // owners).to(tl.int32)
    keys = tile * KEYS + tl.arange(0, KEYS)
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
    dk_pad = tl.zeros((D,), tl.float32)
    dv_pad = tl.zeros((D,), tl.float32)
    for unit in range(first, last):
        b = (unit // nW).to(tl.int64)
        window = unit % nW
        image = b * stride_b
        grad_image = b * grad_stride_b + head * HD
        own = b * H * W * (3 * C) + head * HD
        border = has_border(window, nWw, nWh, sh, sw)
        y, x, k_region, k_real, pad = tokens_of(window, keys, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
        at = row_offsets(y, x, stride_y, stride_x, WIDE)
        k = with_padding(load_rows(k_base + image, at, k_real, d, HD), pad, k_pad, d, HD, PADDED, HAS_PAD)
        v = with_padding(load_rows(v_base + image, at, k_real, d, HD), pad, v_pad, d, HD, PADDED, HAS_PAD)
        k_factor = inverse_norms(k)
        dk = tl.zeros((KEYS, D), tl.float32)
        dv = tl.zeros((KEYS, D), tl.float32)
        along = tl.zeros((KEYS,), tl.float32)
        for start in range(0, N, ROWS):
            row = start + tl.arange(0, ROWS)
            qy, qx, q_region, real, _pad = tokens_of(window, row, nWw, H, W, Hp, Wp, sh, sw, WH, WW, ROLL_PAD)
            q = load_rows(q_base + image, row_offsets(qy, qx, stride_y, stride_x, WIDE), real, d, HD)
            grad_at = row_offsets(qy, qx, grad_stride_y, grad_stride_x, WIDE)
            do = load_rows(grad_out + grad_image, grad_at, real, d, HD)
            q_factor = inverse_norms(q)
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if COSINE:
                product = cosines_of(product, q_factor, k_factor)
            bias_tile = load_bias(bias, head, row, keys, N, HAS_BIAS)
            s = scores_of(
                product, factor, bias_tile, q_region, k_region, keys, border, mask_value, N, SHIFTED, N % KEYS != 0
            )
            stat_at = statistics + (unit * nH.to(tl.int64) + head) * (3 * N) + row
            top = tl.load(stat_at, mask=row < N, other=0.0)
            share = tl.load(stat_at + N, mask=row < N, other=0.0)
            delta = tl.load(stat_at + 2 * N, mask=row < N, other=0.0)
            alive = real & (share != 0.0)
            p = tl.where(alive[:, None], exponentials(s, top) * share[:, None], 0.0)
            dv = tl.dot(tl.trans(p.to(do.dtype)), do, dv, input_precision=PRECISION)
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            ds = tl.where(alive[:, None], p * (dp - delta[:, None]), 0.0)
            for_q = times_rest(ds, q_factor, 1, COSINE).to(q.dtype)
            dk = tl.dot(tl.trans(for_q), times_power(q, q_factor, COSINE), dk, input_precision=PRECISION)
            if COSINE:
                along += tl.sum(ds * product, 0)
        dk *= factor
        if COSINE:
            dk = normalized_gradient(along * factor, k, k_factor, dk)
        at = row_offsets(y, x, W * (3 * C), 3 * C, WIDE)
        store_rows(dqkv + own + C, at, dk, k_real, d, HD)
        store_rows(dqkv + own + 2 * C, at, dv, k_real, d, HD)
        if PADDED and HAS_PAD:
            dk_pad += tl.sum(tl.where(pad[:, None], dk, 0.0), 0)
            dv_pad += tl.sum(tl.where(pad[:, None], dv, 0.0), 0)
    if HAS_PAD:
        at = dpad_value_parts + ((head * owners + owner).to(tl.int64) * TILES + tile) * (2 * HD) + d
        tl.store(at, dk_pad, mask=d < HD)
        tl.store(at + HD, dv_pad, mask=d < HD)
