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
def unknown_zero(window):
    """Zero, of which the compiler does not know it: what is computed with it is not known from before, nor kept in
    registers from there to here. `disable_licm` keeps in a loop only what the last of the compilers would move out.
    """
    return window >> 31


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
def tokens_of(window, offs, grid, WH: tl.constexpr, WW: tl.constexpr, ROLL_PAD: tl.constexpr):
    """(pixel row, pixel column, whether it is a pixel, whether it is padding) of tokens of a window.

    `offs` from N on do not exist. `grid` = (nWh, nWw, H, W, Hp, Wp, sh, sw), of one image.
    """
    _nWh, nWw, H, W, Hp, Wp, sh, sw = grid
    py = (window // nWw) * WH + offs // WW
    px = (window % nWw) * WW + offs % WW
    y = axis_pixel(py, H, Hp, sh, ROLL_PAD)
    x = axis_pixel(px, W, Wp, sw, ROLL_PAD)
    exists = offs < WH * WW
    real = exists & (y >= 0) & (x >= 0)
    return y, x, real, exists & (real == 0)


@triton.jit
def regions_of(window, offs, grid, WH: tl.constexpr, WW: tl.constexpr):
    """The shift regions of tokens of a window; those of equal numbers see each other unmasked."""
    _nWh, nWw, _H, _W, Hp, Wp, sh, sw = grid
    py = (window // nWw) * WH + offs // WW
    px = (window % nWw) * WW + offs % WW
    return axis_region(py, Hp, WH, sh) * 3 + axis_region(px, Wp, WW, sw)


@triton.jit
def has_border(window, grid):
    """Whether a window holds more than one region: only the last one of a shifted axis does."""
    nWh, nWw, _H, _W, _Hp, _Wp, sh, sw = grid
    return ((sh != 0) & (window // nWw == nWh - 1)) | ((sw != 0) & (window % nWw == nWw - 1))


@triton.jit
def axis_has_padding(first, size, padded, window, shift, ROLL_PAD: tl.constexpr):
    """Whether some of the positions from `first` on, as many as a window has, are padding."""
    if not ROLL_PAD:
        first += shift  # what is rolled over has come past all of the padding
    return (padded > size) & (first + window > size)


@triton.jit
def has_padding(window, grid, WH: tl.constexpr, WW: tl.constexpr, ROLL_PAD: tl.constexpr):
    _nWh, nWw, H, W, Hp, Wp, sh, sw = grid
    rows = axis_has_padding((window // nWw) * WH, H, Hp, WH, sh, ROLL_PAD)
    return rows | axis_has_padding((window % nWw) * WW, W, Wp, WW, sw, ROLL_PAD)


@triton.jit
def head_of(program, span, nH):
    """(The head of a program, its number among the programs of the head).

    Programs that are `span` apart share a head; where that is the number of multiprocessors, those of one, mostly.
    """
    column = program % span
    head = column % nH
    columns = span // nH + (head < span % nH).to(tl.int32)
    return head, (program // span) * columns + column // nH


@triton.jit
def windows_of(owner, owners, U):
    """The range of windows that an owner has: equal ones, one after the other."""
    first = (owner.to(tl.int64) * U // owners).to(tl.int32)
    return first, ((owner + 1).to(tl.int64) * U // owners).to(tl.int32)


@triton.jit
def pointers_of(qkv, pad_value, head, nH, stride_three, stride_head, HD: tl.constexpr):
    """To q, k and v of a head in the first image, and to the row that k of padding has; that of v is C behind it."""
    q = qkv + head.to(tl.int64) * stride_head
    k = q + stride_three
    return q, k, k + stride_three, pad_value + (nH + head) * HD


@triton.jit
def row_offsets(y, x, stride_y, stride_x, WIDE: tl.constexpr):
    """Of the rows of tokens in their image. WIDE: an image passes 2**31 elements. What is no pixel is never read."""
    if WIDE:
        y = y.to(tl.int64)
        x = x.to(tl.int64)
    return y * stride_y + x * stride_x


@triton.jit
def load_rows(base, rows, real, d, HD: tl.constexpr, AGAIN: tl.constexpr = False):
    """(rows, D): rows that are no pixel, and channels from HD on, are zero.

    AGAIN: the compiler shall take it for another load than the first, and not keep the rows in registers until here.
    """
    mask = real[:, None] & (d < HD)[None, :]
    return tl.load(base + rows[:, None] + d[None, :], mask=mask, other=0.0, cache_modifier=".ca" if AGAIN else "")


@triton.jit
def load_padded(
    base,
    rows,
    real,
    pad,
    pad_value,
    padded,
    d,
    HD: tl.constexpr,
    PADDED: tl.constexpr,
    AGAIN: tl.constexpr = False,
):
    """As load_rows, with the row at `pad_value` where a token is padding. `padded`: some token is."""
    loaded = load_rows(base, rows, real, d, HD, AGAIN)
    if PADDED:
        if padded:
            value = tl.load(pad_value + d, mask=d < HD, other=0.0)
            loaded = tl.where(pad[:, None], value[None, :], loaded)
    return loaded


@triton.jit
def store_rows(base, at, rows, real, d, HD: tl.constexpr):
    tl.store(base + at[:, None] + d[None, :], rows.to(base.dtype.element_ty), mask=real[:, None] & (d < HD)[None, :])


@triton.jit
def inverse_norms(rows, COSINE: tl.constexpr):
    """1 / max(|row|, eps) of each row, in float32; 1 without cosine attention."""
    if COSINE:
        wide = rows.to(tl.float32)
        inverse = tl.minimum(tl.rsqrt(tl.sum(wide * wide, 1)), 1.0 / COSINE_EPS)
    else:
        inverse = 1.0
    return inverse


@triton.jit
def add_product(total, a, b, PRECISION: tl.constexpr):
    """total + a @ b, for sums over blocks. In float32 a block is summed by itself: a GPU multiplies and adds one number
    after the other, so that the last of 1,024 is rounded at the size of the whole sum, and errors double (dv of a
    window of 64 x 16 was beyond its bound on an H200). Hence the difference: Triton makes one chain of a sum.
    """
    if a.dtype == tl.float32 and PRECISION == "ieee":
        total = total - tl.dot(a, -b, input_precision=PRECISION)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def load_bias(bias, head, rows, keys, LAST_ROW: tl.constexpr, LAST_KEY: tl.constexpr, HAS_BIAS: tl.constexpr):
    """A tile of the bias of a head, which `lay_out_bias` made whole tiles of: no mask, and neighbours in one load."""
    if HAS_BIAS:
        tile = tl.load(bias + head * (LAST_ROW * LAST_KEY) + rows[:, None] * LAST_KEY + keys[None, :])
    else:
        tile = tl.zeros((rows.shape[0], keys.shape[0]), tl.float32)
    return tile


@triton.jit
def scores_of(
    q,
    k,
    factor,
    q_inverse,
    k_inverse,
    bias_tile,
    rows,
    keys,
    window,
    grid,
    border,
    mask_value,
    WH: tl.constexpr,
    WW: tl.constexpr,
    COSINE: tl.constexpr,
    SHIFTED: tl.constexpr,
    CUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The scores of a tile, in float32. CUT: some keys do not exist; theirs are -inf."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if COSINE:
        scores = scores * (factor * q_inverse)[:, None] * k_inverse[None, :] + bias_tile
    else:
        scores = scores * factor + bias_tile
    if SHIFTED:
        if border:
            zero = unknown_zero(window)  # or the quotients by WW of all rows and keys fill 64 registers
            of_rows = regions_of(window, rows + zero, grid, WH, WW)
            of_keys = regions_of(window, keys + zero, grid, WH, WW)
            scores = tl.where(of_rows[:, None] == of_keys[None, :], scores, scores + mask_value)
    if CUT:
        scores = tl.where((keys < WH * WW)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def finite_top(top):
    """What is subtracted in front of the exponential: a row of -inf alone keeps its -inf, and weighs nothing."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def exponentials(scores, top):
    """exp(scores - top). The difference comes first: scores of 1e4 times log2(e) would lose what tells them apart."""
    return tl.exp2((scores - top[:, None]) * LOG2_E)
