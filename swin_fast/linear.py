# SPDX-License-Identifier: Apache-2.0
"""Linear layers on a CPU, by the oneDNN operator that torch.compile uses there.

`module(x)` goes to MKL in float32, and in bfloat16 adds the bias in a pass of its own; the operator does neither, and
in inference takes the GELU into its epilogue. Measured on one Zen4 core, the four Linears and the GELU of Swin-T's
blocks, batch 8: forward 1.08 to 1.18 times as fast in float32 and 1.04 to 1.07 in bfloat16; the gradient of the input
1.06 to 1.35 times in float32, equal in bfloat16. The operator is private to PyTorch and knows neither hooks nor
transforms: whatever could tell the difference gets the module's own call. Weights are not packed: that would be a copy
to keep up to date.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad


def _find() -> tuple[Callable[..., Tensor], frozenset[torch.dtype]]:
    """The operator, and the dtypes that oneDNN computes at full speed on this CPU; none where there is no operator."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return F.linear, frozenset()
    dtypes = {torch.float32}
    if getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)():
        dtypes.add(torch.bfloat16)
    return torch.ops.mkldnn._linear_pointwise.default, frozenset(dtypes)


_POINTWISE, _DTYPES = _find()
_PLAIN = (Tensor, nn.Parameter)  # no subclass: neither fake nor quantised nor distributed


def linear(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)` of an nn.Linear, or of whatever stands in its place."""
    if type(module) is nn.Linear and not _has_hooks(module):
        return functional_linear(x, module.weight, module.bias)
    out: Tensor = module(x)
    return out


def functional_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear(x, weight, bias)`: x (..., in) and weight (out, in) -> (..., out)."""
    if not _usable(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out
    return _pointwise(x, weight, bias)


def linear_gelu(module: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """`act(module(x))`; in one pass in inference, where act is the exact GELU."""
    exact = type(act) is nn.GELU and act.approximate == "none" and not _has_hooks(act)
    if (
        exact
        and not torch.is_grad_enabled()
        and type(module) is nn.Linear
        and not _has_hooks(module)
        and _usable(x, module.weight)
    ):
        return _pointwise(x, module.weight, module.bias, "gelu", "none")
    out: Tensor = act(linear(module, x))
    return out


class _Linear(torch.autograd.Function):
    """F.linear with its two larger products by the operator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _pointwise(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad_out.reshape(-1, grad_out.shape[-1])
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            # With create_graph by an operator that has a gradient itself.
            dx = grad_out @ weight if torch.is_grad_enabled() else _pointwise(grad_out, weight.t(), None)
        if ctx.needs_input_grad[1]:
            # The longer side first is 1.14 times as fast for 96 -> 288 and 96 -> 384 in bfloat16 and no slower in
            # float32; what comes out is turned over, which costs less than it gains where the rows are many.
            wide = grad_rows.shape[1] > rows.shape[1] and rows.shape[0] >= 16 * grad_rows.shape[1]
            dweight = (rows.t() @ grad_rows).t() if wide else grad_rows.t() @ rows
        if ctx.needs_input_grad[2]:
            dbias = grad_rows.sum(0)
        return dx, dweight, dbias


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, act: str = "none", algorithm: str = "") -> Tensor:
    return _POINTWISE(x, weight, bias, act, [], algorithm)


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens to the module's call."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch.nn.modules.module._has_any_global_hook()
    )


def _usable(x: Tensor, weight: Tensor) -> bool:
    """Whether the operator can stand in for F.linear, and nobody can tell."""
    return (
        x.dtype in _DTYPES
        and weight.dtype == x.dtype
        and type(x) in _PLAIN
        and type(weight) in _PLAIN
        and x.device.type == "cpu" == weight.device.type
        and not torch.compiler.is_compiling()  # the compiler chooses by itself
        and not torch._C._is_tracing()  # a trace may go to another device
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and bool(torch.backends.mkldnn.enabled)
        and x.numel() > 0
    )
