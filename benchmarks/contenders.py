# SPDX-License-Identifier: Apache-2.0
"""What a suite has to offer to be run by `bench.py`: problems, and contenders that solve them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from .rows import Row


@dataclass(frozen=True)
class Contender(ABC):
    """One way to solve a problem.

    `family`: the column it stands in. `published`: arranged as others run it, compiled or not; else rearranged by us to
    be faster.
    """

    name: str
    family: str
    published: bool = field(default=True, kw_only=True)

    @abstractmethod
    def call(self) -> Callable[[], object]:
        """What is timed."""

    @abstractmethod
    def results(self) -> dict[str, Tensor]:
        """Output and gradients under the names and in the layout that all contenders of the problem share."""


class Problem(Protocol):
    """The tensors of one row, and who takes them."""

    row: Row
    #: The plain peer whose error is the yardstick for ours.
    yardstick: str
    #: Results that are sums over all tokens of a batch: gradients of weights.
    sums: tuple[str, ...]

    def exact(self) -> dict[str, Tensor]:
        """The results in float64."""

    def ours(self, backend: str | None) -> Contender: ...

    def peers(self, families: tuple[str, ...]) -> list[Contender]:
        """All peers of those families. Resets torch.compile, so that each row compiles afresh: past its recompile limit
        it would silently run eager instead.
        """
