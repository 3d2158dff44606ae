# SPDX-License-Identifier: Apache-2.0
"""The tuner, as far as a machine without a GPU can tell; `scripts/gpu_check.sh --dry-run tune` runs it whole."""

from __future__ import annotations

import pytest
import torch

from swin_fast.backends.configs import rule

from .tune import all_problems, candidates


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
@pytest.mark.parametrize("N", [16, 49, 64, 144, 256, 576])
def test_candidates_can_run_and_the_rule_is_the_first(direction: str, N: int) -> None:
    found = candidates(direction, torch.bfloat16, N, 32)
    assert found[0] == rule(direction, torch.bfloat16, N, 32)
    assert len(set(found)) == len(found) > 5
    for one in found:
        sizes = (one.rows, one.keys, one.more_keys or 16, one.warps * 16)
        assert all(size >= 16 and size & (size - 1) == 0 for size in sizes)
        assert one.more_keys == 0 or one.keys < N <= one.keys + one.more_keys


def test_what_swin_has_most_comes_first() -> None:
    names = [(direction, row.dtype_name, row.case.tokens) for direction, row in all_problems(toy=False)]
    assert names[:4] == [("fwd", "bf16", 49), ("bwd", "bf16", 49), ("fwd", "bf16", 144), ("bwd", "bf16", 144)]
    assert len(set(names)) == len(names) == 24
