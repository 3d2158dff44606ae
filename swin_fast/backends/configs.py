# SPDX-License-Identifier: Apache-2.0
"""Launch parameters of the Triton kernels, those measured on a device, or else a rule; and where Triton beats CUDA.

What was measured stands in `configs/<device>.json`, which `benchmarks/tune.py` writes and nobody edits. It is keyed by
direction, dtype, N and hd, never by batch or image, so that a window is computed in one way whatever is around it.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "configs"
DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
#: The kernels of these are instructed alike, so what was measured for one is better than the rule for the other.
TWINS = {torch.float16: torch.bfloat16, torch.bfloat16: torch.float16}
#: Largest windows whose scores are one tile; whose keys and values stay on the chip; and their gradients, too.
WHOLE_SCORES, WHOLE_WINDOW, WHOLE_GRADIENTS = 64, 272, 160
#: Triton is preferred where it takes less than this part of CUDA's time: a choice should not turn with noise. Of a
#: row's rounds on an H200 the middle 60 % lie within 1 %.
CLEARLY = 0.95
#: That a thread can have on an NVIDIA GPU.
MOST_REGISTERS = 255


@dataclass(frozen=True)
class Parameters:
    """Of a launch: tiles of queries and of keys, warps, windows of a program (fwd) or programs per multiprocessor
    (bwd), and the registers that a thread may have.

    With `more_keys`, or where `keys` are enough, a window's keys stay on the chip; else they come in blocks. Without a
    number of registers the assembler spills some where that lets one more program on a multiprocessor.
    """

    rows: int
    keys: int
    more_keys: int
    warps: int
    units: int
    registers: int | None = None


def parameters(direction: str, dtype: torch.dtype, N: int, hd: int, device: str | None) -> Parameters:
    """Of "fwd" or "bwd"; `device` is a name as `slug` makes it, None: the rule."""
    found = _measured("parameters", direction, dtype, N, hd, device)
    return Parameters(**found) if found else rule(direction, dtype, N, hd)


def times(direction: str, dtype: torch.dtype, N: int, hd: int, device: str | None) -> dict[str, float]:
    """Milliseconds of the backends triton and cuda, measured in turns; empty where nobody has."""
    found = _measured("compared", direction, dtype, N, hd, device)
    return {backend: found[f"{backend}_ms"] for backend in ("triton", "cuda")} if found else {}


def faster(direction: str, dtype: torch.dtype, N: int, hd: int, device: str | None) -> str | None:
    """Of triton and cuda the one that was measured to be, cuda where it hardly matters; None: nobody has measured."""
    if not (found := times(direction, dtype, N, hd, device)):
        return None
    return "triton" if found["triton"] < CLEARLY * found["cuda"] else "cuda"


def rule(direction: str, dtype: torch.dtype, N: int, hd: int) -> Parameters:
    """What the compiler makes the fewest instructions of without spilling, on most architectures; and what an H200 in
    bfloat16 was faster with: 4 warps for a tile of 64 tokens (0.75 of the time of 2, which issue fewer instructions),
    half as many windows a program, and blocks of keys where a window has more than 144 (0.67 of the time).
    """
    wide = dtype == torch.float32
    if direction == "fwd":
        if N <= WHOLE_SCORES:
            tile = max(16, power_of_two(N))
            return Parameters(tile, tile, 0, 8 if wide else 4, 8 if wide else 4)
        if N <= WHOLE_WINDOW and hd <= 64 and (wide or N <= WHOLE_GRADIENTS):
            keys, more_keys = two_powers(N)
            return Parameters(16, keys, more_keys, 4 if wide else 2, 4, MOST_REGISTERS if keys > 128 else None)
        return Parameters(64, 32 if wide else 64, 0, 4, 1)
    if N <= WHOLE_SCORES:
        tile = max(16, power_of_two(N))
        return Parameters(16 if wide else tile, tile, 0, 4, 4 if wide else 2, MOST_REGISTERS)
    if N <= WHOLE_GRADIENTS and hd <= 32 and not wide:
        return Parameters(16, *two_powers(N), 4, 2, MOST_REGISTERS)
    return Parameters(32, 16 if wide else 32, 0, 4, 4, MOST_REGISTERS)


def key(direction: str, dtype: torch.dtype, N: int, hd: int) -> str:
    return f"{direction}-{DTYPES[dtype]}-N{N}-hd{hd}"


def _measured(
    section: str, direction: str, dtype: torch.dtype, N: int, hd: int, device: str | None
) -> dict[str, Any] | None:
    found = committed(device).get(section, {}) if device else {}
    names = [name for name in (dtype, TWINS.get(dtype)) if name in DTYPES]
    return next(filter(None, (found.get(key(direction, name, N, hd)) for name in names)), None)


@functools.cache
def committed(device: str) -> dict[str, Any]:
    """What its file says; empty where there is none."""
    path = FOLDER / f"{device}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def slug(name: str) -> str:
    """The name of a device as files have it: "NVIDIA H200" is nvidia-h200."""
    name = re.sub(r"\((r|tm|c)\)", " ", name.lower()).split("@")[0]
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def power_of_two(n: int) -> int:
    """The least that is not below n."""
    return 1 << (n - 1).bit_length()


def two_powers(n: int) -> tuple[int, int]:
    """Two that hold n with little waste, or one and 0: 144 = 128 + 16."""
    first = 1 << (n.bit_length() - 1)
    return first, max(16, power_of_two(n - first)) if n > first else 0
