# SPDX-License-Identifier: Apache-2.0
"""The ops in Triton: geometry, launch parameters and scratch memory of a call, and its launches.

Imported by the first call: Triton is optional, and importing swin_fast costs nothing for who does not use it. Launches
go to the current stream of the tensors' device; memory comes from torch alone, so that a CUDA graph can hold them.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import triton_bias, triton_bwd, triton_bwd_blocks, triton_fwd
from .configs import WHOLE_SCORES, Parameters, parameters, power_of_two, slug

#: Bytes of parts of dbias that a call may allocate, if one part a head needs no more.
MOST_SCRATCH = 64 * 2**20
#: What Triton's interpreter, which runs kernels on tensors of the CPU, is taken to have.
INTERPRETED_MULTIPROCESSORS = 2


@dataclass
class _Call:
    """What the kernels are told of one call; the names are theirs."""

    qkv: Tensor
    bias: Tensor | None
    logit_scale: Tensor | None
    pad_value: Tensor | None
    window_size: tuple[int, int]
    shift_size: tuple[int, int]
    scale: float
    pad_order: str
    mask_value: float

    def __post_init__(self) -> None:
        if self.qkv.stride(5) != 1:
            self.qkv = self.qkv.contiguous()
        self.bias, self.logit_scale, self.pad_value = (
            None if tensor is None else tensor.contiguous() for tensor in (self.bias, self.logit_scale, self.pad_value)
        )

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
    def padded(self) -> bool:
        (H, W), (Wh, Ww) = self.qkv.shape[1:3], self.window_size
        return self.pad_value is not None and (H % Wh != 0 or W % Ww != 0)

    def inputs(self, tiles: tuple[int, int]) -> tuple[Tensor, ...]:
        """Those that are absent are never read, but a kernel wants a pointer. `tiles`: rows and keys of the bias."""
        bias = None if self.bias is None else _bias_in_tiles(self.bias, self.window_size, tiles)
        others = (bias, self.logit_scale, self.pad_value)
        return self.qkv, *(self.qkv if tensor is None else tensor for tensor in others)

    @property
    def sizes(self) -> tuple[int, ...]:
        _B, H, W, _three, nH, _hd = self.qkv.shape
        (nWh, nWw), (Wh, Ww) = self.grid, self.window_size
        return self.windows, nWh * nWw, nWh, nWw, H, W, nWh * Wh, nWw * Ww, *self.shift_size, nH

    @property
    def strides(self) -> tuple[int, ...]:
        return self.qkv.stride()[:5]

    def extents(self, grad_out: Tensor | None) -> tuple[int, ...]:
        """Elements that an image of each tensor spans; rows of channels come on top of the last token."""
        _B, H, W, _three, nH, hd = self.qkv.shape
        tensors = [self.qkv.stride()[1:3], (W * 3 * nH * hd, 3 * nH * hd)]
        if grad_out is not None:
            tensors.append(grad_out.stride()[1:3])
        return tuple(H * abs(y) + W * abs(x) for y, x in tensors)

    def constants(self, grad_out: Tensor | None = None) -> dict[str, Any]:
        hd = self.qkv.shape[5]
        Wh, Ww = self.window_size
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
            "PADDED": self.padded,
            "SHIFTED": any(self.shift_size),
            "ROLL_PAD": self.pad_order == "roll_pad",
            "WIDE": max(self.extents(grad_out)) >= 2**31,
            "PRECISION": "tf32" if self.qkv.dtype == torch.float32 and tf32 else "ieee",
        }


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


def tiles_of_bias(direction: str, chosen: Parameters, N: int) -> tuple[int, int]:
    """Rows and keys of the bias of a head, in whole tiles of the kernels of a call."""
    if direction == "bwd" and N <= chosen.rows:
        return chosen.rows, chosen.rows
    keys = chosen.keys + chosen.more_keys
    return -(-N // chosen.rows) * chosen.rows, keys if N <= keys else -(-N // chosen.keys) * chosen.keys


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
        call = _Call(qkv, bias, logit_scale, pad_value, window_size, shift_size, scale, pad_order, mask_value)
        N, windows = call.N, call.windows
        chosen = chosen or parameters("fwd", qkv.dtype, N, hd, _device_name(qkv.device))
        [(kernel, options)] = kernels_of("fwd", chosen, N)
        if "MORE_KEYS" in options:
            units = max(1, min(chosen.units, windows * nH // (4 * _multiprocessors(qkv))))
            span = _span(qkv, N)
            programs = span * -(-windows // (units * (span // nH)))
            shares = [units, span]
        else:
            programs, shares = nH * windows * -(-N // chosen.rows), []
        kernel[(programs,)](
            *call.inputs(tiles_of_bias("fwd", chosen, N)),
            out,
            scale,
            mask_value,
            *shares,
            *call.sizes,
            *call.strides,
            **call.constants(),
            **options,
        )
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
    nH, hd = qkv.shape[4:]
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
        call = _Call(qkv, bias, logit_scale, pad_value, window_size, shift_size, scale, pad_order, mask_value)
        N, windows = call.N, call.windows
        chosen = chosen or parameters("bwd", qkv.dtype, N, hd, _device_name(qkv.device))
        tiles = tiles_of_bias("bwd", chosen, N)
        kernels = kernels_of("bwd", chosen, N)
        owners = min(windows, max(1, chosen.units * _multiprocessors(qkv) // nH))
        if bias is not None:
            owners = max(1, min(owners, MOST_SCRATCH // (4 * nH * math.prod(tiles))))
        row_tiles, key_tiles = (-(-N // chosen.rows), -(-N // chosen.keys)) if len(kernels) == 2 else (1, 1)

        def parts(present: bool, *shape: int, zero: bool = False) -> Tensor:
            new = qkv.new_zeros if zero else qkv.new_empty
            return new((nH, owners, *shape) if present else (0,), dtype=torch.float32)

        dbias_parts = parts(bias is not None, *tiles)
        dlogit_scale_parts = parts(logit_scale is not None, row_tiles)
        dpad_value_parts = parts(call.padded, key_tiles, 2, hd, zero=True)  # added to where a window has padding
        inputs = (grad_out, *call.inputs(tiles), dqkv)
        shared = (*call.sizes, *call.strides, *grad_out.stride()[:3])
        constants = call.constants(grad_out)
        if len(kernels) == 1:
            [(kernel, options)] = kernels
            all_parts = (dbias_parts, dlogit_scale_parts, dpad_value_parts)
            programs, shares = nH * owners, [owners]
            if "MORE_KEYS" in options:
                span = _span(qkv, N)
                programs, shares = span * -(-owners // (span // nH)), [owners, span]
            kernel[(programs,)](*inputs, *all_parts, scale, mask_value, *shares, *shared, **constants, **options)
        else:
            # Largest score, one over the sum, delta. Three numbers, for the first two in one would lose scores of 1e4.
            statistics = qkv.new_empty((windows, nH, 3, N), dtype=torch.float32)
            (of_queries, query_options), (of_keys, key_options) = kernels
            of_rows, of_all = (dbias_parts, dlogit_scale_parts, statistics), (scale, mask_value, owners, *shared)
            of_queries[(nH * owners * row_tiles,)](*inputs, *of_rows, *of_all, **constants, **query_options)
            of_keys[(nH * owners * key_tiles,)](
                *inputs, dpad_value_parts, statistics, *of_all, **constants, **key_options
            )
        return (
            dqkv,
            dbias_parts if bias is None else _dbias(dbias_parts, bias, window_size),
            dlogit_scale_parts if logit_scale is None else _folded(dlogit_scale_parts.flatten(1, 2), nH),
            qkv.new_empty(0) if pad_value is None else _dpad_value(dpad_value_parts, pad_value),
        )


def _device(qkv: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(qkv.device) if qkv.is_cuda else nullcontext()


@functools.cache
def _device_name(device: torch.device) -> str | None:
    return slug(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def _multiprocessors(qkv: Tensor) -> int:
    if not qkv.is_cuda:
        return INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(qkv.device).multi_processor_count


def _span(qkv: Tensor, N: int) -> int:
    """After how many programs the heads begin again. Programs of one multiprocessor, which are mostly as many apart as
    there are multiprocessors, shall share a head whose bias is read again and again: 83 kB at N = 144, which the first
    cache holds for one head. Not where an eighth of the multiprocessors had nothing to do. A smaller bias stays in
    registers, or costs less than the rows.
    """
    nH, multiprocessors = qkv.shape[4], _multiprocessors(qkv)
    idle = multiprocessors % nH if nH <= multiprocessors else multiprocessors
    return multiprocessors if N > WHOLE_SCORES and 8 * idle <= multiprocessors else nH


def _bias_in_tiles(bias: Tensor, window_size: tuple[int, int], tiles: tuple[int, int]) -> Tensor:
    (nH, *form), (Wh, Ww) = bias.shape, window_size
    rows, keys = tiles
    if tuple(form) == (Wh * Ww, Wh * Ww) == tiles:
        return bias
    laid_out = bias.new_empty(nH, rows, keys)
    triton_bias.lay_out_bias[(nH * rows,)](
        bias,
        laid_out,
        WH=Wh,
        WW=Ww,
        RELATIVE=form[0] != Wh * Ww or form[1] != Wh * Ww,
        ALL_ROWS=rows,
        ALL_KEYS=keys,
        BLOCK=min(256, power_of_two(keys)),
    )
    return laid_out


def _folded(parts: Tensor, *shape: int) -> Tensor:
    """(nH, parts, ...) -> the sum over the parts, in the given shape."""
    nH, count = parts.shape[:2]
    size = parts[0, 0].numel()
    sums = parts.new_empty(shape)
    block = min(1024, power_of_two(size))
    triton_bias.fold[(nH * -(-size // block),)](parts, sums, count, size, BLOCK=block)
    return sums


def _dbias(parts: Tensor, bias: Tensor, window_size: tuple[int, int]) -> Tensor:
    (nH, _owners, rows, keys), (Wh, Ww) = parts.shape, window_size
    N = Wh * Ww
    dense = _folded(parts, nH, rows, keys)
    if bias.shape == (nH, N, N):
        return dense[:, :N, :N].contiguous()
    relative = bias.new_empty(bias.shape)
    entries = (2 * Wh - 1) * (2 * Ww - 1)
    triton_bias.gather_dbias[(nH * entries,)](
        dense, relative, WH=Wh, WW=Ww, ALL_ROWS=rows, ALL_KEYS=keys, BLOCK=power_of_two(N)
    )
    return relative


def _dpad_value(parts: Tensor, pad_value: Tensor) -> Tensor:
    """Zero where nothing was padded. The q part is exactly 0: padded queries are dropped."""
    dpad_value = torch.zeros_like(pad_value, memory_format=torch.contiguous_format)
    if parts.numel() > 0:
        nH, _owners, _tiles, _two, hd = parts.shape
        dpad_value[1:] = _folded(parts.flatten(1, 2), nH, 2, hd).transpose(0, 1)
    return dpad_value
