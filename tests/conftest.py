# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the backends, the native paths of the CPU, and a clean process state around every test.

The suite runs over the backends that this version brings, `ops.OVERLOADS`. One that cannot run here is skipped with the
sentences of `why_not`; if SWIN_FAST_REQUIRE names it, that is a failure. The same suite runs on a GPU machine: there
triton and cuda take tensors on device "cuda". What cuda leaves to triton, required or not, is skipped with a sentence.
"""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cases import ISAS, MOST_EMULATED, MOST_INTERPRETED, Case
from swin_fast import dispatch, ops
from swin_fast.backends import native, triton_ops

REQUIRED = tuple(filter(None, os.environ.get("SWIN_FAST_REQUIRE", "").split(",")))

if unknown := set(REQUIRED) - set(dispatch.BACKENDS):
    raise pytest.UsageError(f"SWIN_FAST_REQUIRE: got {sorted(unknown)}, want some of {', '.join(dispatch.BACKENDS)}")

#: Triton's interpreter runs kernels on tensors of the CPU, at 20 ms for each (window, head).
INTERPRETED = triton_ops.INTERPRETED
if INTERPRETED:
    import triton_interpreter

    triton_interpreter.install()
collect_ignore = [] if INTERPRETED else ["test_triton_interpreted.py"]
#: What the tests run over: of the overloads for GPUs those that can run here, and whatever is required.
EMULATED = native.cuda_build_info().get("device") == "cpu"  # see test_cuda_emulated.py
HERE = {"triton": INTERPRETED or torch.cuda.is_available(), "cuda": EMULATED or torch.cuda.is_available()}
BACKENDS = tuple(dict.fromkeys([name for name in ops.OVERLOADS if HERE.get(name, True)] + [*REQUIRED]))
#: A dtype that each takes, if it runs at all.
FIRST_DTYPE = {name: torch.bfloat16 if name == "cuda" else torch.float32 for name in dispatch.BACKENDS}
#: Ends the sentence with which cuda refuses what it has no kernel for.
LEFT_TO_TRITON = ("left to triton", "the triton backend takes it")
#: Those with kernels of ours: what takes minutes runs over them alone.
KERNELS = tuple(name for name in BACKENDS if name != "reference")


@dataclass(frozen=True)
class KernelPath:
    """One implementation: a backend and, for the CPU's, the instruction set that is selected while the test runs."""

    backend: str
    device: str
    isa: str | None = None

    def __str__(self) -> str:
        return self.backend if self.isa is None else f"{self.backend}[{self.isa}]"

    def require(self, case: Case, dtype: torch.dtype) -> None:
        """Skips (or fails, see above) the test if the backend cannot compute the case."""
        _require(self.backend, self.device, dtype, case.N, case.hd)


def device_of(backend: str) -> str:
    """Where it takes its tensors."""
    on_gpu = {"triton": not INTERPRETED, "cuda": not EMULATED}
    return "cuda" if on_gpu.get(backend, False) else "cpu"


def fitted(case: Case, backend: str, dtype: torch.dtype = torch.float32) -> tuple[Case, torch.dtype]:
    """`case` and `dtype`, or what is next to them that the backend takes, for tests of something else."""
    if backend != "cuda":
        return case, dtype
    return dataclasses.replace(case, hd=32), torch.bfloat16 if dtype == torch.float32 else dtype


def require(backend: str, dtype: torch.dtype, window_area: int, head_dim: int) -> None:
    """Skips (or fails, see above) the test if the backend cannot compute such a problem."""
    _require(backend, device_of(backend), dtype, window_area, head_dim)


def _require(backend: str, device: str, dtype: torch.dtype, window_area: int, head_dim: int) -> None:
    usable = device == "cpu" or torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if device == "cuda" and usable else None
    problem = dispatch.Problem(dtype, device, capability, window_area, head_dim)
    reasons = dispatch.why_not(backend, problem)
    if not usable:
        reasons = list(dict.fromkeys([*reasons, "PyTorch sees no CUDA device"]))
    if reasons:
        sentence = f"{backend}: {'; '.join(reasons)}"
        first = dataclasses.replace(problem, dtype=FIRST_DTYPE[backend], window_area=49, head_dim=32)
        if backend in REQUIRED and (backend != "cuda" or not usable or dispatch.why_not(backend, first)):
            pytest.fail(f"SWIN_FAST_REQUIRE names a backend that cannot run. {sentence}", pytrace=False)
        pytest.skip(sentence)


