# SPDX-License-Identifier: Apache-2.0
"""What the tests know of one header of CUDA kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

OPERATIONS = ("HMMA", "LDSM", "LDGSTS")


@dataclass(frozen=True)
class Bug:
    """One wrong line: `old`, which must stand in the file exactly once, becomes `new`. `file`: if not the header."""

    old: str
    new: str
    file: str | None = None


@dataclass(frozen=True)
class Kernel:
    """`instances` are compiled by nvcc in namespace swin_fast::cuda, one to a line; `known_spills` are bytes of stack
    of all of them, by architecture. Its driver in the emulator is tests/cusim/test_<name>.cpp; the name is that of the
    header and of the `variant`, where there are several.

    An instance makes products of matrices that it fetches by asynchronous copies, unless a comment in its line says
    that it has "no copies", since its rows may lie anywhere, or "no products", and then neither. `for_each_product` are
    the most instructions that an instance may take for sm_90, see `cuda_sass.for_each_product`: what it took last.
    """

    header: str
    instances: str
    bugs: dict[str, Bug]
    known_spills: dict[str, int] = field(default_factory=dict)
    for_each_product: dict[str, float] = field(default_factory=dict)
    variant: str = ""

    @property
    def operations(self) -> dict[str, tuple[str, ...]]:
        """What the machine code of each instance must have: products, loads of matrices, asynchronous copies."""
        found = re.findall(r"^template __global__ void (.+?)\(.*?;(.*)$", self.instances, re.M)
        return {
            name: () if "no products" in comment else OPERATIONS[:2] if "no copies" in comment else OPERATIONS
            for name, comment in found
        }

    @property
    def name(self) -> str:
        return Path(self.header).stem + self.variant

    @property
    def driver(self) -> str:
        return f"tests/cusim/test_{self.name}.cpp"
