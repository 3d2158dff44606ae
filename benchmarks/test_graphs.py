# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs, as far as a machine without a GPU can tell: a stand-in captures and replays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from .admission import Admitted
from .clocks import Clocked, CpuClock
from .contenders import Candidate, Contender
from .graphs import Graph, captured, checked_graph, graphs_of
from .suites import SUITES


class FakeStream:
    def __init__(self, name: str) -> None:
        self.name = name

    def wait_stream(self, other: FakeStream) -> None:
        pass


class FakeCuda:
    """torch.cuda as far as graphs use it. A graph replays what the test says, or else the call that it captured; a
    capture that fails leaves its stream the current one, as torch's does.
    """

    def __init__(self, replays: Callable[[], object] | None = None) -> None:
        self.current = "main"
        self.pools: list[object] = []
        self.replays = replays

    def Stream(self) -> FakeStream:
        return FakeStream("side")

    def current_stream(self) -> FakeStream:
        return FakeStream(self.current)

    def synchronize(self) -> None:
        pass

    def graph_pool_handle(self) -> object:
        return object()

    def CUDAGraph(self) -> FakeCuda:
        return self

    def replay(self) -> None:
        if self.replays:
            self.replays()

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph: FakeCuda, pool: object) -> Iterator[None]:
        self.pools.append(pool)
        before, self.current = self.current, "capture"
        yield
        self.current = before


class Doubled(Contender):
    """2 x into a tensor of its own; `streams` are those it was called on."""

    def __init__(self, cuda: FakeCuda, fails: bool = False) -> None:
        super().__init__("doubled")
        vars(self).update(cuda=cuda, fails=fails, x=torch.randn(5), out=torch.empty(5), streams=[])

    def write(self) -> None:
        torch.mul(self.x, 2, out=self.out)

    def call(self) -> Callable[[], object]:
        def call() -> Tensor:
            self.streams.append(self.cuda.current)
            if self.fails and self.cuda.current == "capture":
                raise RuntimeError("operation not permitted when stream is capturing")
            self.write()
            return self.out if self.cuda.current == "capture" else self.out.clone()

        return call

    def results(self) -> dict[str, Tensor]:
        return {"out": 2 * self.x}

    def held(self) -> Iterable[Tensor]:
        return (self.x,)


def test_a_graph_is_warmed_up_captured_and_replayed() -> None:
    cuda = FakeCuda()
    doubled = Doubled(cuda)
    cuda.replays = doubled.write
    graph = checked_graph(doubled.call(), doubled.held(), 1e-6, "pool", cuda)  # type: ignore[arg-type]
    assert doubled.streams == [*3 * ["side"], "capture", "main"]
    assert (cuda.current, cuda.pools) == ("main", ["pool"])
    doubled.out.zero_()
    graph()
    assert torch.equal(doubled.out, 2 * doubled.x)


@pytest.mark.parametrize("fault", ["nothing is written", "something else is written", "not a number is written"])
def test_a_replay_that_gives_something_else_is_found(fault: str) -> None:
    cuda = FakeCuda()
    doubled = Doubled(cuda)
    factor = {"nothing": None, "something": 2.01, "not": float("nan")}[fault.split()[0]]
    cuda.replays = lambda: None if factor is None else torch.mul(doubled.x, factor, out=doubled.out)
    with pytest.raises(AssertionError, match="its replay differs from the plain call by"):
        checked_graph(doubled.call(), doubled.held(), 1e-3, None, cuda)


def test_gradients_that_a_graph_leaves_are_compared_too() -> None:
    weight = torch.randn(5, requires_grad=True)
    grad = torch.empty(5)

    def step() -> Tensor:
        weight.grad = grad if cuda.current == "capture" else torch.ones(5)
        return torch.ones(5)

    cuda = FakeCuda()
    graph = Graph(step, [weight], None, cuda)
    assert [result is grad for result in graph.results] == [False, True]
    cuda.replays = lambda: grad.fill_(2.0)
    with pytest.raises(AssertionError, match="its replay differs"):
        checked_graph(step, [weight], 1e-3, None, cuda)


def test_a_failed_capture_gives_the_stream_back_and_is_the_last() -> None:
    cuda = FakeCuda()
    calls = {"a": Doubled(cuda), "b": Doubled(cuda, fails=True), "c": Doubled(cuda)}
    graphs, faults = captured({name: lambda one=one: Graph(one.call(), (), None, cuda) for name, one in calls.items()})
    assert cuda.current == "main"
    assert [*graphs] == ["a"]
    assert {name: str(fault) for name, fault in faults.items()} == {
        "b": "operation not permitted when stream is capturing",
        "c": "not tried after b",
    }
    assert calls["c"].streams == []


def admitted(name: str, contender: Contender) -> Admitted:
    clocked = Clocked(name, name, contender.call(), CpuClock())
    return Admitted(Candidate(name, "timm", lambda: contender), contender, {}, None, clocked)


def test_ours_and_the_rivals_share_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    doubled = [Doubled(cuda), Doubled(cuda), Doubled(cuda, fails=True)]
    cuda.replays = lambda: [one.write() for one in doubled]
    mine, fine, broken = (admitted(name, one) for name, one in zip(("ours", "fine", "broken"), doubled, strict=True))
    suite = SUITES["model"]
    left_out: dict[str, dict[str, str]] = {}
    found = graphs_of(suite.rows("cuda")[0], mine, [fine, broken], suite, left_out, cuda)
    assert [one.name for one in found] == ["ours", "fine"]
    assert (mine.graph, fine.graph, broken.graph) == (*found, None)
    assert len({id(pool) for pool in cuda.pools}) == 1
    reason = "RuntimeError: operation not permitted when stream is capturing"
    assert left_out == {"broken as a graph": {"family": "timm", "reason": reason}}


def test_ours_that_cannot_be_captured_fails_the_row() -> None:
    cuda: Any = FakeCuda()
    suite = SUITES["model"]
    with pytest.raises(RuntimeError, match="not permitted"):
        graphs_of(suite.rows("cuda")[0], admitted("ours", Doubled(cuda, fails=True)), [], suite, {}, cuda)
