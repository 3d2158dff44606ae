# SPDX-License-Identifier: Apache-2.0
"""The command line: what `doctor` tells, that it never fails, and that `demo` draws its picture and refuses clearly."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import swin_fast
from swin_fast import cli, dispatch, doctor
from swin_fast.backends import native

ROOT = Path(swin_fast.__file__).parent.parent


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "rich" else find_spec(name, *rest)
    )


def run_module(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m swin_fast ...` in a fresh process."""
    return subprocess.run(
        [sys.executable, "-m", "swin_fast", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", **environment},
        timeout=120,
    )


# -------------------------------------------------------------------------------------------------------- the parser


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "doctor" in text
    assert "demo" in text
    assert "Exit codes" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.strip() == f"swin_fast {swin_fast.__version__}"


def test_no_command_prints_the_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: python -m swin_fast" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paint"], "'paint'"),
        (["doctor", "--yaml"], "--yaml"),
        (["demo", "--repeats", "0"], "--repeats: got '0', want a whole number of at least 1"),
        (["demo", "--repeats", "many"], "--repeats: got 'many'"),
        (["demo", "--threads", "-1"], "--threads"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_python_dash_m_runs_the_command_line() -> None:
    done = run_module("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"swin_fast {swin_fast.__version__}")


# ------------------------------------------------------------------------------------------------------------ doctor


def check_text(text: str) -> None:
    for expected in (
        swin_fast.__version__,
        torch.__version__,
        "Native CPU library",
        "Native CUDA library",
        "torch_threads",
        "SWIN_FAST_ISA",
        "N=49 hd=32",
        "N=144 hd=32",
        "N=576 hd=32",
        "swin_{tiny,small,base,large}_patch4_window7_224",
        "swinv2_{base,large}_window12to24_384, stages 1 to 3",
        "reference on cpu",
        "ok, forward and backward: SwinTransformer float32",
        "bfloat16",
        "RUNS",
        *dispatch.BACKENDS,
    ):
        assert expected in text, expected


def test_doctor_with_rich(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["doctor"]) == 0
    check_text(capsys.readouterr().out)


def test_doctor_in_plain_text(capsys: pytest.CaptureFixture[str], without_rich: None) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    check_text(text)
    assert text.isascii()


def test_doctor_json_agrees_with_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["swin_fast"] == swin_fast.__version__
    assert report["native"]["why_not"] == native.cpu_why_not()
    if native.cpu_library() is not None:
        assert report["native"]["isa_in_use"] == native.cpu_isa()
        assert report["native"]["isa_available"] == list(native.cpu_isas())
        assert report["native"]["build"] == native.cpu_build_info()
    assert report["native_cuda"]["why_not"] == native.cuda_why_not()
    assert report["native_cuda"].get("build", {}) == native.cuda_build_info()
    table = {(row["window_size"][0], row["dtype"], row["device"]): row for row in report["dispatch"]}
    assert {
        (7, "float32", "cpu"),
        (12, "bfloat16", "cpu"),
        (7, "float16", "cpu"),
        (12, "float64", "cpu"),
    } <= table.keys()
    for row in report["dispatch"]:
        assert set(row["why_not"]) == set(dispatch.BACKENDS)
        assert row["why_not"][row["chosen"]] == []
        assert row["why_not"]["triton"], "a backend that cannot run says why"
    assert table[7, "float64", "cpu"]["chosen"] == "reference"
    assert {row["verdict"] for row in report["models"]} == {"ok"}
    runs = {row["backend"] for row in report["models"]}
    assert runs == {name for name in dispatch.BACKENDS if not dispatch.why_not(name, problem())}
    assert {row["model"] for row in report["models"]} == {"SwinTransformer", "SwinTransformerV2"}
    assert {"window_size", "head_dim", "models"} == report["shapes"][0].keys()


def test_doctor_shows_the_variables_in_force(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, without_rich: None
) -> None:
    monkeypatch.setenv("SWIN_FAST_REQUIRE", "cpu")
    monkeypatch.delenv("SWIN_FAST_LOG", raising=False)
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.split()[:1] == ["SWIN_FAST_REQUIRE"]] == ["'cpu'"]
    assert any(line.split()[:3] == ["SWIN_FAST_LOG", "not", "set:"] for line in lines)


def test_doctor_takes_good_variables_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIN_FAST_BACKEND", "cpu")
    monkeypatch.setenv("SWIN_FAST_LOG", "Info")
    assert doctor.doctor_report()["environment_errors"] == []
    monkeypatch.setenv("SWIN_FAST_BACKEND", "")
    monkeypatch.setenv("SWIN_FAST_LOG", "")
    assert doctor.doctor_report()["environment_errors"] == []


def test_doctor_tells_a_forced_backend_that_cannot_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, without_rich: None
) -> None:
    monkeypatch.setenv("SWIN_FAST_BACKEND", "triton")
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "backend 'triton' cannot compute" in text
    assert "RUNS " not in text.split("cuda\n", 1)[1]


