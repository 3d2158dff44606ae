# SPDX-License-Identifier: Apache-2.0
"""What follows from the form of a call's arguments: that they fit together, which kernels it takes, and what those are
told. Worked out once for each form, as a call of a small image takes longer on the host than on the GPU.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import triton_bwd, triton_bwd_blocks, triton_fwd
from .configs import DTYPES, WHOLE_SCORES, Parameters, parameters, power_of_two

#: Bytes of parts of dbias that a call may allocate, if one part a head needs no more.
MOST_SCRATCH = 64 * 2**20
#: Elements of an image from which on the offsets of its rows have 64 bits.
WIDE_FROM = 2**31


class Form(NamedTuple):
    """All that a plan may know of a tensor."""

    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def form(tensor: Tensor | None) -> Form | None:
    return None if tensor is None else Form(tensor.dtype, tensor.device, tensor.shape, tensor.stride())


class Problem(NamedTuple):
    """The arguments of a call, tensors by their form. `tf32`: PyTorch was told that it is good enough for float32."""

    qkv: Form
    bias: Form | None
    logit_scale: Form | None
    pad_value: Form | None
    window_size: tuple[int, ...]
    shift_size: tuple[int, ...]
    pad_order: str
    tf32: bool
    grad_out: Form | None = None


@dataclass(frozen=True)
class Plan:
    """`kernels`: with their options and programs, in order. `sizes`, `strides`, `constants`: what all are told, in the
    order of their arguments. Of a backward, `owners` share the windows of a head, and `tiles` are those of queries and
    of keys that have owners of their own.
    """

    kernels: tuple[tuple[Any, dict[str, int], int], ...]
    bias_tiles: tuple[int, int]
    windows: int
    padded: bool
    shares: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    constants: dict[str, Any]
    owners: int = 0
    tiles: tuple[int, int] = (1, 1)


def kernels_of(direction: str, chosen: Parameters, N: int) -> list[tuple[Any, dict[str, int]]]:
    """The kernels of a call, in their order, each with its tiles and what the compiler is told."""
    told = {"num_warps": chosen.warps, "num_stages": 1}
    if chosen.registers and not torch.version.hip:
        told["maxnreg"] = chosen.registers
    rows, keys = {"ROWS": chosen.rows, **told}, {"KEYS": chosen.keys}
    whole = {**rows, **keys, "MORE_KEYS": chosen.more_keys}
    on_chip = N <= chosen.keys + chosen.more_keys
    if direction == "fwd":
        return [(triton_fwd.whole_windows, whole) if on_chip else (triton_fwd.rows_of_windows, {**rows, **keys})]
    if N <= chosen.rows:
        return [(triton_bwd.small_windows_bwd, rows)]
    if on_chip:
        return [(triton_bwd.whole_windows_bwd, whole)]
    blocks = (triton_bwd_blocks.query_rows_bwd, triton_bwd_blocks.key_rows_bwd)
    return [(kernel, {**rows, **keys}) for kernel in blocks]


@functools.lru_cache(maxsize=1024)
def plan(
    direction: str, problem: Problem, device: str | None, multiprocessors: int, chosen: Parameters | None = None
) -> Plan:
    """Of "fwd" or "bwd", on a device with a name as `configs.slug` makes it (None: the rule).

    Raises:
        RuntimeError: the arguments do not fit together. `functional.py` has told users before, in better words.
    """
    _check(problem)
    B, H, W, _three, nH, hd = problem.qkv.shape
    Wh, Ww = problem.window_size
    N, nWh, nWw = Wh * Ww, -(-H // Wh), -(-W // Ww)
    windows = B * nWh * nWw
    padded = problem.pad_value is not None and (H % Wh != 0 or W % Ww != 0)
    chosen = chosen or parameters(direction, problem.qkv.dtype, N, hd, device)
    kernels = kernels_of(direction, chosen, N)
    row_tiles, key_tiles = -(-N // chosen.rows), -(-N // chosen.keys)
    whole = chosen.keys + chosen.more_keys
    bias_tiles = row_tiles * chosen.rows, whole if N <= whole else key_tiles * chosen.keys
    if direction == "bwd" and N <= chosen.rows:
        bias_tiles = chosen.rows, chosen.rows
    span = _span(nH, N, multiprocessors)
    owners = 0
    shares: tuple[int, ...] = ()
    if direction == "fwd":
        programs = [nH * windows * row_tiles]
        if "MORE_KEYS" in kernels[0][1]:
            units = max(1, min(chosen.units, windows * nH // (4 * multiprocessors)))
            programs, shares = [span * -(-windows // (units * (span // nH)))], (units, span)
    else:
        owners = min(windows, max(1, chosen.units * multiprocessors // nH))
        if problem.bias is not None:
            owners = max(1, min(owners, MOST_SCRATCH // (4 * nH * math.prod(bias_tiles))))
        programs, shares = [nH * owners * row_tiles, nH * owners * key_tiles], (owners,)
        if len(kernels) == 1:
            programs, row_tiles, key_tiles = [nH * owners], 1, 1
            if "MORE_KEYS" in kernels[0][1]:
                programs, shares = [span * -(-owners // (span // nH))], (owners, span)
    strides = problem.qkv.stride[:5]
    extents = [problem.qkv.stride[1:3], (W * 3 * nH * hd, 3 * nH * hd)]
    if problem.grad_out is not None:
        strides += problem.grad_out.stride[:3]
        extents.append(problem.grad_out.stride[1:3])
    return Plan(
        kernels=tuple((kernel, options, count) for (kernel, options), count in zip(kernels, programs, strict=True)),
        bias_tiles=bias_tiles,
        windows=windows,
        padded=padded,
        shares=shares,
        sizes=(windows, nWh * nWw, nWh, nWw, H, W, nWh * Wh, nWw * Ww, *problem.shift_size, nH),
        strides=strides,
        constants={
            "WH": Wh,
            "WW": Ww,
            "HD": hd,
            "D": max(16, power_of_two(hd)),
            "HAS_BIAS": problem.bias is not None,
            "COSINE": problem.logit_scale is not None,
            "PADDED": padded,
            "SHIFTED": any(problem.shift_size),
            "ROLL_PAD": problem.pad_order == "roll_pad",
            # An image of one of the tensors; rows of channels come on top of the last token.
            "WIDE": any(H * abs(y) + W * abs(x) >= WIDE_FROM for y, x in extents),
            "PRECISION": "tf32" if problem.qkv.dtype == torch.float32 and problem.tf32 else "ieee",
        },
        owners=owners,
        tiles=(row_tiles, key_tiles),
    )


def _check(problem: Problem) -> None:
    """An op can be called past `functional.py`: it shall refuse, and not read what is not there."""

    def want(fits: bool, wanted: str) -> None:
        if not fits:
            raise RuntimeError(f"swin_fast triton: {wanted}")

    qkv, bias, logit_scale, pad_value, window_size, shift_size, pad_order, _tf32, grad_out = problem
    want(qkv.dtype in DTYPES, f"qkv must be float32, float16 or bfloat16, got {qkv.dtype}")
    want(len(qkv.shape) == 6 and qkv.shape[3] == 3, f"qkv must be (B, H, W, 3, nH, hd), got {tuple(qkv.shape)}")
    B, H, W, _three, nH, hd = qkv.shape
    want(min(H, W, nH) > 0, f"qkv must have a token and a head, got {tuple(qkv.shape)}")
    want(0 < hd <= 128 and hd % 2 == 0, f"head_dim must be even and at most 128, got {hd}")
    want(len(window_size) == len(shift_size) == 2, "window_size and shift_size must have two entries")
    (Wh, Ww), (sh, sw) = window_size, shift_size
    want(
        min(Wh, Ww) > 0 and Wh * Ww <= 1024, f"window_size must be positive, of 1024 tokens at most, got {window_size}"
    )
    want(0 <= sh < Wh and 0 <= sw < Ww, f"shift_size must be within the window, got {shift_size}")
    want(pad_order in ("pad_roll", "roll_pad"), f"pad_order must be pad_roll or roll_pad, got {pad_order!r}")
    relative, dense = (nH, 2 * Wh - 1, 2 * Ww - 1), (nH, Wh * Ww, Wh * Ww)
    for name, tensor, dtype, shapes in (
        ("bias", bias, torch.float32, (relative, dense)),
        ("logit_scale", logit_scale, torch.float32, ((nH,),)),
        ("pad_value", pad_value, qkv.dtype, ((3, nH, hd),)),
        ("grad_out", grad_out, qkv.dtype, ((B, H, W, nH * hd),)),
    ):
        if tensor is not None:
            wanted = " or ".join(map(str, shapes))
            want(tuple(tensor.shape) in shapes, f"{name} must be {wanted}, got {tuple(tensor.shape)}")
            want(tensor.dtype == dtype, f"{name} must be {dtype}, got {tensor.dtype}")
            want(tensor.device == qkv.device, f"{name} must be on {qkv.device}, got {tensor.device}")


def _span(nH: int, N: int, multiprocessors: int) -> int:
    """After how many programs the heads begin again. Programs of one multiprocessor, which are mostly as many apart as
    there are multiprocessors, shall share a head whose bias is read again and again: 83 kB at N = 144, which the first
    cache holds for one head. Not where an eighth of the multiprocessors had nothing to do. A smaller bias stays in
    registers, or costs less than the rows.
    """
    idle = multiprocessors % nH if nH <= multiprocessors else multiprocessors
    return multiprocessors if N > WHOLE_SCORES and 8 * idle <= multiprocessors else nH
