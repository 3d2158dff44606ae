# SPDX-License-Identifier: Apache-2.0
"""The Linears' fast way: as exact as PyTorch's, and out of the way of everything that could notice it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from cases import DTYPE_IDS
from comparison import check, compare
from swin_fast import linear as fast
from swin_fast.layers import Mlp

OPERATOR = "mkldnn._linear_pointwise.default"

pytestmark = pytest.mark.skipif(not fast._DTYPES, reason="this PyTorch has no oneDNN linear operator")


class Record(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def calls(expected: int) -> Iterator[None]:
    with Record() as record:
        yield
    assert record.called.count(OPERATOR) == expected, record.called


def problem(
    rows: int = 1024, dim: int = 32, out: int = 64, dtype: torch.dtype = torch.float32
) -> tuple[nn.Linear, Tensor]:
    module = nn.Linear(dim, out)
    nn.init.normal_(module.bias)
    return module.to(dtype), torch.randn(2, rows // 2, dim).to(dtype)


# ---------------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=DTYPE_IDS.get)
@pytest.mark.parametrize(
    ("rows", "dim", "out"),
    [(6, 32, 64), (4096, 32, 96), (512, 96, 384), (512, 384, 96), (512, 192, 768), (512, 1536, 192)],
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_results_and_gradients_are_as_exact_as_pytorchs(
    rows: int, dim: int, out: int, has_bias: bool, dtype: torch.dtype
) -> None:
    """Few rows and many: the weight's gradient has two ways."""
    module, x = problem(rows, dim, out, dtype)
    grad_out = torch.randn(2, rows // 2, out).to(dtype)

    def run(function: Any, to: torch.dtype) -> list[Tensor]:
        tensors = [t.detach().to(to).requires_grad_() for t in (x, module.weight, *([module.bias] if has_bias else []))]
        y = function(tensors[0], tensors[1], tensors[2] if has_bias else None)
        return [y.detach(), *torch.autograd.grad(y, tensors, grad_out.to(to))]

    short = [terms <= fast.LONGEST_SUM or dtype != torch.float32 for terms in (dim, out)]  # forward, gradient of x
    with calls(sum(short) if rows >= fast.LEAST_ROWS else 0):
        got = run(fast.functional_linear, dtype)
    eager, exact = run(F.linear, dtype), run(F.linear, torch.float64)
    names = ("out", "dx", "dweight", "dbias")
    check(
        f"{rows} x {dim} -> {out}",
        [compare(name, g, e, [p], dtype=dtype) for name, g, e, p in zip(names, got, exact, eager, strict=False)],
    )


@pytest.mark.parametrize("gaps", [False, True])
def test_rows_with_gaps_go_pytorchs_way(gaps: bool) -> None:
    module, _ = problem()
    x = torch.randn(4, 200, 40)[..., :32] if gaps else torch.randn(4, 200, 32)
    with calls(0 if gaps else 2):
        leaf = x.detach().requires_grad_()
        out = fast.linear(module, leaf)
        out.backward(torch.ones(4, 200, 1).expand(4, 200, 64))
    wanted = x.clone().requires_grad_()
    module(wanted).sum().backward()
    torch.testing.assert_close(out, module(x))
    torch.testing.assert_close(leaf.grad, wanted.grad)


def test_only_the_gradients_asked_for_are_made() -> None:
    module, x = problem()
    module.weight.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    fast.linear(module, leaf).sum().backward()
    assert module.weight.grad is None
    assert leaf.grad is not None
    assert module.bias.grad is not None
    module.requires_grad_(False)
    assert not fast.linear(module, x).requires_grad


def test_second_derivatives_are_there() -> None:
    module, x = problem()
    results = []
    for call in (module, lambda x: fast.linear(module, x)):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(call(leaf).tanh().sum(), leaf, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), [leaf, module.weight]))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- who gets the module itself


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "global"])
def test_hooks_hear_the_call(kind: str) -> None:
    module, x = problem()
    heard = []
    hook = lambda *_: heard.append(kind)  # noqa: E731
    register = {
        "forward": module.register_forward_hook,
        "forward_pre": module.register_forward_pre_hook,
        "full_backward": module.register_full_backward_hook,
        "global": nn.modules.module.register_module_forward_hook,
    }[kind]
    handle = register(hook)
    try:
        with calls(0):
            fast.linear(module, x.requires_grad_()).sum().backward()
            with torch.no_grad():
                fast.linear(module, x)
    finally:
        handle.remove()
    assert heard


class Adapted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_what_stands_in_the_place_of_a_linear_is_called() -> None:
    adapted, x = Adapted(32, 64), torch.randn(3, 32)
    with torch.no_grad(), calls(0):
        assert torch.equal(fast.linear(adapted, x), adapted(x))
        assert torch.equal(fast.linear(nn.Identity(), x), x)
    module, x = problem()
    nn.utils.parametrizations.weight_norm(module)
    with torch.no_grad(), calls(0):
        torch.testing.assert_close(fast.linear(module, x), module(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=DTYPE_IDS.get)
def test_other_dtypes_go_pytorchs_way(dtype: torch.dtype) -> None:
    module, x = problem(dtype=dtype)
    with torch.no_grad(), calls(0):
        assert torch.equal(fast.linear(module, x), module(x))


def test_mixed_dtypes_fail_as_in_pytorch() -> None:
    module, x = problem()
    with pytest.raises(RuntimeError, match="dtype"):
        fast.linear(module, x.bfloat16())


def test_autocast_casts() -> None:
    module, x = problem()
    with torch.autocast("cpu", torch.bfloat16), calls(0):
        assert fast.linear(module, x).dtype == torch.bfloat16


def test_onednn_switched_off_stays_off() -> None:
    module, x = problem()
    with torch.backends.mkldnn.flags(enabled=False), torch.no_grad(), calls(0):
        assert torch.equal(fast.linear(module, x), module(x))


def test_transforms_and_forward_mode_see_a_differentiable_linear() -> None:
    module, x = problem()
    tangent = torch.randn_like(x)
    expected = F.linear(tangent, module.weight)
    with forward_ad.dual_level(), torch.no_grad():
        dual = fast.linear(module, forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)
    _, got = torch.func.jvp(lambda x: fast.linear(module, x), (x,), (tangent,))
    torch.testing.assert_close(got, expected)
    gradient = torch.func.grad(lambda x: fast.linear(module, x).sum())(x)
    torch.testing.assert_close(gradient, module.weight.sum(0).expand_as(x))
    torch.testing.assert_close(torch.func.vmap(lambda x: fast.linear(module, x))(x), module(x))


def test_a_compiled_linear_is_the_compilers() -> None:
    module, x = problem()
    seen: list[str] = []

    def look(graph: Any, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(lambda x: fast.linear(module, x), backend=look, fullgraph=True)(x), module(x)
        )
    assert seen
    assert not any("pointwise" in target for target in seen)


def test_a_trace_holds_a_linear() -> None:
    _, x = problem()
    with torch.no_grad():
        traced = torch.jit.trace(Mlp(32), x)
    assert "pointwise" not in str(traced.inlined_graph)
    assert "aten::linear" in str(traced.inlined_graph)


def test_an_empty_input_gives_an_empty_output() -> None:
    module, _ = problem()
    assert fast.linear(module, torch.randn(0, 7, 32)).shape == (0, 7, 64)
    with torch.no_grad():
        assert fast.linear(module, torch.randn(0, 32)).shape == (0, 64)
