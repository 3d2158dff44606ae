# SPDX-License-Identifier: Apache-2.0
"""What the tests know of one header of CUDA kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Bug:
    """One wrong line: `old`, which must stand in the file exactly once, becomes `new`. `file`: if not the header."""

    old: str
    new: str
    file: str | None = None


@dataclass(frozen=True)
class Kernel:
    """`instances` are compiled by nvcc in namespace swin_fast::cuda; `known_spills` are bytes of stack of all of them,
    by architecture. Its driver in the emulator is tests/cusim/test_<name>.cpp.
    """

    header: str
    instances: str
    bugs: dict[str, Bug]
    known_spills: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return Path(self.header).stem

    @property
    def driver(self) -> str:
        return f"tests/cusim/test_{self.name}.cpp"
