# SPDX-License-Identifier: Apache-2.0
"""What the rows of every suite are made of: a case, a batch, a dtype and a direction; and the stages of Swin-T."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol, TypeVar

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DIRECTIONS = ("fwd", "fwd+bwd")
BATCHES = (1, 8)


class Case(Protocol):
    """A thing that is measured, without batch and dtype."""

    @property
    def id(self) -> str: ...

    @property
    def facts(self) -> dict[str, Any]:
        """What the result file says about it; "case" is its name."""


@dataclass(frozen=True)
class Stage:
    """The attention geometry of one stage of a model; square images and windows, as in the published models.

    `size`: tokens along one side of the image; `version`: of Swin, 1 or 2.
    """

    name: str
    size: int
    heads: int
    window: int
    shift: int
    head_dim: int = 32
    version: int = 1

    @property
    def id(self) -> str:
        return f"{self.name}-shift{self.shift}"

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "case": self.name,
            "shift": self.shift,
            "window": self.window,
            "heads": self.heads,
            "size": self.size,
        }

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def tokens(self) -> int:
        return self.window**2

    @property
    def windows(self) -> int:
        return (self.size // self.window) ** 2

    @property
    def attention_flops(self) -> float:
        """Of one image: q kᵀ and P v, two operations per multiply-add; no padding, softmax or bias."""
        return 4.0 * self.windows * self.heads * self.tokens**2 * self.head_dim


SWIN_T = (
    Stage("swin_t_s1", 56, 3, 7, 3),
    Stage("swin_t_s1", 56, 3, 7, 0),
    Stage("swin_t_s2", 28, 6, 7, 3),
    Stage("swin_t_s3", 14, 12, 7, 3),
    Stage("swin_t_s4", 7, 24, 7, 0),  # one window: Swin drops the shift
)

#: Operations of attention forward and backward, in those of its forward: two products, then five (the scores again, dV,
#: dP, dQ, dK). Every contender is credited with this number, whether it recomputes the scores or stores them.
ATTENTION_TRAINING = 3.5
#: The same of a Linear: y; dx and dW.
LINEAR_TRAINING = 3.0


@dataclass(frozen=True)
class Row(ABC):
    """One line of the result."""

    case: Any  # a Case
    batch: int
    dtype_name: str
    direction: str

    @property
    def id(self) -> str:
        return f"{self.case.id}-b{self.batch}-{self.dtype_name}-{self.direction}"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def backward(self) -> bool:
        return self.direction == "fwd+bwd"

    @property
    @abstractmethod
    def quick(self) -> bool:
        """Part of the quick run."""

    @property
    def bar(self) -> float | None:
        """What `Suite.held_against` over swin_fast has to reach; None: no bar."""
        return None

    @property
    @abstractmethod
    def flops(self) -> float:
        """Useful floating point operations: those of matrix products, two per multiply-add."""

    @property
    def bytes(self) -> int | None:
        """The least traffic, where something can be said about it."""
        return None


AnyRow = TypeVar("AnyRow", bound=Row)


def every(row: type[AnyRow], cases: tuple[Any, ...]) -> tuple[AnyRow, ...]:
    """All cases with all batches, dtypes and directions."""
    return tuple(row(*parts) for parts in product(cases, BATCHES, DTYPES, DIRECTIONS))
