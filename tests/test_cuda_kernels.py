# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels without a GPU: executed by the emulator of tests/cusim, and compiled for GPUs that are not there.

What is known of each kernel stands in tests/cuda_kernels.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cuda_kernels import (
    float_windows_fwd,
    fold_parts,
    large_windows_bwd,
    large_windows_bwd_float,
    large_windows_fwd,
    small_windows_bwd,
    small_windows_fwd,
    window12_bwd,
    window16_bwd,
)
from cuda_kernels.kernel import Kernel
from cuda_sass import for_each_product, functions_of, operations_of
from test_cusim import CSRC, CUSIM, EMULATOR, ROOT, WARNINGS, call, emulator_flags, find_nvcc

MODULES = (
    float_windows_fwd,
    fold_parts,
    large_windows_bwd,
    large_windows_bwd_float,
    large_windows_fwd,
    small_windows_bwd,
    small_windows_fwd,
    window12_bwd,
    window16_bwd,
)
KERNELS = {module.KERNEL.name: module.KERNEL for module in MODULES}


HARNESS = [ROOT / "tests" / "cpp" / f"{name}.cpp" for name in ("guarded_buffer", "harness", "oracle")]


@dataclass(frozen=True)
class Checks:
    """What the drivers of all kernels have in common, compiled once: objects, and a header for the rest."""

    folder: Path
    flags: tuple[str | Path, ...]
    objects: tuple[Path, ...]

    def build(self, driver: Path, program: Path) -> Path:
        """`driver` stands in a tree that has csrc and tests. Of its headers those that are the same as here are not
        read again; of those of the checks none may differ. The objects come first: of an inline function that both
        have, the linker keeps theirs, which is optimised.
        """
        header = ["-include", self.folder / "kernel_checks.h", "-I", driver.parents[1]]
        call([*self.flags, *header, *self.objects, driver, "-o", program])
        return program


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checks]:
    """By the compiler's flags."""

    def compile_objects(folder: Path, flags: tuple[str | Path, ...], *sources: Path) -> tuple[Path, ...]:
        objects = tuple(folder / f"{source.stem}.o" for source in sources)
        for source, target in zip(sources, objects, strict=True):
            call([*flags, "-O3", "-I", CUSIM.parent, "-c", source, "-o", target])
        return objects

    @functools.cache
    def compile_common() -> tuple[Path, ...]:
        folder = tmp_path_factory.mktemp("common")
        sources = (CUSIM / "one_pass_checks.cpp", *HARNESS, *EMULATOR)
        return compile_objects(folder, (*emulator_flags(folder), *WARNINGS), *sources)

    @functools.cache
    def compile_checks(*flags: str) -> Checks:
        folder = tmp_path_factory.mktemp("checks")
        all_flags = (*emulator_flags(folder), *flags)
        header = [CUSIM / "kernel_checks.h", "-o", folder / "kernel_checks.h.gch"]
        # -w: gcc warns of #pragma once here
        call([*all_flags, "-I", CUSIM.parent, "-w", "-x", "c++-header", *header])
        objects = compile_objects(folder, all_flags, CUSIM / "kernel_checks.cpp")
        return Checks(folder, all_flags, (*objects, *compile_common()))

    return compile_checks


#: How planted bugs are compiled, and looked for: at first with few instances in one order, see kernel_checks.h. Without
#: optimisation; -O1 takes half as long again.
LOOKS = (("-O0", "-w", "-DSWIN_FAST_FIRST_LOOK"), ("-O0", "-w", "-DSWIN_FAST_ONE_TYPE"))


def look(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, "quick"], capture_output=True, text=True, check=False, timeout=120)


