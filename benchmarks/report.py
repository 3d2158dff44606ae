# SPDX-License-Identifier: Apache-2.0
"""Writes REPORT.md, its plots and the block in README.md from the results: `python -m benchmarks.report`.

It reads the committed result files alone, so the report never says what they do not. `--check` writes nothing, names
every file that is not what would be written, and needs no matplotlib: a plot is compared by the stamp in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .plots import RIVALS, Plot, draw, plots
from .report_text import Devices, readme_block, report, rows_of

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


class ReportError(Exception):
    """A result or a README that no report can be made from."""


def read(folder: Path) -> Devices:
    """The results by device and suite. One of a tree with changes is refused: nobody could repeat it."""
    devices: Devices = {}
    for path in sorted(folder.glob("*/*.json")):
        device, suite = path.parent.name, path.stem
        if suite not in RIVALS:
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        if result.get("suite", suite) != suite:
            raise ReportError(f"{path}: holds suite {result['suite']!r}, its name says {suite!r}")
        if result.get("commit_info", {}).get("dirty"):
            raise ReportError(f"{path}: measured in a tree with uncommitted changes; commit, and measure again")
        devices.setdefault(device, {})[suite] = result
    return {device: {name: found[name] for name in RIVALS if name in found} for device, found in devices.items()}


def outputs(root: Path) -> dict[Path, str | Plot]:
    """All files of the report: a text, or the plot to be drawn."""
    folder, readme = root / "benchmarks", root / "README.md"
    devices = read(folder / "results")
    drawn = {
        device: plots(device, {suite: rows_of(result) for suite, result in results.items()})
        for device, results in devices.items()
    }
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ReportError(f"{readme}: needs the lines {BEGIN} and {END} once each, in this order")
    return {
        folder / "REPORT.md": report(devices, drawn),
        readme: f"{before}{BEGIN}\n\n{readme_block(devices, drawn)}\n\n{END}{after}",
        **{folder / plot.path: plot for some in drawn.values() for plot in some},
    }


def is_current(path: Path, wanted: str | Plot) -> bool:
    """A plot by the stamp in it alone: another matplotlib draws the same data in other bytes."""
    found = path.read_text(encoding="utf-8")
    return wanted.stamp in found if isinstance(wanted, Plot) else wanted == found


def differences(root: Path, wanted: dict[Path, str | Plot]) -> dict[Path, str]:
    """The files that are not as wanted, and what is wrong with each."""
    wrong = {}
    for path, content in wanted.items():
        if not path.exists():
            wrong[path] = "missing"
        elif not is_current(path, content):
            wrong[path] = "stale"
    surplus = set((root / "benchmarks" / "plots").rglob("*.svg")) - set(wanted)
    return wrong | dict.fromkeys(sorted(surplus), "surplus")


def write(root: Path) -> None:
    """Writes what differs, and removes what is surplus."""
    wanted = outputs(root)
    for path, what in differences(root, wanted).items():
        if what == "surplus":
            path.unlink()
        else:
            content = wanted[path]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(draw(content) if isinstance(content, Plot) else content.encode())
        print(f"{'removed' if what == 'surplus' else 'written'}: {path.relative_to(root)}")


def main(given: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale or surplus")
    try:
        if not parser.parse_args(given).check:
            write(root)
            return 0
        wrong = differences(root, outputs(root))
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    for path, what in wrong.items():
        print(f"{what}: {path.relative_to(root)}", file=sys.stderr)
    if wrong:
        print("Not what the results say: run python -m benchmarks.report", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
