# SPDX-License-Identifier: Apache-2.0
"""scripts/gpu_check.sh and the stream probe, as far as a machine without a GPU can tell.

A recording stand-in takes the place of Python, and another that of compute-sanitizer: what is tested is which commands
a stage runs and what it makes of their outcome. The slow test runs every stage's dry run with the real ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import stream_probe

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
STAGES = ("facts", "lane-maps", "verify", "sanitize", "tune", "bench-op", "bench-model", "bench-peers")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
CLEAN = "========= ERROR SUMMARY: 0 errors"

PYTHON = """\
#!/bin/sh
echo "$*" >>"$RECORD"
case "$*" in *OVERLOADS*) echo "$GPU_BACKENDS" ;; *"$BREAKS"*) exit 3 ;; esac
"""
SANITIZER = """\
#!/bin/sh
echo "sanitizer $*" >>"$RECORD"
echo "$TOOL_SAYS"
exit "$TOOL_STATUS"
"""


class Machine:
    """Runs the script with the stand-ins; `commands` are those it has run since."""

    def __init__(self, folder: Path) -> None:
        self.out, self.record = folder / "out", folder / "record"
        self.python, self.sanitizer = folder / "python", folder / "sanitizer"
        self.script = SCRIPT
        for path, text in ((self.python, PYTHON), (self.sanitizer, SANITIZER)):
            path.write_text(text)
            path.chmod(0o755)

    def __call__(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        self.record.write_text("")
        environment = {
            **os.environ,
            "OUT": str(self.out),
            "PYTHON": str(self.python),
            "COMPUTE_SANITIZER": str(self.sanitizer),
            "RECORD": str(self.record),
            "GPU_BACKENDS": "",
            "BREAKS": "nothing",
            "TOOL_SAYS": CLEAN,
            "TOOL_STATUS": "0",
            "SWIN_FAST_COMMIT": "abc",
            "SWIN_FAST_DIRTY": "0",
            **changes,
        }
        return subprocess.run(
            [str(self.script), *arguments], capture_output=True, text=True, env=environment, timeout=60, check=False
        )

    @property
    def commands(self) -> list[str]:
        """Without the questions which backends there are, and which packages."""
        return [line for line in self.record.read_text().splitlines() if not line.startswith("-c ")]

    def words(self) -> list[str]:
        return (self.out / "sanitize.txt").read_text().splitlines()


@pytest.fixture(autouse=True)
def as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-benchmark in a process of ours shall not think that it is a worker of pytest-xdist, if this one is."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# --------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize("arguments", [(), ("--dry-run",), ("verfy",), ("--dryrun", "facts"), ("facts", "tune")])
def test_wrong_usage_names_the_stages(machine: Machine, arguments: tuple[str, ...]) -> None:
    done = machine(*arguments)
    assert done.returncode == 2
    assert " ".join((*STAGES, "all")) in done.stderr
    assert machine.commands == []
    assert not machine.out.exists()


def test_the_help_lists_the_stages_of_the_script(machine: Machine) -> None:
    done = machine("--help")
    assert done.returncode == 0
    assert tuple(re.findall(r"^  ([a-z][a-z-]+)  ", done.stdout, re.M)) == (*STAGES, "all")
    listed = re.search(r"^STAGES=\((.*)\)$", SCRIPT.read_text(), re.M)
    assert listed and tuple(listed[1].split()) == STAGES


# ------------------------------------------------------------------------------------------------------------ commands

BUILD = "setup.py --quiet build_ext --inplace"
TUNE = [BUILD, "-m benchmarks.tune --device cuda --json OUT/tune.json --add"]
SUITE = "-m benchmarks.run --suite {} --device cuda --json OUT/{}.json --minutes 7"
REAL = {
    "facts": ["-m benchmarks.facts --device cuda --json OUT/facts.json"],
    "lane-maps": ["-m benchmarks.lane_maps --device cuda --json OUT/lane_maps.json"],
    "verify": [],
    "sanitize": ["-m benchmarks.stream_probe --device cuda --check call"],
    "tune": TUNE if (ROOT / "benchmarks" / "tune.py").exists() else [],
    "bench-op": [BUILD, SUITE.format("op", "op")],
    "bench-model": [BUILD, SUITE.format("model", "model") + " --peers timm,timm_sdpa"],
    "bench-peers": [
        BUILD,
        SUITE.format("model", "peers") + " --rows swin_t-224x224 or swin_b-224x224 or swin_b-384x384",
    ],
}
#: In the dry run no peer is compiled, and no row left out.
FEW = {"bench-op": " --peers eager,sdpa", "bench-model": " --peers eager,timm", "bench-peers": " --peers eager,timm"}


def test_every_stage_has_its_commands() -> None:
    assert tuple(REAL) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_the_commands_of_a_stage(machine: Machine, stage: str) -> None:
    done = machine(stage)
    assert done.returncode == 0, done.stderr
    assert f"== {stage}: exit status 0, " in done.stdout
    said = [command.replace(str(machine.out), "OUT") for command in machine.commands]
    assert [command for command in said if not command.startswith("sanitizer ")] == REAL[stage]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "verify"])
def test_the_dry_run_is_the_same_on_a_cpu(machine: Machine, stage: str) -> None:
    """Toys are for the dry run alone, and so are results of a tree with changes. Verify has its own test."""
    done = machine("--dry-run", stage)
    assert done.returncode == 0, done.stderr
    expected = [re.sub(" --(rows|peers) .*", "", command).replace("cuda", "cpu") for command in REAL[stage]]
    expected = [[*command.split(), *(FEW.get(stage, "").split() if command != BUILD else ())] for command in expected]
    said = [command.replace(str(machine.out), "OUT").split() for command in machine.commands]
    said = [command for command in said if command[0] != "sanitizer"]
    toy = {"facts": set(), "lane-maps": set(), "sanitize": set()}.get(stage, {"--toy", "--allow-dirty"})
    assert [[word for word in command if word not in toy] for command in said] == expected
    assert all(toy <= set(command) for command in said if command != BUILD.split())


@pytest.mark.parametrize("stage", ["bench-op", "bench-model", "bench-peers"])
def test_rows_peers_and_the_limit_can_be_told(machine: Machine, stage: str) -> None:
    done = machine(stage, ROWS="b128 and bf16", PEERS="timm", LIMIT="200")
    assert done.returncode == 0, done.stderr
    assert machine.commands[-1].endswith(" --minutes 2 --rows b128 and bf16 --peers timm")
    done = machine(stage, ADD="earlier.json")
    assert done.returncode == 0, done.stderr
    assert machine.commands[-1].endswith(" --add earlier.json")


@pytest.mark.parametrize(("backends", "wanted"), [("", "none"), ("triton", "none"), ("triton,cuda", "cuda")])
def test_the_cpu_library_is_built_with_that_of_cuda_alone(machine: Machine, backends: str, wanted: str) -> None:
    machine.python.write_text(PYTHON.replace("$*", "$* build=$SWIN_FAST_BUILD", 1))
    assert machine("bench-op", GPU_BACKENDS=backends).returncode == 0
    assert machine.commands[0] == f"{BUILD} build={wanted}"
    assert machine("--dry-run", "bench-op", GPU_BACKENDS=backends).returncode == 0
    assert machine.commands[0] == f"{BUILD} build=auto"


@pytest.mark.parametrize("told", [{}, {"SWIN_FAST_COMMIT": "abc"}, {"SWIN_FAST_COMMIT": "abc", "SWIN_FAST_DIRTY": "1"}])
def test_without_git_a_clean_commit_is_asked_for_before_anything_is_built(
    machine: Machine, tmp_path: Path, told: dict[str, str]
) -> None:
    copy = tmp_path / "tree" / "scripts" / SCRIPT.name
    copy.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, copy)
    machine.script = copy
    changes = {"SWIN_FAST_COMMIT": "", "SWIN_FAST_DIRTY": "1", **told}
    done = machine("bench-op", **changes)
    assert done.returncode == 2
    assert "want SWIN_FAST_COMMIT=<commit> SWIN_FAST_DIRTY=0" in done.stdout
    assert machine.commands == []
    (tmp_path / "tree" / ".git").touch()
    assert "want SWIN_FAST_COMMIT" not in machine("bench-op", **changes).stdout


def test_the_sanitizer_of_the_toolkit_is_found(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    machine.sanitizer.rename(tmp_path / "bin" / "compute-sanitizer")
    done = machine("sanitize", COMPUTE_SANITIZER="", CUDA_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert machine.words() == [f"{tool}: clean" for tool in TOOLS]


def test_verify_without_a_gpu_backend_says_so(machine: Machine) -> None:
    done = machine("verify")
    assert done.returncode == 0
    assert "verify: no GPU backend in this version, nothing to run" in done.stdout
    assert machine.commands == []


@pytest.mark.parametrize(
    ("arguments", "backends", "required", "selected", "wanted"),
    [
        (("verify",), "triton", "triton", "triton", "none"),
        (("verify",), "triton,cuda", "triton,cuda", "triton or cuda", "cuda"),
        (("--dry-run", "verify"), "triton", "cpu", "cpu", "auto"),
    ],
)
def test_verify_runs_the_tests_of_the_backends_and_requires_them(
    machine: Machine, arguments: tuple[str, ...], backends: str, required: str, selected: str, wanted: str
) -> None:
    machine.python.write_text(PYTHON.replace("$*", "$* require=$SWIN_FAST_REQUIRE build=$SWIN_FAST_BUILD", 1))
    done = machine(*arguments, GPU_BACKENDS=backends)
    assert done.returncode == 0, done.stderr
    build, tests = machine.commands
    assert build.startswith(BUILD)
    assert tests.startswith("-m pytest ")
    assert f"-k ({selected}) and not emulator --junitxml={machine.out}/verify.xml " in tests
    assert tests.endswith(f"require={required} build={wanted}")


def test_the_cuda_library_is_built_for_the_gpu_that_is_there(machine: Machine) -> None:
    told = PYTHON.replace("$*", "$* archs=$SWIN_FAST_CUDA_ARCHS", 1)
    machine.python.write_text(told.replace("esac", "*get_device_capability*) echo 90 ;; esac"))
    for stage in ("tune", "verify"):
        assert machine(stage, GPU_BACKENDS="triton,cuda").returncode == 0
        assert machine.commands[0] == f"{BUILD} archs=90"
    assert machine("tune", GPU_BACKENDS="triton,cuda", SWIN_FAST_CUDA_ARCHS="80;90").returncode == 0
    assert machine.commands[0] == f"{BUILD} archs=80;90"


def test_kernels_of_ours_take_the_probes_place_under_the_tools(machine: Machine) -> None:
    done = machine("sanitize", GPU_BACKENDS="triton,cuda")
    assert done.returncode == 0, done.stderr
    assert machine.commands[0] == BUILD
    assert len(machine.commands) == 2 + len(TOOLS)
    assert all("-k (triton or cuda) and " in command for command in machine.commands[1:])


@pytest.mark.parametrize(
    ("stage", "breaks"),
    [("facts", "facts"), ("verify", "-m pytest"), ("sanitize", "probe"), ("bench-op", "run"), ("bench-peers", "run")],
)
def test_a_stage_fails_with_what_it_runs(machine: Machine, stage: str, breaks: str) -> None:
    done = machine(stage, GPU_BACKENDS="" if stage == "sanitize" else "triton", BREAKS=breaks)
    assert done.returncode != 0
    assert f"== {stage}: exit status {done.returncode}, " in done.stdout


def test_all_runs_each_stage_and_names_those_that_failed(machine: Machine) -> None:
    done = machine("all")
    assert (done.returncode, re.findall(r"^== ([a-z-]+): exit status 0", done.stdout, re.M)) == (0, list(STAGES))
    assert "== all: none failed" in done.stdout
    done = machine("--dry-run", "all", BREAKS="--suite model")
    assert done.returncode == 1
    assert re.findall(r"^== ([a-z-]+): exit status", done.stdout, re.M) == list(STAGES)
    assert "== all: bench-model bench-peers failed" in done.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_few_files_with_plain_names(machine: Machine, stage: str) -> None:
    machine(stage)
    left = [path.name for path in machine.out.iterdir()]
    assert f"{stage}.log" in left
    assert len(left) + 1 <= 8  # and the one that the stand-in does not write
    assert [name for name in left if not re.fullmatch(r"[A-Za-z0-9._-]+", name)] == []


# ------------------------------------------------------------------------------------------------------------ sanitize


@pytest.mark.parametrize(
    ("says", "tool_status", "word", "status"),
    [
        (CLEAN, "0", "clean", 0),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "0", "clean", 0),
        ("========= ERROR SUMMARY: 3 errors", "86", "findings", 1),
        ("========= ERROR SUMMARY: 3 errors", "0", "findings", 1),
        ("========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)", "0", "findings", 1),
        (f"========= ERROR SUMMARY: 1 error\n{CLEAN}", "86", "findings", 1),
        ("========= Error: Device not supported.\n========= ERROR SUMMARY: 2 errors", "86", "refused", 0),
        ("========= Error: Target application terminated before first instrumented API call", "1", "refused", 0),
        (CLEAN, "1", "failed", 1),
        ("a program that says Device not supported", "0", "failed", 1),
        ("", "0", "failed", 1),
    ],
)
def test_the_word_for_what_a_tool_says(machine: Machine, says: str, tool_status: str, word: str, status: int) -> None:
    done = machine("sanitize", TOOL_SAYS=says, TOOL_STATUS=tool_status)
    assert machine.words() == [f"{tool}: {word}" for tool in TOOLS]
    assert done.returncode == status
    assert [re.search(r"--tool (\w+)", command)[1] for command in machine.commands[1:]] == list(TOOLS)  # type: ignore[index]


def test_a_missing_tool_is_not_green(machine: Machine) -> None:
    done = machine("sanitize", COMPUTE_SANITIZER="no-such-program")
    assert done.returncode == 0
    assert machine.words() == [f"{tool}: missing" for tool in TOOLS]


# --------------------------------------------------------------------------------------------------------------- probe


def test_the_probe_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built, loaded and called; what concerns streams is said to be unknown."""
    monkeypatch.setattr(stream_probe, "BUILT", tmp_path)
    found = stream_probe.stream_probe("cpu")
    assert {name: outcome["ok"] for name, outcome in found.items()} == {
        "build": True,
        "call": True,
        "stream": None,
        "graph": None,
        "second_device": None,
    }
    assert all(outcome["seconds"] >= 0 and outcome["detail"] for outcome in found.values())
    assert found["stream"]["detail"] == "not on a CPU"


