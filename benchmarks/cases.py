# SPDX-License-Identifier: Apache-2.0
"""What is measured: the rows of the window attention benchmark, and the bar that each row has to reach."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DIRECTIONS = ("fwd", "fwd+bwd")
BATCHES = (1, 8)
QUICK = (("swin_t_s1", 1), ("swin_t_s1", 8), ("swin_b384_s1", 1))


@dataclass(frozen=True)
class Stage:
    """The attention geometry of one stage of a model; square images and windows, as in the published models."""

    name: str
    size: int
    heads: int
    window: int
    shift: int
    head_dim: int = 32

    @property
    def tokens(self) -> int:
        return self.window**2

    @property
    def windows(self) -> int:
        return (self.size // self.window) ** 2


STAGES = (
    Stage("swin_t_s1", 56, 3, 7, 3),
    Stage("swin_t_s1", 56, 3, 7, 0),
    Stage("swin_t_s2", 28, 6, 7, 3),
    Stage("swin_t_s3", 14, 12, 7, 3),
    Stage("swin_t_s4", 7, 24, 7, 0),  # one window: Swin drops the shift
    Stage("swin_b384_s1", 96, 4, 12, 6),
)

#: Speed of swin_fast over the best of eager, SDPA and torch.compile that the project holds itself to.
BARS = {
    ("swin_t_s1", "fwd"): {"fp32": 3.0, "bf16": 4.0},
    ("swin_t_s1", "fwd+bwd"): {"fp32": 2.5, "bf16": 3.0},
    ("swin_b384_s1", "fwd"): {"fp32": 2.5, "bf16": 3.0},
    ("swin_b384_s1", "fwd+bwd"): {"fp32": 2.0, "bf16": 2.0},
}


@dataclass(frozen=True)
class Row:
    """One line of the result: a stage, a batch, a dtype and a direction."""

    stage: Stage
    batch: int
    dtype_name: str
    direction: str

    @property
    def id(self) -> str:
        stage = self.stage
        return f"{stage.name}-shift{stage.shift}-b{self.batch}-{self.dtype_name}-{self.direction}"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def backward(self) -> bool:
        return self.direction == "fwd+bwd"

    @property
    def quick(self) -> bool:
        """Part of the quick run: the shifted first stages, without the rows that take longest."""
        return self.stage.shift > 0 and (self.stage.name, self.batch) in QUICK

    @property
    def bar(self) -> float | None:
        if not self.stage.shift:
            return None
        return BARS.get((self.stage.name, self.direction), {}).get(self.dtype_name)

    @property
    def flops(self) -> float:
        """Useful floating point operations: q kᵀ and P v, two per multiply-add; no padding, softmax or bias.

        Forward and backward together are 7/2 of the forward: two products, then five (the scores again, dV, dP, dQ,
        dK). Every contender is credited with this number, whether it recomputes the scores or stores them.
        """
        stage = self.stage
        forward = 4.0 * self.batch * stage.windows * stage.heads * stage.tokens**2 * stage.head_dim
        return forward * (3.5 if self.backward else 1.0)

    @property
    def bytes(self) -> int:
        """The least traffic of an op that keeps nothing but its inputs, in tensors of B*H*W*C elements.

        Forward: qkv in (3), out (1). Backward: qkv (3) and grad_out (1) in, dqkv out (3).
        """
        stage = self.stage
        tensor = self.batch * stage.size**2 * stage.heads * stage.head_dim * self.dtype.itemsize
        return tensor * (11 if self.backward else 4)


ROWS = tuple(Row(*parts) for parts in product(STAGES, BATCHES, DTYPES, DIRECTIONS))
