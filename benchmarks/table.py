# SPDX-License-Identifier: Apache-2.0
"""Prints a result file: `python -m benchmarks.table benchmarks/results/DEVICE/window_attention.json`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .suites import SUITES, Suite

Info = dict[str, Any]


@dataclass(frozen=True)
class Column:
    name: str
    side: Literal["left", "right"]
    cell: Callable[[Info], str]


def number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def case(info: Info) -> str:
    return f"{info['case']} shift {info['shift']}" if "shift" in info else info["case"]


def bar(info: Info) -> str:
    return "-" if info["bar"] is None else f"{info['bar']:g}"


def met(info: Info) -> str:
    return {None: "-", True: "yes", False: "NO"}[info["met"]]


def of_family(family: str, table: str, decimals: int) -> Column:
    return Column(family.replace("_", " "), "right", lambda info: number(info[table].get(family), decimals))


def columns(suite: Suite) -> list[Column]:
    """Times of the rivals; ratios to them, with the bar; ratios to those that do other work."""
    ratio = Column("ratio", "right", lambda info: number(info["ratio"], 2))
    found = [
        Column("case", "left", case),
        Column("B", "right", lambda info: str(info["batch"])),
        Column("dtype", "left", lambda info: info["dtype"]),
        Column("direction", "left", lambda info: info["direction"]),
        Column("swin_fast ms", "right", lambda info: number(info["ms"], 3)),
        *(of_family(family, "family_ms", 3) for family in suite.rivals),
        Column("best peer", "left", lambda info: info["best_peer"]),
        ratio,
    ]
    if suite.held_against != suite.rivals:
        name = f"over {' or '.join(suite.held_against)}"
        found.append(Column(name, "right", lambda info: number(info["held_ratio"], 2)))
    if suite.barred:
        found += [Column("bar", "right", bar), Column("met", "left", met)]
    if suite.rearranged:
        found.append(Column("published", "right", lambda info: number(info["ratio_published"], 2)))
    return [
        *found,
        *(of_family(family, "family_ratio", 2) for family in suite.families if family not in suite.rivals),
        Column("GFLOP/s", "right", lambda info: number(info["gflops"], 0)),
        Column("% roof", "right", lambda info: number(info["percent_of_roof"], 0)),
    ]


def heading(result: dict[str, Any]) -> str:
    machine, commit = result["machine_info"], result["commit_info"]
    cpu, allocator = machine["cpu"], machine["allocator"]
    ceilings = ", ".join(f"{name} {value:g}" for name, value in machine["ceilings"].items())
    load = " to ".join(f"{load:.1f}" for load in machine["load_average"])
    budget = f"; budget {machine['budget_s']:g} s per row" if "budget_s" in machine else ""  # older results: unknown
    return "\n".join(
        [
            f"{machine['device']}: {cpu['cores']} cores, {cpu['name']}, torch {machine['torch']['version']} "
            f"({machine['torch']['cpu_capability']}), swin_fast {machine['swin_fast']['version']} "
            f"({machine['swin_fast']['isa'] or 'no CPU library'}), {machine['torch']['threads']} thread",
            f"commit {commit['id'][:12]}{' (dirty)' if commit['dirty'] else ''}, {result['datetime']}, allocator "
            f"{'as stated' if allocator['as_stated'] else 'NOT as stated'}"
            f"{'' if allocator['keeps_memory'] else ', but memory is still faulted in again'}",
            f"ceilings: {ceilings}; load average {load}{budget}",
        ]
    )


def show(result: dict[str, Any]) -> None:
    suite = SUITES[result.get("suite", "op")]  # older results are all the op's, and do not say so
    shown = columns(suite)
    infos = [benchmark["extra_info"] for benchmark in result["benchmarks"]]
    rows = [[column.cell(info) for column in shown] for info in infos]
    bars = [info["met"] for info in infos if info["met"] is not None]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(heading(result))
        show_plain(shown, rows)
    else:
        console = Console(width=None if Console().is_terminal else 200, highlight=False)
        console.print(heading(result), markup=False)
        table = Table(*(), box=None, pad_edge=False)
        for column in shown:
            table.add_column(column.name, justify=column.side, no_wrap=True)
        for row in rows:
            table.add_row(*row, style="red" if "NO" in row else None)
        console.print(table)
    print(suite.legend)
    if suite.barred:
        print(f"bars met: {sum(bars)} of {len(bars)}")


def show_plain(shown: list[Column], rows: list[list[str]]) -> None:
    lines = [[column.name for column in shown], *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            text.rjust(width) if column.side == "right" else text.ljust(width)
            for text, width, column in zip(line, widths, shown, strict=True)
        ]
        print("  ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="JSON")
    for path in parser.parse_args().results:
        show(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
