# SPDX-License-Identifier: Apache-2.0
"""The core op, forward and forward+backward, beside eager, SDPA and torch.compile: run by `python -m benchmarks.run`.

One benchmark is one row of `cases.ROWS`. The statistics of pytest-benchmark are those of swin_fast; the peers, which
are timed between its rounds, stand in `extra_info`.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest

from .cases import ROWS, Row
from .measure import (
    Clocked,
    Options,
    champions,
    errors,
    exact_results,
    interleave,
    our_bound,
    peer_bound,
    unequal,
)
from .peers import RIVALS, Problem, ours, peers

MOST_ROUNDS = 300


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS])
def test_window_attention(
    row: Row, benchmark: Any, options: Options, ceilings: dict[str, float], progress: Any
) -> None:
    problem = Problem(row)
    mine = ours(problem, options.backend)
    rivals = peers(problem, options.families)

    progress("checking")
    exact = exact_results(problem)
    found: dict[str, dict[str, float]] = {}
    for contender in sorted([*rivals, mine], key=lambda c: (c.name != "eager", c.name != mine.name)):
        found[contender.name] = error = errors(contender, exact)
        is_ours = contender is mine
        bound = our_bound(row.dtype_name, found["eager"]) if is_ours else peer_bound(row.dtype_name, error)
        faults = unequal(contender.name, error, bound)
        assert not faults, "; ".join(faults)
    del exact

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
        summary(row, best, per_peer, ceilings),
        ms=milliseconds(best),
        median_ms=milliseconds(benchmark.stats.stats.median),
        rounds=rounds,
        error=rounded(found[mine.name]),
        backend=options.backend,
        peers=per_peer,
    )
    progress.done(benchmark.extra_info)


def summary(
    row: Row, seconds: float, per_peer: dict[str, dict[str, Any]], ceilings: dict[str, float]
) -> dict[str, Any]:
    """Everything a reader asks of a row, so that no report has to compute it again."""
    families: dict[str, float] = {}
    for peer in per_peer.values():
        families[peer["family"]] = min(peer["ms"], families.get(peer["family"], float("inf")))
    compared = [name for name, peer in per_peer.items() if peer["family"] in RIVALS]
    compared.sort(key=lambda name: per_peer[name]["ms"])
    best_peer = compared[0]
    best_published = next(name for name in compared if per_peer[name]["published"])
    ratio = per_peer[best_peer]["ratio"]
    at_matmul = 1e-9 * row.flops / ceilings[f"matmul_{row.dtype_name}_gflops"]
    at_copy = 1e-9 * row.bytes / ceilings["copy_gb_per_s"]
    return {
        "case": row.stage.name,
        "shift": row.stage.shift,
        "window": row.stage.window,
        "heads": row.stage.heads,
        "size": row.stage.size,
        "batch": row.batch,
        "dtype": row.dtype_name,
        "direction": row.direction,
        "family_ms": families,
        "family_ratio": {family: round(1e-3 * ms / seconds, 3) for family, ms in families.items()},
        "best_peer": best_peer,
        "ratio": ratio,
        "best_published_peer": best_published,
        "ratio_published": per_peer[best_published]["ratio"],
        "bar": row.bar,
        "met": None if row.bar is None else ratio >= row.bar,
        "gflops": round(1e-9 * row.flops / seconds, 1),
        "percent_of_matmul": round(100 * at_matmul / seconds, 1),
        "gb_per_s": round(1e-9 * row.bytes / seconds, 1),
        "percent_of_roof": round(100 * max(at_matmul, at_copy) / seconds, 1),
    }


def milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 4)


def rounded(errors: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{error:.2g}") for name, error in errors.items()}
