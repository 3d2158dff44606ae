# SPDX-License-Identifier: Apache-2.0
"""Loads the native libraries and says what they are. Without a library everything here still works, and says why.

The library registers its kernels with PyTorch when it is loaded; its build facts come from C functions returning JSON.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

CPU_LIBRARY = Path(__file__).parent.parent / "lib" / "libswin_fast_cpu.so"


class _Cpu(NamedTuple):
    library: ctypes.CDLL | None
    build_info: dict[str, Any]
    why_not: tuple[str, ...]


@functools.cache
def _cpu() -> _Cpu:
    if not CPU_LIBRARY.is_file():
        return _Cpu(None, {}, (f"the CPU library is not built: {CPU_LIBRARY.name} is not in the package",))
    try:
        torch.ops.load_library(str(CPU_LIBRARY))
        library = ctypes.CDLL(str(CPU_LIBRARY))
        library.swin_fast_cpu_build_info.restype = ctypes.c_char_p
        library.swin_fast_cpu_isa.restype = ctypes.c_char_p
        library.swin_fast_cpu_select_isa.argtypes = [ctypes.c_char_p]
        build_info = json.loads(library.swin_fast_cpu_build_info())
    except (OSError, AttributeError, ValueError) as error:
        return _Cpu(None, {}, (f"the CPU library cannot be used: {error}",))
    isa = os.environ.get("SWIN_FAST_ISA")
    if isa and not library.swin_fast_cpu_select_isa(isa.encode()):
        runnable = ", ".join(_runnable_isas(library, build_info))
        sentence = f"SWIN_FAST_ISA={isa} cannot run here: this library on this CPU has {runnable}"
        return _Cpu(library, build_info, (sentence,))
    return _Cpu(library, build_info, ())


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
