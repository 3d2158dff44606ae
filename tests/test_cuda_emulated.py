# SPDX-License-Identifier: Apache-2.0
"""The cuda backend whole, without a GPU: binding, table, launches and kernels, in the emulator of tests/cusim.

The library then takes tensors of the CPU, says so in its facts, and stands in a copy of the package. The suite runs
over it as over every backend, in small cases; what it cannot show is PyTorch's stream and device.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import swin_fast
from cuda_sass import issued
from swin_fast.backends import native
from test_cusim import CSRC, CUSIM, EMULATOR, ROOT, call, emulator_flags, find_nvcc

pytestmark = pytest.mark.slow  # some minutes, most of them for the compiler

SUITE = ("window_attention", "determinism", "registration", "bad_inputs", "fuzz", "torch_integration")
TORCH = Path(torch.__file__).parent


def kernel_sources() -> dict[str, list[str]]:
    """Of each element type, as CMakeLists.txt has them."""
    lists = re.findall(r"set\(kernels_(\w+)\s+([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    found = {element: re.findall(r"csrc/cuda/(\w+\.cu)", names) for element, names in lists}
    shared = found.pop("16")
    assert {*shared, *found["Float32"]} == {path.name for path in (CSRC / "cuda").glob("*.cu")}
    return {element: names or shared for element, names in found.items()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package swin_fast whose CUDA library is emulated."""
    folder = tmp_path_factory.mktemp("emulated")
    version = re.search(r"TORCH_TARGET_VERSION=\w+", (ROOT / "CMakeLists.txt").read_text())
    assert version
    facts = {"VERSION": swin_fast.__version__, "NVCC_VERSION": "none", "CUDA_REAL": "90", "CUDA_VIRTUAL": "90"}
    flags = [*emulator_flags(folder), "-O1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-c", "-x", "c++"]
    flags += ["-I", ROOT / "tests", "-isystem", TORCH / "include", f"-D{version[0]}"]
    flags += [f"-DSWIN_FAST_{name}={value}" for name, value in facts.items()]
    sources = [(path, "none") for path in (CSRC / "bindings" / "cuda.cpp", *(CSRC / "cuda").glob("*.cpp"))]
    sources += [(path, "none") for path in (*EMULATOR, CUSIM / "emulated_runtime.cpp")]
    sources += [(CSRC / "cuda" / name, element) for element, names in kernel_sources().items() for name in names]
    objects = {folder / f"{path.stem}-{element}.o": (path, element) for path, element in sources}

    def compile_one(target: Path) -> None:
        path, element = objects[target]
        call([*flags, f"-DSWIN_FAST_ELEMENT={element}", path, "-o", target])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, objects))
    package = folder / "site" / "swin_fast"
    shutil.copytree(ROOT / "swin_fast", package, ignore=shutil.ignore_patterns("lib", "_C.*", "__pycache__"))
    (package / "lib").mkdir()
    library = package / "lib" / native.CUDA_LIBRARY.name
    call([flags[0], "-shared", *objects, "-L", TORCH / "lib", "-ltorch_cpu", "-o", library])
    if native.CPU_LIBRARY.exists():
        shutil.copy(native.CPU_LIBRARY, package / "lib")
    return package.parent


