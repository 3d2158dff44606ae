# SPDX-License-Identifier: Apache-2.0
"""The suites: what each measures, against whom, and what it holds the project to."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import cast

from . import block_rows, model_rows, op_rows
from .contenders import Problem
from .rows import Row


@dataclass(frozen=True)
class Suite:
    """A suite.

    `module`: has the class `Problem`; imported when a row is run, for it may need timm and torchvision. `families`:
    columns of the result; `rivals`: those that do the same work on the same inputs, "the best peer" is one of them;
    `held_against`: those that the bar means; `yardstick`: the one that no run can do without; `rearranged`: whether
    some rivals are our own rearrangements. `equal`: for each dtype the largest error, as a part of the largest
    magnitude, of a peer that counts as equal; `equal_sums`: the same of gradients of weights, see
    `bench.bounds`. `budget`: CPU seconds of timed rounds per row.
    """

    rows: tuple[Row, ...]
    module: str
    results: str
    families: tuple[str, ...]
    rivals: tuple[str, ...]
    held_against: tuple[str, ...]
    yardstick: str
    equal: dict[str, float]
    legend: str
    equal_sums: dict[str, float] = field(default_factory=dict)
    rearranged: bool = False
    budget: float = 10.0
    least_rounds: int = 7

    @property
    def barred(self) -> bool:
        return any(row.bar is not None for row in self.rows)

    def problem(self, row: Row) -> Problem:
        module = importlib.import_module(f".{self.module}", __package__)
        return cast(Problem, module.Problem(row))


_CLOCK = "ms of CPU time, one thread, minimum."
_LIBRARIES = ("timm", "timm_sdpa", "timm_compile", "torchvision")
SUITES = {
    "op": Suite(
        rows=op_rows.ROWS,
        module="op_contenders",
        results="window_attention.json",
        families=("eager", "sdpa", "compile", "cached", "timm_order"),
        rivals=("eager", "sdpa", "compile"),
        held_against=("eager", "sdpa", "compile"),
        yardstick="eager",
        # Wide, since eager rounds every step; a forgotten mask or a wrong bias is an error of order 1.
        equal={"fp32": 1e-5, "bf16": 5e-2},
        rearranged=True,
        legend=f"""\
{_CLOCK} ratio: the best of eager, sdpa and compile over swin_fast;
published: the same without our own rearrangements of the peers. The columns cached (bias and mask expanded beforehand)
and timm order (roll and partition before the QKV linear) are ratios, too, to peers that do less work or other work:
benchmarks/README.md.""",
    ),
    "block": Suite(
        rows=block_rows.ROWS,
        module="block_contenders",
        results="block.json",
        families=_LIBRARIES,
        rivals=_LIBRARIES,
        held_against=("timm",),
        yardstick="timm",
        # fp32 reaches 1e-5, and bf16 3e-2, in V2.
        equal={"fp32": 1e-4, "bf16": 1e-1},
        equal_sums={"fp32": 1e-4, "bf16": 3e-1},
        legend=f"""\
{_CLOCK} over timm: timm's block as it runs by default over swin_fast, which the bar means;
ratio: the best peer over swin_fast. timm sdpa: its fused attention; timm compile: torch.compile of its default.""",
    ),
    "model": Suite(
        rows=model_rows.ROWS,
        module="model_contenders",
        results="model.json",
        families=_LIBRARIES,
        rivals=_LIBRARIES,
        held_against=("timm",),
        yardstick="timm",
        # fp32 reaches 1e-6, with gradients 1e-5, and bf16 5e-3: the head takes the mean of all tokens.
        equal={"fp32": 1e-4, "bf16": 3e-2},
        equal_sums={"fp32": 1e-4, "bf16": 3e-1},
        budget=20.0,
        least_rounds=3,
        legend=f"""\
{_CLOCK} over timm: timm's model as it runs by default over swin_fast; ratio: the best peer over
swin_fast. timm sdpa: its fused attention; timm compile: torch.compile of its default.""",
    ),
}
