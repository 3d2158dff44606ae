# SPDX-License-Identifier: Apache-2.0
"""How things are measured: equality before time, CPU time of one thread, ceilings of the machine.

The clock is the CPU time of the whole process, so a contender that started threads would pay for them, and waiting for
other users of the machine is not counted. What they do to caches and memory is: hence minima over many rounds.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .contenders import Contender
from .rows import DTYPES

TIMER = time.process_time

#: Environment of the measuring process. glibc by default gives freed buffers of some MB back to the system and faults
#: them in again at the next call, which hits contenders unevenly; here it keeps them, for all contenders alike.
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={size}"
    for name, size in (("mmap_threshold", 2**30), ("trim_threshold", 2**32), ("top_pad", 2**28))
)
ENVIRONMENT = {"GLIBC_TUNABLES": ALLOCATOR, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Options:
    """How a run was asked for, see `python -m benchmarks.run --help`."""

    backend: str | None
    families: tuple[str, ...]
    budget: float
    least_rounds: int


# ------------------------------------------------------------------------------------------------------------ equality


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Largest difference as a part of the largest magnitude of `exact`. Infinite where anything is not finite."""
    if got.shape != exact.shape:
        return float("inf")
    error = ((got.double() - exact).abs().max() / exact.abs().max()).item()
    return error if math.isfinite(error) else float("inf")


def errors(contender: Contender, exact: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative_error(got, exact[name]) for name, got in contender.results().items()}


def unequal(contender: str, found: dict[str, float], bound: dict[str, float]) -> list[str]:
    """One sentence for each tensor that is not equal; `not <=` so that NaN is never equal."""
    return [
        f"{contender} is not equal: {name} differs from float64 by {error:.1e} of its largest magnitude, "
        f"allowed {bound[name]:.1e}"
        for name, error in found.items()
        if not error <= bound[name]
    ]


def our_bound(dtype: torch.dtype, yardstick: dict[str, float]) -> dict[str, float]:
    """The project's tolerance rule: twice the error of eager, plus the epsilon of the dtype."""
    return {name: 2 * error + torch.finfo(dtype).eps for name, error in yardstick.items()}


# ---------------------------------------------------------------------------------------------------------------- time


@dataclass
class Clocked:
    """A call and the CPU seconds of its timed rounds; `group` is what it competes in."""

    name: str
    group: object
    call: Callable[[], object]
    seconds: list[float] = field(default_factory=list)

    def slice(self) -> None:
        """One untimed call, which leaves the caches as this contender wants them, then one timed call."""
        self.call()
        start = TIMER()
        self.call()
        self.seconds.append(TIMER() - start)

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleave(contenders: list[Clocked], rounds: int) -> None:
    """A B C A B C ...: a disturbance of the machine meets all contenders alike."""
    for _ in range(rounds):
        for contender in contenders:
            contender.slice()


def champions(contenders: list[Clocked], slack: float = 1.1) -> list[Clocked]:
    """From each group the fastest, and whoever is within `slack` of it."""
    fastest: dict[object, float] = {}
    for contender in contenders:
        fastest[contender.group] = min(contender.best, fastest.get(contender.group, float("inf")))
    return [contender for contender in contenders if contender.best <= slack * fastest[contender.group]]


# ------------------------------------------------------------------------------------------------------------ ceilings


def fastest(call: Callable[[], object], repeats: int = 8) -> float:
    clocked = Clocked("ceiling", "ceiling", call)
    interleave([clocked], repeats)
    return clocked.best


def ceilings() -> dict[str, float]:
    """What torch itself reaches on one thread: large matrix products, and a copy far beyond the caches.

    GFLOP/s of a 2048 x 2048 x 2048 product in each dtype (the library's product; the FMA peak is higher), and GB/s,
    read and write added, of a copy between buffers of 256 MiB.
    """
    size = 2048
    found = {}
    for name, dtype in DTYPES.items():
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        out = torch.empty_like(a)
        found[f"matmul_{name}_gflops"] = round(2e-9 * size**3 / fastest(lambda: torch.mm(a, b, out=out)), 1)  # noqa: B023
    source = torch.randn(64 * 2**20)
    target = torch.empty_like(source)
    found["copy_gb_per_s"] = round(2e-9 * source.nbytes / fastest(lambda: target.copy_(source)), 1)
    return found


def allocator_keeps_memory(mebibytes: int = 64, attempts: int = 20) -> bool:
    """Whether a buffer that was freed comes back without page faults, as ENVIRONMENT promises."""
    page = os.sysconf("SC_PAGE_SIZE")
    for _ in range(attempts):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(mebibytes << 18).fill_(1.0)
        if (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * page < mebibytes << 16:
            return True
    return False
