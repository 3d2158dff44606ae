# SPDX-License-Identifier: Apache-2.0
"""The tuner, as far as a machine without a GPU can tell; `scripts/gpu_check.sh --dry-run tune` runs it whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from swin_fast import dispatch
from swin_fast.backends.configs import Parameters, rule

from . import tune
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


def test_a_dirty_tree_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SWIN_FAST_COMMIT", "abc")
    monkeypatch.setenv("SWIN_FAST_DIRTY", "1")
    monkeypatch.setattr(sys, "argv", ["tune", "--device", "cpu", "--toy"])
    monkeypatch.setattr(tune, "interpret", lambda: None)
    with pytest.raises(SystemExit):
        tune.main()
    assert "uncommitted changes" in capsys.readouterr().err


def test_what_was_measured_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With `--add`, as long as the versions are the same."""
    monkeypatch.setenv("SWIN_FAST_COMMIT", "abc")
    monkeypatch.setenv("SWIN_FAST_DIRTY", "0")
    monkeypatch.setattr(tune, "interpret", lambda: None)
    measured: list[str] = []

    def tuned(direction: str, row: Any, device: str) -> tuple[Parameters, dict[str, Any]]:
        measured.append(direction)
        return rule(direction, row.dtype, row.case.tokens, row.case.head_dim), {"ms": 1.0}

    monkeypatch.setattr(tune, "tuned", tuned)
    path = tmp_path / "tune.json"
    arguments = ["tune", "--device", "cpu", "--toy", "--json", str(path), "--add"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert tune.main() == 0
    assert measured == ["fwd", "bwd"]
    first = json.loads(path.read_text())
    assert first["measured"]["fwd-fp16-N16-hd16"]["commit"] == {"id": "abc", "dirty": False}
    del first["parameters"]["bwd-fp16-N16-hd16"]
    path.write_text(json.dumps(first))
    assert tune.main() == 0
    assert measured == ["fwd", "bwd", "bwd"]
    path.write_text(json.dumps({**first, "triton": "1.0"}))
    with pytest.raises(SystemExit):
        tune.main()


def test_triton_and_cuda_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them right, with plain PyTorch in the place of both."""
    row = next(row for _, row in all_problems(toy=True))
    whose: list[Parameters | None] = []

    def call_of(problem: Any, direction: str, chosen: Parameters | None) -> Any:
        whose.append(chosen)
        exact = problem.exact()
        results = (exact["out"],) if direction == "fwd" else (exact["dqkv"], exact["dtable"])
        return lambda: tuple(wrong.get(chosen, 1.0) * x for x in results)

    wrong: dict[Parameters | None, float] = {}
    monkeypatch.setattr(tune, "call_of", call_of)
    chosen = rule("fwd", row.dtype, 16, 16)
    assert tune.against_cuda("fwd", row, "cpu", chosen) is None, "cuda does not take it, for one reason or another"
    monkeypatch.setattr(dispatch, "why_not", lambda backend, problem: [])
    for direction in ("fwd", "bwd"):
        times = tune.against_cuda(direction, row, "cpu", chosen)
        assert times and [*times] == ["triton_ms", "cuda_ms"] and min(times.values()) > 0
    assert whose == 2 * [chosen, None]
    wrong[None] = 1.1
    with pytest.raises(AssertionError, match=r"only \['triton'\] of \['triton', 'cuda'\] is right"):
        tune.against_cuda("fwd", row, "cpu", chosen)


def test_what_is_kept_is_compared_again_if_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWIN_FAST_COMMIT", "abc")
    monkeypatch.setenv("SWIN_FAST_DIRTY", "0")
    monkeypatch.setattr(tune, "interpret", lambda: None)
    tuned: list[str] = []
    times = {"triton_ms": 2.0, "cuda_ms": 1.0}

    def tune_one(direction: str, row: Any, device: str) -> tuple[Parameters, dict[str, Any]]:
        tuned.append(direction)
        return rule(direction, row.dtype, row.case.tokens, row.case.head_dim), {"ms": 1.0}

    monkeypatch.setattr(tune, "tuned", tune_one)
    monkeypatch.setattr(tune, "against_cuda", lambda direction, *_: dict(times) if direction == "bwd" else None)
    path = tmp_path / "tune.json"

    def run(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["tune", "--device", "cpu", "--toy", "--json", str(path), *arguments])
        assert tune.main() == 0
        found: dict[str, Any] = json.loads(path.read_text())
        assert list(found["compared"]) == ["bwd-fp16-N16-hd16"]
        assert found["compared"]["bwd-fp16-N16-hd16"]["commit"] == {"id": "abc", "dirty": False}
        return found["compared"]["bwd-fp16-N16-hd16"]  # type: ignore[no-any-return]

    assert run()["cuda_ms"] == 1.0
    times["cuda_ms"] = 0.5
    assert run("--add")["cuda_ms"] == 1.0
    assert run("--compare")["cuda_ms"] == 0.5
    assert tuned == ["fwd", "bwd"]


def test_what_swin_has_most_comes_first() -> None:
    names = [(direction, row.dtype_name, row.case.tokens) for direction, row in all_problems(toy=False)]
    assert names[:4] == [("fwd", "bf16", 49), ("bwd", "bf16", 49), ("fwd", "bf16", 144), ("bwd", "bf16", 144)]
    assert len(set(names)) == len(names) == 24
