# SPDX-License-Identifier: Apache-2.0
"""Which backends the tests run over, and when one that cannot run is a skip or a failure."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

import conftest
from cases import Case
from swin_fast import ops
from swin_fast.backends import native

COLLECT = "import pytest; pytest.main(['--collect-only', '-q', 'test_determinism.py::test_results_are_fresh_memory'])"


@pytest.mark.parametrize("required", ["", "cuda,cpu"], ids=["none-required", "some-required"])
def test_the_backends_are_those_of_this_version_and_the_required_ones(
    required: str, monkeypatch: pytest.MonkeyPatch, run_script: Callable[..., str]
) -> None:
    monkeypatch.setenv("SWIN_FAST_REQUIRE", required)
    collected = re.findall(r"::\w+\[(\w+)", run_script(COLLECT, timeout=120))
    here = {name for name in ops.OVERLOADS if name != "triton" or torch.cuda.is_available()}
    assert set(collected) == {*here, *filter(None, required.split(","))} - {"reference"}


@pytest.mark.parametrize(("required", "outcome"), [((), pytest.skip.Exception), (("cpu",), pytest.fail.Exception)])
def test_a_backend_that_cannot_run_is_skipped_unless_it_is_required(
    required: tuple[str, ...], outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "REQUIRED", required)
    monkeypatch.setattr(native, "cpu_why_not", lambda: ["it was taken away"])
    with pytest.raises(outcome, match="cpu: it was taken away"):
        conftest.KernelPath("cpu", "cpu").require(Case(4, 4, (2, 2), (1, 1), 1, 2), torch.float32)
