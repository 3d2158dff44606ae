# SPDX-License-Identifier: Apache-2.0
"""The command line: `python -m swin_fast doctor` tells what runs here and why, `demo` shows it on a photograph."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__
from .doctor import doctor

__all__ = ["main"]

DEMO_PACKAGES = {"matplotlib", "rich", "numpy", "PIL"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 could not, 2 wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    if options.command == "doctor":
        doctor(options.json)
        return 0
    return _demo(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m swin_fast",
        description="Fused shifted-window attention and Swin blocks for PyTorch.",
        epilog="Exit codes: 0 done, 1 could not (the reason is printed), 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"swin_fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    command = commands.add_parser(
        "doctor",
        help="print versions, what was built, which backend runs which model, and whether models run",
        description="Prints versions, what was built, the instruction sets, the GPUs, the environment variables in "
        "force; runs a small model, forward and backward, on every backend; and says for every published model which "
        "backend runs it and why the others do not. Never fails.",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object instead of text")

    command = commands.add_parser(
        "demo",
        help="run a whole Swin-T over a photograph: parity, time and a picture",
        description="Runs a whole Swin-T (random weights) over a photograph, as a classifier at 224 x 224 and as a "
        "backbone at the photograph's own size, prints the error and the time of every backend that can run, and saves "
        "a picture.",
    )
    command.add_argument("--image", metavar="PATH", help="your own photograph (default: one that matplotlib ships)")
    command.add_argument(
        "--output", metavar="PATH", default="swin_fast_demo.png", help="where the picture goes (default: %(default)s)"
    )
    command.add_argument(
        "--repeats", type=_positive, default=3, metavar="N", help="timed runs per backend (default: %(default)s)"
    )
    command.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: what torch would use)")
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
