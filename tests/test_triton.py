# SPDX-License-Identifier: Apache-2.0
"""The Triton backend without a GPU: its kernels in Triton's interpreter, and their binaries for GPUs not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton

from swin_fast.backends import configs, triton_bwd, triton_bwd_blocks, triton_fwd
from triton_gate import SHARED, Binary, compile_kernel, loop_lengths

BF16, FP32 = torch.bfloat16, torch.float32
#: One of each kind of tensor core; sm_89 is as sm_80, with less shared memory.
ARCHS = (80, 90, 100, 120)
HERE = Path(__file__).parent
#: Which tests of all backends run in the interpreter, by a -k expression. Others make too many windows for it.
INTERPRETED = {
    "test_triton_interpreted.py": "",
    "test_window_attention.py": "triton and not peak_memory and not (non_finite_bias and relative) and not "
    "(non_finite_pad_value and inf)",
    "test_registration.py": "triton and (opcheck or absent or saved_for or refuses_to_be)",
    "test_torch_integration.py": "triton and (one_node or vmap or casts_qkv)",
}
#: Bytes of stack of the kernels that spill registers, where `launches` compiles them: {kernel: {what: bytes}}, `what`
#: as in `name_of`. The aim is none; what stands here is known, and may not grow.
SPILLS = json.loads((HERE / "triton_spills.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[subprocess.Popen[bytes], Path]]]:
    """pytest over each file in a process of its own, all at once: the process, and what it says.

    Triton reads TRITON_INTERPRET when kernels are imported, hence other processes.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "SWIN_FAST_REQUIRE": "triton"}
    started = {}
    for file, selection in INTERPRETED.items():
        log = tmp_path_factory.mktemp("interpreted") / f"{file}.log"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file, "-k", selection]
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=HERE, env=environment, stdout=out, stderr=subprocess.STDOUT)
        started[file] = (process, log)
    yield started
    for process, _log in started.values():
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("file", INTERPRETED)
def test_the_tests_of_all_backends_in_the_interpreter(
    file: str, runs: dict[str, tuple[subprocess.Popen[bytes], Path]]
) -> None:
    process, log = runs[file]
    status = process.wait()
    said = log.read_text()
    assert status == 0, said[-6000:]
    assert " passed" in said and "skipped" not in said


# --------------------------------------------------------------------------------------------------- the compile gate


def constants(window: int, *, everything: bool = False, hd: int = 32) -> dict[str, Any]:
    """A shifted block with a bias; `everything`: with padding, a pad value and cosine attention, too."""
    return {
        "WH": window,
        "WW": window,
        "HD": hd,
        "D": max(16, triton.next_power_of_2(hd)),
        "HAS_BIAS": True,
        "COSINE": everything,
        "HAS_PAD": everything,
        "PADDED": everything,
        "SHIFTED": True,
        "ROLL_PAD": False,
        "WIDE": False,
        "PRECISION": "ieee",
    }


def launches(dtype: torch.dtype, window: int, hd: int = 32) -> list[tuple[Any, dict[str, int], int]]:
    """(kernel, tiles, warps) of what a call and its backward launch, by the rule."""
    N, found = window**2, []
    chosen = configs.rule("fwd", dtype, N, hd)
    tiles = {"ROWS": chosen.rows, "KEYS": chosen.keys}
    if chosen.keys + chosen.more_keys >= N:
        found.append((triton_fwd.whole_windows, {**tiles, "MORE_KEYS": chosen.more_keys}, chosen.warps))
    else:
        found.append((triton_fwd.rows_of_windows, tiles, chosen.warps))
    chosen = configs.rule("bwd", dtype, N, hd)
    tiles = {"ROWS": chosen.rows, "KEYS": chosen.keys}
    if chosen.rows >= N:
        found.append((triton_bwd.small_windows_bwd, {"ROWS": chosen.rows}, chosen.warps))
    elif chosen.keys + chosen.more_keys >= N:
        found.append((triton_bwd.whole_windows_bwd, {**tiles, "MORE_KEYS": chosen.more_keys}, chosen.warps))
    else:
        found += [(kernel, tiles, chosen.warps) for kernel in BLOCKS]
    return found


BLOCKS = (triton_bwd_blocks.query_rows_bwd, triton_bwd_blocks.key_rows_bwd)


def compiled() -> list[tuple[int, torch.dtype, int, bool]]:
    """(arch, dtype, window, everything) of the gate: what Swin has most on every architecture, the rest on one."""
    found = [(arch, BF16, window, everything) for arch in ARCHS for window in (7, 12) for everything in (False, True)]
    found += [(arch, FP32, window, False) for arch in ARCHS for window in (7, 12)]
    return [*found, (90, BF16, 8, False), (90, BF16, 16, False), (89, BF16, 7, False), (90, torch.float16, 7, False)]


def name_of(arch: int, dtype: torch.dtype, window: int, everything: bool) -> str:
    return f"sm_{arch}-{str(dtype).removeprefix('torch.')}-w{window}{'-everything' if everything else ''}"


