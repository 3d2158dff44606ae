# SPDX-License-Identifier: Apache-2.0
"""The command line: `python -m swin_fast doctor` tells what runs here and why, `demo` shows it on a photograph."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import __version__, dispatch
from .backends import native

__all__ = ["doctor_report", "main"]

ENVIRONMENT = {
    "SWIN_FAST_BACKEND": "backend chosen automatically",
    "SWIN_FAST_BUILD": "auto, when installing",
    "SWIN_FAST_ISA": "best instruction set of this CPU",
    "SWIN_FAST_REQUIRE": "tests may skip a backend that cannot run",
    "SWIN_FAST_LOG": "no log",
}
# Who complains about a value; SWIN_FAST_ISA is the matter of the native library, which says why it is not usable.
CHECKS = {"SWIN_FAST_BACKEND": dispatch.check_backend, "SWIN_FAST_LOG": dispatch.check_log_level}

# (models, window_size, head_dim): the shapes of the published Swin V1 models.
MODEL_SHAPES = (
    ("Swin-T/S/B/L at 224", (7, 7), 32),
    ("Swin-B/L at 384", (12, 12), 32),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

DEMO_PACKAGES = {"matplotlib", "rich", "numpy", "PIL"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 could not, 2 wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    if options.command == "doctor":
        return _doctor(options.json)
    return _demo(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m swin_fast",
        description="Fused shifted-window attention and Swin blocks for PyTorch.",
        epilog="Exit codes: 0 done, 1 could not (the reason is printed), 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"swin_fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    doctor = commands.add_parser(
        "doctor",
        help="print versions, what was built, and which backend runs which model",
        description="Prints versions, what was built, the instruction sets, the GPUs, the environment variables in "
        "force, and for every published Swin shape which backend runs it and why the others do not. Never fails.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of text")

    demo = commands.add_parser(
        "demo",
        help="run two Swin blocks over a photograph: parity, time and a picture",
        description="Runs patch embedding and two Swin blocks (one regular, one shifted; random weights) over a "
        "photograph at its own size, prints the error and the time of every backend that can run, and saves a picture.",
    )
    demo.add_argument("--image", metavar="PATH", help="your own photograph (default: one that matplotlib ships)")
    demo.add_argument(
        "--output", metavar="PATH", default="swin_fast_demo.png", help="where the picture goes (default: %(default)s)"
    )
    demo.add_argument(
        "--repeats", type=_positive, default=10, metavar="N", help="timed runs per backend (default: %(default)s)"
    )
    demo.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: what torch would use)")
    return parser


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a whole number of at least 1")
    return value


def _demo(options: argparse.Namespace) -> int:
    try:
        from . import demo
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in DEMO_PACKAGES:
            raise
        print(f"The demo needs {package}, which is not installed: pip install '.[demo]'", file=sys.stderr)
        return 1
    try:
        exact = demo.run(image=options.image, output=options.output, repeats=options.repeats, threads=options.threads)
    except demo.DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not exact:
        print("error: a backend is less exact than the tolerance rule allows, see the table", file=sys.stderr)
    return 0 if exact else 1


def _doctor(as_json: bool) -> int:
    report = doctor_report()
    if as_json:
        print(json.dumps(report, indent=2))
    elif importlib.util.find_spec("rich") is not None:
        _print_rich(report)
    else:
        _print_plain(report)
    return 0


def doctor_report() -> dict[str, Any]:
    """What this installation is and can do, as plain JSON values. Never raises: a fact that cannot be had says why."""
    return {
        "versions": _fact(_versions),
        "native": _fact(_native),
        "machine": _fact(_machine),
        "gpu": _fact(_gpu),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "environment_errors": _environment_errors(),
        "dispatch": _fact(_dispatch_table),
    }


def _fact(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # the doctor reports what is broken; it does not break on it
        return {"error": f"{type(error).__name__}: {error}"}


def _versions() -> dict[str, str]:
    return {
        "swin_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }


def _native() -> dict[str, Any]:
    reasons = native.cpu_why_not()
    facts: dict[str, Any] = {"cpu_library": "loaded" if not reasons else "not usable", "why_not": reasons}
    if native.cpu_library() is not None:
        facts["build"] = native.cpu_build_info()
        facts["isa_in_use"] = native.cpu_isa()
        facts["isa_available"] = list(native.cpu_isas())
    return facts


def _machine() -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_name(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores_usable": len(affinity(0)) if affinity else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu() -> dict[str, Any]:
    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
            }
        )
    return {"torch_cuda": torch.version.cuda, "devices": devices}


def _environment_errors() -> list[str]:
    errors = []
    for name, check in CHECKS.items():
        try:
            if value := os.environ.get(name):
                check(value)
        except ValueError as error:
            errors.append(str(error))
    return errors


def _dispatch_table() -> list[dict[str, Any]]:
    devices: list[tuple[str, tuple[int, int] | None]] = [("cpu", None)]
    if torch.cuda.is_available():
        devices.append(("cuda", torch.cuda.get_device_capability()))
    forced = os.environ.get("SWIN_FAST_BACKEND") or None
    rows = []
    for models, window_size, head_dim in MODEL_SHAPES:
        for dtype in DTYPES:
            for device, capability in devices:
                problem = dispatch.Problem(dtype, device, capability, window_size[0] * window_size[1], head_dim)
                rows.append(
                    {
                        "models": models,
                        "window_size": list(window_size),
                        "head_dim": head_dim,
                        "dtype": str(dtype).removeprefix("torch."),
                        "device": device,
                        "chosen": _fact(functools.partial(dispatch.choose, problem, forced)),
                        "why_not": {name: dispatch.why_not(name, problem) for name in dispatch.BACKENDS},
                    }
                )
    return rows


def _sections(report: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The report's facts, less the dispatch table, as titled (name, value) rows."""
    environment = [
        (name, repr(value) if value is not None else f"not set: {ENVIRONMENT[name]}")
        for name, value in report["environment"].items()
    ]
    environment += [("wrong", error) for error in report["environment_errors"]]
    gpu = dict(report["gpu"])
    for index, device in enumerate(gpu.pop("devices", [])):
        gpu[f"device {index}"] = f"{device['name']}, capability {device['capability']}, {device['memory_gib']} GiB"
    gpu_rows = _rows(gpu) if len(gpu) > 1 or "error" in gpu else [*_rows(gpu), ("devices", "none that torch can use")]
    return [
        ("Versions", _rows(report["versions"])),
        ("Native CPU library", _rows(report["native"])),
        ("Machine", _rows(report["machine"])),
        ("GPU", gpu_rows),
        ("Environment", environment),
    ]


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            rows += _rows(value)
        elif value != []:
            rows.append((name, _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join("x".join(map(str, v)) if isinstance(v, list) else str(v) for v in value)
    return "none" if value is None else str(value)


def _dispatch_lines(table: list[dict[str, Any]]) -> tuple[list[str], list[list[str]], list[str]]:
    """(header, rows, notes): one column per backend, and a numbered note for each reason why one cannot run."""
    notes: list[str] = []
    rows = []
    for entry in table:
        row = [f"N={math.prod(entry['window_size'])} hd={entry['head_dim']}", entry["dtype"], entry["device"]]
        for backend, reasons in entry["why_not"].items():
            for reason in reasons:
                if f"{backend}: {reason}" not in notes:
                    notes.append(f"{backend}: {reason}")
            numbers = ",".join(str(notes.index(f"{backend}: {reason}") + 1) for reason in reasons)
            row.append(f"no ({numbers})" if reasons else "RUNS" if backend == entry["chosen"] else "can")
        if isinstance(entry["chosen"], dict) and entry["chosen"]["error"] not in notes:
            notes.append(entry["chosen"]["error"])
        rows.append(row)
    return ["shape", "dtype", "device", *dispatch.BACKENDS], rows, notes


DISPATCH_TITLE = "Which backend runs (RUNS: chosen; can: if asked for; no: see the note)"
SHAPES = [
    f"N={math.prod(window)} hd={head_dim}: {models}, window {window[0]}x{window[1]}"
    for models, window, head_dim in MODEL_SHAPES
]


def _print_plain(report: dict[str, Any]) -> None:
    for title, facts in _sections(report):
        print(f"{title}\n{'-' * len(title)}")
        width = max((len(name) for name, _ in facts), default=0)
        for name, value in facts:
            print(f"  {name:<{width}}  {value}")
        print()
    print(f"{DISPATCH_TITLE}\n{'-' * len(DISPATCH_TITLE)}")
    if isinstance(report["dispatch"], dict):
        print(f"  {report['dispatch']['error']}")
        return
    header, rows, notes = _dispatch_lines(report["dispatch"])
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    for line in [*SHAPES, *(f"({number}) {note}" for number, note in enumerate(notes, 1))]:
        print(f"  {line}")


def _print_rich(report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for title, facts in _sections(report):
        section = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
        section.add_column(style="cyan", no_wrap=True)
        section.add_column()
        for name, value in facts:
            section.add_row(name, Text(value))
        console.print(section)
        console.print()
    if isinstance(report["dispatch"], dict):
        console.print(report["dispatch"]["error"], markup=False)
        return
    header, rows, notes = _dispatch_lines(report["dispatch"])
    table = Table(title=DISPATCH_TITLE, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"[green]{cell}[/]" if cell == "RUNS" else cell for cell in row))
    console.print(table)
    for line in [*SHAPES, *(f"({number}) {note}" for number, note in enumerate(notes, 1))]:
        console.print(line, markup=False)
