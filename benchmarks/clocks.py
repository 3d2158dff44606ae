# SPDX-License-Identifier: Apache-2.0
"""How long a call takes: on a CPU and on a GPU, and in turns with others.

One thread of a CPU: CPU time of the whole process, so a contender that started threads would pay for them, and waiting
for other users of the machine is not counted. What they do to caches and memory is: hence minima over many rounds. Two
threads: wall time, minimum, with waiting threads that sleep. A GPU: CUDA events, median.
"""

from __future__ import annotations

import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Call = Callable[[], object]

#: A shorter call is called once more, untimed, before it is timed: that leaves the caches as this contender wants them.
#: A longer one sweeps through them by itself.
SHORT = 0.1
#: Of a GPU, about a millisecond: a dozen launches from Python take 0.1 ms, with their backward 0.3 ms.
WAIT_CYCLES = 2_000_000


class Clock(ABC):
    """Measures single calls; `sentence` says how in a result file."""

    sentence: str

    @abstractmethod
    def slice(self, call: Call, expected: float) -> float:
        """Seconds of one call, which took `expected` seconds before (0: unknown)."""

    @abstractmethod
    def typical(self, seconds: list[float]) -> float:
        """The number to quote of many slices."""


@dataclass(frozen=True)
class CpuClock(Clock):
    threads: int = 1

    @property
    def sentence(self) -> str:  # type: ignore[override]
        if self.threads == 1:
            return "CPU time of the process (time.process_time), minimum over interleaved rounds"
        return "wall time (time.perf_counter), minimum over interleaved rounds"

    def slice(self, call: Call, expected: float) -> float:
        timer = time.process_time if self.threads == 1 else time.perf_counter
        if expected < SHORT:
            call()
        start = timer()
        call()
        return timer() - start

    def typical(self, seconds: list[float]) -> float:
        return min(seconds)


class CudaClock(Clock):
    """Events around a call on the current stream.

    `flush`: other data is read through the L2 cache before each call, and the GPU is idle when the call begins. (Were
    it written, the call would pay for its way to memory: 60 MB, or 14 us on an H200.) `hidden`: before that the GPU
    waits so long that the call has been launched when its turn comes; the time is then that of its kernels alone.
    Otherwise launches count, as they do for a user.
    """

    sentence = "CUDA events on the current stream, median over interleaved rounds"

    def __init__(self, flush: bool = False, hidden: bool = False, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._hidden = hidden
        self._cache = None
        if flush:
            size = 4 * cuda.get_device_properties(cuda.current_device()).L2_cache_size
            self._cache = torch.zeros(max(size, 2**28), dtype=torch.int8, device="cuda")

    def slice(self, call: Call, expected: float) -> float:
        start, end = self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True)
        if self._hidden:
            self._cuda.synchronize()
            self._cuda._sleep(WAIT_CYCLES)
        if self._cache is not None:
            self._cache.sum()
        if not self._hidden:
            self._cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return 1e-3 * float(start.elapsed_time(end))

    def typical(self, seconds: list[float]) -> float:
        return statistics.median(seconds)


@dataclass
class Clocked:
    """A call and the seconds of its rounds; `group` is what it competes in."""

    name: str
    group: object
    call: Call
    clock: Clock
    seconds: list[float] = field(default_factory=list)

    def slice(self) -> float:
        self.seconds.append(self.clock.slice(self.call, self.seconds[-1] if self.seconds else 0.0))
        return self.seconds[-1]

    @property
    def best(self) -> float:
        """The number to quote."""
        return self.clock.typical(self.seconds)

    def percentile(self, percent: float) -> float:
        """The smallest time that at least `percent` of the rounds did not exceed."""
        return sorted(self.seconds)[max(0, math.ceil(percent / 100 * len(self.seconds)) - 1)]


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
