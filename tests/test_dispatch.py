# SPDX-License-Identifier: Apache-2.0
"""The dispatch rule: a table of made-up problems, precedence, forcing, and what is said when something cannot run."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import swin_fast
from swin_fast import dispatch, doctor, ops
from swin_fast.backends import configs, native, triton_ops
from swin_fast.dispatch import BACKENDS, Problem

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
LIMITS = {"max_window_area": 1024, "max_head_dim": 128}
#: As if the CUDA library had these: each direction alone, and both.
CUDA_FACTS = {
    "architectures": [80, 90, 100],
    "ptx": [120],
    "cuda_runtime": "13.0",
    "forward": [
        {"dtypes": ["float16", "bfloat16"], "window_area": [1, 64], "head_dims": [32]},
        {"dtypes": ["float16", "bfloat16"], "window_area": [65, 1024], "head_dims": [16, 32, 64]},
        {"dtypes": ["float32"], "window_area": [1, 1024], "head_dims": [32]},
    ],
    "backward": [
        {"dtypes": ["float16", "bfloat16"], "window_area": [1, 64], "head_dims": [30, 32]},
        {"dtypes": ["float16", "bfloat16"], "window_area": [144, 144], "head_dims": [32]},
        {"dtypes": ["float32"], "window_area": [1, 64], "head_dims": [32]},
    ],
}


@pytest.fixture
def cpu_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule must not depend on whether this machine has built the library."""
    monkeypatch.setattr(native, "cpu_why_not", lambda: [])
    monkeypatch.setattr(native, "cpu_build_info", lambda: LIMITS)


@pytest.fixture
def cuda_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if its library were there, and a driver."""
    monkeypatch.setattr(native, "cuda_why_not", list)
    monkeypatch.setattr(native, "cuda_build_info", lambda: CUDA_FACTS)


@pytest.fixture
def cpu_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cpu_why_not", lambda: ["the CPU library is not built"])
    monkeypatch.setattr(native, "cpu_build_info", lambda: {})


@pytest.fixture
def fresh_choices() -> Any:
    """Forgets the choices of earlier calls, before and after the test."""
    dispatch._resolve_once.cache_clear()
    yield
    dispatch._resolve_once.cache_clear()


@pytest.fixture
def triton_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Triton were there, and its interpreter off."""
    monkeypatch.setattr(triton_ops, "why_not", list)
    monkeypatch.setattr(triton_ops, "INTERPRETED", False)


def test_triton_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_ops, "find_spec", lambda name: None)
    monkeypatch.setattr(native, "cuda_why_not", lambda: ["the CUDA library is not built"])
    problem = Problem(SINGLE, "cuda", (9, 0), 49, 32)
    assert dispatch.choose(problem) == "reference"
    assert dispatch.why_not("triton", problem) == ["Triton is not installed; `pip install triton` brings it"]


def test_the_interpreter_takes_tensors_of_the_cpu_if_it_is_forced(
    cpu_built: None, triton_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_ops, "INTERPRETED", True)
    problem = Problem(SINGLE, "cpu", None, 49, 32)
    assert (dispatch.choose(problem), dispatch.choose(problem, "triton")) == ("cpu", "triton")
    assert "in Triton's interpreter" in dispatch.why_not("triton", Problem(SINGLE, "cuda", (9, 0), 49, 32))[0]


