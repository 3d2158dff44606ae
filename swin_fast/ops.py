# SPDX-License-Identifier: Apache-2.0
"""The op table: one schema, one overload per backend, and what PyTorch must know of each, registered in one way.

Python defines; native code only implements, under its own dispatch key, when its library is loaded. To add a backend,
add its name to `OVERLOADS` and register its kernels for it.

The ops take what `functional.py` has checked and cast: bias and logit_scale in float32 (float64 with a float64 qkv),
pad_value in the dtype of qkv. `out` and all gradients are contiguous and newly allocated; the gradient of an absent
argument is an empty tensor of shape (0,). Nothing but the inputs is saved for backward.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.function import FunctionCtx

from . import reference
from .backends import native, triton_ops

OVERLOADS = ("reference", "cpu", "triton", "cuda")
#: Further ones of the forward: the first backend's, with a backward of the second. A device may be faster so.
MIXED = {"cuda_triton": ("cuda", "triton"), "triton_cuda": ("triton", "cuda")}

_ARGUMENTS = (
    "Tensor qkv, Tensor? bias, Tensor? logit_scale, Tensor? pad_value, "
    "int[2] window_size, SymInt[2] shift_size, float scale, str pad_order, float mask_value"
)
_FWD_SCHEMA = f"({_ARGUMENTS}) -> Tensor"
_BWD_SCHEMA = f"(Tensor grad_out, {_ARGUMENTS}) -> (Tensor dqkv, Tensor dbias, Tensor dlogit_scale, Tensor dpad_value)"

_library = torch.library.Library("swin_fast", "DEF")


def _statistics_dtype(qkv: Tensor) -> torch.dtype:
    return torch.float64 if qkv.dtype == torch.float64 else torch.float32


def _reference_fwd(
    qkv: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    pad_value: Tensor | None,
    window_size: tuple[int, int],
    shift_size: tuple[int, int],
    scale: float,
    pad_order: str,
    mask_value: float,
) -> Tensor:
    return reference.window_attention(
        qkv,
        bias,
        window_size=window_size,
        shift_size=shift_size,
        scale=scale,
        logit_scale=logit_scale,
        pad_value=pad_value,
        pad_order=pad_order,
        mask_value=mask_value,
    )


def _reference_bwd(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dqkv, dbias, dlogit_scale, dpad_value = reference.window_attention_bwd(
        grad_out,
        qkv,
        bias,
        window_size=window_size,
        shift_size=shift_size,
        scale=scale,
        logit_scale=logit_scale,
        pad_value=pad_value,
        pad_order=pad_order,
        mask_value=mask_value,
    )
    statistics = _statistics_dtype(qkv)
    return (
        dqkv,
        qkv.new_empty(0, dtype=statistics) if dbias is None else dbias,
        qkv.new_empty(0, dtype=statistics) if dlogit_scale is None else dlogit_scale,
        qkv.new_empty(0) if dpad_value is None else dpad_value,
    )


def _fake_fwd(qkv: Tensor, *_: Any) -> Tensor:
    B, H, W, _three, nH, hd = qkv.shape
    return qkv.new_empty(B, H, W, nH * hd)


def _fake_bwd(
    grad_out: Tensor, qkv: Tensor, bias: Tensor | None, logit_scale: Tensor | None, pad_value: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    statistics = _statistics_dtype(qkv)
    return (
        qkv.new_empty(qkv.shape),
        qkv.new_empty(0 if bias is None else bias.shape, dtype=statistics),
        qkv.new_empty(0 if logit_scale is None else logit_scale.shape, dtype=statistics),
        qkv.new_empty(0 if pad_value is None else pad_value.shape),
    )


def _register_autograd(fwd: OpOverload[..., Any], bwd: OpOverload[..., Any]) -> None:
    """What torch.library.register_autograd does, for this schema alone.

    That one asks at every call which arguments have defaults, go by keyword or are lists of tensors; here none is.
    A forward and backward of a tiny problem take 103 us instead of 141; a bare autograd.Function would take 86.
    """

    def below_autograd(keyset: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return fwd.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

    class WindowAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *inputs: Any) -> Any:
            ctx.save_for_backward(*inputs[:4])
            ctx.options = inputs[4:]
            return below_autograd(keyset, *inputs)

        @staticmethod
        def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
            inputs = ctx.saved_tensors
            # With create_graph, through the formula that refuses double backward; else past it, which saves 5 us.
            with nullcontext() if torch.is_grad_enabled() else torch._C._AutoDispatchBelowAutograd():
                grads = bwd(grad_out, *inputs, *ctx.options)
            present = (grad if tensor is not None else None for tensor, grad in zip(inputs, grads, strict=True))
            return None, *present, *(None for _ in ctx.options)

    def autograd(keyset: Any, *inputs: Any) -> Any:
        recorded = torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)
        return (WindowAttention.apply if recorded else below_autograd)(keyset, *inputs)

    _library.impl(fwd, autograd, "Autograd", with_keyset=True)


def _save_nothing(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None: ...


def _refuse_double_backward(ctx: FunctionCtx, *grads: Tensor) -> None:
    # Without this formula a library op only warns, and then differentiates through a Python kernel or not at all.
    raise NotImplementedError(
        "swin_fast: window_attention has no second derivative (double backward); "
        "use swin_fast.reference.window_attention, which is differentiable any number of times"
    )


def _refuse_vmap(info: Any, in_dims: Any, *args: Any) -> None:
    raise NotImplementedError(
        "swin_fast: window_attention does not work under vmap; its first dimension is the batch: fold the mapped "
        "dimension into it"
    )


def _define(op: str, overload: str, schema: str, fake: Callable[..., Any]) -> OpOverload[..., Any]:
    name = f"{op}.{overload}"
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"swin_fast::{name}", fake, lib=_library)
    torch.library.register_vmap(f"swin_fast::{name}", _refuse_vmap, lib=_library)
    defined: OpOverload[..., Any] = getattr(getattr(torch.ops.swin_fast, op), overload)
    return defined


def _define_fwd(overload: str, backward: str) -> OpOverload[..., Any]:
    fwd = _define("window_attention_fwd", overload, _FWD_SCHEMA, _fake_fwd)
    _register_autograd(fwd, WINDOW_ATTENTION_BWD[backward])
    return fwd


def _define_bwd(overload: str) -> OpOverload[..., Any]:
    bwd = _define("window_attention_bwd", overload, _BWD_SCHEMA, _fake_bwd)
    torch.library.register_autograd(bwd, _refuse_double_backward, setup_context=_save_nothing, lib=_library)
    return bwd


WINDOW_ATTENTION_BWD = {backend: _define_bwd(backend) for backend in OVERLOADS}
WINDOW_ATTENTION_FWD = {backend: _define_fwd(backend, backend) for backend in OVERLOADS}
WINDOW_ATTENTION_FWD |= {name: _define_fwd(name, backward) for name, (_, backward) in MIXED.items()}

_library.impl(WINDOW_ATTENTION_FWD["reference"], _reference_fwd, "CompositeExplicitAutograd")
_library.impl(WINDOW_ATTENTION_BWD["reference"], _reference_bwd, "CompositeExplicitAutograd")
for key in triton_ops.DISPATCH_KEYS:
    for name in ("triton", "triton_cuda"):
        _library.impl(WINDOW_ATTENTION_FWD[name], triton_ops.window_attention_fwd, key)
    _library.impl(WINDOW_ATTENTION_BWD["triton"], triton_ops.window_attention_bwd, key)
native.cpu_library()  # registers window_attention_{fwd,bwd}.cpu under the CPU key
native.cuda_library()  # and window_attention_{fwd,bwd}.cuda, and window_attention_fwd.cuda_triton, under the CUDA key
