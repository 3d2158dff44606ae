# SPDX-License-Identifier: Apache-2.0
"""One row of any suite: everybody checked, then timed in turns, then summed up. Run by `python -m benchmarks.run`.

One benchmark is one row of the suite. The statistics of pytest-benchmark are those of swin_fast; the peers, which are
timed between its rounds, stand in `extra_info`.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from .admission import TOO_LATE, checked, in_one_line, settle
from .cases import Row
from .ceilings import Ceilings
from .clocks import Clock, CpuClock, CudaClock, champions, interleave
from .conftest import Options
from .contenders import Candidate, Problem
from .graphs import graphs_of
from .suites import SUITES, Suite
from .summary import graph_summary, rounded, significant, summary, times

MOST_ROUNDS = 300
#: Rounds after which the fastest of each family are known. A GPU's median needs more of them than a CPU's minimum.
SCREENING = {"cpu": 3, "cuda": 5}
#: Batches at which a GPU waits for launches, and CUDA graphs are measured beside plain calls.
SMALL_BATCH = 8


class Told:
    """A clock that stands still until it is told how long something took.

    pytest-benchmark reads this one, so that CPU time, wall time and CUDA events are all the same to it.
    """

    now = 0.0

    def __call__(self) -> float:
        return self.now


TOLD = Told()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    options = metafunc.config.getoption
    rows = SUITES[options("--suite")].rows(options("--device"), options("--toy"))
    metafunc.parametrize("row", [pytest.param(row, id=row.id) for row in rows])


@pytest.mark.benchmark(timer=TOLD)
def test_row(
    row: Row, in_time: None, benchmark: Any, suite: Suite, options: Options, ceilings: Ceilings, progress: Any
) -> None:
    settle(options.device)
    if options.device == "cpu":
        torch.set_num_threads(row.threads)
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default for convolutions, which fp32 would have to answer for
    torch._dynamo.reset()  # each row compiles afresh: past its recompile limit torch.compile would silently run eager
    clock = clock_of(row, suite, options.device)

    progress("checking")
    try:
        problem = suite.problem(row, options.device)
        mine, peers, left_out = checked(problem, suite, options, asked_for(problem, options), clock, progress)
    except torch.OutOfMemoryError as fault:
        pytest.skip(f"needs more memory than there is: {in_one_line(fault)}")

    progress("screening")
    gc.collect()
    gc.disable()
    try:
        interleave([mine.clocked, *(peer.clocked for peer in peers)], SCREENING[options.device])
        race = champions([peer.clocked for peer in peers])
        if options.device == "cuda" and row.batch <= SMALL_BATCH:
            rivals = [peer for peer in peers if peer.candidate.family in suite.rivals]
            graphs = graphs_of(row, mine, rivals, suite, left_out)
            interleave(graphs, SCREENING["cuda"])
            race += [graphs[0], *champions(graphs[1:])]
        round_seconds = sum((2 if options.device == "cpu" else 1) * one.best for one in [mine.clocked, *race])
        rounds = max(options.least_rounds, min(MOST_ROUNDS, int(options.budget / round_seconds)))

        progress(f"{rounds} rounds")

        def others_first() -> None:
            interleave(race, rounds=1)

        def told() -> None:
            TOLD.now += mine.clocked.slice()

        benchmark.pedantic(told, setup=others_first, rounds=rounds, iterations=1)
    finally:
        gc.enable()

    late = {left["family"] for left in left_out.values() if left["reason"] == TOO_LATE}
    benchmark.extra_info.update(
        summary(row, suite, mine.clocked.best, peers, ceilings, late),
        backend=options.backend or backend_of(row, options.device),
        **times(mine.clocked),
        images_per_s=significant(row.batch / mine.clocked.best),
        peak_mb=mine.peak_mb,
        error=rounded(mine.error),
        graph=graph_summary(suite, mine, peers),
        left_out=left_out,
    )
    progress.done(benchmark.extra_info)


def clock_of(row: Row, suite: Suite, device: str) -> Clock:
    """Of small batches of single ops launches count; what they cost is what a CUDA graph of them saves."""
    if device == "cpu":
        return CpuClock(row.threads)
    return CudaClock(suite.flush, hidden=suite.flush and row.batch > SMALL_BATCH)


def asked_for(problem: Problem, options: Options) -> list[Candidate]:
    found = [candidate for candidate in problem.peers() if candidate.family in options.families]
    if options.toy:  # one of each family: compiling takes seconds whatever the size
        found = list({candidate.family: candidate for candidate in reversed(found)}.values())
    return found


def backend_of(row: Row, device: str) -> str:
    """What swin_fast chooses by itself: of a row with a backward maybe two, such as cuda_triton."""
    from swin_fast import dispatch

    problem = dispatch.problem_of(row.dtype, torch.device(device), row.case.window**2, row.case.head_dim)
    return dispatch.overload(problem) if row.backward else dispatch.choose(problem)
