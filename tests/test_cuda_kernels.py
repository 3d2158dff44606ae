# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels without a GPU: executed by the emulator of tests/cusim, and compiled for GPUs that are not there.

What is known of each kernel stands in tests/cuda_kernels.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from cuda_kernels import (
    fold_parts,
    large_windows_bwd,
    large_windows_fwd,
    small_windows_bwd,
    small_windows_fwd,
    window12_bwd,
)
from cuda_kernels.kernel import Kernel
from test_cusim import CSRC, ROOT, call, emulator_flags, find_nvcc

MODULES = (
    fold_parts,
    large_windows_bwd,
    large_windows_fwd,
    small_windows_bwd,
    small_windows_fwd,
    window12_bwd,
)
KERNELS = {module.KERNEL.name: module.KERNEL for module in MODULES}


def build(kernel: Kernel, sources: Path, program: Path, *flags: str) -> Path:
    """The driver with the kernels in `sources`, which has csrc and tests."""
    call([*emulator_flags(program.parent), *flags, "-I", sources / "tests", sources / kernel.driver, "-o", program])
    return program


def run_planted(kernel: Kernel, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    bug = kernel.bugs[name]
    for part in ("csrc", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    source = folder / (bug.file or kernel.header)
    text = source.read_text()
    assert text.count(bug.old) == 1, f"stands {text.count(bug.old)} times in {source.name}"
    source.write_text(text.replace(bug.old, bug.new))
    program = build(kernel, folder, folder / "kernels", "-O0", "-w", "-DSWIN_FAST_ONE_TYPE")  # -O1: half as long again
    return subprocess.run([program, "quick"], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_in_the_emulator(kernel: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [build(KERNELS[kernel], ROOT, tmp_path / "kernels", "-O1", "-Wall", "-Wextra", "-Werror")],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


PLANTED = [(kernel, name) for kernel in KERNELS for name in KERNELS[kernel].bugs]
Runs = dict[tuple[str, str], Future[subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="module")
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The bugs that this run asks for, on all cores."""

    def is_mine(item: pytest.Item) -> bool:
        return item.path == request.path and "planted" in item.fixturenames

    parameters = [item.callspec.params for item in request.session.items if is_mine(item)]
    wanted = [(each["kernel"], each["name"]) for each in parameters]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            (kernel, name): pool.submit(run_planted, KERNELS[kernel], name, tmp_path_factory.mktemp("planted"))
            for kernel, name in wanted
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "name"), PLANTED)
def test_a_planted_bug_is_found(kernel: str, name: str, planted: Runs) -> None:
    done = planted[kernel, name].result()
    assert done.returncode != 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_no_register_is_spilled(architecture: str, kernel: str, tmp_path: Path) -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    tested = KERNELS[kernel]
    source = tmp_path / "instances.cu"
    source.write_text(
        f'#include "{tested.header.removeprefix("csrc/")}"\nnamespace swin_fast::cuda {{\n{tested.instances}}}\n'
    )
    flags = ["-std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-I", CSRC]
    done = subprocess.run(
        [nvcc, *flags, source, "-o", tmp_path / "instances.cubin"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    spills = [int(size) for size in re.findall(r"(\d+) bytes stack frame", done.stderr)]
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", done.stderr)]
    print(architecture, kernel, registers)
    assert len(spills) == len(registers) == tested.instances.count("template __global__")
    assert sum(spills) <= tested.known_spills.get(architecture, 0), spills
