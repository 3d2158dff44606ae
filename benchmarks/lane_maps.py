# SPDX-License-Identifier: Apache-2.0
"""Which lane holds what, asked of a GPU or of the emulator that the CUDA kernels are tested in.

`python -m benchmarks.lane_maps [--device cpu|cuda] [--json FILE]` builds tests/cusim/lane_maps.cu, for the GPU or (cpu)
for the emulator, runs it and says where the two differ. What a GPU has answered is committed as
tests/cusim/lane_maps.json, and the emulator is held against it from then on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .machine import ROOT, find_nvcc

SOURCE = ROOT / "tests" / "cusim" / "lane_maps.cu"
EMULATOR = [str(SOURCE.with_name(f"{name}.cpp")) for name in ("cusim", "emulated_primitives")]
GOLDEN = SOURCE.with_suffix(".json")

Maps = dict[str, Any]


def compile_command(architecture: str | None, program: Path) -> list[str]:
    """For `architecture`, such as sm_90, or "native"; None is the emulator.

    Raises:
        FileNotFoundError: no nvcc.
    """
    shared = ["-std=c++17", "-I", str(SOURCE.parent.parent), "-o", str(program)]
    if architecture is None:
        return ["g++", *shared, "-O1", "-DSWIN_FAST_CUSIM", "-x", "c++", str(SOURCE), *EMULATOR]
    if (nvcc := find_nvcc()) is None:
        raise FileNotFoundError("no nvcc on PATH or in CUDA_HOME")
    return [nvcc, *shared, f"-arch={architecture}", str(SOURCE)]


def ask(architecture: str | None) -> Maps:
    """The answers, as the program prints them."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "lane_maps"
        subprocess.run(compile_command(architecture, program), check=True)
        done = subprocess.run([program], stdout=subprocess.PIPE, text=True, check=True)
    maps: Maps = json.loads(done.stdout)
    return maps


def differences(one: Maps, other: Maps, prefix: str = "") -> Iterator[str]:
    """Names of the maps that are not equal, and where first; the device may differ."""
    for name in sorted({*one, *other} - {"device"}):
        left, right = one.get(name), other.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from differences(left, right, f"{name}.")
        elif left != right:
            place = next(
                (i for i, pair in enumerate(zip(left or (), right or (), strict=False)) if len({*pair}) > 1), 0
            )
            yield f"{prefix}{name}, from number {place} on"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lane_maps", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="where the answers go")
    options = parser.parse_args()
    emulated = ask(None)
    maps = emulated if options.device == "cpu" else ask("native")
    if options.json:
        options.json.write_text(json.dumps(maps) + "\n")
    wrong = list(differences(maps, emulated))
    print(f"{maps['device']}: {'as the emulator' if not wrong else 'unlike the emulator: ' + '; '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