#: (problem, automatic choice, {backend: a part of its reason}); a backend that is not named can run the problem.
CUDA_ALONE = {"triton": "takes tensors on cuda, not on", "cuda": "takes tensors on cuda, not on"}
NOT_CPU = {"cpu": "on cpu, not on cuda"}
TABLE = [
    (Problem(SINGLE, "cpu", None, 49, 32), "cpu", CUDA_ALONE),
    (Problem(HALF, "cpu", None, 144, 32), "cpu", CUDA_ALONE),
    (Problem(BRAIN, "cpu", None, 1024, 128), "cpu", CUDA_ALONE),
    (Problem(SINGLE, "cpu", None, 1, 2), "cpu", CUDA_ALONE),
    (Problem(DOUBLE, "cpu", None, 49, 32), "reference", {"cpu": "not float64", **CUDA_ALONE}),
    (Problem(SINGLE, "cpu", None, 1025, 32), "reference", {"cpu": "up to 1024 tokens", **CUDA_ALONE}),
    (Problem(SINGLE, "cpu", None, 49, 130), "reference", {"cpu": "up to 128", **CUDA_ALONE}),
    (Problem(HALF, "cuda", (9, 0), 49, 32), "cuda", NOT_CPU),
    (Problem(BRAIN, "cuda", (8, 0), 144, 32), "cuda", NOT_CPU),
    (Problem(BRAIN, "cuda", (8, 9), 1, 32), "cuda", NOT_CPU),  # binaries of 8.0
    (Problem(BRAIN, "cuda", (10, 3), 64, 32), "cuda", NOT_CPU),
    (Problem(BRAIN, "cuda", (12, 1), 64, 32), "cuda", NOT_CPU),  # PTX
    (Problem(HALF, "cuda", (11, 0), 49, 32), "triton", {"cuda": "sm_80, 90, 100, not for sm_110", **NOT_CPU}),
    (Problem(SINGLE, "cuda", (9, 0), 49, 32), "triton", NOT_CPU),  # cuda can, but no GPU has run it
    (
        Problem(SINGLE, "cuda", (9, 0), 49, 64),
        "triton",
        {"cuda": "no forward and no backward kernel for float32", **NOT_CPU},
    ),
    (Problem(HALF, "cuda", (9, 0), 49, 30), "triton", {"cuda": "no forward kernel for float16 N=49 hd=30", **NOT_CPU}),
    (
        Problem(HALF, "cuda", (9, 0), 256, 32),
        "triton",
        {"cuda": "no backward kernel for float16 N=256 hd=32", **NOT_CPU},
    ),
    (Problem(HALF, "cuda", (8, 0), 1024, 128), "triton", {"cuda": "no forward and no backward", **NOT_CPU}),
    (
        Problem(HALF, "cuda", (7, 5), 49, 32),
        "reference",
        {"triton": "compute capability 8.0 or later", "cuda": "compute capability 8.0 or later", **NOT_CPU},
    ),
    (
        Problem(DOUBLE, "cuda", (9, 0), 49, 32),
        "reference",
        {"triton": "not float64", "cuda": "takes float32, float16 and bfloat16, not float64", **NOT_CPU},
    ),
    (Problem(HALF, "cuda", None, 49, 32), "triton", {"cuda": "PyTorch sees no CUDA device", **NOT_CPU}),
    (Problem(SINGLE, "mps", None, 49, 32), "reference", {"cpu": "on cpu, not on mps", **CUDA_ALONE}),
    (Problem(HALF, "xpu", None, 49, 32), "reference", {"cpu": "on cpu, not on xpu", **CUDA_ALONE}),
    (Problem(SINGLE, "meta", None, 49, 32), "reference", {"cpu": "on cpu, not on meta", **CUDA_ALONE}),
]


@pytest.mark.parametrize(("problem", "choice", "reasons"), TABLE, ids=[str(row[0]).replace(" ", "-") for row in TABLE])
def test_table(
    cpu_built: None,
    cuda_built: None,
    triton_installed: None,
    problem: Problem,
    choice: str,
    reasons: dict[str, str],
) -> None:
    assert dispatch.choose(problem) == choice
    for backend in BACKENDS:
        sentences = dispatch.why_not(backend, problem)
        if backend not in reasons:
            assert sentences == []
            assert dispatch.choose(problem, backend) == backend
            continue
        assert any(reasons[backend] in sentence for sentence in sentences)
        with pytest.raises(NotImplementedError, match=backend) as error:
            dispatch.choose(problem, backend)
        assert all(sentence in str(error.value) for sentence in sentences)
        assert str(problem) in str(error.value)


