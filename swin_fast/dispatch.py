# SPDX-License-Identifier: Apache-2.0
"""Which backend computes a call: argument, then `with use_backend(...)`, then SWIN_FAST_BACKEND, then automatic.

A choice sees only the dtype, the device, the window area and the head dimension: never the batch, the image size or
the strides, so that a model takes the same arithmetic at every batch size and a compiled graph never has to ask again.
Forced and impossible raises; automatic never raises, because the reference runs everything. Forced is one backend for
both directions; automatic takes for each what the measurements in the package say is the faster on this device.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .backends import configs, native, triton_ops

BACKENDS = ("reference", "cpu", "triton", "cuda")
ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}  # other devices: reference
#: Of dtypes whose kernels of the cuda backend no GPU has run, where nobody has measured either.
UNTRIED = {torch.float32: ("triton", "cuda", "reference")}
DIRECTIONS = {"fwd": "forward", "bwd": "backward"}

_LOG_LEVELS = ("debug", "info", "warning", "error")
_ENVIRONMENT = os.environ.get("SWIN_FAST_BACKEND") or None
_log = logging.getLogger("swin_fast")


@dataclass(frozen=True)
class Problem:
    """All that a choice may depend on."""

    dtype: torch.dtype
    device_type: str
    capability: tuple[int, int] | None  # of a CUDA device
    window_area: int  # N = Wh*Ww
    head_dim: int
    device_name: str | None = None  # of a CUDA device, as `configs.slug` makes it

    def __str__(self) -> str:
        device = self.device_type + ("" if self.capability is None else " sm_{}{}".format(*self.capability))
        return f"{_name(self.dtype)} {device} N={self.window_area} hd={self.head_dim}"


def why_not(backend: str, problem: Problem) -> list[str]:
    """Sentences saying why `backend` cannot compute `problem`; empty when it can.

    Raises:
        ValueError: no such backend.
    """
    check_backend(backend)
    if backend == "cpu":
        return _why_not_cpu(problem)
    if backend == "triton":
        return _why_not_triton(problem)
    if backend == "cuda":
        return _why_not_cuda(problem)
    return []


def choose(problem: Problem, forced: str | None = None, direction: str = "fwd") -> str:
    """The backend for one direction of `problem`: the forced one; or of those that can compute it the one measured to
    be faster on this device, where somebody has measured, else the first in the order of its type.

    Raises:
        ValueError: no such backend.
        NotImplementedError: `forced` cannot compute `problem`; the message holds the sentences of `why_not`.
    """
    if forced is None:
        order = ORDER.get(problem.device_type, ("reference",))
        if problem.device_type == "cuda":
            order = UNTRIED.get(problem.dtype, order)
        able = [backend for backend in order if not why_not(backend, problem)]
        faster = configs.faster(direction, *_measured_by(problem))
        return faster if faster in able else able[0]
    if reasons := why_not(forced, problem):
        raise NotImplementedError(f"backend {forced!r} cannot compute {problem}: {'; '.join(reasons)}")
    return forced


def overload(problem: Problem, forced: str | None = None) -> str:
    """The name of the op's overload: a backend, or that of the forward and that of the backward, such as cuda_triton.

    Raises:
        ValueError, NotImplementedError: as `choose`.
    """
    fwd, bwd = (choose(problem, forced, direction) for direction in DIRECTIONS)
    return fwd if fwd == bwd else f"{fwd}_{bwd}"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a backend on every call of this thread inside the `with` block that names none itself.

    Works inside `torch.compile`d code and around it. The backward pass of such a call uses it too, wherever it runs.

    Raises:
        ValueError: no such backend.
    """
    check_backend(name)
    previous = _override.backend
    _override.backend = name
    try:
        yield
    finally:
        _override.backend = previous


def resolve(backend: str | None, dtype: torch.dtype, device: torch.device, window_area: int, head_dim: int) -> str:
    """The overload of one call; `backend` is its argument. Traceable: the choice becomes a constant of the graph."""
    forced = backend or _override.backend or _ENVIRONMENT
    return _resolve(forced, dtype, device.type, device.index, window_area, head_dim)


