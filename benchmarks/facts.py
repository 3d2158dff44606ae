# SPDX-License-Identifier: Apache-2.0
"""What a machine is, reaches, and does with streams: `python -m benchmarks.facts [--device cpu|cuda] [--json PATH]`.

Commit, versions, device and driver (`benchmarks/machine.py`), ceilings (`benchmarks/ceilings.py`) and the outcome of
`benchmarks/stream_probe.py`. Exit status 1 where that found something wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from .ceilings import ceilings
from .machine import commit, machine_info
from .stream_probe import stream_probe


def facts(device: str) -> dict[str, Any]:
    return {
        "commit": commit(),
        **machine_info(device),
        "ceilings": ceilings(device),
        "stream_probe": stream_probe(device),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.facts", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="where to write what is printed")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device")
    found = facts(options.device)
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")
    wrong = [name for name, outcome in found["stream_probe"].items() if outcome["ok"] is False]
    if wrong:
        print(f"stream probe: {', '.join(wrong)} went wrong", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
