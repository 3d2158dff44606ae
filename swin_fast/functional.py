# SPDX-License-Identifier: Apache-2.0
"""The public functions: they check their arguments, cast them, choose a backend and call one op."""

from __future__ import annotations

import math
from operator import index
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from . import dispatch, ops, reference

MAX_WINDOW_AREA = 1024
MAX_HEAD_DIM = 128
PAD_ORDERS = ("pad_roll", "roll_pad")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def window_attention(
    qkv: Tensor,
    bias: Tensor | None,
    *,
    window_size: int | tuple[int, int],
    shift_size: int | tuple[int, int] = (0, 0),
    scale: float | None = None,
    logit_scale: Tensor | None = None,
    pad_value: Tensor | None = None,
    pad_order: str = "pad_roll",
    mask_value: float = -100.0,
    backend: str | None = None,
) -> Tensor:
    """Multi-head self-attention within the (shifted) windows of an image, one fused op.

    In every window and head, `out = softmax(scale q kᵀ + bias + mask) v`. Padding, cyclic shift, partition, their
    reverses and the mask are index arithmetic inside the op: qkv goes in and out comes back in image order.
    N = Wh*Ww tokens per window, nH heads, hd head_dim.

    Args:
        qkv: (B, H, W, 3, nH, hd), float32, float16, bfloat16 or float64, straight out of the QKV linear; H and W need
            not be multiples of the window. hd is even and at most 128.
        bias: (nH, N, N) dense, or (nH, 2Wh-1, 2Ww-1) relative with entry [dy+Wh-1, dx+Ww-1] for query minus key, or
            None. Any float dtype; computed with in float32 (float64 with a float64 qkv).
        window_size: (Wh, Ww) or one int for both; N at most 1024.
        shift_size: (sh, sw) or one int for both, 0 <= shift < window on each axis.
        scale: factor of q kᵀ; None: hd**-0.5. Not together with `logit_scale`.
        logit_scale: (nH,), any float dtype, or None. Given: cosine attention (Swin V2), scores are
            `logit_scale q·k / (max(‖q‖, 1e-12) max(‖k‖, 1e-12))`. Clamp and exp are the caller's.
        pad_value: (3, nH, hd), the qkv row of padded positions, cast to the dtype of qkv, or None: zeros. Padded keys
            take part in the softmax; a model that pads zeros before its QKV linear passes that linear's bias.
        pad_order: "pad_roll" pads right and bottom, then rolls the padded grid (Microsoft, torchvision, OpenMMLab,
            Hugging Face); "roll_pad" rolls the image, then pads (timm).
        mask_value: added to the score of two tokens that lie in different shift regions of the padded grid.
        backend: "reference", "cpu", "triton" or "cuda"; None: `use_backend`, then SWIN_FAST_BACKEND, then automatic.

    Returns:
        (B, H, W, nH*hd), dtype of qkv (of autocast, where it is on), contiguous. Gradients flow to qkv, bias,
        logit_scale and pad_value, each in its own dtype. First derivatives, in reverse mode; no vmap.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it, what it got and what it wants.
        NotImplementedError: a forced backend cannot compute this; the message says why. Forward-mode derivatives.

    Source:
        Liu et al. 2021, "Swin Transformer", section 3.2; Liu et al. 2022, "Swin Transformer V2", section 3.2.

    Example:
        >>> qkv = torch.randn(1, 30, 45, 3, 3, 32)
        >>> window_attention(qkv, torch.zeros(3, 13, 13), window_size=7, shift_size=3).shape
        torch.Size([1, 30, 45, 96])
    """
    window_size = _constant(_pair("window_size", window_size))
    shift_size = _pair("shift_size", shift_size)  # may be symbolic: geometry "torchvision" makes it from H and W
    _check_geometry(window_size, shift_size)
    _check_qkv(qkv)
    nH, hd = qkv.shape[4], index(qkv.shape[5])  # index: a constant of a graph, even where every size is dynamic
    if bias is not None:
        N = window_size[0] * window_size[1]
        _check_tensor("bias", bias, qkv, (nH, N, N), (nH, 2 * window_size[0] - 1, 2 * window_size[1] - 1))
    if logit_scale is not None:
        _check_tensor("logit_scale", logit_scale, qkv, (nH,))
        if scale is not None:
            raise ValueError(f"scale: got {scale!r} together with logit_scale, want one of the two")
        scale = 1.0
    elif scale is None:
        scale = hd**-0.5
    elif not abs(_number("scale", scale)) < math.inf:
        raise ValueError(f"scale: got {scale!r}, want a finite number")
    if pad_value is not None:
        _check_tensor("pad_value", pad_value, qkv, (3, nH, hd))
    if pad_order not in PAD_ORDERS:
        raise ValueError(f"pad_order: got {pad_order!r}, want one of {', '.join(PAD_ORDERS)}")
    if _number("mask_value", mask_value) != mask_value:
        raise ValueError(f"mask_value: got {mask_value!r}, want a number")
    if backend is not None:
        dispatch.check_backend(backend)
    if not torch.compiler.is_compiling():
        _refuse_forward_mode(qkv, bias, logit_scale, pad_value)

    device_type = qkv.device.type
    autocast = device_type in reference.AUTOCAST_DEVICES and torch.is_autocast_enabled(device_type)
    if autocast and qkv.dtype != torch.float64:
        qkv = qkv.to(torch.get_autocast_dtype(device_type))
    chosen = dispatch.resolve(backend, qkv.dtype, qkv.device, window_size[0] * window_size[1], hd)
    statistics = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    arguments = (
        qkv,
        _cast(bias, statistics),
        _cast(logit_scale, statistics),
        _cast(pad_value, qkv.dtype),
        window_size,
        shift_size,
        scale,
        pad_order,
        mask_value,
    )
    if autocast:
        with torch.autocast(device_type, enabled=False):
            return _call(chosen, arguments)
    return _call(chosen, arguments)


