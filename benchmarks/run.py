# SPDX-License-Identifier: Apache-2.0
"""Runs a suite, shows its table and writes its JSON: `python -m benchmarks.run`; --quick takes some minutes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .additions import added, obstacles
from .machine import ROOT, commit, environment, machine_info, result_path
from .suites import SUITES
from .table import show

QUICK_BUDGET = 1.5
TOY_BUDGET = 0.01
#: Families that run only where --peers names them: max-autotune may take minutes a row. On a CPU, where it was tried
#: (Swin-T, batch 1, frozen weights), it was no faster than torch.compile's default.
ASKED_FOR = {"cpu": ("timm_autotune",), "cuda": ("autotune",)}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, default="op")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="first stages, Swin-T, few rounds: for tuning")
    parser.add_argument("--toy", action="store_true", help="toy-sized rows: does the benchmark itself work?")
    parser.add_argument("--rows", metavar="EXPR", help="only these rows: a -k expression of pytest, as 'b1 and bf16'")
    families = "; ".join(f"{name}: {','.join(suite.families)}" for name, suite in SUITES.items())
    parser.add_argument("--peers", help=f"families of peers by comma, default all; {families}")
    budgets = ", ".join(f"{name} {suite.budget:g}" for name, suite in SUITES.items())
    parser.add_argument(
        "--budget",
        type=float,
        help=f"seconds of timed rounds per row; default: quick {QUICK_BUDGET:g}, otherwise {budgets}",
    )
    parser.add_argument("--minutes", type=float, help="no row and no peer starts later; the result names what is left")
    parser.add_argument("--backend", help="backend of swin_fast; default: its own choice")
    parser.add_argument(
        "--add",
        type=Path,
        metavar="JSON",
        help="an earlier result of the same machine and versions: its rows are not measured again, but taken over",
    )
    parser.add_argument(
        "--json",
        type=Path,
        help="where to write; default: where --add is, and for all rows and peers benchmarks/results/DEVICE",
    )
    parser.add_argument("--allow-dirty", action="store_true", help="write results of a tree with uncommitted changes")
    options = parser.parse_args(given)
    suite = SUITES[options.suite]
    if unknown := set((options.peers or "").split(",")) - {"", *suite.families}:
        parser.error(f"--peers: got {', '.join(sorted(unknown))}, want some of {', '.join(suite.families)}")
    return options


def target_of(options: argparse.Namespace) -> Path | None:
    """Where the result goes; None where a part of the rows or peers would overwrite the whole."""
    whole = not (options.quick or options.toy or options.rows or options.peers or options.minutes is not None)
    default = ROOT / result_path(options.device, SUITES[options.suite].results) if whole else None
    return options.json or options.add or default


def command_of(options: argparse.Namespace, path: Path) -> list[str]:
    """pytest over bench.py, which leaves its JSON at `path`."""
    suite = SUITES[options.suite]
    families = suite.rivals if options.quick else suite.families
    peers = options.peers or ",".join(family for family in families if family not in ASKED_FOR[options.device])
    budget = options.budget or (TOY_BUDGET if options.toy else QUICK_BUDGET if options.quick else suite.budget)
    command = [sys.executable, "-m", "pytest", str(ROOT / "benchmarks" / "bench.py"), "-q", "-s", "--no-header"]
    command += ["--rootdir", str(ROOT), "-p", "no:cacheprovider", "-p", "no:logging", "-W", "ignore", "--tb=short"]
    command += ["--benchmark-only", "--benchmark-quiet", "--benchmark-disable-gc", f"--benchmark-json={path}"]
    command += [f"--suite={options.suite}", f"--device={options.device}", f"--peers={peers}", f"--budget={budget}"]
    command += [f"--backend={options.backend}"] if options.backend else []
    command += [f"--minutes={options.minutes}"] if options.minutes is not None else []
    command += [f"--add={options.add.resolve()}"] if options.add else []
    command += ["--quick"] if options.quick else []
    command += ["--toy"] if options.toy else []
    command += ["-k", options.rows] if options.rows else []
    return command


def compact(value: object, indent: int = 0, width: int = 160) -> str:
    """JSON in which whatever fits into one line, a peer for example, stands in one line."""
    line = json.dumps(value)
    if indent + len(line) <= width or not isinstance(value, (dict, list)):
        return line
    inner, pad = indent + 1, " " * (indent + 1)
    if isinstance(value, dict):
        lines = [f"{pad}{json.dumps(name)}: {compact(part, inner, width)}" for name, part in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + compact(part, inner, width) for part in value) + "\n" + " " * indent + "]"


def main() -> int:
    options = arguments()
    suite = SUITES[options.suite]
    target = target_of(options)
    if target and commit()["dirty"] and not options.allow_dirty:
        print("The tree has uncommitted changes, so nobody could repeat this result: commit, or pass --allow-dirty.")
        return 2

    earlier = json.loads(options.add.read_text()) if options.add else None
    if earlier and (why := obstacles(earlier, suite.name, machine_info(options.device), options.allow_dirty)):
        print(f"--add: rows of {options.add} cannot stand beside new ones:", *why, sep="\n")
        return 2

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / suite.results
        # A new process: the allocator and OpenMP read their settings when a process starts.
        settings = {**os.environ, **environment(options.device)}
        signal.signal(signal.SIGTERM, lambda *_: None)  # whoever stops us stops it, too, and it leaves what it has
        done = subprocess.run(command_of(options, path), cwd=ROOT, env=settings, check=False)
        if not path.exists() or not path.stat().st_size:
            return done.returncode or 1
        result = json.loads(path.read_text())
    if earlier:
        result = added(earlier, result, [row.id for row in suite.rows(options.device, options.toy)])
    print()
    show(result)
    if done.returncode and not (options.json or options.add):
        print("Some rows failed (see above): nothing is written.")
    elif target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(compact({**result, "failed": bool(done.returncode)}) + "\n")
        print(f"written: {os.path.relpath(target)}{', without the rows that failed' if done.returncode else ''}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
