# SPDX-License-Identifier: Apache-2.0
"""Loads the native libraries and says what they are. Without a library everything here still works, and says why.

A library registers its kernels with PyTorch when it is loaded; its build facts come from C functions returning JSON.
That of CUDA is loaded without a GPU, too, and touches none before the first call: a process may still fork.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

CPU_LIBRARY = Path(__file__).parent.parent / "lib" / "libswin_fast_cpu.so"
CUDA_LIBRARY = CPU_LIBRARY.with_name("libswin_fast_cuda.so")


class _Loaded(NamedTuple):
    library: ctypes.CDLL | None
    build_info: dict[str, Any]
    why_not: tuple[str, ...]


def _load(name: str, path: Path, prepare: Callable[[ctypes.CDLL], None]) -> _Loaded:
    """Loads a library whose function `swin_fast_<name>_build_info` tells its facts; `prepare` declares the others."""
    title = f"the {name.upper()} library"
    if not path.is_file():
        return _Loaded(None, {}, (f"{title} is not built: {path.name} is not in the package",))
    try:
        torch.ops.load_library(str(path))
        library = ctypes.CDLL(str(path))
        facts = library[f"swin_fast_{name}_build_info"]
        facts.restype = ctypes.c_char_p
        prepare(library)
        return _Loaded(library, json.loads(facts()), ())
    except (OSError, AttributeError, ValueError) as error:
        return _Loaded(None, {}, (f"{title} cannot be used: {error}",))


@functools.cache
def _cpu() -> _Loaded:
    def prepare(library: ctypes.CDLL) -> None:
        library.swin_fast_cpu_isa.restype = ctypes.c_char_p
        library.swin_fast_cpu_select_isa.argtypes = [ctypes.c_char_p]

    loaded = _load("cpu", CPU_LIBRARY, prepare)
    isa = os.environ.get("SWIN_FAST_ISA")
    if loaded.library is None or not isa or loaded.library.swin_fast_cpu_select_isa(isa.encode()):
        return loaded
    runnable = ", ".join(_runnable_isas(loaded.library, loaded.build_info))
    sentence = f"SWIN_FAST_ISA={isa} cannot run here: this library on this CPU has {runnable}"
    return loaded._replace(why_not=(sentence,))


@functools.cache
def _cuda() -> _Loaded:
    def prepare(library: ctypes.CDLL) -> None:
        library.swin_fast_cuda_driver_version.restype = ctypes.c_int

    return _load("cuda", CUDA_LIBRARY, prepare)


def _runnable_isas(library: ctypes.CDLL, build_info: dict[str, Any]) -> tuple[str, ...]:
    # The library alone knows what this CPU can run; asking means selecting, so the choice is put back.
    current = library.swin_fast_cpu_isa()
    runnable = tuple(isa for isa in build_info["isa_compiled"] if library.swin_fast_cpu_select_isa(isa.encode()))
    library.swin_fast_cpu_select_isa(current)
    return runnable


def cpu_library() -> ctypes.CDLL | None:
    """The loaded CPU library; None where `cpu_why_not` says why there is none."""
    return _cpu().library


def cpu_why_not() -> list[str]:
    """Sentences saying why the CPU library cannot be used; empty when it can."""
    return list(_cpu().why_not)


def cpu_build_info() -> dict[str, Any]:
    """Build facts of the CPU library: version, compiler, ISAs, compile-time shapes, limits. Empty without a library."""
    return dict(_cpu().build_info)


def cpu_isa() -> str:
    """The instruction set the CPU kernels use now: scalar, avx2, avx512 or avx512_bf16. Empty without a library."""
    library = cpu_library()
    return "" if library is None else str(library.swin_fast_cpu_isa().decode())


def cpu_isas() -> tuple[str, ...]:
    """The instruction sets `select_cpu_isa` accepts on this CPU, slowest first. Empty without a library."""
    library = cpu_library()
    return () if library is None else _runnable_isas(library, _cpu().build_info)


def select_cpu_isa(name: str) -> None:
    """Makes the CPU kernels of this process use one instruction set.

    Raises:
        ValueError: the library or this CPU does not have it; nothing is changed.
    """
    library = cpu_library()
    if library is None or not library.swin_fast_cpu_select_isa(name.encode()):
        raise ValueError(f"name: got {name!r}, want one of {cpu_isas()}")


def cuda_library() -> ctypes.CDLL | None:
    """The loaded CUDA library; None where `cuda_why_not` says why there is none."""
    return _cuda().library


def cuda_why_not() -> list[str]:
    """Sentences saying why the CUDA library cannot be used, on whatever GPU; empty when it can."""
    loaded = _cuda()
    if loaded.library is None:
        return list(loaded.why_not)
    driver, needed = loaded.library.swin_fast_cuda_driver_version(), loaded.build_info["cuda_runtime"]
    if driver == 0:
        return ["no CUDA driver is installed"]
    if driver // 1000 < int(needed.partition(".")[0]):
        version = f"{driver // 1000}.{driver % 1000 // 10}"
        return [f"the driver is for CUDA {version}, and the CUDA library was built with CUDA {needed}"]
    return []


def cuda_build_info() -> dict[str, Any]:
    """Build facts of the CUDA library: version, compiler, architectures, kernels and what they take. Empty without it.

    `forward` and `backward` list kernels with their range of `window_area`, first and last, and their `head_dims`.
    """
    return dict(_cuda().build_info)
