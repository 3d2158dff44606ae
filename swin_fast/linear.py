# SPDX-License-Identifier: Apache-2.0
"""Linear layers on a CPU, by the oneDNN operator that torch.compile uses there.

`module(x)` goes to MKL in float32, and in bfloat16 adds the bias in a pass of its own; the operator does neither.
Measured on one Zen4 core with the Linears of Swin-T's first stage that it takes, batch 8: forward 1.08 to 1.13 times as
fast in float32 and 1.04 to 1.12 in bfloat16; the gradient of the input 1.15 to 1.2 times in float32, equal in bfloat16.

Its epilogue for the GELU is left alone: 2 to 4 % in float32, but 6 % slower in bfloat16. Weights are not packed: that
would be a copy to keep up to date. The operator is private to PyTorch and knows neither hooks nor transforms: whatever
could tell the difference gets the module's own call.
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
#: In float32, the longest sum that the operator may make. It adds up more terms in a row than MKL, which starts anew
#: after 192: the error is equal up to there, 1.4 times MKL's for 256 terms and 2.2 times for 3072 (root mean square).
LONGEST_SUM = 192
#: In training, fewer rows do not pay for a function of ours in the graph (some 30 us).
LEAST_ROWS = 512
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
    if not torch.is_grad_enabled():
        return _product(x, weight, bias)
    rows, shorter = x.numel() // x.shape[-1], min(weight.shape)
    if rows < LEAST_ROWS or (x.dtype == torch.float32 and shorter > LONGEST_SUM):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    """F.linear with its two larger products by the operator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad_out.reshape(-1, grad_out.shape[-1])
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            # With create_graph by an operator that has a gradient itself.
            dx = grad_out @ weight if torch.is_grad_enabled() else _product(grad_out.contiguous(), weight.t(), None)
        if ctx.needs_input_grad[1]:
            # The longer side first is 1.14 times as fast for 96 -> 288 and 96 -> 384 in bfloat16 and no slower in
            # float32; what comes out is turned over, which costs less than it gains where the rows are many.
            wide = grad_rows.shape[1] > rows.shape[1] and rows.shape[0] >= 16 * grad_rows.shape[1]
            dweight = (rows.t() @ grad_rows).t() if wide else grad_rows.t() @ rows
        if ctx.needs_input_grad[2]:
            dbias = grad_rows.sum(0)
        return dx, dweight, dbias


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear by the operator, where that is as exact: in bfloat16 the rounding of the result hides the sum's."""
    if x.dtype == torch.float32 and x.shape[-1] > LONGEST_SUM:
        return F.linear(x, weight, bias)
    return _POINTWISE(x, weight, bias, "none", [], "")


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
        and x.is_contiguous()  # rows with gaps between them take the operator a thousand times as long
        and weight.is_contiguous()
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
