# SPDX-License-Identifier: Apache-2.0
"""One row of any suite: everybody checked, then timed in turns, then summed up. Run by `python -m benchmarks.run`.

One benchmark is one row of the suite. The statistics of pytest-benchmark are those of swin_fast; the peers, which are
timed between its rounds, stand in `extra_info`.
"""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest

from .contenders import Contender, Problem
from .measure import Clocked, Options, champions, errors, interleave, our_bound, unequal
from .rows import Row
from .suites import SUITES, Suite

MOST_ROUNDS = 300


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rows = SUITES[metafunc.config.getoption("--suite")].rows
    metafunc.parametrize("row", [pytest.param(row, id=row.id) for row in rows])


def test_row(
    row: Row, benchmark: Any, suite: Suite, options: Options, ceilings: dict[str, float], progress: Any
) -> None:
    problem = suite.problem(row)
    mine = problem.ours(options.backend)
    rivals = problem.peers(options.families)
    if problem.yardstick not in [peer.name for peer in rivals]:
        pytest.skip(f"--peers leaves out {problem.yardstick}, the yardstick of this row")

    progress("checking")
    found, faults = checked(problem, suite, mine, rivals)
    assert not faults, "; ".join(faults)

    progress("screening")
    gc.collect()
    gc.disable()
    try:
        target = Clocked(mine.name, mine.family, mine.call())
        clocked = [Clocked(peer.name, (peer.family, peer.published), peer.call()) for peer in rivals]
        interleave([target, *clocked], rounds=2)
        raced = champions(clocked)
        round_seconds = 2 * sum(contender.best for contender in [target, *raced])
        rounds = max(options.least_rounds, min(MOST_ROUNDS, int(options.budget / round_seconds)))

        progress(f"{rounds} rounds")

        def others_first() -> None:
            interleave(raced, rounds=1)
            target.call()  # untimed, as in the slice of every other contender

        def timed() -> None:
            target.call()  # its result is dropped inside the timed region, as everyone's is

        benchmark.pedantic(timed, setup=others_first, rounds=rounds, iterations=1)
    finally:
        gc.enable()

    best = benchmark.stats.stats.min
    per_peer = {
        peer.name: {
            "family": peer.family,
            "published": peer.published,
            "ms": milliseconds(times.best),
            "median_ms": milliseconds(times.median),
            "rounds": len(times.seconds),
            "ratio": round(times.best / best, 3),
            "error": rounded(found[peer.name]),
        }
        for peer, times in zip(rivals, clocked, strict=True)
    }
    benchmark.extra_info.update(
        summary(row, suite, best, per_peer, ceilings),
        ms=milliseconds(best),
        median_ms=milliseconds(benchmark.stats.stats.median),
        rounds=rounds,
        error=rounded(found[mine.name]),
        backend=options.backend,
        peers=per_peer,
    )
    progress.done(benchmark.extra_info)


def checked(
    problem: Problem, suite: Suite, mine: Contender, rivals: list[Contender]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """(errors of each contender against float64, sentences about those that are not equal)."""
    exact = problem.exact()
    found: dict[str, dict[str, float]] = {}
    faults: list[str] = []
    for contender in sorted([*rivals, mine], key=lambda contender: contender.name != problem.yardstick):
        found[contender.name] = error = errors(contender, exact)
        role = {mine.name: "ours", problem.yardstick: "yardstick"}.get(contender.name, "peer")
        faults += unequal(contender.name, error, bounds(problem, suite, role, found[problem.yardstick]))
    return found, faults


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


def summary(
    row: Row, suite: Suite, seconds: float, per_peer: dict[str, dict[str, Any]], ceilings: dict[str, float]
) -> dict[str, Any]:
    """Everything a reader asks of a row, so that no report has to compute it again."""
    families: dict[str, float] = {}
    for peer in per_peer.values():
        families[peer["family"]] = min(peer["ms"], families.get(peer["family"], float("inf")))
    compared = [name for name, peer in per_peer.items() if peer["family"] in suite.rivals]
    compared.sort(key=lambda name: per_peer[name]["ms"])
    best_peer = compared[0]
    best_published = next(name for name in compared if per_peer[name]["published"])
    held = next((name for name in compared if per_peer[name]["family"] in suite.held_against), None)
    held_ratio = None if held is None else per_peer[held]["ratio"]
    at_matmul = 1e-9 * row.flops / ceilings[f"matmul_{row.dtype_name}_gflops"]
    at_copy = 1e-9 * (row.bytes or 0) / ceilings["copy_gb_per_s"]
    return {
        **row.case.facts,
        "batch": row.batch,
        "dtype": row.dtype_name,
        "direction": row.direction,
        "family_ms": families,
        "family_ratio": {family: round(1e-3 * ms / seconds, 3) for family, ms in families.items()},
        "best_peer": best_peer,
        "ratio": per_peer[best_peer]["ratio"],
        "best_published_peer": best_published,
        "ratio_published": per_peer[best_published]["ratio"],
        "held_against": held,
        "held_ratio": held_ratio,
        "bar": row.bar,
        "met": None if row.bar is None or held_ratio is None else held_ratio >= row.bar,
        "gflops": round(1e-9 * row.flops / seconds, 1),
        "percent_of_matmul": round(100 * at_matmul / seconds, 1),
        "gb_per_s": None if row.bytes is None else round(1e-9 * row.bytes / seconds, 1),
        "percent_of_roof": round(100 * max(at_matmul, at_copy) / seconds, 1),
    }


def milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 4)


def rounded(errors: dict[str, float], most: int = 3) -> dict[str, float]:
    """For the result file: of a model's many gradients those that are furthest off, after the output."""
    kept = sorted(errors, key=lambda name: (name != "out", -errors[name]))[:most]
    return {name: float(f"{error:.2g}") for name, error in errors.items() if name in kept}
