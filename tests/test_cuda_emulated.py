# SPDX-License-Identifier: Apache-2.0
"""The cuda backend whole, without a GPU: binding, table, launches and kernels, in the emulator of tests/cusim.

The library then takes tensors of the CPU, says so in its facts, and stands in a copy of the package. The suite runs
over it as over every backend, in small cases; what it cannot show is PyTorch's stream and device.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import swin_fast
from swin_fast.backends import native
from test_cusim import CSRC, ROOT, call, emulator_flags

pytestmark = pytest.mark.slow  # some minutes, most of them for the compiler

SUITE = ("window_attention", "determinism", "registration", "bad_inputs", "fuzz", "torch_integration")
TORCH = Path(torch.__file__).parent


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
    sources += [(path, element) for path in (CSRC / "cuda").glob("*.cu") for element in ("Half16", "BFloat16")]
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


def test_the_suite_runs_over_the_kernels(site: Path) -> None:
    files = [ROOT / "tests" / f"test_{name}.py" for name in SUITE]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-rfE", "--tb=short"]
    command += ["-o", f"pythonpath={site} {ROOT} {ROOT / 'tests'}", "-k", "cuda", *map(str, files)]
    variables = {**os.environ, "SWIN_FAST_REQUIRE": "cuda"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout[-6000:]
    print(done.stdout.splitlines()[-1])
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 120, "what the kernels leave to triton is skipped; much else ran"
