# SPDX-License-Identifier: Apache-2.0
"""Prints a result file: `python -m benchmarks.table benchmarks/results/DEVICE/op.json`."""

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


def graph(info: Info) -> str:
    return "-" if info["graph"] is None else number(info["graph"]["ratio"], 2)


def of_family(family: str, table: str, decimals: int) -> Column:
    return Column(family.replace("_", " "), "right", lambda info: number(info[table].get(family), decimals))


def columns(suite: Suite, infos: list[Info]) -> list[Column]:
    """Times of the rivals that are there; ratios to them, with the bar; ratios to those that do other work."""
    present = {family for info in infos for family in info["family_ms"]}
    threads = {info["threads"] for info in infos}
    ratio = Column("ratio", "right", lambda info: number(info["ratio"], 2))
    found = [
        Column("case", "left", case),
        Column("B", "right", lambda info: str(info["batch"])),
        *([Column("threads", "right", lambda info: str(info["threads"]))] if len(threads) > 1 else []),
        Column("dtype", "left", lambda info: info["dtype"]),
        Column("direction", "left", lambda info: info["direction"]),
        Column("swin_fast ms", "right", lambda info: number(info["ms"], 3)),
        *(of_family(family, "family_ms", 3) for family in suite.rivals if family in present),
        Column("best peer", "left", lambda info: info["best_peer"] or "-"),
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
        *(of_family(family, "family_ratio", 2) for family in suite.others if family in present),
        *([Column("as graphs", "right", graph)] if any(info["graph"] for info in infos) else []),
        Column("peak MB", "right", lambda info: number(info["peak_mb"], 0)),
        Column("GFLOP/s", "right", lambda info: number(info["gflops"], 0)),
        Column("GB/s", "right", lambda info: number(info["gb_per_s"], 0)),
        Column("% roof", "right", lambda info: number(info["percent_of_roof"], 0)),
    ]


def heading(result: dict[str, Any]) -> str:
    machine, commit = result["machine_info"], result["commit_info"]
    cpu, gpu, versions = machine["cpu"], machine["gpu"], machine["torch"]
    name = gpu["name"] if gpu else f"{cpu['cores']} cores, {cpu['name']}"
    lines = [
        f"{machine['device']}: {name}, torch {versions['version']} ({versions['cpu_capability']}), swin_fast "
        f"{machine['swin_fast']['version']} ({machine['swin_fast']['isa'] or 'no CPU library'})",
        f"commit {commit['id'][:12]}{' (dirty)' if commit['dirty'] else ''}, {result['datetime']}",
        f"clock: {machine['clock']}",
    ]
    if machine["kind"] == "cpu":
        allocator = machine["allocator"]
        lines.append(
            f"allocator {'as stated' if allocator['as_stated'] else 'NOT as stated'}"
            f"{'' if allocator['keeps_memory'] else ', but memory is still faulted in again'}"
        )
    ceilings = ", ".join(f"{name} {value:g}" for name, value in machine["ceilings"].items())
    load = " to ".join(f"{load:.1f}" for load in machine["load_average"])
    lines.append(f"ceilings: {ceilings}; load average {load}; budget {machine['budget_s']:g} s per row")
    return "\n".join(lines)


def left_out(infos: list[Info]) -> dict[str, list[str]]:
    """The reasons for each peer that did not take part in some row."""
    found: dict[str, list[str]] = {}
    for info in infos:
        for name, entry in info["left_out"].items():
            reasons = found.setdefault(name, [])
            reasons += [entry["reason"]] if entry["reason"] not in reasons else []
    return found


def show(result: dict[str, Any]) -> None:
    suite = SUITES[result["suite"]]
    infos = [benchmark["extra_info"] for benchmark in result["benchmarks"]]
    shown = columns(suite, infos)
    rows = [[column.cell(info) for column in shown] for info in infos]
    bars = [info["met"] for info in infos if info["met"] is not None]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(heading(result))
        show_plain(shown, rows)
    else:
        console = Console(width=None if Console().is_terminal else 300, highlight=False)
        console.print(heading(result), markup=False)
        table = Table(*(), box=None, pad_edge=False)
        for column in shown:
            table.add_column(column.name, justify=column.side, no_wrap=True)
        for row in rows:
            table.add_row(*row, style="red" if "NO" in row else None)
        console.print(table)
    print(suite.legend)
    for name, reasons in left_out(infos).items():
        print(f"left out: {name}: {'; '.join(reasons)}")
    if result["not_measured"]:
        print(f"not measured: {len(result['not_measured'])} rows")
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
