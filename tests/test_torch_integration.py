# SPDX-License-Identifier: Apache-2.0
"""The op inside PyTorch: compile, export, autocast, checkpoint, GradScaler, transforms, meta tensors, gradcheck."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import swin_fast
from cases import TINY, Case, make_inputs
from conftest import fitted
from swin_fast import dispatch, reference

NAMES = ("qkv", "bias", "logit_scale", "pad_value")
#: Every tensor argument, a border on both axes.
CASE = Case(5, 7, (3, 2), (1, 1), 2, 4, B=2, cosine=True, pad_value=True)
SIZES = ((2, 5, 7), (3, 8, 9), (5, 11, 6), (4, 17, 10))


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def attention(backend: str, device: str) -> Callable[..., Tensor]:
    """qkv -> out, with every option, the other tensors being constants."""
    inputs = make_inputs(*fitted(CASE, backend), device)

    def call(qkv: Tensor) -> Tensor:
        return swin_fast.window_attention(
            qkv,
            inputs.bias,
            logit_scale=inputs.logit_scale,
            pad_value=inputs.pad_value,
            backend=backend,
            **inputs.options,
        )

    return call


#: The case and dtype of `_qkv`.
FITTED = [fitted(CASE, "reference")]


@pytest.fixture(autouse=True)
def _fit(request: pytest.FixtureRequest) -> Iterator[None]:
    """`_qkv` is as the backend of the test takes it."""
    if "backend" in request.fixturenames:
        FITTED.append(fitted(CASE, request.getfixturevalue("backend")))
    yield
    del FITTED[1:]


def _qkv(B: int, H: int, W: int, device: str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
    case, own = FITTED[-1]
    return torch.randn(B, H, W, 3, case.nH, case.hd, device=device, dtype=dtype or own)


def _gradients(call: Callable[[Tensor], Tensor], qkv: Tensor, dynamic: bool = False) -> tuple[Tensor, Tensor]:
    qkv = qkv.detach().requires_grad_()
    if dynamic:
        torch._dynamo.mark_dynamic(qkv, (0, 1, 2))
    out = call(qkv)
    (grad,) = torch.autograd.grad(out.square().sum(), qkv)
    return out.detach(), grad


# --- torch.compile


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_dynamic_batch_and_size(attention: Callable[..., Tensor], device: str, compiler: str) -> None:
    counter = CompileCounterWithBackend(compiler)
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    for size in SIZES:
        qkv = _qkv(*size, device)
        out, grad = _gradients(compiled, qkv, dynamic=True)
        eager_out, eager_grad = _gradients(attention, qkv)
        assert torch.equal(out, eager_out)
        assert torch.equal(grad, eager_grad)
    assert counter.frame_count == 1, "recompiled for another size"


def test_compile_dynamic_true(attention: Callable[..., Tensor], device: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend=counter)
    # Sizes that differ from one another and from all others here: Dynamo takes equal sizes for one and the same.
    compiled(_qkv(6, 8, 7, device))
    compiles = counter.frame_count  # two: Dynamo starts again to make the option floats constant
    for size in ((8, 9, 11), (7, 13, 9)):
        qkv = _qkv(*size, device)
        assert torch.equal(compiled(qkv), attention(qkv))
    assert counter.frame_count == compiles, "recompiled for another size"


def test_compile_automatic_dynamic_recompiles_once(attention: Callable[..., Tensor], device: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    for size in SIZES:
        qkv = _qkv(*size, device)
        assert torch.equal(compiled(qkv), attention(qkv))
    assert counter.frame_count == 2  # static, then every size that has changed


def test_compile_the_differentiable_reference() -> None:
    def call(qkv: Tensor) -> Tensor:
        return reference.window_attention(qkv, None, window_size=(3, 2), shift_size=(1, 1), scale=0.5)

    qkv = _qkv(2, 5, 7)
    out, grad = _gradients(torch.compile(call, fullgraph=True, backend="aot_eager"), qkv)
    eager_out, eager_grad = _gradients(call, qkv)
    torch.testing.assert_close(out, eager_out)
    torch.testing.assert_close(grad, eager_grad)


def test_compile_graph_holds_one_node_of_the_chosen_overload(
    attention: Callable[..., Tensor], backend: str, device: str
) -> None:
    graphs: list[Any] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compile(attention, fullgraph=True, backend=keep)(_qkv(2, 5, 7, device))
    (graph,) = graphs
    nodes = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert nodes == [getattr(torch.ops.swin_fast.window_attention_fwd, backend)]


def test_compile_for_training_holds_one_node_forward_and_one_backward(backend: str, device: str) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    inputs = make_inputs(*fitted(CASE, backend), device)
    tensors = {name: getattr(inputs, name).requires_grad_() for name in NAMES}
    compiled = torch.compile(swin_fast.window_attention, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    compiled(**tensors, backend=backend, **inputs.options).backward(inputs.grad_out)
    ours = [[str(node.target) for node in graph.graph.nodes if "swin_fast" in str(node.target)] for graph in graphs]
    assert ours == [[f"swin_fast.window_attention_fwd.{backend}"], [f"swin_fast.window_attention_bwd.{backend}"]]


def test_compile_under_autocast(attention: Callable[..., Tensor], device: str) -> None:
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    with torch.autocast(device, dtype=torch.bfloat16):
        out, grad = _gradients(compiled, _qkv(2, 5, 7, device, torch.float32))
    assert out.dtype == torch.bfloat16
    assert grad.dtype == torch.float32


def test_use_backend_inside_and_around_compiled_code() -> None:
    qkv = _qkv(2, 5, 7)
    counter = CompileCounterWithBackend("aot_eager")

    def plain(qkv: Tensor) -> Tensor:
        return swin_fast.window_attention(qkv, None, window_size=3, shift_size=1)

    def forced(qkv: Tensor) -> Tensor:
        with swin_fast.use_backend("reference"):
            return plain(qkv)

    want = swin_fast.window_attention(qkv, None, window_size=3, shift_size=1, backend="reference")
    assert torch.equal(torch.compile(forced, fullgraph=True, backend="aot_eager")(qkv), want)
    assert dispatch._override.backend is None

    compiled = torch.compile(plain, fullgraph=True, backend=counter)
    compiled(qkv)
    with swin_fast.use_backend("reference"):
        assert torch.equal(compiled(qkv), want)  # recompiled
    assert counter.frame_count == 2
    compiled(qkv)
    assert counter.frame_count == 2  # and the first graph is found again

    seen: list[Tensor] = []
    thread = threading.Thread(target=lambda: seen.append(compiled(qkv)))
    thread.start()
    thread.join()
    assert torch.equal(seen[0], plain(qkv))


def test_import_leaves_the_compiler_alone(run_script: Callable[..., str]) -> None:
    assert run_script("import sys, swin_fast; print('torch._dynamo' in sys.modules)", timeout=60) == "False\n"


def test_compile_says_why_a_forced_backend_cannot_run() -> None:
    def call(qkv: Tensor) -> Tensor:
        return swin_fast.window_attention(qkv, None, window_size=3, backend="cuda")

    with pytest.raises(Exception, match="takes tensors on cuda, not on cpu"):
        torch.compile(call, fullgraph=True, backend="aot_eager")(_qkv(2, 5, 7))


# --- torch.export


class _Module(torch.nn.Module):
    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, qkv: Tensor) -> Tensor:
        return self.call(qkv)


@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
def test_export_with_dynamic_batch_and_size(
    attention: Callable[..., Tensor], backend: str, device: str, strict: bool
) -> None:
    dims = {i: torch.export.Dim(name, min=2) for i, name in enumerate(("batch", "height", "width"))}
    program = torch.export.export(
        _Module(attention), (_qkv(2, 5, 7, device),), dynamic_shapes={"qkv": dims}, strict=strict
    )
    nodes = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert nodes == [getattr(torch.ops.swin_fast.window_attention_fwd, backend)]
    exported = program.module()
    for size in (*SIZES, (2, 2, 2)):
        qkv = _qkv(*size, device)
        assert torch.equal(exported(qkv), attention(qkv))


# --- autocast


def test_autocast_casts_qkv_once_and_nothing_else(
    attention: Callable[..., Tensor], device: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []
    call = swin_fast.functional._call

    def spy(backend: str, arguments: tuple[Any, ...]) -> Tensor:
        seen.append((*(x.dtype for x in arguments[:4]), torch.is_autocast_enabled(device)))
        return call(backend, arguments)

    monkeypatch.setattr(swin_fast.functional, "_call", spy)
    qkv = _qkv(2, 5, 7, device, torch.float32).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        out = attention(qkv)
        assert torch.is_autocast_enabled(device)
    assert seen == [(torch.bfloat16, torch.float32, torch.float32, torch.bfloat16, False)]
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, attention(qkv.bfloat16()))
    out.sum().backward()
    assert qkv.grad.dtype == torch.float32


def test_backward_inside_autocast_is_the_same(attention: Callable[..., Tensor], device: str) -> None:
    qkv = _qkv(2, 5, 7, device, torch.float32)
    with torch.autocast(device, dtype=torch.bfloat16):
        _, inside = _gradients(attention, qkv)
        leaf = qkv.detach().requires_grad_()
        out = attention(leaf)
        grad_out = 2 * out.float()
    (outside,) = torch.autograd.grad(out, leaf, grad_out.bfloat16())
    assert torch.equal(inside, outside)


def test_autocast_leaves_float64_alone() -> None:
    qkv = _qkv(2, 5, 7, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = swin_fast.window_attention(qkv, None, window_size=3)
    assert torch.equal(out, swin_fast.window_attention(qkv, None, window_size=3))


# --- training tools


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_checkpoint(attention: Callable[..., Tensor], device: str, reentrant: bool) -> None:
    qkv = _qkv(2, 5, 7, device)
    plain = _gradients(attention, qkv)
    recomputed = qkv.detach().requires_grad_()
    out = checkpoint(attention, recomputed, use_reentrant=reentrant)
    out.square().sum().backward()
    assert torch.equal(out, plain[0])
    assert torch.equal(recomputed.grad, plain[1])


def test_grad_scaler_sees_an_overflow_and_skips_the_step(backend: str, device: str) -> None:
    """Weights in float32, the op in float16, as is usual: CUDA's scaler takes no gradients in bfloat16."""
    case, _ = fitted(CASE, backend)
    inputs = make_inputs(case, torch.float32, device)
    bias = torch.nn.Parameter(inputs.bias)
    weight = torch.nn.Parameter(inputs.qkv.clone())
    optimizer = torch.optim.SGD([bias, weight], lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**16)

    def step(loss_scale: float) -> None:
        optimizer.zero_grad()
        out = swin_fast.window_attention(
            weight.half(), bias, backend=backend, logit_scale=inputs.logit_scale, **inputs.options
        )
        scaler.scale((out.float() * loss_scale).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    before = weight.detach().clone(), bias.detach().clone()
    step(1e4)  # 2^16 * 1e4 is beyond float16
    assert torch.equal(weight, before[0])
    assert torch.equal(bias, before[1])
    assert scaler.get_scale() == 2.0**15

    step(1e-2)
    assert not torch.equal(weight, before[0])
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()
    assert scaler.get_scale() == 2.0**15


def test_saved_tensors_may_live_elsewhere(attention: Callable[..., Tensor], device: str) -> None:
    qkv = _qkv(2, 5, 7, device)
    plain = _gradients(attention, qkv)
    with torch.autograd.graph.save_on_cpu():
        moved = _gradients(attention, qkv)
    assert all(torch.equal(*pair) for pair in zip(moved, plain, strict=True))


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in WindowAttentionBackward")
def test_anomaly_mode_names_our_node(attention: Callable[..., Tensor], device: str) -> None:
    qkv = _qkv(2, 5, 7, device)
    with torch.autograd.detect_anomaly(check_nan=True):
        out = attention(qkv.requires_grad_())
        assert out.grad_fn.name() == "WindowAttentionBackward"
        with pytest.raises(RuntimeError, match="'WindowAttentionBackward' returned nan"):
            out.backward(torch.full_like(out, torch.nan))


def test_backward_twice_needs_retain_graph(attention: Callable[..., Tensor], device: str) -> None:
    qkv = _qkv(2, 5, 7, device).requires_grad_()
    out = attention(qkv).sum()
    out.backward(retain_graph=True)
    once = qkv.grad.clone()
    out.backward()
    assert torch.equal(qkv.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


@pytest.mark.parametrize("changed", NAMES)
def test_an_input_changed_in_place_is_refused_in_backward(backend: str, device: str, changed: str) -> None:
    inputs = make_inputs(*fitted(CASE, backend), device)
    tensors = {name: getattr(inputs, name).requires_grad_() * 1 for name in NAMES}
    out = swin_fast.window_attention(**tensors, backend=backend, **inputs.options)
    tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=["fp64", "fp16", "bf16"])
def test_gradients_come_in_each_arguments_own_dtype(backend: str, device: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(*fitted(CASE, backend), device)
    tensors = {name: getattr(inputs, name).detach() for name in NAMES}
    tensors = {name: x if name == "qkv" else x.to(dtype) for name, x in tensors.items()}
    rounded = {name: x.detach() if name == "qkv" else x.float() for name, x in tensors.items()}
    grads = []
    for arguments in (tensors, rounded):
        arguments = {name: x.requires_grad_() for name, x in arguments.items()}
        swin_fast.window_attention(**arguments, backend=backend, **inputs.options).backward(inputs.grad_out)
        grads.append({name: x.grad for name, x in arguments.items()})
    for name in NAMES:
        assert grads[0][name].dtype == tensors[name].dtype
        assert torch.equal(grads[0][name], grads[1][name].to(tensors[name].dtype))


def test_no_grad_and_inference_mode(attention: Callable[..., Tensor], device: str) -> None:
    qkv = _qkv(2, 5, 7, device)
    want = attention(qkv)
    with torch.no_grad():
        assert torch.equal(attention(qkv.requires_grad_()), want)
    with torch.inference_mode():
        assert torch.equal(attention(qkv), want)


# --- what is refused


def test_vmap_is_refused(attention: Callable[..., Tensor], device: str) -> None:
    with pytest.raises(NotImplementedError, match="does not work under vmap"):
        torch.vmap(attention)(_qkv(2, 5, 7, device)[:, None])


def test_double_backward_is_refused(attention: Callable[..., Tensor], device: str) -> None:
    qkv = _qkv(2, 5, 7, device).requires_grad_()
    (grad,) = torch.autograd.grad(attention(qkv).square().sum(), qkv, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.square().sum().backward()


@pytest.mark.parametrize("wrt", ["qkv", "bias", "grad_out"])
def test_double_backward_is_refused_beside_other_terms(backend: str, device: str, wrt: str) -> None:
    # Left unrecorded, the second derivative would be a silent zero here: the other term has one.
    inputs = make_inputs(*fitted(CASE, backend), device)
    qkv, bias, grad_out = (x.requires_grad_() for x in (inputs.qkv, inputs.bias, inputs.grad_out))
    shared = {"logit_scale": inputs.logit_scale, "pad_value": inputs.pad_value, **inputs.options}
    out = swin_fast.window_attention(qkv, bias, backend=backend, **shared)
    for grad in torch.autograd.grad(out, (qkv, bias), grad_out, create_graph=True):
        leaf = {"qkv": qkv, "bias": bias, "grad_out": grad_out}[wrt]
        with pytest.raises(NotImplementedError, match="no second derivative"):
            torch.autograd.grad(grad.square().sum() + leaf.square().sum(), leaf, retain_graph=True)


def test_forward_mode_is_refused(attention: Callable[..., Tensor], device: str) -> None:
    qkv = _qkv(2, 5, 7, device)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(attention, (qkv,), (qkv,))


def test_functional_grad_is_refused(attention: Callable[..., Tensor], device: str) -> None:
    # PyTorch's own refusal: the autograd of a library op does not compose with functorch.
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda qkv: attention(qkv).sum())(_qkv(2, 5, 7, device))


def test_a_call_that_is_a_constant_works_inside_functional_grad(attention: Callable[..., Tensor], device: str) -> None:
    qkv = _qkv(2, 5, 7, device)
    grad = torch.func.grad(lambda factor: (factor * attention(qkv)).sum())(torch.ones((), device=device))
    torch.testing.assert_close(grad, attention(qkv).sum().to(grad.dtype))


def test_the_reference_function_is_differentiable_twice_and_forward() -> None:
    qkv = make_inputs(TINY[0], torch.float64).qkv.requires_grad_()

    def call(qkv: Tensor) -> Tensor:
        return reference.window_attention(qkv, None, window_size=(2, 2), shift_size=(1, 1), scale=0.7)

    assert torch.autograd.gradgradcheck(call, qkv, fast_mode=True)
    assert torch.autograd.gradcheck(call, qkv, check_forward_ad=True, fast_mode=True)


# --- devices


def test_meta_tensors_give_shapes_forward_and_backward() -> None:
    inputs = make_inputs(CASE, torch.bfloat16)
    tensors = {name: getattr(inputs, name).to("meta").requires_grad_() for name in NAMES}
    out = swin_fast.window_attention(**tensors, **inputs.options)
    assert out.is_meta
    assert out.shape == (2, 5, 7, 8)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    for x in tensors.values():
        assert x.grad.is_meta
        assert x.grad.shape == x.shape
        assert x.grad.dtype == x.dtype


@pytest.mark.parametrize("device_type", ["mps", "xpu", "hpu", "meta"])
def test_other_devices_take_the_reference(device_type: str) -> None:
    assert dispatch.choose(dispatch.Problem(torch.float32, device_type, None, 49, 32)) == "reference"


# --- derivatives against finite differences


@pytest.mark.parametrize("case", TINY[1:3], ids=str)  # between them, every argument
def test_gradcheck_of_the_differentiable_reference(case: Case) -> None:
    inputs = make_inputs(case, torch.float64)
    options = {**inputs.options, "scale": case.effective_scale}
    names = [name for name in NAMES if getattr(inputs, name) is not None]

    def call(*tensors: Tensor) -> Tensor:
        arguments = {"bias": None, **dict(zip(names, tensors, strict=True))}
        return reference.window_attention(**arguments, **options)

    assert torch.autograd.gradcheck(call, [getattr(inputs, name).requires_grad_() for name in names])


# --- relative position bias


WINDOWS = [(1, 1), (7, 7), (2, 3), (3, 2), (1, 5), (5, 1), (8, 8)]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_relative_position_index_by_definition(window: tuple[int, int]) -> None:
    Wh, Ww = window
    index = swin_fast.relative_position_index(window)
    assert index.dtype == torch.int64
    tokens = [(y, x) for y in range(Wh) for x in range(Ww)]
    want = [[(yi - yj + Wh - 1) * (2 * Ww - 1) + xi - xj + Ww - 1 for yj, xj in tokens] for yi, xi in tokens]
    assert index.tolist() == want


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_relative_position_bias_is_the_gather(window: tuple[int, int]) -> None:
    index = swin_fast.relative_position_index(window)
    table = torch.randn((2 * window[0] - 1) * (2 * window[1] - 1), 3, dtype=torch.float64, requires_grad=True)
    bias, gathered = swin_fast.relative_position_bias(table, window), table[index].permute(2, 0, 1)
    assert torch.equal(bias, gathered)
    weight = torch.randn_like(bias)
    (grad,) = torch.autograd.grad(bias, table, weight)
    (want,) = torch.autograd.grad(gathered, table, weight)
    torch.testing.assert_close(grad, want, rtol=1e-13, atol=1e-13)


def test_relative_position_bias_gradient_is_the_same_for_any_number_of_threads() -> None:
    table = torch.randn(31 * 31, 24, requires_grad=True)
    weight = torch.randn(24, 256, 256)
    grads = []
    for threads in (1, 2, 4, 1):
        torch.set_num_threads(threads)
        grads.append(torch.autograd.grad(swin_fast.relative_position_bias(table, 16), table, weight)[0])
    assert all(torch.equal(grad, grads[0]) for grad in grads)


def test_relative_position_bias_twice_differentiable_compiled_and_exported() -> None:
    table = torch.randn(15, 2, dtype=torch.float64, requires_grad=True)

    def bias(table: Tensor) -> Tensor:
        return swin_fast.relative_position_bias(table, (2, 3))

    assert torch.autograd.gradcheck(bias, table)
    assert torch.autograd.gradgradcheck(bias, table)
    assert torch.equal(torch.compile(bias, fullgraph=True, backend="aot_eager")(table), bias(table))
    program = torch.export.export(_Module(bias), (table.detach(),))
    assert torch.equal(program.module()(table), bias(table))


@pytest.mark.parametrize("window", [(7, 7), (3, 5)], ids=str)
def test_dense_and_relative_bias_agree(backend: str, device: str, window: tuple[int, int]) -> None:
    case = Case(9, 8, window, (1, 2), 2, 8, B=2, pad_value=True)
    inputs = make_inputs(*fitted(case, backend), device)
    table = inputs.bias.flatten(1).T.contiguous()
    relative, dense = inputs.bias.clone().requires_grad_(), table.requires_grad_()
    shared = {"pad_value": inputs.pad_value, "backend": backend, **inputs.options}
    outs = [
        swin_fast.window_attention(inputs.qkv, relative, **shared),
        swin_fast.window_attention(inputs.qkv, swin_fast.relative_position_bias(dense, window), **shared),
    ]
    assert torch.equal(*outs)
    for out in outs:
        out.backward(inputs.grad_out)
    torch.testing.assert_close(relative.grad, dense.grad.T.reshape(relative.shape), rtol=1e-5, atol=1e-5)
