# SPDX-License-Identifier: Apache-2.0
"""The GPU backends where PyTorch wants them: on its stream, in its graphs, on their tensors' device. Needs a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases import Case, Inputs, make_inputs
from conftest import fitted
from oracles import run_op

CASE = Case(20, 23, (7, 7), (3, 3), 3, 32, B=2, cosine=True, pad_value=True)


@pytest.fixture
def inputs(backend: str, device: str) -> Inputs:
    if device != "cuda":
        pytest.skip("there are no streams on a CPU")
    return make_inputs(*fitted(CASE, backend, torch.bfloat16), device)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def call(inputs: Inputs, backend: str) -> Callable[[], dict[str, Tensor]]:
    """Out and all gradients, once called already, so that nothing is left to load."""
    results = functools.partial(run_op, inputs, backend)
    assert len(results()) == 9  # out, dq, dk, dv, dbias, dlogit_scale, and three of the padding
    return results


def test_a_call_stands_in_the_order_of_its_stream(call: Callable[[], dict[str, Tensor]], inputs: Inputs) -> None:
    """Behind a kernel that lasts, which changes the input; and what follows on the stream sees the result."""
    expected = call()
    side = torch.cuda.Stream()
    right = inputs.qkv.clone()
    inputs.qkv.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # a tenth of a second
        inputs.qkv.copy_(right)
        results = {name: x.clone() for name, x in call().items()}
    side.synchronize()
    assert same(results, expected)


def test_a_graph_holds_a_call_and_follows_its_input(call: Callable[[], dict[str, Tensor]], inputs: Inputs) -> None:
    other = inputs.qkv.flip(0).contiguous()
    first = inputs.qkv.clone()
    inputs.qkv.copy_(other)
    expected = {name: x.clone() for name, x in call().items()}
    inputs.qkv.copy_(first)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    inputs.qkv.copy_(other)
    for _ in range(2):
        graph.replay()
        assert same(captured, expected)


def test_tensors_of_another_device_stay_there(call: Callable[[], dict[str, Tensor]], inputs: Inputs) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    expected = call()
    with torch.cuda.device(1):
        results = call()
        assert torch.cuda.current_device() == 1
    assert all(x.device == inputs.qkv.device for x in results.values())
    assert same(results, expected)
