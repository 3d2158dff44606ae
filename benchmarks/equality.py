# SPDX-License-Identifier: Apache-2.0
"""Who counts as equal: results against float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .contenders import Contender


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Largest difference as a part of the largest magnitude of `exact`. Infinite where anything is not finite."""
    if got.shape != exact.shape:
        return float("inf")
    error = ((got.double() - exact).abs().max() / exact.abs().max()).item()
    return error if math.isfinite(error) else float("inf")


def errors(contender: Contender, exact: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative_error(got, exact[name]) for name, got in contender.results().items()}


def unequal(found: dict[str, float], bound: dict[str, float]) -> list[str]:
    """One sentence for each tensor that is not equal; `not <=` so that NaN is never equal."""
    return [
        f"{name} differs from float64 by {error:.1e} of its largest magnitude, allowed {bound[name]:.1e}"
        for name, error in found.items()
        if not error <= bound[name]
    ]


def our_bound(dtype: torch.dtype, yardstick: dict[str, float]) -> dict[str, float]:
    """The project's tolerance rule: twice the error of eager, plus the epsilon of the dtype."""
    return {name: 2 * error + torch.finfo(dtype).eps for name, error in yardstick.items()}