def run_planted(
    kernel: Kernel, name: str, folder: Path, looks: list[Checks]
) -> tuple[int, subprocess.CompletedProcess[str]]:
    """The number of the look that has found the bug, or of the last, and what it said."""
    bug = kernel.bugs[name]
    for part in ("csrc", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    source = folder / (bug.file or kernel.header)
    text = source.read_text()
    assert text.count(bug.old) == 1, f"stands {text.count(bug.old)} times in {source.name}"
    source.write_text(text.replace(bug.old, bug.new))
    number = 0
    while True:
        done = look(looks[number].build(folder / kernel.driver, folder / "kernels"))
        number += 1
        if done.returncode != 0 or number == len(looks):
            shutil.rmtree(folder)
            return number, done


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_in_the_emulator(kernel: str, checks: Callable[..., Checks], tmp_path: Path) -> None:
    made = checks("-O1", "-Wall", "-Wextra", "-Werror")
    done = subprocess.run(
        [made.build(ROOT / KERNELS[kernel].driver, tmp_path / "kernels")],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_is_found_without_a_bug(kernel: str, checks: Callable[..., Checks], tmp_path: Path) -> None:
    """By the first look, which is a program of its own; the second is a part of what stands above."""
    done = look(checks(*LOOKS[0]).build(ROOT / KERNELS[kernel].driver, tmp_path / "kernels"))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


PLANTED = [(kernel, name) for kernel in KERNELS for name in KERNELS[kernel].bugs]
Runs = dict[tuple[str, str], Future[tuple[int, subprocess.CompletedProcess[str]]]]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """All cores: pytest gives the tests of a file to one."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield pool
        pool.shutdown(cancel_futures=True)


def asked_for(request: pytest.FixtureRequest, *names: str) -> list[tuple[Any, ...]]:
    """The parameters, each once, of the tests of this run that use the fixture."""

    def is_mine(item: pytest.Item) -> bool:
        return item.path == request.path and request.fixturename in item.fixturenames

    parameters = [item.callspec.params for item in request.session.items if is_mine(item)]
    return list(dict.fromkeys(tuple(each[name] for name in names) for each in parameters))


@pytest.fixture(scope="module")
def planted(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    pool: ThreadPoolExecutor,
    checks: Callable[..., Checks],
) -> Runs:
    looks = [checks(*flags) for flags in LOOKS]
    return {
        (kernel, name): pool.submit(run_planted, KERNELS[kernel], name, tmp_path_factory.mktemp("planted"), looks)
        for kernel, name in asked_for(request, "kernel", "name")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "name"), PLANTED)
def test_a_planted_bug_is_found(kernel: str, name: str, planted: Runs) -> None:
    number, done = planted[kernel, name].result()
    print(f"found by look {number}")
    assert done.returncode != 0, done.stdout[-3000:]


# --------------------------------------------------------------------------------------------------- the machine code


ARCHITECTURES = (80, 86, 89, 90, 100, 120)
DISASSEMBLED = (80, 90)  # the others have the same operations
#: nvcc makes the same PTX for several architectures, which is most of its work, and CMakeLists.txt says for which.
PTX_OF = {int(a): int(b) for a, b in re.findall(r"set\(ptx_(\d+) (\d+)\)", (ROOT / "CMakeLists.txt").read_text())}


@dataclass(frozen=True)
class Compiled:
    """The instances of a kernel for one architecture; frames, in bytes, by mangled name."""

    binary: Path
    frames: dict[str, int]
    registers: tuple[int, ...]


Binaries = Callable[[str, int], Compiled]


def translate(nvcc: str, tested: Kernel, virtual: int, folder: Path) -> Path:
    """The PTX of the instances of a kernel."""
    source, ptx = folder / "instances.cu", folder / f"instances{virtual}.ptx"
    source.write_text(
        f'#include "{tested.header.removeprefix("csrc/")}"\nnamespace swin_fast::cuda {{\n{tested.instances}}}\n'
    )
    call([nvcc, "-std=c++17", f"-arch=compute_{virtual}", "-ptx", "-I", CSRC, source, "-o", ptx])
    return ptx


def compile_instances(
    nvcc: str, tested: Kernel, virtual: int, architectures: list[int], folder: Path
) -> dict[int, Compiled]:
    """By architecture; `virtual` is whose PTX they have."""
    ptx, found = translate(nvcc, tested, virtual, folder), {}
    for architecture in architectures:
        binary = folder / f"instances{architecture}.cubin"
        command = [nvcc, f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", ptx, "-o", binary]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        frames = re.findall(r"Function properties for (\S+)\n\s+(\d+) bytes stack frame", done.stderr)
        registers = re.findall(r"Used (\d+) registers", done.stderr)
        assert len(frames) == len(registers) == tested.instances.count("template __global__") == len(tested.operations)
        sizes = {name: int(size) for name, size in frames}
        found[architecture] = Compiled(binary, sizes, tuple(map(int, registers)))
    return found


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = find_nvcc()
    if found is None:
        pytest.skip("no nvcc")
    return found


@pytest.fixture(scope="module")
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pool: ThreadPoolExecutor, nvcc: str
) -> Binaries:
    """By kernel and architecture."""
    wanted: dict[tuple[str, int], list[int]] = {}
    for kernel, architecture in asked_for(request, "kernel", "architecture"):
        wanted.setdefault((kernel, PTX_OF.get(architecture, architecture)), []).append(architecture)
    started = {
        (kernel, virtual): pool.submit(
            compile_instances, nvcc, KERNELS[kernel], virtual, architectures, tmp_path_factory.mktemp("compiled")
        )
        for (kernel, virtual), architectures in wanted.items()
    }
    return lambda kernel, architecture: started[kernel, PTX_OF.get(architecture, architecture)].result()[architecture]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "virtual"), PTX_OF.items())
def test_architectures_have_the_same_ptx(architecture: int, virtual: int, nvcc: str, tmp_path: Path) -> None:
    kernel = KERNELS["window16_bwd"]
    texts = {each: translate(nvcc, kernel, each, tmp_path).read_text() for each in (virtual, architecture)}
    assert f".target sm_{architecture}" in texts[architecture]
    assert texts[architecture].replace(f".target sm_{architecture}", f".target sm_{virtual}") == texts[virtual]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_register_is_spilled(architecture: int, kernel: str, compiled: Binaries) -> None:
    made = compiled(kernel, architecture)
    print(architecture, kernel, made.registers)
    assert sum(made.frames.values()) <= KERNELS[kernel].known_spills.get(f"sm_{architecture}", 0), made.frames


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", DISASSEMBLED)
def test_the_machine_code_has_what_it_should(architecture: int, kernel: str, compiled: Binaries) -> None:
    """Tensor cores, their loads and asynchronous copies; no memory of a thread's own but for known spills; no atomics,
    whose order would be another in each run; and what is known to be short has grown no longer.
    """
    triton_gate = pytest.importorskip("triton_gate", reason="no Triton, which brings the disassembler")
    made = compiled(kernel, architecture)
    disassembler = [triton_gate.TOOLS / "nvdisasm", "-c", made.binary]
    assembly = subprocess.run(disassembler, capture_output=True, text=True, check=True).stdout
    found = functions_of(assembly)
    assert found.keys() == made.frames.keys()
    wanted, most = KERNELS[kernel].operations, KERNELS[kernel].for_each_product
    for mangled, code in found.items():
        name, operations = instance_of(mangled), operations_of(code)
        lacking = [operation for operation in wanted[name] if not operations[operation]]
        assert not lacking, f"{name} has no {lacking}"
        local = operations["LDL"] + operations["STL"]
        assert made.frames[mangled] or not local, f"{name}: {local} accesses of local memory"
        atomics = [operation for operation in operations if operation.startswith(("ATOM", "RED"))]
        assert set(atomics) <= {"REDUX"}, f"{name} has {atomics}"
        if architecture == 90 and name in most:
            length = for_each_product(code)
            print(f"{name}: {length:.3f} instructions for each product")
            assert length <= most[name]
    assert most.keys() <= wanted.keys()


def instance_of(mangled: str) -> str:
    """As it stands in the list of instances: small_windows_fwd<BFloat16, 7, false, true>."""
    done = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True)
    return done.stdout.replace("swin_fast::cuda::", "").removeprefix("void ").partition("(")[0]