def backends() -> tuple[str, ...]:
    """The backends that can run here, for at least one problem."""
    devices = [("cpu", None)] + ([("cuda", torch.cuda.get_device_capability())] if torch.cuda.is_available() else [])
    problems = [Problem(torch.float32, kind, capability, 49, 32) for kind, capability in devices]
    return tuple(backend for backend in BACKENDS if any(not why_not(backend, problem) for problem in problems))


def explain(
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    window_size: tuple[int, int] = (7, 7),
    head_dim: int = 32,
) -> str:
    """A table for people: which backend is chosen for a problem, and why each other one is not."""
    problem = problem_of(dtype, torch.device(device), window_size[0] * window_size[1], head_dim)
    forced = _override.backend or _ENVIRONMENT
    lines = [f"{problem}" + (f", forced: {forced}" if forced else "")]
    reasons = {backend: why_not(backend, problem) for backend in BACKENDS}
    possible = not (forced and reasons[check_backend(forced)])
    chosen = {name: choose(problem, forced, name) for name in DIRECTIONS} if possible else {}
    for backend in BACKENDS:
        some = [word for name, word in DIRECTIONS.items() if chosen.get(name) == backend]
        state = "chosen" if len(some) == len(DIRECTIONS) else "".join(some) or ("no" if reasons[backend] else "can")
        lines.append(f"  {backend:<10} {state:<8} {'; '.join(reasons[backend])}".rstrip())
    return "\n".join(lines + [f"  {line}" for line in measurements(problem)])


def measurements(problem: Problem) -> list[str]:
    """What the automatic choice goes by, a sentence for each direction that has been measured on this device."""
    found = {word: configs.times(name, *_measured_by(problem)) for name, word in DIRECTIONS.items()}
    return [
        f"{word}: triton {times['triton']:g} ms, cuda {times['cuda']:g} ms, measured on {problem.device_name}"
        for word, times in found.items()
        if times
    ]


def check_backend(name: object) -> str:
    """`name`, if it is one of `BACKENDS`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        source = " (from SWIN_FAST_BACKEND)" if name == _ENVIRONMENT else ""
        raise ValueError(f"backend: got {name!r}{source}, want one of {', '.join(BACKENDS)}")
    return name


class _Override(threading.local):
    # A threading.local and not a ContextVar, which Dynamo cannot trace; set per thread and not on the class, which
    # Dynamo would guard wrongly.
    def __init__(self) -> None:
        self.backend: str | None = None


_override = _Override()


def _resolve(
    forced: str | None, dtype: torch.dtype, device_type: str, index: int | None, window_area: int, head_dim: int
) -> str:
    return _resolve_once(forced, dtype, device_type, index, window_area, head_dim)


# A constant of a traced graph: Dynamo guards all that it depends on. This is what torch.compiler.assume_constant_result
# does, whose call imports torch._dynamo and doubles the time of `import swin_fast`.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _resolve_once(
    forced: str | None, dtype: torch.dtype, device_type: str, index: int | None, window_area: int, head_dim: int
) -> str:
    device = torch.device(device_type if index is None else f"{device_type}:{index}")
    problem = problem_of(dtype, device, window_area, head_dim)
    chosen = overload(problem, forced)
    _log.info("%s -> %s%s", problem, chosen, " (forced)" if forced else "")  # once per problem, thanks to the cache
    return chosen


def problem_of(dtype: torch.dtype, device: torch.device, window_area: int, head_dim: int) -> Problem:
    """With what PyTorch says of the device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return Problem(dtype, device.type, None, window_area, head_dim)
    capability, name = torch.cuda.get_device_capability(device), configs.slug(torch.cuda.get_device_name(device))
    return Problem(dtype, device.type, capability, window_area, head_dim, name)


def _measured_by(problem: Problem) -> tuple[torch.dtype, int, int, str | None]:
    return problem.dtype, problem.window_area, problem.head_dim, problem.device_name