def relative_position_index(
    window_size: int | tuple[int, int], device: torch.device | str | None = None
) -> Tensor:  # (N, N) int64
    """The row of the relative position bias table for each (query, key) pair of a window, as Swin checkpoints hold it.

    `index[i, j] = (y_i - y_j + Wh - 1) (2Ww - 1) + (x_i - x_j + Ww - 1)`, tokens in row-major order.

    Raises:
        ValueError, TypeError: window_size is not one or two positive ints.
    """
    window_size = _pair("window_size", window_size)
    _check_geometry(window_size, (0, 0))
    return reference.relative_position_index(window_size, device)


def relative_position_bias(table: Tensor, window_size: int | tuple[int, int]) -> Tensor:  # (nH, N, N)
    """The dense bias of a relative position bias table: `table[relative_position_index(window_size)]`, heads first.

    Made of expansions, paddings and slices instead of a gather, so that the gradient of the table is a sum in a fixed
    order, bit-equal from run to run on every device: no atomics.

    Args:
        table: ((2Wh-1)(2Ww-1), nH), any float dtype: `relative_position_bias_table` of a checkpoint.
        window_size: (Wh, Ww) or one int for both.

    Returns:
        (nH, N, N), dtype of table.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it, what it got and what it wants.

    Source:
        Liu et al. 2021, "Swin Transformer", section 3.2, equation 4.

    Example:
        >>> relative_position_bias(torch.zeros(169, 3), window_size=7).shape
        torch.Size([3, 49, 49])
    """
    Wh, Ww = window_size = _pair("window_size", window_size)
    _check_geometry(window_size, (0, 0))
    _check_floating("table", table)
    if table.ndim != 2 or table.shape[0] != (2 * Wh - 1) * (2 * Ww - 1):
        want = f"({(2 * Wh - 1) * (2 * Ww - 1)}, nH) for window_size {window_size}"
        raise ValueError(f"table: got shape {tuple(table.shape)}, want {want}")
    nH = table.shape[1]
    relative = table.T.reshape(nH, 2 * Wh - 1, 2 * Ww - 1)
    rows = _toeplitz(relative.mT)  # (nH, 2Ww-1, Wh, Wh)
    dense = _toeplitz(rows.permute(0, 2, 3, 1))  # (nH, Wh, Wh, Ww, Ww): query y, key y, query x, key x
    return dense.transpose(2, 3).reshape(nH, Wh * Ww, Wh * Ww)