def test_every_reason_is_told_at_once(cpu_built: None, cuda_built: None) -> None:
    assert len(dispatch.why_not("cuda", Problem(DOUBLE, "cpu", None, 2000, 200))) == 3
    assert len(dispatch.why_not("cpu", Problem(DOUBLE, "cuda", (9, 0), 2000, 200))) == 4


def test_a_missing_library_leaves_the_reference(cpu_missing: None) -> None:
    problem = TABLE[0][0]
    assert dispatch.choose(problem) == "reference"
    assert dispatch.why_not("cpu", problem) == ["the CPU library is not built"]
    with pytest.raises(NotImplementedError, match="the CPU library is not built"):
        dispatch.choose(problem, "cpu")


def test_the_order_prefers_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "why_not", lambda backend, problem: [])
    assert dispatch.choose(Problem(HALF, "cuda", (9, 0), 49, 32)) == "cuda"
    assert dispatch.choose(Problem(SINGLE, "cuda", (9, 0), 49, 32)) == "triton"
    assert dispatch.choose(Problem(SINGLE, "cpu", None, 49, 32)) == "cpu"
    assert dispatch.choose(Problem(SINGLE, "mps", None, 49, 32)) == "reference"
    monkeypatch.setattr(dispatch, "why_not", lambda backend, problem: ["no"] if backend == "cuda" else [])
    assert dispatch.choose(Problem(HALF, "cuda", (9, 0), 49, 32)) == "triton"
    monkeypatch.setattr(dispatch, "why_not", lambda backend, problem: ["no"] if backend == "triton" else [])
    assert dispatch.choose(Problem(SINGLE, "cuda", (9, 0), 49, 32)) == "cuda"


def test_a_choice_sees_neither_batch_nor_image_size_nor_strides() -> None:
    names = {field.name for field in dataclasses.fields(Problem)}
    assert names == {"dtype", "device_type", "capability", "window_area", "head_dim", "device_name"}


# --- the automatic choice between CUDA and Triton, by what was measured

#: (direction, dtype, N) -> milliseconds of triton and of cuda.
MEASURED = {
    "fwd-bf16-N49-hd32": (1.0, 1.01),  # noise
    "bwd-bf16-N49-hd32": (0.9, 1.0),
    "fwd-bf16-N64-hd32": (2.0, 1.0),
    "bwd-bf16-N64-hd32": (2.0, 1.0),
    "fwd-bf16-N144-hd32": (1.0, 3.0),
    "bwd-bf16-N144-hd32": (1.0, 3.0),
    "fwd-bf16-N16-hd32": (1.0, 2.0),
    "bwd-bf16-N16-hd32": (2.0, 1.0),
    "fwd-fp16-N16-hd32": (2.0, 1.0),
    "fwd-bf16-N49-hd30": (1.0, 0.5),
    "fwd-fp32-N49-hd32": (1.0, 0.5),
}


@pytest.fixture
def some_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda_built: None, triton_installed: None, fresh_choices: None
) -> Iterator[None]:
    """A device that has been measured, and another."""
    compared = {name: {"triton_ms": triton, "cuda_ms": cuda} for name, (triton, cuda) in MEASURED.items()}
    (tmp_path / "some-gpu.json").write_text(json.dumps({"compared": compared}))
    (tmp_path / "tuned-gpu.json").write_text(json.dumps({"parameters": {}, "measured": {}}))
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    configs.committed.cache_clear()
    yield
    configs.committed.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "N", "hd", "device", "wanted"),
    [
        (BRAIN, 49, 32, "some-gpu", "cuda_triton"),
        (HALF, 49, 32, "some-gpu", "cuda_triton"),  # as its twin
        (BRAIN, 64, 32, "some-gpu", "cuda"),
        (BRAIN, 144, 32, "some-gpu", "triton"),
        (BRAIN, 16, 32, "some-gpu", "triton_cuda"),
        (HALF, 16, 32, "some-gpu", "cuda"),  # itself before its twin
        (BRAIN, 36, 32, "some-gpu", "cuda"),  # nobody has measured
        (BRAIN, 49, 32, "other-gpu", "cuda"),
        (BRAIN, 49, 32, "tuned-gpu", "cuda"),
        (BRAIN, 49, 32, None, "cuda"),
        (BRAIN, 49, 30, "some-gpu", "triton"),  # of what cuda cannot do, however fast
        (SINGLE, 49, 32, "some-gpu", "cuda_triton"),  # nobody has measured its backward, nor has a GPU run it
        (SINGLE, 36, 32, "some-gpu", "triton"),
        (DOUBLE, 49, 32, "some-gpu", "reference"),
    ],
)
def test_each_direction_takes_what_was_measured_to_be_faster(
    some_gpu: None, dtype: torch.dtype, N: int, hd: int, device: str | None, wanted: str
) -> None:
    problem = Problem(dtype, "cuda", (9, 0), N, hd, device)
    assert dispatch.overload(problem) == wanted
    assert wanted in ops.WINDOW_ATTENTION_FWD
    directions = ops.MIXED.get(wanted, (wanted, wanted))
    assert tuple(dispatch.choose(problem, None, direction) for direction in dispatch.DIRECTIONS) == directions