def passed(site: Path, names: tuple[str, ...], selected: str, **variables: str) -> int:
    """How many tests of these files passed over the kernels; a failure of one is one here."""
    files = [ROOT / "tests" / f"test_{name}.py" for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-rfE", "--tb=short"]
    command += ["-o", f"pythonpath={site} {ROOT} {ROOT / 'tests'}", "-k", selected, *map(str, files)]
    environment = {**os.environ, "SWIN_FAST_REQUIRE": "cuda", **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout[-6000:]
    print(done.stdout.splitlines()[-1])
    return sum(map(int, re.findall(r"(\d+) passed", done.stdout)))


def test_the_suite_runs_over_the_kernels(site: Path) -> None:
    assert passed(site, SUITE, "cuda") > 120, "what the kernels leave to triton is skipped; much else ran"


def test_results_are_as_exact_on_other_tensor_cores(site: Path) -> None:
    """The suite runs with products that are rounded once. Here they are aligned and cut off, and functions are off by
    what is promised of them: that no GPU does exactly this, or that, is why both must keep the tolerance.
    """
    assert passed(site, ("window_attention",), "out_and_gradients and cuda", SWIN_FAST_CUSIM_MATH="hardware_like") > 140


def test_a_call_runs_on_cuda_and_triton(site: Path) -> None:
    """Forward on one and backward on the other; Triton's kernels in its interpreter."""
    pytest.importorskip("triton", reason="no Triton")
    assert passed(site, ("registration",), "two_backends", TRITON_INTERPRET="1") == 4


# ------------------------------------------------------------------------------------------------------- the cost gate


@dataclass(frozen=True)
class Cost:
    """What a kernel may cost: `slots` are the warp instructions that an H200 can issue for a (window, head) while its
    memory moves the bytes of one (132 multiprocessors of four schedulers at 1.755 GHz, 4.3 TB/s); `least`, the part of
    the bandwidth that the kernel's instructions must leave possible: in a window without border or padding, and in all.
    """

    header: str
    instance: str
    window: int
    direction: str
    warps: tuple[int, ...]  # that share a window and head: groups of those that do the same
    slots: int
    least: tuple[float, float]


COSTS = (
    Cost(
        "small_windows_fwd.h",
        "small_windows_fwd<BFloat16, 7, false, true>(const SmallFwdParams)",
        7,
        "fwd",
        (1,),
        2703,
        (2.1, 1.45),
    ),
    Cost(
        "small_windows_bwd.h",
        "small_windows_bwd<BFloat16, 7, false, true>(const SmallBwdParams)",
        7,
        "bwd",
        (3, 1),
        4731,
        (1.6, 1.2),
    ),
    Cost(
        "window12_bwd.h",
        "window12_bwd<BFloat16, false>(const Window12BwdParams)",
        12,
        "bwd",
        (9, 3),
        13902,
        (1.04, 0.85),
    ),
)
WINDOWS, HEADS = (8, 16), 2
#: Calls the op on images of one window each, and leaves the counters of each call in a file of its own.
COUNTED = """
import os, sys
import torch
from swin_fast import ops
folder, direction = sys.argv[1:3]
window, few, many, nH = map(int, sys.argv[3:])
for windows in (few, many):
    os.environ["SWIN_FAST_CUSIM_COUNTERS"] = f"{folder}/{windows}"
    qkv = torch.randn(windows, window, window, 3, nH, 32).bfloat16()
    grad_out = torch.randn(windows, window, window, 32 * nH).bfloat16()
    bias = torch.randn(nH, 2 * window - 1, 2 * window - 1)
    rest = (qkv, bias, None, None, (window, window), (0, 0), 0.2, "pad_roll", -100.0)
    if direction == "fwd":
        ops.WINDOW_ATTENTION_FWD["cuda"](*rest)
    else:
        ops.WINDOW_ATTENTION_BWD["cuda"](grad_out, *rest)
"""


def counted(site: Path, folder: Path, cost: Cost) -> dict[str, float]:
    """What `cuda_sass.KINDS` are of all warps, for one more (window, head)."""
    arguments = [folder, cost.direction, cost.window, *WINDOWS, HEADS]
    command = [sys.executable, "-c", COUNTED, *map(str, arguments)]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    sums: list[Counter[str]] = []
    for windows in WINDOWS:
        sums.append(Counter())
        for line in (folder / str(windows)).read_text().splitlines():
            sums[-1].update({what: count for what, count in json.loads(line).items() if what != "launch"})
    more = (WINDOWS[1] - WINDOWS[0]) * HEADS
    each = {what: (sums[1][what] - sums[0][what]) / more for what in sums[1]}
    return {
        "HMMA": each["mma"],
        "LDSM": each["ldmatrix"],
        "SHFL": each["shuffles"],
        "LDGSTS": each["copies"] / 32,  # counted for each thread
        "STG": each["global_stores"] / 32,
    }


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: f"{cost.direction}-{cost.window}")
def test_instructions_leave_the_bandwidth_within_reach(cost: Cost, site: Path, tmp_path: Path) -> None:
    """The way through the machine code is the one that does what the emulator has counted."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    triton_gate = pytest.importorskip("triton_gate", reason="no Triton, which brings the disassembler")
    source, binary = tmp_path / "instance.cu", tmp_path / "instance.cubin"
    text = f"namespace swin_fast::cuda {{ template __global__ void {cost.instance}; }}"
    source.write_text(f'#include "cuda/{cost.header}"\n{text}\n')
    call([nvcc, "-std=c++17", "-arch=sm_90", "-cubin", "-I", CSRC, source, "-o", binary])
    disassembler = [triton_gate.TOOLS / "nvdisasm", "-c", binary]
    assembly = subprocess.run(disassembler, capture_output=True, text=True, check=True).stdout
    does = counted(site, tmp_path, cost)
    for what, better, least in zip(("in the best case", "at most"), (min, max), cost.least, strict=True):
        instructions = issued(assembly, does, cost.warps, better)
        part = cost.slots / instructions
        print(f"{cost.instance}: {instructions} warp instructions {what}, {part:.0%} of the bandwidth")
        assert part >= least
