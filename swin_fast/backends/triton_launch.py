# SPDX-License-Identifier: Apache-2.0
"""The ops in Triton: scratch memory of a call, and its launches.

Imported by the first call: Triton is optional, and importing swin_fast costs nothing for who does not use it. Launches
go to the current stream of the tensors' device; memory comes from torch alone, so that a CUDA graph can hold them.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import triton_bias
from .configs import Parameters, power_of_two, slug
from .triton_plan import Plan, Problem, form, plan

#: What Triton's interpreter, which runs kernels on tensors of the CPU, is taken to have.
INTERPRETED_MULTIPROCESSORS = 2


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
    qkv = _with_contiguous_rows(qkv)
    planned = _plan("fwd", chosen, None, qkv, bias, logit_scale, pad_value, window_size, shift_size, pad_order)
    B, H, W, _three, nH, hd = qkv.shape
    out = qkv.new_empty(B, H, W, nH * hd)
    if B > 0:
        with _device(qkv):
            [(kernel, options, programs)] = planned.kernels
            kernel[(programs,)](
                qkv,
                *_small_inputs(planned, qkv, bias, logit_scale, pad_value, window_size),
                out,
                scale,
                mask_value,
                *planned.shares,
                *planned.sizes,
                *planned.strides,
                **planned.constants,
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
    qkv, grad_out = _with_contiguous_rows(qkv), _with_contiguous_rows(grad_out)
    planned = _plan("bwd", chosen, grad_out, qkv, bias, logit_scale, pad_value, window_size, shift_size, pad_order)
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
        row_tiles, key_tiles = planned.tiles

        def parts(present: bool, *shape: int, zero: bool = False) -> Tensor:
            new = qkv.new_zeros if zero else qkv.new_empty
            return new((nH, planned.owners, *shape) if present else (0,), dtype=torch.float32)

        dbias_parts = parts(bias is not None, *planned.bias_tiles)
        dlogit_scale_parts = parts(logit_scale is not None, row_tiles)
        dpad_value_parts = parts(planned.padded, key_tiles, 2, hd, zero=True)  # added to where a window has padding
        inputs = (grad_out, qkv, *_small_inputs(planned, qkv, bias, logit_scale, pad_value, window_size), dqkv)
        shared = (scale, mask_value, *planned.shares, *planned.sizes, *planned.strides)
        results: list[tuple[Tensor, ...]] = [(dbias_parts, dlogit_scale_parts, dpad_value_parts)]
        if len(planned.kernels) == 2:
            # Largest score, one over the sum, delta. Three numbers, for the first two in one would lose scores of 1e4.
            N = window_size[0] * window_size[1]
            statistics = qkv.new_empty((planned.windows, nH, 3, N), dtype=torch.float32)
            results = [(dbias_parts, dlogit_scale_parts, statistics), (dpad_value_parts, statistics)]
        for (kernel, options, programs), own in zip(planned.kernels, results, strict=True):
            kernel[(programs,)](*inputs, *own, *shared, **planned.constants, **options)
        return (
            dqkv,
            dbias_parts if bias is None else _dbias(dbias_parts, bias, window_size),
            dlogit_scale_parts if logit_scale is None else _folded(dlogit_scale_parts.flatten(1, 2), nH),
            qkv.new_empty(0) if pad_value is None else _dpad_value(dpad_value_parts, pad_value),
        )


def _plan(
    direction: str,
    chosen: Parameters | None,
    grad_out: Tensor | None,
    qkv: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    pad_value: Tensor | None,
    window_size: tuple[int, int],
    shift_size: tuple[int, int],
    pad_order: str,
) -> Plan:
    # Its older switch, allow_tf32, shows here too, but raises when it is read after the newer one was set.
    tf32 = qkv.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    of_qkv = form(qkv)
    assert of_qkv is not None
    problem = Problem(
        of_qkv,
        form(bias),
        form(logit_scale),
        form(pad_value),
        tuple(window_size),
        tuple(shift_size),
        pad_order,
        tf32,
        form(grad_out),
    )
    name, multiprocessors = _facts(qkv.device) if qkv.is_cuda else (None, INTERPRETED_MULTIPROCESSORS)
    return plan(direction, problem, name, multiprocessors, chosen)


def _with_contiguous_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 0 or tensor.stride(-1) == 1 else tensor.contiguous()


def _small_inputs(
    planned: Plan,
    qkv: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    pad_value: Tensor | None,
    window_size: tuple[int, int],
) -> tuple[Tensor, ...]:
    """Those that are absent are never read, but a kernel wants a pointer."""
    bias = None if bias is None else _bias_in_tiles(bias.contiguous(), window_size, planned.bias_tiles)
    return tuple(qkv if tensor is None else tensor.contiguous() for tensor in (bias, logit_scale, pad_value))


def _device(qkv: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(qkv.device) if qkv.is_cuda else nullcontext()


@functools.cache
def _facts(device: torch.device) -> tuple[str, int]:
    """Its name as files have it, and its multiprocessors."""
    return slug(torch.cuda.get_device_name(device)), torch.cuda.get_device_properties(device).multi_processor_count


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
