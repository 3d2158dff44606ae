# SPDX-License-Identifier: Apache-2.0
"""The ops in Triton: geometry, launch parameters and scratch memory of a call, and its launches.

Imported by the first call: Triton is optional, and importing swin_fast costs nothing for who does not use it. Launches
go to the current stream of the tensors' device; memory comes from torch alone, so that a CUDA graph can hold them.
"""

from __future__ import annotations

import functools
import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import triton_bias, triton_bwd, triton_bwd_blocks, triton_fwd
from .configs import Parameters, parameters, power_of_two, slug

#: Whether kernels run in Triton's interpreter, on tensors of the CPU: for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: Bytes of parts of dbias that a call may allocate, if one part a head needs no more.
MOST_SCRATCH = 64 * 2**20
INTERPRETED_MULTIPROCESSORS = 2


@dataclass(frozen=True)
class _Call:
    """What the kernels are told of one call; the names are theirs."""

    qkv: Tensor
    bias: Tensor | None  # dense
    logit_scale: Tensor | None
    pad_value: Tensor | None
    window_size: tuple[int, int]
    shift_size: tuple[int, int]
    scale: float
    pad_order: str
    mask_value: float
    grad_out: Tensor | None = None

    @property
    def grid(self) -> tuple[int, int]:
        (H, W), (Wh, Ww) = self.qkv.shape[1:3], self.window_size
        return -(-H // Wh), -(-W // Ww)

    @property
    def windows(self) -> int:  # of all images
        return self.qkv.shape[0] * math.prod(self.grid)

    @property
    def N(self) -> int:
        return math.prod(self.window_size)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Those that are absent are never read, but a kernel wants a pointer."""
        others = (self.bias, self.logit_scale, self.pad_value)
        return self.qkv, *(self.qkv if tensor is None else tensor for tensor in others)

    @property
    def sizes(self) -> tuple[int, ...]:
        _B, H, W, _three, nH, _hd = self.qkv.shape
        (nWh, nWw), (Wh, Ww) = self.grid, self.window_size
        return self.windows, nWh * nWw, nWh, nWw, H, W, nWh * Wh, nWw * Ww, *self.shift_size, nH

    @property
    def strides(self) -> tuple[int, ...]:
        return self.qkv.stride()[:5]

    @property
    def extents(self) -> tuple[int, ...]:
        """Elements that an image of each tensor spans; rows of channels come on top of the last token."""
        _B, H, W, _three, nH, hd = self.qkv.shape
        tensors = [self.qkv.stride()[1:3], (W * 3 * nH * hd, 3 * nH * hd)]
        if self.grad_out is not None:
            tensors.append(self.grad_out.stride()[1:3])
        return tuple(H * abs(y) + W * abs(x) for y, x in tensors)

    @property
    def constants(self) -> dict[str, Any]:
        hd = self.qkv.shape[5]
        (H, W), (Wh, Ww) = self.qkv.shape[1:3], self.window_size
        # Only where PyTorch was told that TF32 is good enough. Its older switch, allow_tf32, shows here too, but raises
        # when it is read after the newer one was set.
        tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return {
            "WH": Wh,
            "WW": Ww,
            "HD": hd,
            "D": max(16, power_of_two(hd)),
            "HAS_BIAS": self.bias is not None,
            "COSINE": self.logit_scale is not None,
            "HAS_PAD": self.pad_value is not None,
            "PADDED": H % Wh != 0 or W % Ww != 0,
            "SHIFTED": any(self.shift_size),
            "ROLL_PAD": self.pad_order == "roll_pad",
            "WIDE": max(self.extents) >= 2**31,
            "PRECISION": "tf32" if self.qkv.dtype == torch.float32 and tf32 else "ieee",
        }


def window_attention_fwd(
    qkv: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    pad_value: Tensor | None,
    window_size: tuple[int, int],
    shift_size: tuple[int, int],
    scale: float,
    pad_order: str,
    mask_value: float,
    chosen: Parameters | None = None,
) -> Tensor:
    """`swin_fast::window_attention_fwd.triton`; arguments as in `swin_fast.ops`. `chosen`: for the tuner."""
    B, H, W, _three, nH, hd = qkv.shape
    out = qkv.new_empty(B, H, W, nH * hd)
    if out.numel() == 0:
        return out
    with _device(qkv):
        call = _call(qkv, bias, logit_scale, pad_value, window_size, shift_size, scale, pad_order, mask_value)
        chosen = chosen or parameters("fwd", qkv.dtype, call.N, hd, _device_name(qkv.device))
        arguments = (*call.inputs, out, scale, mask_value)
        tiles = {"ROWS": chosen.rows, "KEYS": chosen.keys, "num_warps": chosen.warps, "num_stages": 1}
        if chosen.keys + chosen.more_keys >= call.N:
            units = max(1, min(chosen.units, call.windows * nH // (4 * _multiprocessors(qkv))))
            grid = (nH * -(-call.windows // units),)
            triton_fwd.whole_windows[grid](
                *arguments, units, *call.sizes, *call.strides, **call.constants, **tiles, MORE_KEYS=chosen.more_keys
            )
        else:
            grid = (nH * call.windows * -(-call.N // chosen.rows),)
            triton_fwd.rows_of_windows[grid](*arguments, *call.sizes, *call.strides, **call.constants, **tiles)
    return out


def window_attention_bwd(
    grad_out: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    pad_value: Tensor | None,
    window_size: tuple[int, int],
    shift_size: tuple[int, int],
    scale: float,
    pad_order: str,
    mask_value: float,
    chosen: Parameters | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`swin_fast::window_attention_bwd.triton`; arguments and results as in `swin_fast.ops`. `chosen`: as above."""
    _B, _H, _W, _three, nH, hd = qkv.shape
    dqkv = qkv.new_empty(qkv.shape)
    if dqkv.numel() == 0:
        nothing = qkv.new_empty(0, dtype=torch.float32)
        return (
            dqkv,
            nothing if bias is None else torch.zeros_like(bias, memory_format=torch.contiguous_format),
            torch.empty_like(nothing) if logit_scale is None else torch.zeros_like(logit_scale),
            qkv.new_empty(0) if pad_value is None else torch.zeros_like(pad_value),
        )
    with _device(qkv):
        if grad_out.stride(3) != 1:
            grad_out = grad_out.contiguous()
        call = _call(qkv, bias, logit_scale, pad_value, window_size, shift_size, scale, pad_order, mask_value, grad_out)
        N = call.N
        chosen = chosen or parameters("bwd", qkv.dtype, N, hd, _device_name(qkv.device))
        owners = min(call.windows, max(1, chosen.units * _multiprocessors(qkv) // nH))
        if bias is not None:
            owners = max(1, min(owners, MOST_SCRATCH // (4 * nH * N * N)))

        def parts(present: object, *shape: int) -> Tensor:
            return qkv.new_empty((nH, owners, *shape) if present is not None else 0, dtype=torch.float32)

        options = (scale, mask_value, owners, *call.sizes, *call.strides, *grad_out.stride()[:3])
        constants = {**call.constants, "ROWS": chosen.rows, "num_warps": chosen.warps, "num_stages": 1}
        dbias_parts = parts(bias, N, N)
        if chosen.rows < N <= chosen.keys + chosen.more_keys:
            dlogit_scale_parts, dpad_value_parts = parts(logit_scale, 1), parts(pad_value, 1, 2, hd)
            triton_bwd.whole_windows_bwd[(nH * owners,)](
                grad_out,
                *call.inputs,
                dqkv,
                dbias_parts,
                dlogit_scale_parts,
                dpad_value_parts,
                *options,
                **constants,
                KEYS=chosen.keys,
                MORE_KEYS=chosen.more_keys,
            )
        elif chosen.rows >= N:
            dlogit_scale_parts, dpad_value_parts = parts(logit_scale, 1), parts(pad_value, 1, 2, hd)
            triton_bwd.small_windows_bwd[(nH * owners,)](
                grad_out, *call.inputs, dqkv, dbias_parts, dlogit_scale_parts, dpad_value_parts, *options, **constants
            )
        else:
            row_tiles, key_tiles = -(-N // chosen.rows), -(-N // chosen.keys)
            dlogit_scale_parts, dpad_value_parts = parts(logit_scale, row_tiles), parts(pad_value, key_tiles, 2, hd)
            # Largest score, one over the sum, delta. Three numbers, for the first two in one would lose scores of 1e4.
            statistics_of_rows = qkv.new_empty((call.windows, nH, 3, N), dtype=torch.float32)
            triton_bwd_blocks.query_rows_bwd[(nH * owners * row_tiles,)](
                grad_out,
                *call.inputs,
                dqkv,
                dbias_parts,
                dlogit_scale_parts,
                statistics_of_rows,
                *options,
                **constants,
                KEYS=chosen.keys,
            )
            triton_bwd_blocks.key_rows_bwd[(nH * owners * key_tiles,)](
                grad_out,
                *call.inputs,
                dqkv,
                dpad_value_parts,
                statistics_of_rows,
                *options,
                **constants,
                KEYS=chosen.keys,
            )
        return (
            dqkv,
            _dbias(dbias_parts, bias, window_size),
            dlogit_scale_parts if logit_scale is None else _folded(dlogit_scale_parts.flatten(1, 2), nH),
            qkv.new_empty(0) if pad_value is None else _dpad_value(dpad_value_parts, pad_value),
        )


def _device(qkv: Tensor) -> AbstractContextManager[object]:
    return nullcontext() if INTERPRETED else torch.cuda.device(qkv.device)


@functools.cache
def _device_name(device: torch.device) -> str | None:
    return None if INTERPRETED else slug(torch.cuda.get_device_name(device))


def _multiprocessors(qkv: Tensor) -> int:
    if INTERPRETED:
        return INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(qkv.device).multi_processor_count


def _call(
    qkv: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    pad_value: Tensor | None,
    window_size: tuple[int, int],
    shift_size: tuple[int, int],
    scale: float,
    pad_order: str,
    mask_value: float,
    grad_out: Tensor | None = None,
) -> _Call:
    if qkv.stride(5) != 1:
        qkv = qkv.contiguous()
    if bias is not None:
        bias = bias.contiguous()
        Wh, Ww = window_size
        N = Wh * Ww
        if bias.shape[1:] != (N, N):
            dense = bias.new_empty(bias.shape[0], N, N)
            keys = min(256, power_of_two(N))
            triton_bias.expand_bias[(bias.shape[0] * N,)](bias, dense, WH=Wh, WW=Ww, KEYS=keys)
            bias = dense
    logit_scale = None if logit_scale is None else logit_scale.contiguous()
    pad_value = None if pad_value is None else pad_value.contiguous()
    return _Call(qkv, bias, logit_scale, pad_value, window_size, shift_size, scale, pad_order, mask_value, grad_out)


def _folded(parts: Tensor, *shape: int) -> Tensor:
    """(nH, parts, ...) -> the sum over the parts, in the given shape."""
    nH, count = parts.shape[:2]
    size = parts[0, 0].numel()
    sums = parts.new_empty(shape)
    block = min(1024, power_of_two(size))
    triton_bias.fold[(nH * -(-size // block),)](parts, sums, count, size, BLOCK=block)
    return sums


def _dbias(parts: Tensor, bias: Tensor | None, window_size: tuple[int, int]) -> Tensor:
    if bias is None:
        return parts
    nH, _owners, N, _N = parts.shape
    dense = _folded(parts, nH, N, N)
    if bias.shape == dense.shape:
        return dense
    Wh, Ww = window_size
    relative = bias.new_empty(bias.shape)
    entries = (2 * Wh - 1) * (2 * Ww - 1)
    triton_bias.gather_dbias[(nH * entries,)](dense, relative, WH=Wh, WW=Ww, ROWS=power_of_two(N))
    return relative


def _dpad_value(parts: Tensor, pad_value: Tensor) -> Tensor:
    """The q part is exactly 0: padded queries are dropped."""
    nH, _owners, _tiles, _two, hd = parts.shape
    sums = _folded(parts.flatten(1, 2), nH, 2, hd)
    dpad_value = torch.zeros_like(pad_value, memory_format=torch.contiguous_format)
    dpad_value[1:] = sums.transpose(0, 1)
    return dpad_value