def _toeplitz(x: Tensor) -> Tensor:
    """(..., 2w-1) -> (..., w, w) with entry [i, j] = x[i - j + w - 1].

    Rows of length 2w-1, laid end to end and read again in rows of length 2w, slip by one entry per row.
    """
    w = (x.shape[-1] + 1) // 2
    rows = x.unsqueeze(-2).expand(*x.shape[:-1], w, 2 * w - 1).flatten(-2)
    skewed = F.pad(rows, (0, w)).reshape(*x.shape[:-1], w, 2 * w)
    return skewed[..., :w].flip(-1)


def _call(backend: str, arguments: tuple[Any, ...]) -> Tensor:
    out: Tensor = ops.WINDOW_ATTENTION_FWD[backend](*arguments)
    return out


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    # A graph keeps a cast that does nothing. By keyword PyTorch finds the overload of `to` sooner: 2.2 us, not 3.0.
    return x if x is None or x.dtype == dtype else x.to(dtype=dtype)


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)) or any(
        not isinstance(v, (int, torch.SymInt)) or isinstance(v, bool) for v in pair
    ):
        raise TypeError(f"{name}: got {value!r}, want an int or a pair of ints")
    if len(pair) != 2:
        raise ValueError(f"{name}: got {value!r}, want two ints, for height and width")
    return pair[0], pair[1]


def _constant(pair: tuple[int, int]) -> tuple[int, int]:
    return index(pair[0]), index(pair[1])  # index: see window_attention


def _check_geometry(window_size: tuple[int, int], shift_size: tuple[int, int]) -> None:
    if window_size[0] < 1 or window_size[1] < 1:
        raise ValueError(f"window_size: got {window_size}, want at least 1 on each axis")
    if window_size[0] * window_size[1] > MAX_WINDOW_AREA:
        raise ValueError(f"window_size: got {window_size}, want at most {MAX_WINDOW_AREA} tokens")
    for shift, window in zip(shift_size, window_size, strict=True):
        if not 0 <= shift < window:
            raise ValueError(f"shift_size: got {shift_size}, want 0 <= shift < window with window_size {window_size}")


def _check_qkv(qkv: Tensor) -> None:
    _check_floating("qkv", qkv)
    if qkv.dtype not in _DTYPES:
        raise TypeError(f"qkv: got dtype {qkv.dtype}, want float32, float16, bfloat16 or float64")
    shape = qkv.shape
    if len(shape) != 6 or shape[3] != 3:
        raise ValueError(f"qkv: got shape {tuple(shape)}, want (B, H, W, 3, nH, hd)")
    _B, H, W, _three, nH, hd = shape
    if nH < 1 or hd < 2 or hd % 2 or hd > MAX_HEAD_DIM:
        raise ValueError(f"qkv: got nH = {nH} and hd = {hd}, want nH >= 1 and an even hd from 2 to {MAX_HEAD_DIM}")
    # Traced sizes are symbols from 2 on, or constants; a branch here could only tie a graph to one size.
    if not torch.compiler.is_compiling() and (H < 1 or W < 1):
        raise ValueError(f"qkv: got shape {tuple(shape)}, want H >= 1 and W >= 1")


def _check_tensor(name: str, value: Tensor, qkv: Tensor, *shapes: tuple[int, ...]) -> None:
    _check_floating(name, value)
    if value.shape not in shapes:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, want {' or '.join(map(str, shapes))}")
    if value.device != qkv.device:
        raise ValueError(f"{name}: got device {value.device}, want {qkv.device}, the device of qkv")


def _check_floating(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, want a tensor")
    if not value.is_floating_point():
        raise TypeError(f"{name}: got dtype {value.dtype}, want a floating dtype")
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name}: got {kind}, want a dense (strided) tensor")


def _refuse_forward_mode(*tensors: Tensor | None) -> None:
    for x in tensors:
        if x is not None and forward_ad.unpack_dual(x).tangent is not None:
            # A library op would silently give a tangent of zero.
            raise NotImplementedError(
                "swin_fast: window_attention has no forward-mode derivative (jvp); "
                "use swin_fast.reference.window_attention, which has one"
            )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {value!r}, want a number")
    return value
