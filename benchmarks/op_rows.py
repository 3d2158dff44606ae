# SPDX-License-Identifier: Apache-2.0
"""The rows of the core op, and the bar that each has to reach."""

from __future__ import annotations

from dataclasses import dataclass

from .rows import ATTENTION_TRAINING, SWIN_T, Row, Stage, every

QUICK = (("swin_t_s1", 1), ("swin_t_s1", 8), ("swin_b384_s1", 1))

#: Speed of swin_fast over the best of eager, SDPA and torch.compile that the project holds itself to.
BARS = {
    ("swin_t_s1", "fwd"): {"fp32": 3.0, "bf16": 4.0},
    ("swin_t_s1", "fwd+bwd"): {"fp32": 2.5, "bf16": 3.0},
    ("swin_b384_s1", "fwd"): {"fp32": 2.5, "bf16": 3.0},
    ("swin_b384_s1", "fwd+bwd"): {"fp32": 2.0, "bf16": 2.0},
}


@dataclass(frozen=True)
class OpRow(Row):
    """A stage's attention between the QKV linear and the projection."""

    case: Stage

    @property
    def quick(self) -> bool:
        """The shifted first stages, without the rows that take longest."""
        return self.case.shift > 0 and (self.case.name, self.batch) in QUICK

    @property
    def bar(self) -> float | None:
        if not self.case.shift:
            return None
        return BARS.get((self.case.name, self.direction), {}).get(self.dtype_name)

    @property
    def flops(self) -> float:
        return self.batch * self.case.attention_flops * (ATTENTION_TRAINING if self.backward else 1.0)

    @property
    def bytes(self) -> int:
        """The traffic of an op that keeps nothing but its inputs, in tensors of B*H*W*C elements.

        Forward: qkv in (3), out (1). Backward: qkv (3) and grad_out (1) in, dqkv out (3).
        """
        tensor = self.batch * self.case.size**2 * self.case.dim * self.dtype.itemsize
        return tensor * (11 if self.backward else 4)


ROWS = every(OpRow, (*SWIN_T, Stage("swin_b384_s1", 96, 4, 12, 6)))
