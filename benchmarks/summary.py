# SPDX-License-Identifier: Apache-2.0
"""What a result file says of a row."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any

from .admission import Admitted
from .cases import Row
from .ceilings import Ceilings, roof
from .clocks import Clocked
from .suites import Suite


def summary(
    row: Row, suite: Suite, seconds: float, peers: list[Admitted], ceilings: Ceilings, late: Set[str] = frozenset()
) -> dict[str, Any]:
    """Everything a reader asks of a row, so that no report has to compute it again.

    `late`: families of which time did not allow to see everybody; the best of them is not known.
    """
    families: dict[str, float] = {}
    for peer in peers:
        family = peer.candidate.family
        families[family] = min(peer.clocked.best, families.get(family, math.inf))
    rivals = [peer for peer in peers if peer.candidate.family in suite.rivals]
    rivals.sort(key=lambda peer: peer.clocked.best)
    known = not late & {*suite.rivals}
    best = rivals[0] if known else None
    published = next((peer for peer in rivals if known and peer.candidate.published), None)
    known = not late & {*suite.held_against}
    held = next((peer for peer in rivals if known and peer.candidate.family in suite.held_against), None)

    def over(peer: Admitted | None) -> float | None:
        return None if peer is None else round(peer.clocked.best / seconds, 3)

    def name(peer: Admitted | None) -> str | None:
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
        "best_peer": name(best),
        "ratio": over(best),
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


def graph_summary(suite: Suite, mine: Admitted, peers: list[Admitted]) -> dict[str, Any] | None:
    """Ours as a graph, over the best graph of a peer; what torch.compile makes of graphs by itself counts as one."""
    if mine.graph is None:
        return None
    rivals = [peer for peer in peers if peer.candidate.family in suite.rivals]
    by_graph = {peer.candidate.name: peer.graph.best for peer in rivals if peer.graph}
    own = ("timm_cudagraphs", "timm_autotune")
    by_graph |= {peer.candidate.name: peer.clocked.best for peer in rivals if peer.candidate.family in own}
    best = min(by_graph, key=by_graph.__getitem__, default=None)
    return {
        "ms": milliseconds(mine.graph.best),
        "best_peer": best,
        "peer_ms": None if best is None else milliseconds(by_graph[best]),
        "ratio": None if best is None else round(by_graph[best] / mine.graph.best, 3),
    }