def _why_not_cpu(problem: Problem) -> list[str]:
    reasons = native.cpu_why_not()
    if problem.device_type != "cpu":
        reasons.append(f"the cpu backend takes tensors on cpu, not on {problem.device_type}")
    if problem.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f"the cpu backend takes float32, float16 and bfloat16, not {_name(problem.dtype)}")
    if limits := native.cpu_build_info():
        if problem.window_area > limits["max_window_area"]:
            reasons.append(f"the cpu backend takes windows of up to {limits['max_window_area']} tokens")
        if problem.head_dim > limits["max_head_dim"]:
            reasons.append(f"the cpu backend takes head dimensions up to {limits['max_head_dim']}")
    return reasons


def _why_not_triton(problem: Problem) -> list[str]:
    reasons = triton_ops.why_not()
    wanted = "cpu" if triton_ops.INTERPRETED else "cuda"
    if problem.device_type != wanted:
        where = " in Triton's interpreter (TRITON_INTERPRET=1)" if triton_ops.INTERPRETED else ""
        reasons.append(f"the triton backend takes tensors on {wanted}{where}, not on {problem.device_type}")
    if problem.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f"the triton backend takes float32, float16 and bfloat16, not {_name(problem.dtype)}")
    if problem.capability is not None and problem.capability < (8, 0):
        reasons.append("the triton backend takes GPUs of compute capability 8.0 or later")
    return reasons


def _why_not_cuda(problem: Problem) -> list[str]:
    reasons = native.cuda_why_not()
    facts = native.cuda_build_info()
    wanted = facts.get("device", "cuda")  # cpu: built for the emulator of the tests
    if problem.device_type != wanted:
        reasons.append(f"the cuda backend takes tensors on {wanted}, not on {problem.device_type}")
    elif wanted == "cpu":
        pass
    elif problem.capability is None:
        reasons.append("PyTorch sees no CUDA device")
    elif problem.capability < (8, 0):
        reasons.append("the cuda backend takes GPUs of compute capability 8.0 or later")
    elif facts and not _runs_on(facts, problem.capability):
        built = ", ".join(map(str, facts["architectures"]))
        reasons.append(
            "this build of the cuda backend is for sm_{}, not for sm_{}{}".format(built, *problem.capability)
        )
    taken = problem.dtype in (torch.float32, torch.float16, torch.bfloat16)
    if not taken:
        reasons.append(f"the cuda backend takes float32, float16 and bfloat16, not {_name(problem.dtype)}")
    if facts:
        lacking = [
            name for name in ("forward", "backward") if not _has_kernel(facts[name], problem, any_dtype=not taken)
        ]
        if lacking:
            size = f"{_name(problem.dtype)} N={problem.window_area} hd={problem.head_dim}"
            reasons.append(f"the cuda backend has no {' and no '.join(lacking)} kernel for {size}: left to triton")
    return reasons


def _runs_on(facts: dict[str, Any], capability: tuple[int, int]) -> bool:
    """Binaries serve later minor versions of their major version; PTX serves everything later."""
    major, minor = capability
    binaries = any(arch // 10 == major and arch % 10 <= minor for arch in facts["architectures"])
    return binaries or any(arch <= 10 * major + minor for arch in facts["ptx"])


def _has_kernel(kernels: list[dict[str, Any]], problem: Problem, any_dtype: bool) -> bool:
    return any(
        (any_dtype or _name(problem.dtype) in kernel["dtypes"])
        and kernel["window_area"][0] <= problem.window_area <= kernel["window_area"][1]
        and problem.head_dim in kernel["head_dims"]
        for kernel in kernels
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_log_level(level: str) -> str:
    """`level`, as logging spells it.

    Raises:
        ValueError: there is no such level.
    """
    if level.lower() not in _LOG_LEVELS:
        raise ValueError(f"SWIN_FAST_LOG: got {level!r}, want one of {', '.join(_LOG_LEVELS)}")
    return level.upper()


def _configure_log(level: str | None) -> None:
    if not level:
        return
    try:
        level = check_log_level(level)
    except ValueError as error:  # an import does not fail for want of a log
        _log.warning("%s", error)
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(level)


_configure_log(os.environ.get("SWIN_FAST_LOG"))
