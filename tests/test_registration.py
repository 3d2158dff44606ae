# SPDX-License-Identifier: Apache-2.0
"""The op table: every overload says the same schema, keeps PyTorch's rules, and gets its arguments in their order."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from functorch.compile import aot_function, make_boxed_func
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import swin_fast
from cases import Case, Inputs, make_inputs
from conftest import device_of, fitted, require
from swin_fast import ops

#: Every option at least twice, in both states; opcheck runs each forward and backward.
CASES = (
    Case(5, 7, (3, 2), (1, 0), 2, 4, B=2, bias="none"),
    Case(6, 6, (3, 3), (1, 1), 3, 8, bias="dense", layout="offset", grad_layout="offset"),
    Case(7, 5, (2, 4), (1, 3), 2, 4, B=3, cosine=True, pad_value=True),
    Case(5, 5, (3, 3), (2, 1), 1, 2, B=2, pad_order="roll_pad", pad_value=True, bias="dense", mask_value=-1.5),
    Case(4, 3, (2, 2), (1, 1), 2, 4, B=2, cosine=True, pad_order="roll_pad", bias="none", layout="permuted"),
    Case(3, 5, (4, 4), (0, 1), 2, 6, scale=0.3, pad_value=True, grad_layout="expanded"),
    Case(4, 4, (2, 2), (1, 1), 2, 4, B=0, pad_value=True, cosine=True),
)
OPTIONS = ("window_size", "shift_size", "scale", "pad_order", "mask_value")


def _arguments(inputs: Inputs, requires_grad: bool = False) -> list[Any]:
    tensors = (inputs.qkv, inputs.bias, inputs.logit_scale, inputs.pad_value)
    case = inputs.case
    return [
        *(None if x is None else x.detach().requires_grad_(requires_grad) for x in tensors),
        case.window,
        case.shift,
        case.effective_scale,
        case.pad_order,
        case.mask_value,
    ]


def _storages(tensors: Any) -> set[int]:
    return {x.untyped_storage().data_ptr() for x in tensors if x is not None and x.numel()}


def tables() -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """Each with the names that it has to have."""
    return [
        (ops.WINDOW_ATTENTION_FWD, (*ops.OVERLOADS, *ops.MIXED)),
        (ops.WINDOW_ATTENTION_BWD, ops.OVERLOADS),
    ]


def test_every_overload_has_the_same_schema() -> None:
    for table, names in tables():
        schemas = {str(op._schema).replace(f".{backend}(", "(") for backend, op in table.items()}
        assert len(schemas) == 1
        assert set(table) == set(names)


def test_overloads_are_the_whole_packet_and_pt2_compliant() -> None:
    fwd, bwd = torch.ops.swin_fast.window_attention_fwd, torch.ops.swin_fast.window_attention_bwd
    for packet, (_, names) in zip((fwd, bwd), tables(), strict=True):
        assert set(packet.overloads()) == set(names)
        for name in packet.overloads():
            assert torch.Tag.pt2_compliant_tag in getattr(packet, name).tags


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck_forward(backend: str, device: str, case: Case, dtype: torch.dtype) -> None:
    arguments = _arguments(make_inputs(*fitted(case, backend, dtype), device), requires_grad=True)
    opcheck(ops.WINDOW_ATTENTION_FWD[backend], tuple(arguments))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck_backward(backend: str, device: str, case: Case) -> None:
    inputs = make_inputs(*fitted(case, backend), device)
    opcheck(ops.WINDOW_ATTENTION_BWD[backend], (inputs.grad_out, *_arguments(inputs)))


def test_opcheck_float64_reference() -> None:
    inputs = make_inputs(CASES[2], torch.float64)
    opcheck(ops.WINDOW_ATTENTION_FWD["reference"], tuple(_arguments(inputs, requires_grad=True)))
    opcheck(ops.WINDOW_ATTENTION_BWD["reference"], (inputs.grad_out, *_arguments(inputs)))


#: Every argument differs from every other of its type, so that no two can be swapped unnoticed.
DISTINCT = Case(8, 9, (3, 4), (1, 2), 2, 6, B=2, pad_value=True, scale=0.37, mask_value=-1.25, pad_order="roll_pad")
#: For each option another value; the result must change with it.
OTHER = {"window_size": (4, 3), "shift_size": (2, 1), "scale": 0.7, "pad_order": "pad_roll", "mask_value": -3.0}


@pytest.mark.parametrize("cosine", [False, True], ids=["scaled", "cosine"])
def test_every_argument_arrives_in_its_place(backend: str, device: str, cosine: bool) -> None:
    case = Case(**{**vars(DISTINCT), "cosine": cosine})
    inputs = make_inputs(*fitted(case, backend), device)
    arguments = _arguments(inputs)
    fwd, bwd = ops.WINDOW_ATTENTION_FWD[backend], ops.WINDOW_ATTENTION_BWD[backend]
    exact = _arguments(inputs.double())
    out, grads = fwd(*arguments), bwd(inputs.grad_out, *arguments)
    exact_out = ops.WINDOW_ATTENTION_FWD["reference"](*exact)
    exact_grads = ops.WINDOW_ATTENTION_BWD["reference"](inputs.grad_out.double(), *exact)
    for got, want in zip((out, *grads), (exact_out, *exact_grads), strict=True):
        near = 1e-4 if inputs.qkv.dtype == torch.float32 else 0.05  # not the place: 1 and more
        torch.testing.assert_close(got.float(), want.float(), rtol=near, atol=near)

    for position, name in enumerate(OPTIONS, start=4):
        if (name == "scale" and cosine) or name == "window_size":  # unused; needs another bias
            continue
        changed = [*arguments]
        changed[position] = OTHER[name]
        assert not torch.allclose(fwd(*changed), out, atol=1e-3), f"{name} does not count"
        assert not torch.allclose(bwd(inputs.grad_out, *changed)[0], grads[0], atol=1e-3), f"{name} does not count"
    changed = [*arguments]
    changed[1], changed[4], changed[5] = arguments[1].mT.contiguous(), (4, 3), (2, 1)
    assert not torch.allclose(fwd(*changed), out, atol=1e-3), "window_size does not count"
    for position in range(4):
        if arguments[position] is None:
            continue
        changed = [*arguments]
        changed[position] = arguments[position].flip(-1)
        assert not torch.allclose(fwd(*changed), out, atol=1e-3), f"tensor {position} does not count"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_are_contiguous_new_and_of_their_dtype(
    backend: str, device: str, case: Case, dtype: torch.dtype
) -> None:
    case, dtype = fitted(case, backend, dtype)
    inputs = make_inputs(case, dtype, device)
    arguments = _arguments(inputs)
    out = ops.WINDOW_ATTENTION_FWD[backend](*arguments)
    dqkv, dbias, dlogit_scale, dpad_value = ops.WINDOW_ATTENTION_BWD[backend](inputs.grad_out, *arguments)

    assert out.shape == (case.B, case.H, case.W, case.nH * case.hd)
    assert dqkv.shape == inputs.qkv.shape
    assert dbias.shape == (torch.Size([0]) if inputs.bias is None else inputs.bias.shape)
    assert dlogit_scale.shape == (torch.Size([0]) if inputs.logit_scale is None else inputs.logit_scale.shape)
    assert dpad_value.shape == (torch.Size([0]) if inputs.pad_value is None else inputs.pad_value.shape)
    assert out.dtype == dqkv.dtype == dpad_value.dtype == dtype
    assert dbias.dtype == dlogit_scale.dtype == torch.float32
    results = (out, dqkv, dbias, dlogit_scale, dpad_value)
    assert all(x.is_contiguous() for x in results)
    assert not _storages(results) & _storages((*arguments[:4], inputs.grad_out))
    assert len(_storages(results)) == sum(x.numel() > 0 for x in results)


def test_only_the_inputs_are_saved_for_backward(backend: str, device: str) -> None:
    case = CASES[2]
    inputs = make_inputs(*fitted(case, backend), device)
    leaves = [
        x.requires_grad_() for x in (inputs.qkv, inputs.bias, inputs.logit_scale, inputs.pad_value) if x is not None
    ]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        swin_fast.window_attention(
            inputs.qkv,
            inputs.bias,
            logit_scale=inputs.logit_scale,
            pad_value=inputs.pad_value,
            backend=backend,
            **inputs.options,
        )
    assert _storages(saved) == _storages(leaves)


@pytest.mark.parametrize("wanted", ["qkv", "bias", "logit_scale", "pad_value"])
def test_one_gradient_alone_equals_the_same_among_all(backend: str, device: str, wanted: str) -> None:
    inputs = make_inputs(*fitted(CASES[2], backend), device)
    names = ("qkv", "bias", "logit_scale", "pad_value")

    def gradient(*required: str) -> Tensor:
        tensors = {name: getattr(inputs, name).clone().requires_grad_(name in required) for name in names}
        swin_fast.window_attention(**tensors, backend=backend, **inputs.options).backward(inputs.grad_out)
        assert all((tensors[name].grad is not None) == (name in required) for name in names)
        return tensors[wanted].grad

    torch.testing.assert_close(gradient(wanted), gradient(*names), rtol=0, atol=0)


def test_gradients_of_absent_and_unwanted_arguments_are_none(backend: str, device: str) -> None:
    arguments = _arguments(make_inputs(*fitted(CASES[0], backend), device))  # without a bias
    arguments[0].requires_grad_()
    ops.WINDOW_ATTENTION_FWD[backend](*arguments).sum().backward()
    assert [x.grad is not None for x in arguments if isinstance(x, torch.Tensor)] == [True]

    arguments = _arguments(make_inputs(*fitted(CASES[2], backend), device))
    bias = arguments[1].requires_grad_()
    out = ops.WINDOW_ATTENTION_FWD[backend](*arguments)
    unwanted = [x.requires_grad_() for x in (arguments[0], *arguments[2:4])]  # too late
    grads = torch.autograd.grad(out.sum(), [bias, *unwanted], allow_unused=True)
    assert [grad is not None for grad in grads] == [True, False, False, False]


def test_nothing_is_recorded_without_need(backend: str, device: str) -> None:
    arguments = _arguments(make_inputs(*fitted(CASES[2], backend), device))
    fwd = ops.WINDOW_ATTENTION_FWD[backend]
    want = fwd(*arguments)
    assert want.grad_fn is None
    arguments[0].requires_grad_()
    with torch.no_grad():
        out = fwd(*arguments)
    assert out.grad_fn is None
    assert torch.equal(out, want)
    assert torch.equal(fwd(*arguments), want)


@pytest.mark.parametrize("position", range(5))
def test_the_backward_op_itself_refuses_to_be_differentiated(backend: str, device: str, position: int) -> None:
    inputs = make_inputs(*fitted(CASES[2], backend), device)
    arguments = [inputs.grad_out.detach(), *_arguments(inputs)]
    arguments[position].requires_grad_()
    for grad in ops.WINDOW_ATTENTION_BWD[backend](*arguments):
        with pytest.raises(NotImplementedError, match="no second derivative"):
            grad.sum().backward(retain_graph=True)


def test_a_mode_sees_one_call_forward_and_one_backward(backend: str, device: str) -> None:
    seen: list[str] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(op))
            return op(*args, **(kwargs or {}))

    inputs = make_inputs(*fitted(CASES[2], backend), device)
    with Record():
        out = ops.WINDOW_ATTENTION_FWD[backend](*_arguments(inputs, requires_grad=True))
        out.backward(inputs.grad_out)
    ours = [name for name in seen if name.startswith("swin_fast")]
    assert ours == [f"swin_fast.window_attention_fwd.{backend}", f"swin_fast.window_attention_bwd.{backend}"]


# --- a forward of one backend with the backward of another


@pytest.mark.parametrize("mixed", ops.MIXED)
def test_a_call_may_run_on_two_backends(mixed: str) -> None:
    """As one call of each alone. Needs a GPU, or both backends on a CPU: emulated, and interpreted."""
    for backend in ops.MIXED[mixed]:
        require(backend, torch.bfloat16, 49, 32)
    small = dataclasses.replace(CASES[2], B=1, H=4)  # opcheck runs it some ten times
    inputs = make_inputs(*fitted(small, "cuda", torch.bfloat16), device_of("cuda"))
    fwd = ops.WINDOW_ATTENTION_FWD[mixed]
    opcheck(fwd, tuple(_arguments(inputs, requires_grad=True)))
    arguments = _arguments(inputs, requires_grad=True)
    leaves = [x for x in arguments[:4] if x is not None]
    out = fwd(*arguments)
    first, second = ops.MIXED[mixed]
    assert torch.equal(out, ops.WINDOW_ATTENTION_FWD[first](*_arguments(inputs)))
    expected = [x for x in ops.WINDOW_ATTENTION_BWD[second](inputs.grad_out, *_arguments(inputs)) if x.numel()]
    for got, wanted in zip(torch.autograd.grad(out, leaves, inputs.grad_out), expected, strict=True):
        assert torch.equal(got, wanted)
    with torch.inference_mode():
        assert torch.equal(fwd(*_arguments(inputs)), out)


@pytest.mark.parametrize("mixed", ops.MIXED)
def test_two_backends_stand_in_a_compiled_graph(mixed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what the choice has named, and without running it: no GPU is needed."""
    monkeypatch.setattr(swin_fast.dispatch, "_resolve_once", lambda *_: mixed)
    seen: list[str] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if "window_attention" in str(node.target))
        return make_boxed_func(graph.forward)

    with FakeTensorMode():
        qkv = torch.empty(1, 4, 4, 3, 1, 32, dtype=torch.bfloat16, requires_grad=True)

        def call(qkv: Tensor) -> Tensor:
            return swin_fast.window_attention(qkv, None, window_size=2)

        aot_function(call, fw_compiler=note, bw_compiler=note)(qkv).sum().backward()
    _, second = ops.MIXED[mixed]
    assert seen == [f"swin_fast.window_attention_fwd.{mixed}", f"swin_fast.window_attention_bwd.{second}"]
    assert qkv.grad is not None and qkv.grad.shape == qkv.shape
