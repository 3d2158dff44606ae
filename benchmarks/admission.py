# SPDX-License-Identifier: Apache-2.0
"""Nobody is timed before being right: who takes part in a row, and why others do not."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from .clocks import Clock, Clocked
from .conftest import Options
from .contenders import Candidate, Contender, Problem
from .equality import errors, our_bound, unequal
from .memory import peak_mb
from .suites import Suite

#: How often results are compared: what compiles CUDA graphs by itself records in its second call, replays in its third.
COMPARED = {"cpu": 1, "cuda": 3}
TOO_LATE = "the time of the run was over"

LeftOut = dict[str, dict[str, str]]


@dataclass
class Admitted:
    """A contender that runs here and is equal. `graph` is its call as a CUDA graph, where that is measured."""

    candidate: Candidate
    contender: Contender
    error: dict[str, float]
    peak_mb: float | None
    clocked: Clocked
    graph: Clocked | None = None


class NotEqual(AssertionError):
    """Results that are too far from float64: `faults` in one sentence."""

    def __init__(self, name: str, faults: list[str]) -> None:
        self.faults = some(faults)
        super().__init__(f"{name} is not equal: {self.faults}")


def checked(
    problem: Problem,
    suite: Suite,
    options: Options,
    candidates: list[Candidate],
    clock: Clock,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[Admitted, list[Admitted], LeftOut]:
    """(Ours, the peers that run and are equal, of the others the reasons).

    Raises:
        NotEqual: ours, or the yardstick, is not equal.
        Exception: ours, or the yardstick, does not run.
    """
    exact = problem.exact()
    yardsticks = [candidate for candidate in candidates if candidate.name == problem.yardstick]
    if not yardsticks:
        pytest.skip(f"--peers leaves out {problem.yardstick}, the yardstick of this row")

    def admit(candidate: Candidate, role: str, error: dict[str, float]) -> Admitted:
        progress(candidate.name)
        return admitted(candidate, problem, exact, bounds(problem, suite, role, error), clock)

    yardstick = admit(yardsticks[0], "yardstick", dict.fromkeys(exact, 0.0))
    ours = Candidate("swin_fast", "swin_fast", partial(problem.ours, options.backend))
    mine = admit(ours, "ours", yardstick.error)  # before the others, some of which compile for minutes
    peers, left_out = [yardstick], {}
    for candidate in candidates:
        if candidate is yardsticks[0]:
            continue
        reason = None if options.in_time else TOO_LATE
        if not reason:
            try:
                peers.append(admit(candidate, "peer", yardstick.error))
            except Exception as fault:
                reason = f"not equal: {fault.faults}" if isinstance(fault, NotEqual) else in_one_line(fault)
        if reason:  # here the fault is gone, and the tensors of its frames with it
            settle(problem.device)
            left_out[candidate.name] = {"family": candidate.family, "reason": reason}
    return mine, peers, left_out


def admitted(
    candidate: Candidate, problem: Problem, exact: dict[str, Tensor], allowed: dict[str, float], clock: Clock
) -> Admitted:
    """Builds a contender, compares it, weighs it.

    Raises:
        NotEqual: a result differs by more than allowed.
        Exception: it does not run.
    """
    contender = candidate.build()
    found: dict[str, float] = {}
    for _ in range(COMPARED[problem.device]):
        for name, error in errors(contender, exact).items():
            found[name] = max(error, found.get(name, 0.0))
        if faults := unequal(found, allowed):
            raise NotEqual(candidate.name, faults)
    call = contender.call()
    peak = peak_mb(call, contender.held(), problem.device) if contender.weighable else None
    group = (candidate.family, candidate.published)
    return Admitted(candidate, contender, found, peak, Clocked(candidate.name, group, call, clock))


def some(sentences: list[str], most: int = 3) -> str:
    more = len(sentences) - most
    return "; ".join(sentences[:most]) + (f"; and {more} more" if more > 0 else "")


def in_one_line(fault: Exception) -> str:
    text = " ".join(str(fault).split())
    return f"{type(fault).__name__}: {text[:200]}"


def bounds(problem: Problem, suite: Suite, role: str, yardstick: dict[str, float]) -> dict[str, float]:
    """The largest error of each result that is allowed to `role`: "ours", "yardstick" or "peer".

    Ours keep the project's rule, peers are within `suite.equal`. Sums over whole maps, the gradients of weights, may
    be off by `suite.equal_sums` or, if that is more, by the rule. The yardstick's in bf16 are not judged: torch's
    LayerNorm on a CPU adds up the gradients of its weights in bf16, which leaves them off by up to 0.9 of the largest.
    The same code is judged in fp32.
    """
    dtype = problem.row.dtype_name
    rule = our_bound(problem.row.dtype, yardstick)  # of the yardstick itself it is not asked
    allowed = {name: rule[name] if role == "ours" else suite.equal[dtype] for name in rule}
    for name in problem.sums:
        allowed[name] = suite.equal_sums[dtype]
        if role != "yardstick":
            allowed[name] = max(allowed[name], rule[name])
        elif dtype == "bf16":
            allowed[name] = math.inf
    return allowed


def settle(device: str) -> None:
    """Gives memory of what is gone back, so that who comes next finds it; stops the run if the GPU answers no more."""
    gc.collect()
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as fault:  # sticky: every later call would fail with it
        pytest.exit(f"the GPU answers no more: {in_one_line(fault)}", returncode=3)