def test_doctor_survives_bad_variables_in_a_fresh_process() -> None:
    done = run_module("doctor", SWIN_FAST_BACKEND="nonsense", SWIN_FAST_ISA="fastest", SWIN_FAST_LOG="loud")
    bad_level = "SWIN_FAST_LOG: got 'loud', want one of debug, info, warning, error"
    assert (done.returncode, done.stderr) == (0, f"{bad_level}\n")
    environment = done.stdout.partition("Environment")[2].partition(doctor.DISPATCH_TITLE)[0]
    wrong = [" ".join(part.split()) for part in re.split(r"\n +wrong ", environment)[1:]]
    backends = ", ".join(dispatch.BACKENDS)
    assert wrong == [f"backend: got 'nonsense' (from SWIN_FAST_BACKEND), want one of {backends}", bad_level]
    if native.cpu_library() is not None:
        assert "SWIN_FAST_ISA=fastest cannot run here" in " ".join(done.stdout.split())


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("broken", ["native", "dispatch", "torch"])
def test_doctor_never_fails(
    broken: str,
    as_json: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    without_rich: None,
) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("it is broken")

    if broken == "native":
        monkeypatch.setattr(native, "cpu_why_not", fail)
    elif broken == "dispatch":
        monkeypatch.setattr(dispatch, "why_not", fail)
    else:
        monkeypatch.setattr(torch.cuda, "is_available", fail)
    assert cli.main(["doctor", *(["--json"] if as_json else [])]) == 0
    text = capsys.readouterr().out
    assert "OSError: it is broken" in text
    assert torch.__version__ in text
    if as_json:
        json.loads(text)


# -------------------------------------------------------------------------------------------------------------- demo


@pytest.fixture
def pillow() -> Any:
    """PIL.Image, where the demo's packages are installed."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    return pytest.importorskip("PIL.Image")


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo in a tenth of the time."""
    small = {"embed_dim": 32, "num_heads": (1, 2, 4, 8), "depths": (2, 2, 2, 2), "num_classes": 100}
    monkeypatch.setattr("swin_fast.demo_measure.OPTIONS", small)


def demo(output: Path, *arguments: str) -> int:
    return cli.main(["demo", "--repeats", "1", "--threads", "1", "--output", str(output), *arguments])


def check_picture(pillow: Any, path: Path) -> None:
    with pillow.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 1500
        assert picture.height > 900
        gray = picture.convert("L")
        colors = picture.convert("RGB").resize((300, 200)).getcolors(100_000)
    assert gray.getextrema()[0] < 40 < 220 < gray.getextrema()[1]
    assert len(colors) > 2000