def test_a_measurement_overrules_nobody(some_gpu: None) -> None:
    for N in (16, 49, 64, 144):
        for forced in ("cuda", "triton", "reference"):
            assert dispatch.overload(Problem(BRAIN, "cuda", (9, 0), N, 32, "some-gpu"), forced) == forced


def test_without_triton_nothing_is_left_to_it(some_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_ops, "why_not", lambda: ["Triton is not installed"])
    assert dispatch.overload(Problem(BRAIN, "cuda", (9, 0), 144, 32, "some-gpu")) == "cuda"


def test_all_mixtures_of_the_two_are_overloads() -> None:
    assert {name: tuple(name.split("_")) for name in ops.MIXED} == ops.MIXED
    assert set(ops.MIXED.values()) == {("cuda", "triton"), ("triton", "cuda")}


@pytest.fixture
def its_device(some_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if PyTorch saw it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some (R) GPU")


def test_a_call_is_resolved_once_and_the_log_names_both(its_device: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "swin_fast"):
        for _ in range(3):
            assert dispatch.resolve(None, BRAIN, torch.device("cuda", 0), 49, 32) == "cuda_triton"
            assert dispatch.resolve("cuda", BRAIN, torch.device("cuda", 0), 49, 32) == "cuda"
    assert [record.getMessage() for record in caplog.records] == [
        "bfloat16 cuda sm_90 N=49 hd=32 -> cuda_triton",
        "bfloat16 cuda sm_90 N=49 hd=32 -> cuda (forced)",
    ]


def test_explain_and_the_doctor_tell_what_was_measured(its_device: None) -> None:
    lines = swin_fast.explain(BRAIN, "cuda").splitlines()
    assert lines[3:] == [
        "  triton     backward",
        "  cuda       forward",
        "  forward: triton 1 ms, cuda 1.01 ms, measured on some-gpu",
        "  backward: triton 0.9 ms, cuda 1 ms, measured on some-gpu",
    ]
    header, rows, notes = doctor._dispatch_lines(doctor._dispatch_table())
    [row] = [dict(zip(header, row, strict=True)) for row in rows if row[:3] == ["N=49 hd=32", "bfloat16", "cuda"]]
    assert (row["triton"], row["cuda"], row["reference"]) == ("RUNS bwd", "RUNS fwd", "can")
    assert "N=49 hd=32 bfloat16, backward: triton 0.9 ms, cuda 1 ms, measured on some-gpu" in notes
    [row] = [dict(zip(header, row, strict=True)) for row in rows if row[:3] == ["N=64 hd=32", "bfloat16", "cuda"]]
    assert (row["triton"], row["cuda"]) == ("can", "RUNS")


def test_what_is_in_the_package_can_be_read() -> None:
    """Of every device: the kernels' parameters, and times from which a choice can be made."""
    for path in configs.FOLDER.glob("*.json"):
        found = configs.committed(path.stem)
        assert found["parameters"] and found["parameters"].keys() == found["measured"].keys()
        for times in found.get("compared", {}).values():
            assert times["triton_ms"] > 0 and times["cuda_ms"] > 0 and not times["commit"]["dirty"]


@pytest.mark.parametrize("name", ["", "CPU", "auto", "cudnn", None, 3])
def test_unknown_backend(name: Any) -> None:
    problem = TABLE[0][0]
    for call in (lambda: dispatch.why_not(name, problem), lambda: swin_fast.use_backend(name).__enter__()):
        with pytest.raises(ValueError, match=r"backend: got .*, want one of reference, cpu, triton, cuda"):
            call()


# --- precedence: argument, use_backend, SWIN_FAST_BACKEND, automatic


def _choice(backend: str | None = None) -> str:
    return dispatch.resolve(backend, SINGLE, torch.device("cpu"), 49, 32)


def test_argument_beats_use_backend_beats_environment_beats_automatic(
    monkeypatch: pytest.MonkeyPatch, fresh_choices: None, cpu_built: None
) -> None:
    monkeypatch.setattr(dispatch, "_ENVIRONMENT", None)
    assert _choice() == "cpu"
    monkeypatch.setattr(dispatch, "_ENVIRONMENT", "reference")
    assert _choice() == "reference"
    with swin_fast.use_backend("cpu"):
        assert _choice() == "cpu"
        assert _choice("reference") == "reference"
        with swin_fast.use_backend("reference"):
            assert _choice() == "reference"
        assert _choice() == "cpu"
    assert _choice() == "reference"


def test_use_backend_ends_with_its_block_also_after_an_error(fresh_choices: None) -> None:
    with pytest.raises(KeyError), swin_fast.use_backend("reference"):
        assert dispatch._override.backend == "reference"
        raise KeyError
    assert dispatch._override.backend is None


def test_use_backend_belongs_to_its_thread() -> None:
    seen: list[str | None] = []
    with swin_fast.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(dispatch._override.backend))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_forced_backend_that_cannot_run_raises_through_the_public_function() -> None:
    qkv = torch.zeros(1, 4, 4, 3, 1, 2)
    with pytest.raises(NotImplementedError, match="the cuda backend takes tensors on cuda, not on cpu"):
        swin_fast.window_attention(qkv, None, window_size=2, backend="cuda")
    with swin_fast.use_backend("triton"), pytest.raises(NotImplementedError, match="takes tensors on cuda, not on cpu"):
        swin_fast.window_attention(qkv, None, window_size=2)
    with pytest.raises(NotImplementedError, match="not float64"):
        swin_fast.window_attention(qkv.double(), None, window_size=2, backend="cpu")


