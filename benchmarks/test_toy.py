# SPDX-License-Identifier: Apache-2.0
"""Every suite whole, at toy size: no benchmark rots unseen."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .machine import ROOT
from .run import ASKED_FOR
from .suites import SUITES

GPU_ALONE = ("autotune", "timm_cudagraphs")
COMMAND = [sys.executable, "-m", "benchmarks.run", "--toy", "--allow-dirty"]
#: Whom a CPU cannot run, by what the reason says.
EXPECTED = {
    "flex": "no backward on a CPU",
    "flex_block_mask": "no backward on a CPU",
    "onnxruntime": "no bfloat16 kernels",
    "openvino": "does not compute in bf16",
}


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, float) else []


@pytest.fixture(autouse=True)
def as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-benchmark in a process of ours shall not think that it is a worker of pytest-xdist, if this one is."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_runs_and_its_result_is_whole(tmp_path: Path, suite: str) -> None:
    path = tmp_path / "toy.json"
    done = subprocess.run(
        [*COMMAND, "--suite", suite, "--json", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    result = json.loads(path.read_text())
    assert (result["suite"], result["not_measured"], result["failed"]) == (suite, [], False)
    infos = [benchmark["extra_info"] for benchmark in result["benchmarks"]]
    assert len(infos) == 3
    seen = {peer["family"] for info in infos for peer in info["peers"].values()}
    here = set(SUITES[suite].families) - {*ASKED_FOR["cpu"], *GPU_ALONE}
    assert seen | {left["family"] for info in infos for left in info["left_out"].values()} == here
    for info in infos:
        assert all(math.isfinite(number) and number >= 0 for number in numbers(info))
        assert info["ms"] > 0 and info["peak_mb"] > 0 and info["percent_of_roof"] > 0
        assert all(peer["ms"] > 0 and peer["rounds"] >= 2 for peer in info["peers"].values())
        for name, left in info["left_out"].items():
            assert EXPECTED.get(name, "never") in left["reason"], (name, left)
    assert all(name in result["machine_info"]["ceilings"] for name in ("copy_gb_per_s", "copy_gb_per_s_2t"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_run_that_ends_early_leaves_the_rows_that_are_done(tmp_path: Path, how: str) -> None:
    path = tmp_path / "toy.json"
    command = [*COMMAND, "--suite", "op", "--peers", "eager", "--budget", "30", "--json", str(path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:  # a line ends where the next row begins
            if "ms, " in line:
                break
        time.sleep(1.0)
        if how == "stopped":
            os.killpg(run.pid, signal.SIGTERM)  # as `timeout` does
        else:  # as a system that has no memory left does with whoever measures
            measuring = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=True).stdout
            os.kill(int(measuring), signal.SIGKILL)
        text, _ = run.communicate(timeout=60)
    assert run.returncode != 0, text
    result = json.loads(path.read_text())
    assert result["failed"] and 1 <= len(result["benchmarks"]) < 3
    assert len(result["benchmarks"]) + len(result["not_measured"]) == 3
