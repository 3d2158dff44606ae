# SPDX-License-Identifier: Apache-2.0
"""What the machine allows, measured in the run that it is held against: multiply-adds, matrix products, a copy.

A row's roof is the larger of two times: its operations at the peak, and its least traffic at the speed of the copy. The
peak of a CPU is that of its multiply-add instructions, see `fma_peak.cpp`, in as many threads as the row has; where no
compiler is at hand, that of a large matrix product, as on a GPU, whose peak no program reaches.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from .cases import DTYPES, DTYPES_OF, DTYPES_OF_OP, Row
from .clocks import Call, Clock, Clocked, CpuClock, CudaClock, interleave

SOURCE = Path(__file__).with_name("fma_peak.cpp")
Ceilings = dict[str, float]


def ceilings(device: str, threads: int = 1) -> Ceilings:
    """GFLOP/s of multiply-adds and of matrix products in each dtype, GB/s (read and write added) of a copy.

    Names of ceilings of two threads end in _2t.
    """
    if device == "cuda":
        return _measured(device, CudaClock(flush=False), DTYPES_OF_OP[device], size=8192, mebibytes=2048)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = _measured(device, CpuClock(threads), DTYPES_OF[device], size=2048, mebibytes=256)
    finally:
        torch.set_num_threads(before)
    found = {**fma_peaks(threads), **found}
    return found if threads == 1 else {f"{name}_{threads}t": value for name, value in found.items()}


def roof(row: Row, found: Ceilings) -> tuple[float, float]:
    """(GFLOP/s, GB/s) that a row is held against."""
    threads = "" if row.threads == 1 else f"_{row.threads}t"
    fma, product = (f"{kind}_{row.dtype_name}_gflops{threads}" for kind in ("fma", "matmul"))
    return found[fma if fma in found else product], found[f"copy_gb_per_s{threads}"]


def _measured(device: str, clock: Clock, dtypes: tuple[str, ...], size: int, mebibytes: int) -> Ceilings:
    """A product of two matrices of `size`, random and never zero, and a copy far beyond the caches."""
    found = {}
    for name in dtypes:
        a, b = (torch.randn(size, size, device=device).to(DTYPES[name]) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _fastest(clock, lambda: torch.mm(a, b, out=out))  # noqa: B023
        found[f"matmul_{name}_gflops"] = round(2e-9 * size**3 / seconds, 1)
    source = torch.randn(mebibytes * 2**18, device=device)
    target = torch.empty_like(source)
    found["copy_gb_per_s"] = round(2e-9 * source.nbytes / _fastest(clock, lambda: target.copy_(source)), 1)
    return found


def _fastest(clock: Clock, call: Call, repeats: int = 8) -> float:
    clocked = Clocked("ceiling", "ceiling", call, clock)
    interleave([clocked], repeats)
    return min(clocked.seconds)


def fma_peaks(threads: int) -> Ceilings:
    """Of all threads together; empty where the source cannot be compiled and run."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_peak.so"
        options = ["-O3", "-march=native", "-std=gnu++17", "-shared", "-fPIC"]
        done = subprocess.run([compiler, *options, str(SOURCE), "-o", str(library)], capture_output=True, check=False)
        if done.returncode:
            return {}
        functions = ctypes.CDLL(str(library))
        peaks = {name: _peak(getattr(functions, f"fma_{name}"), threads) for name in ("fp32", "bf16")}
    return {f"fma_{name}_gflops": peak for name, peak in peaks.items() if peak}


def _peak(function: Callable[[int], float], threads: int, rounds: int = 1_000_000, repeats: int = 10) -> float:
    """Each thread measures its own CPU time, so that others on the machine do not count."""
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_long]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(threads) as pool:
        sums = [sum(pool.map(function, [rounds] * threads)) for _ in range(repeats)]
    return round(1e-9 * max(sums), 1)