def _make_path(backend: str, isa: str | None) -> Iterator[KernelPath]:
    path = KernelPath(backend, device_of(backend), isa)
    _require(backend, path.device, FIRST_DTYPE[backend], 49, 32)
    if isa is None:
        yield path
        return
    if isa not in native.cpu_isas():
        pytest.skip(f"cpu: this build on this CPU has no {isa} path, only {', '.join(native.cpu_isas())}")
    before = native.cpu_isa()
    native.select_cpu_isa(isa)
    try:
        yield path
    finally:
        native.select_cpu_isa(before)


_PATHS = [(backend, isa) for backend in BACKENDS for isa in (ISAS if backend == "cpu" else (None,))]


def _id(parameter: tuple[str, str | None]) -> str:
    return "-".join(filter(None, parameter))


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises the paths last, so that they vary fastest: all of them run a case while its truth is at hand."""
    for name, parameters in (("path", _PATHS), ("native_path", [path for path in _PATHS if path[0] != "reference"])):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, parameters, ids=_id, indirect=True)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist would begin with the file of most tests
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Interpreter and emulator are given cases of a few windows alone: what they compute, not how much, differs.

    Of the slow tests the files with few begin: theirs take minutes each, while the file with most has all cores.
    """
    if config.option.markexpr == "slow":
        number = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: (number[item.path], item.path))
    if not INTERPRETED and not EMULATED:
        return
    most = MOST_INTERPRETED if INTERPRETED else MOST_EMULATED

    def is_large(item: pytest.Item) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        case = parameters.get("case")
        return isinstance(case, Case) and case.work > most and "interpreted" not in item.path.name

    dropped = [item for item in items if is_large(item)]
    items[:] = [item for item in items if not is_large(item)]
    config.hook.pytest_deselected(items=dropped)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Skips the test that finds out for itself that cuda leaves its problem to triton."""
    try:
        return (yield)
    except Exception as error:  # of dispatch, of the op itself, or of what expected another one
        if "cuda" in pyfuncitem.name and any(words in str(error) for words in LEFT_TO_TRITON):
            pytest.skip(str(error))
        raise


@pytest.fixture
def path(request: pytest.FixtureRequest) -> Iterator[KernelPath]:
    """Every backend, and every instruction set of the CPU backend."""
    yield from _make_path(*request.param)


@pytest.fixture
def native_path(request: pytest.FixtureRequest) -> Iterator[KernelPath]:
    """`path` without the reference: the kernels that promise determinism."""
    yield from _make_path(*request.param)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend, by name; the CPU with the instruction set it chose itself."""
    _require(request.param, device_of(request.param), FIRST_DTYPE[request.param], 49, 32)
    return request.param


@pytest.fixture
def device(backend: str) -> str:
    """Where `backend` takes its tensors."""
    return device_of(backend)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of the CPU backend, selected while the test runs."""
    for selected in _make_path("cpu", request.param):
        yield str(selected.isa)


@pytest.fixture
def restore_isa() -> Iterator[None]:
    """For tests that select instruction sets themselves: the one selected before them is back after them."""
    before = native.cpu_isa()
    yield
    if before:
        native.select_cpu_isa(before)


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:
    """Fixed global seeds and one thread before a test; threads, default dtype and determinism flags restored after it.

    One thread, because plain PyTorch gains nothing from more on small tensors, and its threads wait for each other on a
    busy machine. What the kernels do on several threads is the matter of test_determinism.py and test_fork.py.
    """
    random.seed(0)
    torch.manual_seed(0)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def run_script() -> Callable[..., str]:
    """Runs Python source in a fresh process that sees the same packages; returns its standard output."""

    def run(source: str, *arguments: str, timeout: float) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(
                [sys.executable, "-c", source, *arguments],
                capture_output=True,
                text=True,
                timeout=timeout,
                env=environment,
                cwd=Path(__file__).parent,
            )
        except subprocess.TimeoutExpired as error:
            pytest.fail(f"not finished after {timeout} s: {error.stdout!r} {error.stderr!r}", pytrace=False)
        if done.returncode != 0:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done.stdout

    return run


def pytest_report_header() -> list[str]:
    """What these tests run on, and with."""
    isas = ", ".join(native.cpu_isas()) or "; ".join(native.cpu_why_not())
    kernels = [kernel["name"] for name in ("forward", "backward") for kernel in native.cuda_build_info().get(name, [])]
    cuda = "; ".join([", ".join(kernels) or "none", *native.cuda_why_not()])
    return [
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; cpu kernels: {isas}",
        f"cuda kernels: {cuda}",
        f"required backends: {', '.join(REQUIRED) or 'none'}",
    ]