def test_float64_takes_the_reference_by_itself() -> None:
    qkv = torch.randn(1, 4, 4, 3, 1, 2, dtype=DOUBLE)
    out = swin_fast.window_attention(qkv, None, window_size=2)
    assert out.dtype == DOUBLE
    assert torch.equal(out, swin_fast.window_attention(qkv, None, window_size=2, backend="reference"))


CALL = "import torch, swin_fast; swin_fast.window_attention(torch.zeros(1, 4, 4, 3, 1, 2), None, window_size=2)"


def test_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch, run_script: Callable[..., str]) -> None:
    script = f"{CALL}; print(swin_fast.dispatch.resolve(None, torch.float32, torch.device('cpu'), 4, 2))"
    monkeypatch.setenv("SWIN_FAST_BACKEND", "reference")
    assert run_script(script, timeout=60) == "reference\n"
    monkeypatch.setenv("SWIN_FAST_BACKEND", "")
    assert run_script(script, timeout=60) in ("cpu\n", "reference\n")


def test_a_bad_environment_is_named_at_the_first_call(
    monkeypatch: pytest.MonkeyPatch, run_script: Callable[..., str]
) -> None:
    monkeypatch.setenv("SWIN_FAST_BACKEND", "fastest")
    script = f"try:\n    {CALL}\nexcept ValueError as error:\n    print(error)"
    wanted = "backend: got 'fastest' (from SWIN_FAST_BACKEND), want one of reference, cpu, triton, cuda\n"
    assert run_script(script, timeout=60) == wanted


