# SPDX-License-Identifier: Apache-2.0
"""The Triton backend without a GPU: its kernels in Triton's interpreter, and their binaries for GPUs not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from swin_fast.backends import configs, triton_fwd
from triton_gate import (
    AS_SM_80,
    SHARED,
    VARIANTS,
    Binary,
    Build,
    binaries,
    compile_kernel,
    constants,
    issued,
    launches,
    loop_lengths,
    translate,
)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
#: What SWIN_FAST_CUDA_ARCHS has when nobody sets it.
ARCHS = (80, 86, 89, 90, 100, 120)
HERE = Path(__file__).parent
#: Which tests of all backends run in the interpreter, by a -k expression. Others make too many windows for it.
INTERPRETED = {
    "test_triton_interpreted.py": "",
    "test_window_attention.py": "triton and not peak_memory and not (non_finite_bias and relative) and not "
    "(non_finite_pad_value and inf)",
    "test_registration.py": "triton and (opcheck or absent or saved_for or refuses_to_be)",
    "test_torch_integration.py": "triton and (one_node or vmap or casts_qkv)",
}
#: Bytes of stack of the kernels that spill registers: {kernel: {build: bytes}}. What stands here is known, and may not
#: grow.
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


BUILDS = [
    Build(arch, dtype, window, variant)
    for dtype in (BF16, FP16, FP32)
    for arch in ARCHS
    for window in (7, 8, 12, 16)
    for variant in VARIANTS
    # The others are instructed alike, but with cosine attention in float16, and spill with everything or not at all.
    if variant in {BF16: VARIANTS, FP16: ("everything",), FP32: ("plain", "everything")}[dtype]
]
# Of the others' float32 kernels none takes its keys in blocks forward.
BUILDS += [Build(arch, FP32, 24, "everything") for arch in (80, 90)]


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> Iterator[dict[Build, Future[dict[str, Binary]]]]:
    """The builds that this run asks for, by as many compilers as there are cores."""

    def is_mine(item: pytest.Item) -> bool:
        return item.path == request.path and "compiled" in item.fixturenames

    wanted = [item.callspec.params["build"] for item in request.session.items if is_mine(item)]
    # Not by fork: PyTorch's threads would not come along.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield {build: pool.submit(binaries, build) for build in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_kernels_compile_to_what_a_gpu_can_run(build: Build, compiled: dict[Build, Future[dict[str, Binary]]]) -> None:
    for name, binary in compiled[build].result().items():
        print(f"{name} {build}: {binary}")
        known = SPILLS.get(name, {}).get(str(build), 0)
        assert binary.faults(tensor_cores=build.dtype != FP32, stack=known) == [], name


@pytest.mark.slow
def test_every_known_spill_is_of_a_build() -> None:
    assert {build for builds in SPILLS.values() for build in builds} <= {str(build) for build in BUILDS}


@pytest.mark.slow
@pytest.mark.parametrize("arch", AS_SM_80)
def test_the_ptx_of_all_of_sm_8x_is_that_of_sm_80(arch: int) -> None:
    texts = []
    for target in (80, arch):
        kernel, options = launches(BF16, 7)[-1]
        ptx = translate(kernel, BF16, target, constants(7, **VARIANTS["everything"]), options).asm["ptx"]
        texts.append(ptx.replace(f".target sm_{target}", ""))
    assert texts[0] == texts[1]


#: Warp instructions that an H200 can issue for a (window, head) while its memory moves the bytes of one: 132
#: multiprocessors of four schedulers at 1.755 GHz, 4.3 TB/s.
ISSUE_SLOTS = {(7, "fwd"): 2703, (7, "bwd"): 4731, (12, "fwd"): 7944, (12, "bwd"): 13902}
#: The least part of the bandwidth that the instructions of a kernel leave possible on sm_90, in windows without a
#: border, and in those with one.
LEAST_PART = {(7, "fwd"): (1.4, 0.7), (7, "bwd"): (1.28, 0.85), (12, "fwd"): (0.7, 0.48), (12, "bwd"): (0.38, 0.27)}


@pytest.mark.slow
@pytest.mark.parametrize(("window", "direction"), ISSUE_SLOTS)
def test_instructions_leave_the_bandwidth_within_reach(window: int, direction: str) -> None:
    kernel, options = launches(BF16, window)[direction == "bwd"]
    tiles = -(-(window**2) // options["ROWS"])
    for border, least in zip((False, True), LEAST_PART[window, direction], strict=True):
        binary = compile_kernel(kernel, BF16, 90, constants(window, SHIFTED=border), options)
        found = issued(binary, tiles)
        part = ISSUE_SLOTS[window, direction] / found
        where = "with a border" if border else "without"
        print(f"{kernel.fn.__name__} N = {window**2} {where}: {found} warp instructions, {part:.0%} of the bandwidth")
        assert part >= least


#: A float32 window of 64 tokens in one tile of four warps.
WHOLE = {"ROWS": 64, "KEYS": 64, "MORE_KEYS": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "dtype", "arch", "changes", "fault"),
    [
        (triton_fwd.whole_windows, FP32, 90, WHOLE, "bytes of stack, allowed 0"),
        (triton_fwd.whole_windows, BF16, 89, {**WHOLE, "KEYS": 512, "D": 128}, "bytes of shared memory, sm_89 has"),
        (triton_fwd.whole_windows, FP32, 90, WHOLE, "no tensor core instruction"),
        (
            triton_fwd.whole_windows,
            FP32,
            90,
            {**WHOLE, "PRECISION": "tf32"},
            "a tensor core instruction in float32",
        ),
    ],
    ids=["spill", "shared", "no-tensor-core", "tf32"],
)
def test_the_gate_finds_what_is_wrong(
    kernel: Any, dtype: torch.dtype, arch: int, changes: dict[str, Any], fault: str
) -> None:
    binary = compile_kernel(kernel, dtype, arch, constants(7, **changes), {"num_warps": 4, "num_stages": 1})
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
    mine = {"rows": 16, "keys": 64, "more_keys": 0, "warps": 1, "units": 3, "registers": None}
    (tmp_path / "some-gpu.json").write_text(json.dumps({"parameters": {"fwd-bf16-N49-hd32": mine}}))
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    configs.committed.cache_clear()
    assert configs.parameters("fwd", BF16, 49, 32, "some-gpu") == configs.Parameters(**mine)
    assert configs.parameters("fwd", FP16, 49, 32, "some-gpu") == configs.Parameters(**mine)
    assert configs.parameters("fwd", FP32, 49, 32, "some-gpu") == configs.rule("fwd", FP32, 49, 32)
    for device, N in (("some-gpu", 64), ("other-gpu", 49), (None, 49)):
        assert configs.parameters("fwd", BF16, N, 32, device) == configs.rule("fwd", BF16, N, 32)
    configs.committed.cache_clear()


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
