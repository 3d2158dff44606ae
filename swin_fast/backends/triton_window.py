# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels share: where the tokens of a window stand, their rows, and the scores of a tile.

The index arithmetic is that of csrc/window.h, per axis. Nothing of it is ever stored: no rolled or padded image, no
mask. Letters: N = WH*WW tokens of a window, HD channels of a head and D the same as a power of two.
"""

# No `from __future__ import annotations`: Triton reads the annotation tl.constexpr.

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
COSINE_EPS: tl.constexpr = tl.constexpr(1e-12)


@triton.jit
def axis_pixel(position, size, padded, shift, ROLL_PAD: tl.constexpr):
    """The pixel at a position of the padded and rolled axis, or -1 where that is padding."""
    if ROLL_PAD:
        pixel = tl.where(position < size, (position + shift) % size, -1)  # the real axis may be shorter than the shift
    else:
        pixel = position + shift
        pixel = tl.where(pixel >= padded, pixel - padded, pixel)
        pixel = tl.where(pixel < size, pixel, -1)
    return pixel


@triton.jit
def axis_region(position, padded, window, shift):
    """The shift region of a position: [0, P - window), [P - window, P - shift), [P - shift, P), if there is a shift."""
    region = (position >= padded - window).to(tl.int32) + (position >= padded - shift).to(tl.int32)
    return tl.where(shift == 0, 0, region)


@triton.jit
def tokens_of(
    window, offs, nWw, H, W, Hp, Wp, sh, sw, WH: tl.constexpr, WW: tl.constexpr, ROLL_PAD: tl.constexpr
):  # offs: tokens of a window, those from N on do not exist
    """(pixel row, pixel column, shift region, whether it is a pixel, whether it is padding) of each token."""
    py = (window // nWw) * WH + offs // WW
    px = (window % nWw) * WW + offs % WW
    y = axis_pixel(py, H, Hp, sh, ROLL_PAD)
    x = axis_pixel(px, W, Wp, sw, ROLL_PAD)
    region = axis_region(py, Hp, WH, sh) * 3 + axis_region(px, Wp, WW, sw)
    exists = offs < WH * WW
    real = exists & (y >= 0) & (x >= 0)
    return y, x, region, real, exists & (real == 0)


@triton.jit
def has_border(window, nWw, nWh, sh, sw):
    """Whether a window holds more than one region: only the last one of a shifted axis does."""
    return ((sh != 0) & (window // nWw == nWh - 1)) | ((sw != 0) & (window % nWw == nWw - 1))


@triton.jit
def row_offsets(y, x, stride_y, stride_x, WIDE: tl.constexpr):
    """Of the rows of tokens in their image. WIDE: an image passes 2**31 elements. What is no pixel is never read."""
    if WIDE:
        y = y.to(tl.int64)
        x = x.to(tl.int64)
    return y * stride_y + x * stride_x


@triton.jit
def load_rows(base, rows, real, d, HD: tl.constexpr):
    """(rows, D): rows that are no pixel, and channels from HD on, are zero."""
    return tl.load(base + rows[:, None] + d[None, :], mask=real[:, None] & (d < HD)[None, :], other=0.0)


@triton.jit
def with_padding(rows, pad, pad_value, d, HD: tl.constexpr, PADDED: tl.constexpr, HAS_PAD: tl.constexpr):
    """`rows` with the row at `pad_value` where a token is padding."""
    if PADDED and HAS_PAD:
        value = tl.load(pad_value + d, mask=d < HD, other=0.0)
        rows = tl.where(pad[:, None], value[None, :], rows)
    return rows


@triton.jit
def inverse_norms(rows):
    """1 / max(|row|, eps) of each row, in float32."""
    wide = rows.to(tl.float32)
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(wide * wide, 1)), COSINE_EPS)


@triton.jit
def load_bias(bias, head, rows, keys, N: tl.constexpr, HAS_BIAS: tl.constexpr):
    """The tile (rows, keys) of the dense bias of a head; zero outside of the window."""
    if HAS_BIAS:
        inside = (rows < N)[:, None] & (keys < N)[None, :]
        tile = tl.load(bias + head * (N * N) + rows[:, None] * N + keys[None, :], mask=inside, other=0.0)
    else:
        tile = tl.zeros((rows.shape[0], keys.shape[0]), tl.float32)
    return tile


@triton.jit
def cosines_of(product, q_factor, k_factor):
    return product * q_factor[:, None] * k_factor[None, :]


@triton.jit
def scores_of(
    product,
    factor,
    bias_tile,
    q_region,
    k_region,
    keys,
    border,
    mask_value,
    N: tl.constexpr,
    SHIFTED: tl.constexpr,
    CUT: tl.constexpr,
):
    """The scores of a tile, from q.k or the cosine, in float32. CUT: some keys do not exist; theirs are -inf."""
    scores = product * factor + bias_tile
    if SHIFTED:
        if border:
            scores = tl.where(q_region[:, None] == k_region[None, :], scores, scores + mask_value)
    if CUT:
        scores = tl.where((keys < N)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def finite_top(top):
    """What is subtracted in front of the exponential: a row of -inf alone keeps its -inf, and weighs nothing."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def exponentials(scores, top):
    """exp(scores - top). The difference comes first: scores of 1e4 times log2(e) would lose what tells them apart."""
    return tl.exp2((scores - top[:, None]) * LOG2_E)
