# SPDX-License-Identifier: Apache-2.0
"""One row of any suite: everybody checked, then timed in turns, then summed up. Run by `python -m benchmarks.run`.

One benchmark is one row of the suite. The statistics of pytest-benchmark are those of swin_fast; the peers, which are
timed between its rounds, stand in `extra_info`.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from .cases import Row
from .ceilings import Ceilings, roof
from .clocks import Clock, Clocked, CpuClock, CudaClock, champions, graphed, interleave
from .conftest import Options
from .contenders import Candidate, Contender, Problem
from .equality import errors, our_bound, unequal
from .memory import peak_mb
from .suites import SUITES, Suite

MOST_ROUNDS = 300
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


@dataclass
class Peer:
    """A peer that runs here and is equal; `graph` is its call as a CUDA graph, where that is measured."""

    candidate: Candidate
    contender: Contender
    error: dict[str, float]
    clocked: Clocked
    graph: Clocked | None = None
    peak_mb: float | None = None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    options = metafunc.config.getoption
    rows = SUITES[options("--suite")].rows(options("--device"), options("--toy"))
    metafunc.parametrize("row", [pytest.param(row, id=row.id) for row in rows])


@pytest.mark.benchmark(timer=TOLD)
def test_row(
    row: Row, in_time: None, benchmark: Any, suite: Suite, options: Options, ceilings: Ceilings, progress: Any
) -> None:
    torch.set_num_threads(row.threads)
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default for convolutions, which fp32 would have to answer for
    torch._dynamo.reset()  # each row compiles afresh: past its recompile limit torch.compile would silently run eager
    clock = CpuClock(row.threads) if options.device == "cpu" else CudaClock(suite.flush)
    problem = suite.problem(row, options.device)
    candidates = [candidate for candidate in problem.peers() if candidate.family in options.families]
    if options.toy:  # one of each family: compiling takes seconds whatever the size
        candidates = list({candidate.family: candidate for candidate in reversed(candidates)}.values())

    progress("checking")
    mine, error, peers, left_out = checked(problem, suite, options, candidates, clock, progress)

    progress("screening")
    gc.collect()
    gc.disable()
    try:
        target = Clocked(mine.name, mine.name, mine.call(), clock)
        interleave([target, *(peer.clocked for peer in peers)], rounds=2)
        raced = champions([peer.clocked for peer in peers])
        graphs = []
        if options.device == "cuda" and row.batch <= SMALL_BATCH:
            ours_as_graph = Clocked(mine.name, mine.name, graphed(target.call), clock)
            graphs = [ours_as_graph, *captured([peer for peer in peers if peer.clocked in raced], left_out)]
            interleave(graphs, rounds=2)
        race = [*raced, *graphs]
        round_seconds = sum((2 if options.device == "cpu" else 1) * one.best for one in [target, *race])
        rounds = max(options.least_rounds, min(MOST_ROUNDS, int(options.budget / round_seconds)))

        progress(f"{rounds} rounds")

        def others_first() -> None:
            interleave(race, rounds=1)

        def told() -> None:
            TOLD.now += target.slice()

        benchmark.pedantic(told, setup=others_first, rounds=rounds, iterations=1)
    finally:
        gc.enable()

    for peer in peers:
        if peer.contender.in_torch:
            peer.peak_mb = peak_mb(peer.clocked.call, peer.contender.held(), options.device)
    benchmark.extra_info.update(
        summary(row, suite, target.best, peers, ceilings),
        backend=options.backend or backend_of(row, options.device),
        **times(target),
        images_per_s=significant(row.batch / target.best),
        peak_mb=peak_mb(target.call, mine.held(), options.device),
        error=rounded(error),
        graph=graph_summary(suite, graphs, peers),
        left_out=left_out,
    )
    progress.done(benchmark.extra_info)


def backend_of(row: Row, device: str) -> str:
    """What swin_fast chooses by itself."""
    from swin_fast import dispatch

    capability = torch.cuda.get_device_capability() if device == "cuda" else None
    return dispatch.choose(dispatch.Problem(row.dtype, device, capability, row.case.window**2, row.case.head_dim))


# ------------------------------------------------------------------------------------------------------------ equality


def checked(
    problem: Problem,
    suite: Suite,
    options: Options,
    candidates: list[Candidate],
    clock: Clock,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[Contender, dict[str, float], list[Peer], dict[str, dict[str, str]]]:
    """(ours, its errors, the peers that run and are equal, of the others the reasons).

    Raises:
        AssertionError: ours, or the yardstick, is not equal.
        Exception: ours, or the yardstick, does not run.
    """
    exact = problem.exact()
    yardstick: dict[str, float] = {}
    peers, left_out = [], {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.name != problem.yardstick):
        progress(candidate.name)
        is_yardstick = candidate.name == problem.yardstick
        if not (is_yardstick or options.in_time):
            left_out[candidate.name] = {"family": candidate.family, "reason": "the time of the run was over"}
            continue
        try:
            contender = candidate.build()
            found = errors(contender, exact)
        except Exception as fault:
            if is_yardstick:
                raise
            left_out[candidate.name] = {"family": candidate.family, "reason": in_one_line(fault)}
            continue
        if is_yardstick:
            yardstick = found
        faults = unequal(found, bounds(problem, suite, "yardstick" if is_yardstick else "peer", yardstick))
        if faults and is_yardstick:
            raise AssertionError(f"{candidate.name} is not equal: {some(faults)}")
        if faults:
            left_out[candidate.name] = {"family": candidate.family, "reason": f"not equal: {some(faults)}"}
            continue
        group = (candidate.family, candidate.published)
        peers.append(Peer(candidate, contender, found, Clocked(candidate.name, group, contender.call(), clock)))
    if not yardstick:
        pytest.skip(f"--peers leaves out {problem.yardstick}, the yardstick of this row")
    ours = problem.ours(options.backend)
    error = errors(ours, exact)
    faults = unequal(error, bounds(problem, suite, "ours", yardstick))
    if faults:
        raise AssertionError(f"{ours.name} is not equal: {some(faults)}")
    return ours, error, peers, left_out


def some(sentences: list[str], most: int = 3) -> str:
    more = len(sentences) - most
    return "; ".join(sentences[:most]) + (f"; and {more} more" if more > 0 else "")


def in_one_line(fault: Exception) -> str:
    text = " ".join(str(fault).split())
    return f"{type(fault).__name__}: {text[:200]}"


def bounds(problem: Problem, suite: Suite, role: str, yardstick: dict[str, float]) -> dict[str, float]:
    """The largest error of each result that is allowed to `role`: "ours", "yardstick" or "peer".

    Ours keep the project's rule, peers are within `suite.equal`. Sums over whole maps, the gradients of weights, may
    be off by `suite.equal_sums` or, if that is more, by the rule. The yardstick's in bf16 are not judged: torch's
    LayerNorm on a CPU adds up the gradients of its weights in bf16, which leaves them off by up to 0.9 of the largest.
    The same code is judged in fp32.
    """
    dtype = problem.row.dtype_name
    rule = our_bound(problem.row.dtype, yardstick)
    allowed = {name: rule[name] if role == "ours" else suite.equal[dtype] for name in rule}
    for name in problem.sums:
        allowed[name] = suite.equal_sums[dtype]
        if role != "yardstick":
            allowed[name] = max(allowed[name], rule[name])
        elif dtype == "bf16":
            allowed[name] = math.inf
    return allowed


# --------------------------------------------------------------------------------------------------------- CUDA graphs


def captured(peers: list[Peer], left_out: dict[str, dict[str, str]]) -> list[Clocked]:
    """The calls of those that can be captured, each as a graph."""
    found = []
    for peer in peers:
        if not peer.contender.capturable:
            continue
        clocked = peer.clocked
        try:
            peer.graph = Clocked(clocked.name, clocked.group, graphed(clocked.call), clocked.clock)
        except Exception as fault:
            name = f"{clocked.name} as a graph"
            left_out[name] = {"family": peer.candidate.family, "reason": in_one_line(fault)}
        else:
            found.append(peer.graph)
    return found


def graph_summary(suite: Suite, graphs: list[Clocked], peers: list[Peer]) -> dict[str, Any] | None:
    """Ours as a graph, over the best graph of a peer; what torch.compile makes of graphs by itself counts as one."""
    if not graphs:
        return None
    ours, *_ = graphs
    rivals = [peer for peer in peers if peer.candidate.family in suite.rivals]
    by_graph = {peer.candidate.name: peer.graph.best for peer in rivals if peer.graph}
    own = ("timm_cudagraphs", "timm_autotune")
    by_graph |= {peer.candidate.name: peer.clocked.best for peer in rivals if peer.candidate.family in own}
    best = min(by_graph, key=by_graph.__getitem__, default=None)
    return {
        "ms": milliseconds(ours.best),
        "best_peer": best,
        "peer_ms": None if best is None else milliseconds(by_graph[best]),
        "ratio": None if best is None else round(by_graph[best] / ours.best, 3),
    }


# ------------------------------------------------------------------------------------------------------------- summary


def summary(row: Row, suite: Suite, seconds: float, peers: list[Peer], ceilings: Ceilings) -> dict[str, Any]:
    """Everything a reader asks of a row, so that no report has to compute it again."""
    families: dict[str, float] = {}
    for peer in peers:
        family = peer.candidate.family
        families[family] = min(peer.clocked.best, families.get(family, math.inf))
    rivals = [peer for peer in peers if peer.candidate.family in suite.rivals]
    rivals.sort(key=lambda peer: peer.clocked.best)
    published = next((peer for peer in rivals if peer.candidate.published), None)
    held = next((peer for peer in rivals if peer.candidate.family in suite.held_against), None)

    def over(peer: Peer | None) -> float | None:
        return None if peer is None else round(peer.clocked.best / seconds, 3)

    def name(peer: Peer | None) -> str | None:
        return None if peer is None else peer.candidate.name

    gflops, gb_per_s = roof(row, ceilings)
    compute, memory = 1e-9 * row.flops / gflops, 1e-9 * row.bytes / gb_per_s
    return {
        **row.case.facts,
        "batch": row.batch,
        "dtype": row.dtype_name,
        "direction": row.direction,
        "threads": row.threads,
        "family_ms": {family: milliseconds(best) for family, best in families.items()},
        "family_ratio": {family: round(best / seconds, 3) for family, best in families.items()},
        "best_peer": name(rivals[0]),
        "ratio": over(rivals[0]),
        "best_published_peer": name(published),
        "ratio_published": over(published),
        "held_against": name(held),
        "held_ratio": over(held),
        "bar": row.bar,
        "met": None if row.bar is None or held is None else held.clocked.best / seconds >= row.bar,
        "gflop": significant(1e-9 * row.flops),
        "mbytes": significant(1e-6 * row.bytes),
        "gflops": significant(1e-9 * row.flops / seconds),
        "gb_per_s": significant(1e-9 * row.bytes / seconds),
        "ceiling_gflops": gflops,
        "ceiling_gb_per_s": gb_per_s,
        "percent_of_roof": round(100 * max(compute, memory) / seconds, 1),
        "bound": "compute" if compute >= memory else "memory",
        "peers": {
            peer.candidate.name: {
                "family": peer.candidate.family,
                "published": peer.candidate.published,
                **times(peer.clocked),
                **({"graph_ms": milliseconds(peer.graph.best)} if peer.graph else {}),
                "ratio": over(peer),
                "peak_mb": peer.peak_mb,
                "error": rounded(peer.error),
            }
            for peer in peers
        },
    }


def times(clocked: Clocked) -> dict[str, Any]:
    return {
        "ms": milliseconds(clocked.best),
        "median_ms": milliseconds(clocked.percentile(50)),
        "p20_ms": milliseconds(clocked.percentile(20)),
        "p80_ms": milliseconds(clocked.percentile(80)),
        "rounds": len(clocked.seconds),
    }


def milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 4)


def significant(value: float) -> float:
    return float(f"{value:.4g}")


def rounded(errors: dict[str, float], most: int = 3) -> dict[str, float]:
    """For the result file: of a model's many gradients those that are furthest off, after the output."""
    kept = sorted(errors, key=lambda name: (not name.startswith("out"), -errors[name]))[:most]
    return {name: float(f"{error:.2g}") for name, error in errors.items() if name in kept}
