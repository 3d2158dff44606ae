# SPDX-License-Identifier: Apache-2.0
"""What a suite has to offer to be run by `bench.py`: problems, and contenders that solve them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from .cases import Row
from .clocks import Call


@dataclass(frozen=True)
class Contender(ABC):
    """One way to solve a problem.

    `capturable`: whether its calls can be captured in a CUDA graph; `weighable`: whether memory.py sees what it holds.
    """

    name: str
    capturable: bool = field(default=True, kw_only=True)
    weighable: bool = field(default=True, kw_only=True)

    @abstractmethod
    def call(self) -> Call:
        """What is timed."""

    @abstractmethod
    def results(self) -> dict[str, Tensor]:
        """Output and gradients under the names and in the layout that all contenders of the problem share."""

    @abstractmethod
    def held(self) -> Iterable[Tensor]:
        """Inputs and weights, which live before and after a call."""


@dataclass(frozen=True)
class Candidate:
    """A peer that may turn out not to run here.

    `family`: the column it stands in. `published`: arranged as others run it, compiled or not; else rearranged by us to
    be faster. `build` raises where a package, a device or a dtype is missing, and so may the contender's first call.
    """

    name: str
    family: str
    build: Callable[[], Contender]
    published: bool = True


class Problem(Protocol):
    """The tensors of one row, and who takes them."""

    row: Row
    device: str
    #: The plain peer whose error is the yardstick for ours.
    yardstick: str
    #: Results that are sums over all tokens of a batch: gradients of weights.
    sums: tuple[str, ...]

    def exact(self) -> dict[str, Tensor]:
        """The results in float64."""

    def ours(self, backend: str | None) -> Contender: ...

    def peers(self) -> list[Candidate]:
        """All of them, of every family."""
