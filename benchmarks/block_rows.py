# SPDX-License-Identifier: Apache-2.0
"""The rows of one whole block, and the bar that each has to reach."""

from __future__ import annotations

from dataclasses import dataclass

from .rows import ATTENTION_TRAINING, LINEAR_TRAINING, SWIN_T, Row, Stage, every

#: Speed of swin_fast over timm's block as timm runs it by default, of the shifted first stage of Swin-T at batch 8.
BARS = {("fp32", "fwd"): 1.2, ("bf16", "fwd"): 1.3, ("fp32", "fwd+bwd"): 1.2, ("bf16", "fwd+bwd"): 1.2}
#: Of every other row: never slower.
BAR = 1.0


def linear_flops(dim: int) -> float:
    """Of one token: QKV (C x 3C), projection (C x C) and the MLP (C x 4C, 4C x C), two per multiply-add."""
    return 2.0 * dim * (3 * dim + dim + 4 * dim + 4 * dim)


@dataclass(frozen=True)
class BlockRow(Row):
    """A Swin block between two maps of tokens."""

    case: Stage

    @property
    def quick(self) -> bool:
        """The shifted first stages."""
        return self.case.name.endswith("_s1") and self.case.shift > 0

    @property
    def bar(self) -> float:
        barred = (self.case.name, self.batch) == ("swin_t_s1", 8) and self.case.shift
        return BARS[self.dtype_name, self.direction] if barred else BAR

    @property
    def flops(self) -> float:
        """Linears and attention. Left out: norms, GELU, softmax, and V2's small MLP, whose input is one window's."""
        linear, attention = self.case.size**2 * linear_flops(self.case.dim), self.case.attention_flops
        if self.backward:
            linear, attention = LINEAR_TRAINING * linear, ATTENTION_TRAINING * attention
        return self.batch * (linear + attention)


ROWS = every(BlockRow, (*SWIN_T, Stage("swinv2_t_s1", 64, 3, 8, 4, version=2)))
