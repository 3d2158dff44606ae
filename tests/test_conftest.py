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
    here = {name for name in ops.OVERLOADS if name not in ("triton", "cuda") or torch.cuda.is_available()}
    assert set(collected) == {*here, *filter(None, required.split(","))} - {"reference"}


@pytest.mark.parametrize(("required", "outcome"), [((), pytest.skip.Exception), (("cpu",), pytest.fail.Exception)])
def test_a_backend_that_cannot_run_is_skipped_unless_it_is_required(
    required: tuple[str, ...], outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "REQUIRED", required)
    monkeypatch.setattr(native, "cpu_why_not", lambda: ["it was taken away"])
    with pytest.raises(outcome, match="cpu: it was taken away"):
        conftest.KernelPath("cpu", "cpu").require(Case(4, 4, (2, 2), (1, 1), 1, 2), torch.float32)


@pytest.mark.parametrize(("dtype", "outcome"), [(torch.float32, pytest.skip.Exception), (torch.float16, None)])
def test_what_cuda_leaves_to_triton_is_skipped_also_where_it_is_required(
    dtype: torch.dtype, outcome: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "REQUIRED", ("cuda",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    some = [{"dtypes": ["float16", "bfloat16"], "window_area": [1, 64], "head_dims": [32]}]
    facts = {"architectures": [90], "ptx": [], "forward": some, "backward": some}
    monkeypatch.setattr(native, "cuda_build_info", lambda: facts)
    monkeypatch.setattr(native, "cuda_why_not", list)
    case = Case(7, 7, (7, 7), (3, 3), 1, 32)
    path = conftest.KernelPath("cuda", "cuda")
    if outcome is None:
        path.require(case, dtype)
    else:
        with pytest.raises(outcome, match="no backward kernel for float32 N=49 hd=32: left to triton"):
            path.require(case, dtype)
    monkeypatch.setattr(native, "cuda_why_not", lambda: ["the CUDA library is not built"])
    with pytest.raises(pytest.fail.Exception, match="the CUDA library is not built"):
        path.require(case, dtype)
