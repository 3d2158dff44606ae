# SPDX-License-Identifier: Apache-2.0
"""The Triton ops, whose kernels are imported by the first call: Triton is optional, and takes 0.1 s to import."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

#: Whether kernels run in Triton's interpreter, on tensors of the CPU. Triton reads it when kernels are imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DISPATCH_KEYS = ("CPU",) if INTERPRETED else ("CUDA",)


def why_not() -> list[str]:
    """Why the kernels cannot run at all."""
    return [] if find_spec("triton") else ["Triton is not installed; `pip install triton` brings it"]


def window_attention_fwd(*arguments: Any) -> Any:
    from . import triton_launch

    return triton_launch.window_attention_fwd(*arguments)


def window_attention_bwd(*arguments: Any) -> Any:
    from . import triton_launch

    return triton_launch.window_attention_bwd(*arguments)