@pytest.mark.slow
@pytest.mark.parametrize("what", compiled(), ids=lambda what: name_of(*what))
def test_kernels_compile_to_what_a_gpu_can_run(what: tuple[int, torch.dtype, int, bool]) -> None:
    arch, dtype, window, everything = what
    for kernel, tiles, warps in launches(dtype, window):
        binary = compile_kernel(kernel, dtype, arch, {**constants(window, everything=everything), **tiles}, warps)
        name = kernel.fn.__name__
        print(f"{name} {name_of(*what)}: {binary}")
        known = SPILLS.get(name, {}).get(name_of(*what), 0)
        assert binary.faults(tensor_cores=dtype != FP32, stack=known) == [], name


#: Warp instructions that an H200 can issue for a (window, head) while its memory moves the bytes of one: 132
#: multiprocessors of four schedulers at 1.755 GHz, 4.3 TB/s. The loop over windows is held against it.
ISSUE_SLOTS = {(7, "whole_windows"): 2703, (7, "small_windows_bwd"): 4731}
#: The least part of the bandwidth that the instructions of a kernel leave possible on sm_90.
LEAST_PART = {(7, "whole_windows"): 1.0, (7, "small_windows_bwd"): 0.88}


@pytest.mark.slow
def test_instructions_leave_the_bandwidth_within_reach() -> None:
    for kernel, tiles, warps in launches(BF16, 7):
        binary = compile_kernel(kernel, BF16, 90, {**constants(7), **tiles}, warps)
        key = (7, kernel.fn.__name__)
        part = ISSUE_SLOTS[key] / max(binary.loops)
        print(f"{key[1]}: {max(binary.loops)} warp instructions, {part:.0%} of the bandwidth")
        assert part >= LEAST_PART[key]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "dtype", "arch", "changes", "fault"),
    [
        (triton_fwd.whole_windows, FP32, 90, {"ROWS": 64, "KEYS": 64, "MORE_KEYS": 0}, "bytes of stack, allowed 0"),
        (triton_bwd.small_windows_bwd, FP32, 89, {"ROWS": 128}, "bytes of shared memory, sm_89 has"),
        (triton_fwd.whole_windows, FP32, 90, {"ROWS": 64, "KEYS": 64, "MORE_KEYS": 0}, "no tensor core instruction"),
        (
            triton_fwd.whole_windows,
            FP32,
            90,
            {"ROWS": 64, "KEYS": 64, "MORE_KEYS": 0, "PRECISION": "tf32"},
            "a tensor core instruction in float32",
        ),
    ],
    ids=["spill", "shared", "no-tensor-core", "tf32"],
)
def test_the_gate_finds_what_is_wrong(
    kernel: Any, dtype: torch.dtype, arch: int, changes: dict[str, Any], fault: str
) -> None:
    binary = compile_kernel(kernel, dtype, arch, {**constants(7), **changes}, 4)
    faults = binary.faults(tensor_cores="PRECISION" not in changes)
    assert any(fault in found for found in faults), faults


def test_a_trap_and_too_much_tensor_memory_are_faults() -> None:
    good = Binary(90, 100, 0, SHARED[90], 512, trap=False, tensor_cores=True, loops=())
    assert good.faults(tensor_cores=True) == []
    assert replace(good, trap=True).faults(tensor_cores=True) == ["its body is a trap"]
    much = replace(good, tensor_columns=576)
    assert much.faults(tensor_cores=True) == ["576 columns of tensor memory, there are 512"]


def test_loops_are_counted_from_a_label_to_the_branch_back() -> None:
    line = "        /*0000*/                   FADD R1, R1, R2 ;\n"
    back = "        /*0000*/              @P0 BRA `(.L_x_1) ;\n"
    forward = "        /*0000*/                   BRA `(.L_x_2) ;\n"
    assert loop_lengths(3 * line + ".L_x_1:\n" + 120 * line + back + forward + ".L_x_2:\n" + line) == [121]
    assert loop_lengths(".L_x_1:\n" + 20 * line + back) == []


# -------------------------------------------------------------------------------------------------- launch parameters


def test_parameters_are_those_of_the_device_or_the_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = {"rows": 16, "keys": 64, "more_keys": 0, "warps": 1, "units": 3}
    (tmp_path / "some-gpu.json").write_text(json.dumps({"parameters": {"fwd-bf16-N49-hd32": mine}}))
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    configs.measured.cache_clear()
    assert configs.parameters("fwd", BF16, 49, 32, "some-gpu") == configs.Parameters(**mine)
    for device, N in (("some-gpu", 64), ("other-gpu", 49), (None, 49)):
        assert configs.parameters("fwd", BF16, N, 32, device) == configs.rule("fwd", BF16, N, 32)
    configs.measured.cache_clear()


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bf16", "fp32"])
def test_the_rule_covers_every_window(direction: str, dtype: torch.dtype) -> None:
    for N in range(1, 1025):
        for hd in (2, 32, 64, 128):
            chosen = configs.rule(direction, dtype, N, hd)
            sizes = (chosen.rows, chosen.keys, chosen.more_keys or 16)
            assert all(size >= 16 and size & (size - 1) == 0 for size in sizes)
            assert chosen.more_keys == 0 or chosen.keys < N <= chosen.keys + chosen.more_keys
    found = [configs.two_powers(N) for N in (65, 81, 128, 144, 256)]
    assert found == [(64, 16), (64, 32), (128, 0), (128, 16), (256, 0)]


@pytest.mark.parametrize(
    ("name", "device"), [("NVIDIA H200", "nvidia-h200"), ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090")]
)
def test_the_name_of_a_device(name: str, device: str) -> None:
    assert configs.slug(name) == device