# --- the log


def test_log_has_one_line_per_problem_and_choice(
    caplog: pytest.LogCaptureFixture, fresh_choices: None, cpu_built: None
) -> None:
    with caplog.at_level(logging.INFO, "swin_fast"):
        for B in (1, 2):
            for hd in (2, 4):
                swin_fast.window_attention(torch.zeros(B, 4, 4 + B, 3, 1, hd), None, window_size=2, backend="reference")
    lines = [f"float32 cpu N=4 hd={hd} -> reference (forced)" for hd in (2, 4)]
    assert [record.getMessage() for record in caplog.records] == lines


def test_log_level_from_the_environment(monkeypatch: pytest.MonkeyPatch, run_script: Callable[..., str]) -> None:
    script = f"import sys; sys.stderr = sys.stdout\n{CALL}"
    monkeypatch.setenv("SWIN_FAST_BACKEND", "reference")
    monkeypatch.setenv("SWIN_FAST_LOG", "info")
    assert run_script(script, timeout=60) == "swin_fast: float32 cpu N=4 hd=2 -> reference (forced)\n"
    monkeypatch.setenv("SWIN_FAST_LOG", "warning")
    assert run_script(script, timeout=60) == ""


def test_a_bad_log_level_is_one_warning(monkeypatch: pytest.MonkeyPatch, run_script: Callable[..., str]) -> None:
    monkeypatch.setenv("SWIN_FAST_BACKEND", "reference")
    monkeypatch.setenv("SWIN_FAST_LOG", "loud")
    script = f"import sys; sys.stderr = sys.stdout\n{CALL}"
    assert run_script(script, timeout=60) == "SWIN_FAST_LOG: got 'loud', want one of debug, info, warning, error\n"


# --- what people are told


def test_explain_names_every_backend_its_state_and_its_reasons(cpu_built: None) -> None:
    rows = {line.split()[0]: line for line in swin_fast.explain().splitlines()[1:]}
    assert list(rows) == list(BACKENDS)
    assert "chosen" in rows["cpu"]
    assert "can" in rows["reference"].split()
    assert "takes tensors on cuda, not on cpu" in rows["triton"]
    assert "takes tensors on cuda, not on cpu" in rows["cuda"]
    assert "float64 cpu N=64 hd=16" in swin_fast.explain(DOUBLE, "cpu", (8, 8), 16)
    assert "not float64" in swin_fast.explain(DOUBLE)
    assert "not on mps" in swin_fast.explain(device="mps")


def test_explain_shows_a_forced_backend(cpu_built: None) -> None:
    with swin_fast.use_backend("reference"):
        text = swin_fast.explain()
    assert "forced: reference" in text
    assert "reference  chosen" in text
    with swin_fast.use_backend("cuda"):
        text = swin_fast.explain()
    assert "forced: cuda" in text
    assert "chosen" not in text


