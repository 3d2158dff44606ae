# SPDX-License-Identifier: Apache-2.0
"""The suites: what each measures, against whom, and what it holds the project to."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import cast

from .cases import Row, rows_of, toy_rows
from .contenders import Problem


@dataclass(frozen=True)
class Suite:
    """A suite.

    `module`: has the class `Problem`; imported when a row is run. `rivals`: families that do the same work on the same
    inputs, "the best peer" is one of them; `others`: families that do other work, and are shown beside; `held_against`:
    those that the bar means; `rearranged`: whether some rivals are our own rearrangements. `equal`: for each dtype the
    largest error, as a part of the largest magnitude, of a peer that counts as equal; `equal_sums`: the same of
    gradients of weights, see `bench.bounds`. `flush`: whether a GPU's cache is emptied before each call. `budget`:
    seconds of timed rounds per row.
    """

    name: str
    module: str
    rivals: tuple[str, ...]
    held_against: tuple[str, ...]
    equal: dict[str, float]
    legend: str
    others: tuple[str, ...] = ()
    equal_sums: dict[str, float] = field(default_factory=dict)
    rearranged: bool = False
    flush: bool = False
    budget: float = 10.0
    least_rounds: int = 7

    @property
    def families(self) -> tuple[str, ...]:
        return self.rivals + self.others

    @property
    def results(self) -> str:
        return f"{self.name}.json"

    @property
    def barred(self) -> bool:
        return any(row.bar is not None for row in self.rows("cpu"))

    def rows(self, device: str, toy: bool = False) -> tuple[Row, ...]:
        if not toy:
            return rows_of(self.name, device)
        return tuple(row for row in toy_rows(self.name) if device == "cpu" or row.threads == 1)

    def problem(self, row: Row, device: str) -> Problem:
        module = importlib.import_module(f".{self.module}", __package__)
        return cast(Problem, module.Problem(row, device))


_CLOCK = "ms: on a CPU the minimum, of CPU time with one thread and of wall time with two; on a GPU the median."
_TIMM = ("timm", "timm_sdpa", "timm_compile", "timm_autotune", "timm_cudagraphs")
_LIBRARIES = ("eager", *_TIMM, "torchvision", "transformers")
_OVER_TIMM = "over timm: timm's, as it runs by default, over swin_fast; ratio: the best peer over swin_fast."
SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            name="op",
            module="op_contenders",
            rivals=("eager", "sdpa", "compile", "autotune", "flex"),
            others=("cached", "timm_order"),
            held_against=("eager", "sdpa", "compile", "autotune"),
            # Wide, since eager rounds every step, and FlexAttention sums the table's gradient by atomic additions; a
            # forgotten mask or a wrong bias is an error of order 1.
            equal={"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2},
            rearranged=True,
            flush=True,
            legend=f"""\
{_CLOCK}
ratio: the best of the columns from eager to flex over swin_fast; published: the same without our own rearrangements of
the peers. The columns cached (bias and mask expanded beforehand) and timm order (roll and partition before the QKV
linear) are ratios, too, to peers that do less work or other work: benchmarks/README.md.""",
        ),
        Suite(
            name="block",
            module="block_contenders",
            rivals=(*_LIBRARIES, "onnxruntime", "openvino"),
            held_against=("timm",),
            # fp32 reaches 1e-5, and bf16 3e-2, in V2.
            equal={"fp32": 1e-4, "bf16": 1e-1},
            equal_sums={"fp32": 1e-4, "bf16": 3e-1},
            legend=f"{_CLOCK}\n{_OVER_TIMM}",
        ),
        Suite(
            name="model",
            module="model_contenders",
            rivals=(*_LIBRARIES, "onnxruntime", "openvino"),
            held_against=("timm",),
            # fp32 reaches 1e-6, with gradients 1e-5, and bf16 5e-3: the head takes the mean of all tokens.
            equal={"fp32": 1e-4, "bf16": 3e-2},
            equal_sums={"fp32": 1e-4, "bf16": 3e-1},
            budget=20.0,
            least_rounds=3,
            legend=f"{_CLOCK}\n{_OVER_TIMM}",
        ),
        Suite(
            name="dense",
            module="model_contenders",
            rivals=("eager", "torchvision", "transformers"),
            held_against=("eager",),
            # Maps of single tokens, and no mean over them.
            equal={"fp32": 1e-4, "bf16": 1e-1},
            equal_sums={"fp32": 1e-4, "bf16": 3e-1},
            budget=20.0,
            least_rounds=3,
            legend=f"{_CLOCK}\nover eager: our model in plain PyTorch, over swin_fast; ratio: the best peer over it.",
        ),
    )
}