def test_demo_measures_the_sample_photograph_and_draws_it(
    tmp_path: Path, pillow: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small_model: None
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    state = torch.random.get_rng_state()
    assert demo(tmp_path / "picture.png") == 0
    assert torch.equal(torch.random.get_rng_state(), state), "the demo's weights took the caller's random numbers"
    text = capsys.readouterr().out
    assert "grace_hopper.jpg" in text
    assert "512 x 600 pixels; 150 x 128 tokens" in text
    assert "weights are random" in text
    words = [line.replace("224 crop", "crop").replace("core op", "core").split() for line in text.splitlines()]
    rows = [row for row in words if row[:1] in (["crop"], ["photo"], ["core"]) and row[1] in ("fp32", "bf16")]
    usable = [name for name in dispatch.BACKENDS if not dispatch.why_not(name, problem())]
    wanted = [
        [what, dtype, path]
        for what in ("crop", "photo", "core")
        for dtype in ("fp32", "bf16")
        for path in ("eager", *usable)
    ]
    assert [row[:3] for row in rows] == wanted
    for row in rows:
        assert 0 < float(row[3]) < (1e-4 if row[1] == "fp32" else 0.5)
        assert 0 < float(row[4]) < (1e-5 if row[1] == "fp32" else 0.05)
        assert row[6] == "ok"
    assert "triton cannot run this:" in text
    check_picture(pillow, tmp_path / "picture.png")


def problem() -> dispatch.Problem:
    return dispatch.Problem(torch.float32, "cpu", None, 49, 32)


@pytest.mark.parametrize("size", [(150, 83), (83, 150), (21, 17), (1, 1), (300, 12)], ids=str)
def test_demo_takes_any_photograph(
    size: tuple[int, int], tmp_path: Path, pillow: Any, capsys: pytest.CaptureFixture[str], small_model: None
) -> None:
    noise = os.urandom(size[0] * size[1] * 3)
    pillow.frombytes("RGB", size, noise).save(tmp_path / "mine.png")
    assert demo(tmp_path / "picture.png", "--image", str(tmp_path / "mine.png")) == 0
    assert f"mine.png: {size[0]} x {size[1]} pixels" in capsys.readouterr().out
    with pillow.open(tmp_path / "picture.png") as picture:
        picture.load()


def test_demo_scales_a_huge_photograph_down_and_says_so(
    tmp_path: Path, pillow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swin_fast import demo as demo_module

    monkeypatch.setattr(demo_module, "MAX_PIXELS", 5000)
    pillow.new("L", (200, 100), 90).save(tmp_path / "huge.png")
    photo = demo_module.load_photo(str(tmp_path / "huge.png"))
    assert photo.own.shape == (50, 100, 3)
    assert photo.crop.shape == (224, 224, 3)
    assert "huge.png: 200 x 100 pixels, scaled down to 100 x 50" in photo.about


def test_demo_fails_if_a_backend_breaks_the_rule(
    tmp_path: Path,
    pillow: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_model: None,
) -> None:
    right = swin_fast.WindowAttention.forward
    monkeypatch.setattr(swin_fast.WindowAttention, "forward", lambda *args, **options: right(*args, **options) * 1.1)
    pillow.new("RGB", (40, 40), (90, 20, 200)).save(tmp_path / "mine.png")
    assert demo(tmp_path / "picture.png", "--image", str(tmp_path / "mine.png")) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert "less exact" in captured.err


def test_demo_refuses_a_missing_photograph(tmp_path: Path, pillow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(tmp_path / "picture.png", "--image", str(tmp_path / "none.jpg")) == 1
    error = capsys.readouterr().err
    assert "--image: cannot read" in error
    assert "none.jpg" in error
    assert "No such file" in error
    assert not (tmp_path / "picture.png").exists()


def test_demo_refuses_what_is_no_image(tmp_path: Path, pillow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.jpg").write_text("these are notes")
    assert demo(tmp_path / "picture.png", "--image", str(tmp_path / "notes.jpg")) == 1
    assert "notes.jpg' is not an image" in capsys.readouterr().err


def test_demo_refuses_a_truncated_image(tmp_path: Path, pillow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pillow.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)).save(tmp_path / "whole.png")
    (tmp_path / "part.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
    assert demo(tmp_path / "picture.png", "--image", str(tmp_path / "part.png")) == 1
    assert "--image: cannot read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nowhere/picture.png", "--output: the folder of"),
        ("picture.xyz", "want a file name that ends in .png"),
        ("picture", "want a file name that ends in .png"),
        ("folder.png", "--output: cannot write"),
    ],
)
def test_demo_refuses_an_output_it_cannot_write(
    output: str, message: str, tmp_path: Path, pillow: Any, capsys: pytest.CaptureFixture[str], small_model: None
) -> None:
    (tmp_path / "folder.png").mkdir()
    pillow.new("RGB", (40, 40), (90, 20, 200)).save(tmp_path / "mine.png")
    assert demo(tmp_path / output, "--image", str(tmp_path / "mine.png")) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("package", ["matplotlib", "rich"])
def test_demo_without_its_packages_says_what_to_install(
    package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package or name == "swin_fast.demo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(swin_fast, "demo", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert package in error
    assert "pip install '.[demo]'" in error