def test_backends_are_those_that_can_run(cpu_built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert swin_fast.backends() == ("reference", "cpu")
    monkeypatch.setattr(native, "cpu_why_not", lambda: ["the CPU library is not built"])
    assert swin_fast.backends() == ("reference",)


# --- the native library


@pytest.fixture
def fresh_library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Forgets which library was loaded, before and after the test."""
    for load in (native._cpu, native._cuda):
        load.cache_clear()
    yield monkeypatch
    for load in (native._cpu, native._cuda):
        load.cache_clear()


def test_no_library(fresh_library: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh_library.setattr(native, "CPU_LIBRARY", tmp_path / "libswin_fast_cpu.so")
    assert native.cpu_library() is None
    assert native.cpu_why_not() == ["the CPU library is not built: libswin_fast_cpu.so is not in the package"]
    assert native.cpu_build_info() == {}
    assert native.cpu_isas() == ()
    assert native.cpu_isa() == ""
    with pytest.raises(ValueError, match="name: got 'scalar'"):
        native.select_cpu_isa("scalar")


def test_a_broken_library_is_a_sentence_and_no_crash(fresh_library: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "libswin_fast_cpu.so"
    broken.write_bytes(b"not a library")
    fresh_library.setattr(native, "CPU_LIBRARY", broken)
    (sentence,) = native.cpu_why_not()
    assert sentence.startswith("the CPU library cannot be used: ")
    assert dispatch.choose(TABLE[0][0]) == "reference"


def test_no_cuda_library(fresh_library: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh_library.setattr(native, "CUDA_LIBRARY", tmp_path / "libswin_fast_cuda.so")
    assert native.cuda_library() is None
    assert native.cuda_why_not() == ["the CUDA library is not built: libswin_fast_cuda.so is not in the package"]
    assert native.cuda_build_info() == {}
    assert dispatch.why_not("cuda", Problem(HALF, "cuda", (9, 0), 49, 32)) == native.cuda_why_not()
    native.CUDA_LIBRARY.write_bytes(b"not a library")
    native._cuda.cache_clear()
    (sentence,) = native.cuda_why_not()
    assert sentence.startswith("the CUDA library cannot be used: ")


@pytest.mark.parametrize(
    ("driver", "sentences"),
    [
        (13000, []),
        (13010, []),
        (14000, []),
        (12090, ["the driver is for CUDA 12.9, and the CUDA library was built with CUDA 13.0"]),
        (0, ["no CUDA driver is installed"]),
    ],
)
def test_a_driver_serves_what_was_built_for_its_major_version_or_an_older_one(
    driver: int, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        swin_fast_cuda_driver_version = staticmethod(lambda: driver)

    loaded = native._Loaded(Library(), CUDA_FACTS, ())  # type: ignore[arg-type]
    monkeypatch.setattr(native, "_cuda", lambda: loaded)
    assert native.cuda_why_not() == sentences


@pytest.fixture
def library() -> Any:
    """The loaded library; its tests are skipped without one, unless SWIN_FAST_REQUIRE names the backend."""
    if native.cpu_library() is None:
        message = f"cpu: {'; '.join(native.cpu_why_not())}"
        if "cpu" in os.environ.get("SWIN_FAST_REQUIRE", "").split(","):
            pytest.fail(message)
        pytest.skip(message)
    before = native.cpu_isa()
    yield native.cpu_library()
    native.select_cpu_isa(before)


def test_build_info_of_the_library(library: Any) -> None:
    facts = native.cpu_build_info()
    assert set(facts) >= {
        "version",
        "compiler",
        "isa_compiled",
        "instances",
        "max_window_area",
        "max_head_dim",
        "torch_target",
    }
    assert facts["isa_compiled"][0] == "scalar"
    assert facts["max_window_area"] == swin_fast.functional.MAX_WINDOW_AREA
    assert facts["max_head_dim"] == swin_fast.functional.MAX_HEAD_DIM


def test_select_isa(library: Any) -> None:
    before = native.cpu_isa()
    assert native.cpu_isas()[0] == "scalar"
    assert before in native.cpu_isas()
    for isa in native.cpu_isas():
        native.select_cpu_isa(isa)
        assert native.cpu_isa() == isa
    native.select_cpu_isa("scalar")
    for bad in ("", "sse9", "AVX2"):
        with pytest.raises(ValueError, match="name: got"):
            native.select_cpu_isa(bad)
        assert native.cpu_isa() == "scalar"


def test_environment_selects_the_isa(
    library: Any, monkeypatch: pytest.MonkeyPatch, run_script: Callable[..., str]
) -> None:
    script = "from swin_fast import dispatch; print(dispatch.native.cpu_isa()); print(dispatch.explain())"
    monkeypatch.setenv("SWIN_FAST_ISA", "scalar")
    assert run_script(script, timeout=60).splitlines()[0] == "scalar"
    monkeypatch.setenv("SWIN_FAST_ISA", "sse9")
    text = run_script(script, timeout=60)
    assert "reference  chosen" in text
    assert "SWIN_FAST_ISA=sse9 cannot run here" in text
