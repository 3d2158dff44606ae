# SPDX-License-Identifier: Apache-2.0
"""Calls as CUDA graphs: captured, compared with the plain call, and timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .admission import Admitted, LeftOut, in_one_line
from .cases import Row
from .clocks import Call, Clocked, CudaClock
from .equality import relative_error
from .suites import Suite


class Graph:
    """A call as one CUDA graph: warmed up on a side stream, captured, and replayed when it is called.

    `held`: tensors that live before and after the call, and may get gradients. `pool`: memory that graphs share; each
    overwrites what the one before has left there, its results included.
    """

    def __init__(self, call: Call, held: Iterable[Tensor], pool: Any, cuda: Any = torch.cuda) -> None:
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(3):
                call()
        cuda.current_stream().wait_stream(side)
        self._graph = cuda.CUDAGraph()
        # A capture that fails leaves its own stream the current one; the outer `with` takes it back.
        with cuda.stream(cuda.current_stream()), cuda.graph(self._graph, pool=pool):
            self.results = results(call, held)

    def __call__(self) -> None:
        self._graph.replay()


def checked_graph(call: Call, held: Iterable[Tensor], allowed: float, pool: Any, cuda: Any = torch.cuda) -> Graph:
    """A graph whose replay gives what the plain call gives.

    Raises:
        AssertionError: it does not; `allowed` is the largest difference, as a part of the largest magnitude.
        Exception: the call cannot be captured.
    """
    held = list(held)
    graph = Graph(call, held, pool, cuda)
    plain = [result.detach().double() for result in results(call, held)]
    with torch.inference_mode():
        for result in graph.results:  # so that what the capture left there is not taken for the replay's
            result.detach().zero_()
    graph()
    cuda.synchronize()
    off = [relative_error(result.detach(), exact) for result, exact in zip(graph.results, plain, strict=True)]
    if not all(error <= allowed for error in off):
        raise AssertionError(f"its replay differs from the plain call by {max(off):.1e}, allowed {allowed:.1e}")
    return graph


def results(call: Call, held: Iterable[Tensor]) -> list[Tensor]:
    """What a call returns, and the gradients that it leaves."""
    returned = call()
    outs = [returned] if isinstance(returned, Tensor) else list(returned)  # type: ignore[call-overload]
    return [*outs, *(tensor.grad for tensor in held if tensor.grad is not None)]


def captured(captures: dict[str, Callable[[], Graph]]) -> tuple[dict[str, Graph], dict[str, Exception]]:
    """(The graphs, and why others have none). After one that failed none is tried: nothing says in what state a broken
    capture leaves torch's allocator.
    """
    graphs: dict[str, Graph] = {}
    faults: dict[str, Exception] = {}
    for name, capture in captures.items():
        if faults:
            faults[name] = RuntimeError(f"not tried after {next(iter(faults))}")
            continue
        try:
            graphs[name] = capture()
        except Exception as fault:
            faults[name] = fault
    return graphs, faults


def graphs_of(
    row: Row, mine: Admitted, rivals: list[Admitted], suite: Suite, left_out: LeftOut, cuda: Any = torch.cuda
) -> list[Clocked]:
    """Ours, and those of the rivals that can be captured; why others cannot goes to `left_out`.

    Raises:
        Exception: ours cannot be captured, or its replay gives something else.
    """
    allowed = max(suite.equal[row.dtype_name], suite.equal_sums.get(row.dtype_name, 0.0))
    clock = CudaClock(suite.flush, hidden=suite.flush, cuda=cuda)
    pool = cuda.graph_pool_handle()

    def capture(one: Admitted) -> Graph:
        return checked_graph(one.clocked.call, one.contender.held(), allowed, pool, cuda)

    def clocked(one: Admitted, graph: Graph) -> Clocked:
        one.graph = Clocked(one.clocked.name, one.clocked.group, graph, clock)
        return one.graph

    found = [clocked(mine, capture(mine))]
    capturable = {peer.candidate.name: peer for peer in rivals if peer.contender.capturable}
    graphs, faults = captured({name: partial(capture, peer) for name, peer in capturable.items()})
    for name, fault in faults.items():
        family = capturable[name].candidate.family
        left_out[f"{name} as a graph"] = {"family": family, "reason": in_one_line(fault)}
    return [*found, *(clocked(capturable[name], graph) for name, graph in graphs.items())]