def test_the_probe_reports_what_goes_wrong(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(stream_probe.CHECKS, "call", lambda device: (False, "wrong values"))
    monkeypatch.setattr(sys, "argv", ["stream_probe", "--check", "call"])
    assert stream_probe.main() == 1
    assert re.search(r"^call +WRONG .*wrong values$", capfd.readouterr().out, re.M)


def test_a_probe_that_cannot_be_built_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise subprocess.CalledProcessError(1, ["/somewhere/bin/nvcc", "-o", "/somewhere/else"])

    monkeypatch.setattr(stream_probe, "load", fail)
    found = stream_probe.stream_probe("cpu")
    assert {name: (outcome["ok"], outcome["detail"]) for name, outcome in found.items()} == {
        "build": (False, "nvcc: exit status 1")
    }


def test_the_cuda_variant_compiles_and_links(tmp_path: Path) -> None:
    """Against the headers of any PyTorch, for sm_90; beside one without CUDA it could not be loaded."""
    if stream_probe.find_nvcc() is None:
        pytest.skip("no nvcc on PATH or in CUDA_HOME")
    library = stream_probe.build("sm_90", tmp_path)
    needed = subprocess.run(["nm", "-D", "-u", str(library)], capture_output=True, text=True, check=True).stdout
    from_torch = {name for name in re.findall(r"\bU (\S+)", needed) if "torch" in name}
    assert {"aoti_torch_get_current_cuda_stream", "aoti_torch_create_device_guard"} <= from_torch
    assert [name for name in from_torch if not name.startswith(("aoti_torch_", "torch_"))] == []
    assert "cudaLaunchKernel" not in needed  # its runtime is inside


# --------------------------------------------------------------------------------------------------------- the real one


@pytest.mark.slow
def test_the_dry_run_of_every_stage(tmp_path: Path) -> None:
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(
        [str(SCRIPT), "--dry-run", "all"], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert {"commit", "device", "ceilings", "stream_probe"} <= facts.keys()
    assert [name for name, outcome in facts["stream_probe"].items() if outcome["ok"] is False] == []
    for name in ("op.json", "model.json", "peers.json"):
        assert json.loads((tmp_path / name).read_text())["benchmarks"], name
    assert 'failures="0"' in (tmp_path / "verify.xml").read_text()
    words = dict(line.split(": ") for line in (tmp_path / "sanitize.txt").read_text().splitlines())
    assert tuple(words) == TOOLS
    assert set(words.values()) <= {"missing", "refused"}, "there was no device to be clean on"
