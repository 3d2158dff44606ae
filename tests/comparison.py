# SPDX-License-Identifier: Apache-2.0
"""The comparison that every kernel faces: one line per tensor, and nothing non-finite ever passes unnoticed.

The rule: error against float64 <= 2 * error of eager + epsilon(dtype) * scale, for the largest error and for the root
mean square. A difference that is not finite counts as infinite. Where eager itself is not finite, what is left of the
bound is epsilon(dtype) * scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cases import EAGER_FACTOR, epsilon


@dataclass(frozen=True)
class Comparison:
    """The verdict on one tensor. A ratio is error / bound; above 1 (or NaN) is a failure."""

    name: str
    max_error: float
    max_ratio: float
    rms_error: float
    rms_ratio: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return not self.note and self.max_ratio <= 1.0 and self.rms_ratio <= 1.0

    def __str__(self) -> str:
        verdict = "ok  " if self.ok else "FAIL"
        if self.note:
            return f"{verdict} {self.name:<14} {self.note}"
        return (
            f"{verdict} {self.name:<14} max error {self.max_error:9.3e} = {self.max_ratio:5.2f} x bound, "
            f"rms error {self.rms_error:9.3e} = {self.rms_ratio:5.2f} x bound"
        )


def compare(
    name: str,
    got: Tensor,
    exact: Tensor,
    eager: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    eps: float | None = None,
    scale: Tensor | None = None,
) -> Comparison:
    """Measures `got` against the float64 `exact` with the error of `eager` as the yardstick.

    Args:
        got: what is judged; must have the shape of `exact` and the dtype `dtype`.
        exact: the truth, float64. Where it is NaN or overflows `dtype`, `got` must be the same.
        eager: the yardstick: results of eager that differ in the order of its sums alone, for the error of a single
            number may be next to nothing by luck. The largest error counts. Empty: the bound is eps * scale.
        eps: epsilon of the problem's dtype (default: of `dtype`; they differ for a float32 gradient of a bfloat16
            problem).
        scale: a tensor whose size is the scale of the rounding (default `exact`). Gradients through a softmax pass
            their size before the cancellation in it, which can be total.
    """
    if got.shape != exact.shape:
        return Comparison(name, 0, 0, 0, 0, f"shape {tuple(got.shape)}, wanted {tuple(exact.shape)}")
    if got.dtype != dtype:
        return Comparison(name, 0, 0, 0, 0, f"dtype {got.dtype}, wanted {dtype}")
    if exact.dtype != torch.float64:
        raise TypeError(f"exact must be float64, got {exact.dtype}")
    if exact.numel() == 0:
        return Comparison(name, 0.0, 0.0, 0.0, 0.0)

    error = _error(got, exact, dtype)
    eager_errors = [_error(result, exact, dtype) for result in eager] or [torch.zeros_like(error)]
    judged = torch.isfinite(torch.stack(eager_errors).amax(0))  # elsewhere eager is no yardstick
    scale = (exact if scale is None else scale).double()
    scale = torch.where(torch.isfinite(scale), scale, 0.0).abs()
    eps = epsilon(dtype) if eps is None else eps
    # Around zero, no result can be finer than its dtype's spacing. And float32 arithmetic may flush what is subnormal,
    # a probability for example, before it is multiplied by numbers of the problem: those are below 64.
    spacing = max(
        torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps, 64 * torch.finfo(torch.float32).smallest_normal
    )
    max_floor = eps * scale.max().item() + spacing
    rms_floor = eps * _rms(scale) + spacing

    max_ratio = rms_ratio = 0.0
    if judged.any():
        max_bound = EAGER_FACTOR * max(e[judged].max().item() for e in eager_errors) + max_floor
        rms_bound = EAGER_FACTOR * max(_rms(e[judged]) for e in eager_errors) + rms_floor
        max_ratio = error[judged].max().item() / max_bound
        rms_ratio = _rms(error[judged]) / rms_bound
    if not judged.all():
        max_ratio = max(max_ratio, error[~judged].max().item() / max_floor)
        rms_ratio = max(rms_ratio, _rms(error[~judged]) / rms_floor)
    return Comparison(name, error.max().item(), max_ratio, _rms(error), rms_ratio)


def check(where: str, comparisons: Iterable[Comparison]) -> None:
    """Prints one line per tensor under the heading `where`; raises AssertionError with all of them if one failed."""
    lines = list(comparisons)
    text = "\n  ".join([where, *map(str, lines)])
    print(text)
    if not all(line.ok for line in lines):
        raise AssertionError(text)


def _error(got: Tensor, exact: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = exact.to(dtype).double()
    got = got.double()
    error = (got - exact).abs()
    same = ~torch.isfinite(rounded) & ((got == rounded) | (got.isnan() & rounded.isnan()))
    error = torch.where(same, 0.0, error)
    return torch.where(torch.isfinite(error), error, float("inf"))


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
