# SPDX-License-Identifier: Apache-2.0
"""Prints a result file: `python -m benchmarks.table benchmarks/results/DEVICE/window_attention.json`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Literal

HEADINGS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("case", "left"),
    ("B", "right"),
    ("dtype", "left"),
    ("direction", "left"),
    ("swin_fast ms", "right"),
    ("eager", "right"),
    ("sdpa", "right"),
    ("compile", "right"),
    ("best peer", "left"),
    ("ratio", "right"),
    ("bar", "right"),
    ("met", "left"),
    ("published", "right"),
    ("cached", "right"),
    ("timm order", "right"),
    ("GFLOP/s", "right"),
    ("% roof", "right"),
)

LEGEND = """\
ms of CPU time, one thread, minimum. ratio: the best of eager, sdpa and compile over swin_fast; published: the same
without our own rearrangements of the peers. The columns cached (bias and mask expanded beforehand) and timm order (roll
and partition before the QKV linear) are ratios, too, to peers that do less work or other work: benchmarks/README.md."""


def cells(info: dict[str, Any]) -> list[str]:
    milliseconds, ratios = info["family_ms"], info["family_ratio"]

    def ms(family: str) -> str:
        return f"{milliseconds[family]:.3f}" if family in milliseconds else "-"

    def ratio(family: str) -> str:
        return f"{ratios[family]:.2f}" if family in ratios else "-"

    return [
        f"{info['case']} shift {info['shift']}",
        str(info["batch"]),
        info["dtype"],
        info["direction"],
        f"{info['ms']:.3f}",
        ms("eager"),
        ms("sdpa"),
        ms("compile"),
        info["best_peer"],
        f"{info['ratio']:.2f}",
        "-" if info["bar"] is None else f"{info['bar']:g}",
        {None: "-", True: "yes", False: "NO"}[info["met"]],
        f"{info['ratio_published']:.2f}",
        ratio("cached"),
        ratio("timm_order"),
        f"{info['gflops']:.0f}",
        f"{info['percent_of_roof']:.0f}",
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
    rows = [cells(benchmark["extra_info"]) for benchmark in result["benchmarks"]]
    bars = [benchmark["extra_info"]["met"] for benchmark in result["benchmarks"]]
    bars = [met for met in bars if met is not None]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(heading(result))
        show_plain(rows)
    else:
        console = Console(width=None if Console().is_terminal else 200, highlight=False)
        console.print(heading(result), markup=False)
        table = Table(*(), box=None, pad_edge=False)
        for name, side in HEADINGS:
            table.add_column(name, justify=side, no_wrap=True)
        for row in rows:
            table.add_row(*row, style="red" if "NO" in row else None)
        console.print(table)
    print(LEGEND)
    print(f"bars met: {sum(bars)} of {len(bars)}")


def show_plain(rows: list[list[str]]) -> None:
    lines = [[name for name, _ in HEADINGS], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    for line in lines:
        columns = zip(line, widths, HEADINGS, strict=True)
        print(
            "  ".join(text.rjust(width) if side == "right" else text.ljust(width) for text, width, (_, side) in columns)
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="JSON")
    for path in parser.parse_args().results:
        show(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
