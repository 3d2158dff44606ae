# SPDX-License-Identifier: Apache-2.0
"""How time, memory and ceilings are measured. A stand-in plays the GPU, so that its clock is tested without one."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from . import bench
from . import ceilings as ceilings_module
from .bench import Told
from .ceilings import ceilings, fma_peaks
from .clocks import SHORT, Clocked, CpuClock, CudaClock, champions, interleave
from .memory import peak_mb
from .suites import SUITES


def test_champions_are_the_fastest_of_each_group() -> None:
    def clocked(name: str, group: str, seconds: float) -> Clocked:
        return Clocked(name, group, lambda: None, CpuClock(), [2 * seconds, seconds])

    contenders = [clocked("a", "x", 1.0), clocked("b", "x", 1.05), clocked("c", "x", 2.0), clocked("d", "y", 9.0)]
    assert [contender.name for contender in champions(contenders)] == ["a", "b", "d"]


def test_a_cpu_quotes_the_minimum_and_a_gpu_the_median() -> None:
    times = [3.0, 1.0, 2.0, 9.0, 4.0]
    assert Clocked("", "", lambda: None, CpuClock(), times).best == 1.0
    clocked = Clocked("", "", lambda: None, CudaClock(flush=False, cuda=FakeCuda()), times)
    assert clocked.best == 3.0
    assert [clocked.percentile(percent) for percent in (0, 20, 50, 80, 100)] == [1.0, 1.0, 3.0, 4.0, 9.0]


@pytest.mark.parametrize(("expected", "calls"), [(0.0, 2), (SHORT / 2, 2), (2 * SHORT, 1)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_short_call_is_warmed_up(threads: int, expected: float, calls: int) -> None:
    called = []
    assert CpuClock(threads).slice(lambda: called.append(1), expected) >= 0.0
    assert len(called) == calls


def test_waiting_counts_with_two_threads_only() -> None:
    def wait() -> None:
        time.sleep(0.05)

    assert CpuClock(1).slice(wait, 1.0) < 0.04
    assert CpuClock(2).slice(wait, 1.0) >= 0.05


def test_contenders_take_turns() -> None:
    order: list[str] = []
    two = [Clocked(name, name, partial(order.append, name), CpuClock(), [1.0]) for name in "ab"]
    interleave(two, rounds=2)  # after the long first round no warm-up; after the short second one
    assert "".join(order) == "ab" + "aabb"
    assert [len(one.seconds) for one in two] == [3, 3]


def test_a_clock_that_is_told() -> None:
    clock = Told()
    start = clock()
    clock.now += 0.25
    assert clock() - start == 0.25


class FakeCuda:
    """torch.cuda as far as the clock uses it: a GPU on which each call takes 2 ms."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def record(*given: Any, **named: Any) -> Any:
            self.log.append(name)
            return FakeObject(name, self.log)

        return record


class FakeObject:
    L2_cache_size = 1

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self.log.append(f"{self.name}.{name}")

    def elapsed_time(self, end: Any) -> float:
        return 2.0


EVENTS = ["Event.record", "call", "Event.record", "Event.synchronize"]


def sliced(monkeypatch: pytest.MonkeyPatch, **how: bool) -> list[str]:
    """What the clock asks of a GPU in one slice, without the making of its events."""
    cuda = FakeCuda()
    monkeypatch.setattr(torch, "zeros", lambda size, dtype, device: FakeObject(f"cache of {size}", cuda.log))
    clock = CudaClock(**how, cuda=cuda)
    cuda.log.clear()
    assert clock.slice(lambda: cuda.log.append("call"), 0.0) == 0.002
    return [step for step in cuda.log if step != "Event"]


def test_a_gpu_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sliced(monkeypatch) == ["synchronize", *EVENTS]


def test_a_flush_has_ended_before_a_call_whose_launch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sliced(monkeypatch, flush=True) == [f"cache of {2**28}.sum", "synchronize", *EVENTS]


def test_a_call_whose_launch_is_hidden_waits_behind_the_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ["synchronize", "_sleep", f"cache of {2**28}.sum", *EVENTS]
    assert sliced(monkeypatch, flush=True, hidden=True) == steps


@pytest.mark.parametrize(("batch", "hidden"), [(8, False), (64, True)])
def test_launches_of_large_batches_of_an_op_are_hidden(
    monkeypatch: pytest.MonkeyPatch, batch: int, hidden: bool
) -> None:
    made = []
    monkeypatch.setattr(bench, "CudaClock", lambda flush, hidden: made.append((flush, hidden)))
    for suite in ("op", "model"):
        row = replace(SUITES[suite].rows("cuda")[0], batch=batch)
        bench.clock_of(row, SUITES[suite], "cuda")
    assert made == [(True, hidden), (False, False)]


# ------------------------------------------------------------------------------------------------- memory and ceilings


def test_peak_memory_counts_what_lives_at_the_same_time() -> None:
    x = torch.randn(1000, 250)  # 1 MB

    def call() -> torch.Tensor:
        a = x + 1
        b = a + 1
        del a
        return b + 1

    assert peak_mb(call, [x, x.view(-1)], "cpu") == 3.0


def test_peak_memory_of_a_training_step_counts_gradients_once() -> None:
    weight = torch.randn(1000, 250, requires_grad=True)

    def step() -> None:
        weight.grad = None
        weight.sum().backward()

    assert [peak_mb(step, [weight], "cpu") for _ in range(2)] == [2.0, 2.0]


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_peak_of_multiply_adds_is_above_that_of_products() -> None:
    one, two = fma_peaks(1), fma_peaks(2)
    assert one["fma_fp32_gflops"] > 1.0
    assert two["fma_fp32_gflops"] == pytest.approx(2 * one["fma_fp32_gflops"], rel=0.5)


def test_without_a_compiler_there_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert fma_peaks(1) == {}


def test_ceilings_of_two_threads_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings_module, "fma_peaks", lambda threads: {"fma_fp32_gflops": 1.0})
    monkeypatch.setattr(ceilings_module, "_measured", lambda *given, **named: {"copy_gb_per_s": 2.0})
    before = torch.get_num_threads()
    assert ceilings("cpu") == {"fma_fp32_gflops": 1.0, "copy_gb_per_s": 2.0}
    assert ceilings("cpu", 2) == {"fma_fp32_gflops_2t": 1.0, "copy_gb_per_s_2t": 2.0}
    assert torch.get_num_threads() == before
