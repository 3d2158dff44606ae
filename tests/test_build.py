# SPDX-License-Identifier: Apache-2.0
"""What setup.py and CMake make: the decision and its one line, the wheels, the library's symbols, its build facts."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import swin_fast
from conftest import REQUIRED
from swin_fast.backends import native

ROOT = Path(__file__).resolve().parent.parent
BASE_OBJECTS = ("bindings/cpu.cpp", "cpu/isa.cpp", "cpu/window_attention.cpp", "cpu/kernels_scalar.cpp")
ISA_OBJECTS = ("cpu/kernels_avx2.cpp", "cpu/kernels_avx512.cpp", "cpu/kernels_avx512_bf16.cpp")

COMPUTE = """
import torch, swin_fast
qkv = torch.randn(1, 9, 8, 3, 2, 4)
out = swin_fast.window_attention(qkv, None, window_size=4, shift_size=2)
expected = swin_fast.window_attention(qkv, None, window_size=4, shift_size=2, backend="reference")
assert out.shape == (1, 9, 8, 8) and torch.allclose(out, expected, atol=1e-5)
"""


def absent(reason: str) -> None:
    """Skips, or fails where the cpu backend is required."""
    if "cpu" in REQUIRED:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def library() -> Path:
    if reasons := native.cpu_why_not():
        absent("; ".join(reasons))
    return native.CPU_LIBRARY


@pytest.fixture
def objects(library: Path) -> Path:
    """The folder of the object files that the library in use was linked from."""
    for built in (ROOT / "build").glob(f"cmake-*/{library.name}"):
        if built.read_bytes() == library.read_bytes():
            return built.parent / "CMakeFiles" / "swin_fast_cpu.dir" / "csrc"
    pytest.skip("the library was not built in this tree, so its object files are not at hand")


def tool(name: str, *arguments: str | Path) -> str:
    if shutil.which(name) is None:
        absent(f"{name} of the binutils is not installed")
    return subprocess.run([name, *arguments], capture_output=True, text=True, check=True).stdout


def environment(**changes: str) -> dict[str, str]:
    """The process's environment, less what would change a build."""
    mine = ("SWIN_FAST_BUILD", "SWIN_FAST_CUDA_ARCHS", "CMAKE_ARGS")
    inherited = {name: value for name, value in os.environ.items() if name not in mine}
    return {**inherited, **changes}


def run_setup(folder: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "--quiet", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(**changes), capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources in a folder of their own, without anything built."""
    return copy_sources(tmp_path / "copy")


def copy_sources(folder: Path) -> Path:
    ignore = shutil.ignore_patterns("lib", "_C.*", "__pycache__")
    for name in ("swin_fast", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# setup.py: the decision


@pytest.fixture
def setup_globals(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of setup.py, after a run that only prints the package's name."""
    monkeypatch.setattr(sys, "argv", ["setup.py", "--quiet", "--name"])
    for name in ("SWIN_FAST_BUILD", "SWIN_FAST_CUDA_ARCHS", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    return runpy.run_path(str(ROOT / "setup.py"))


Decision = tuple[tuple[str, ...], str]


def decide(names: dict[str, Any], wanted: str, torch: Path | None, **replaced: Any) -> Decision:
    function = names["decide"]
    function.__globals__.update(replaced)
    result: Decision = function(wanted, torch)
    return result


def a_torch(folder: Path, version: str) -> Path:
    """As PyTorch's own version.py, with the line of its CUDA."""
    _, _, cuda = version.partition("+cu")
    lines = [f"__version__ = '{version}'", "debug = False", f"cuda: Optional[str] = {f'{cuda}' if cuda else None!r}"]
    (folder / "version.py").write_text("\n".join(lines) + "\n")
    return folder


def find_all(name: str) -> str:
    return f"/usr/bin/{name}"


def test_auto_builds_where_everything_is_at_hand(setup_globals: dict[str, Any], tmp_path: Path) -> None:
    libraries, why = decide(setup_globals, "auto", a_torch(tmp_path, "2.10.0+cu130"), find_tool=find_all)
    assert libraries == ("cpu", "cuda")
    assert "torch 2.10.0+cu130" in why
    assert "/usr/bin/nvcc" in why


@pytest.mark.parametrize(
    ("wanted", "version", "nvcc", "libraries"),
    [
        ("auto", "2.13.0+cpu", "/usr/bin/nvcc", ("cpu",)),  # who has no use for it need not wait for it
        ("auto", "2.13.0+cu130", None, ("cpu",)),
        ("cpu", "2.13.0+cu130", "/usr/bin/nvcc", ("cpu",)),
        ("cuda", "2.13.0+cpu", "/usr/bin/nvcc", ("cpu", "cuda")),
        ("cuda", "2.13.0+cu130", None, ()),
    ],
)
def test_when_the_cuda_library_is_built(
    setup_globals: dict[str, Any],
    tmp_path: Path,
    wanted: str,
    version: str,
    nvcc: str | None,
    libraries: tuple[str, ...],
) -> None:
    torch = a_torch(tmp_path, version)
    built, why = decide(setup_globals, wanted, torch, find_tool=find_all, find_nvcc=lambda: nvcc)
    assert built == libraries
    assert ("missing: nvcc" in why) == (not libraries)


def test_nvcc_is_looked_for_in_three_places(
    setup_globals: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_nvcc = setup_globals["find_nvcc"]
    toolkit = tmp_path / "bin" / "nvcc"
    toolkit.parent.mkdir()
    toolkit.write_text("#!/bin/sh\n")
    toolkit.chmod(0o755)
    find_nvcc.__globals__["find_tool"] = lambda name: None
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find_nvcc() == str(toolkit)
    find_nvcc.__globals__["find_tool"] = lambda name: "/a/path/nvcc"
    assert find_nvcc() == "/a/path/nvcc"


@pytest.mark.parametrize(
    ("wanted", "given"),
    [("", ""), ("90", "90"), ("80;90", "80-real;90"), ("80,86,120", "80-real;86-real;120")],
)
def test_architectures_as_cmake_spells_them(setup_globals: dict[str, Any], wanted: str, given: str) -> None:
    assert setup_globals["cmake_architectures"](wanted) == given


@pytest.mark.parametrize("wanted", ["hopper", "75", "sm_90", "90;80", "80;80", "80;;90", "9", ";", "80 90", "900"])
def test_architectures_that_make_no_sense(copy: Path, wanted: str) -> None:
    done = run_setup(copy, "build_ext", "--inplace", SWIN_FAST_BUILD="none", SWIN_FAST_CUDA_ARCHS=wanted)
    assert done.returncode != 0
    assert f"SWIN_FAST_CUDA_ARCHS is {wanted!r}; it wants ascending numbers" in done.stderr


def test_the_default_architectures_are_those_of_the_gates() -> None:
    [default] = re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES (.*)\)", (ROOT / "CMakeLists.txt").read_text())
    numbers = re.findall(r"\d+", default)
    assert default.split() == [*(f"{number}-real" for number in numbers[:-1]), numbers[-1]]
    [gate] = re.findall(r"^ARCHITECTURES = \((.*)\)", (ROOT / "tests/test_cuda_kernels.py").read_text(), re.M)
    assert gate.split(", ") == numbers
    [readme] = re.findall(r"`SWIN_FAST_CUDA_ARCHS` .*default ([\d;]+)", (ROOT / "README.md").read_text())
    assert readme.split(";") == numbers


def test_auto_off_x86_builds_the_scalar_sources_and_says_so(
    setup_globals: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    native_too, why = decide(setup_globals, "auto", a_torch(tmp_path, "2.13.0"), find_tool=find_all)
    assert native_too
    assert "scalar sources only" in why


def test_windows_gets_pure_python_and_hears_why(
    setup_globals: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert decide(setup_globals, "auto", a_torch(tmp_path, "2.13.0")) == (
        (),
        "the native sources need Linux or macOS",
    )


@pytest.mark.parametrize(
    ("version", "missing_tool", "sentence"),
    [
        (None, "", "torch>=2.10 (found: none)"),
        ("2.9.1", "", "torch>=2.10 (found: 2.9.1)"),
        ("2.13.0", "cmake", "missing: cmake"),
        ("2.13.0", "ninja", "missing: ninja"),
        ("2.13.0", "c++ g++ clang++", "missing: a C++ compiler"),
    ],
    ids=["no-torch", "old-torch", "no-cmake", "no-ninja", "no-compiler"],
)
def test_what_is_missing_is_named(
    setup_globals: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    missing_tool: str,
    sentence: str,
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    torch = a_torch(tmp_path, version) if version else None
    native_too, why = decide(
        setup_globals, "auto", torch, find_tool=lambda name: None if name in missing_tool.split() else find_all(name)
    )
    assert not native_too
    assert sentence in why


def test_none_prints_one_line_and_builds_nothing(copy: Path) -> None:
    done = run_setup(copy, "build_ext", "--inplace", SWIN_FAST_BUILD="none")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "swin_fast build: pure Python (SWIN_FAST_BUILD=none): as asked\n"
    assert not (copy / "swin_fast" / "lib").exists()


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ("cuda", "SWIN_FAST_BUILD=cuda, but the library cannot be built: missing: torch>=2.10 (found: 2.9.1)"),
        ("gpu", "SWIN_FAST_BUILD is 'gpu'; it wants auto, cpu, cuda or none"),
    ],
)
def test_what_cannot_be_built_fails_loudly(copy: Path, tmp_path: Path, wanted: str, sentence: str) -> None:
    """An old PyTorch is what every machine can lack, whatever compilers it has and wherever they are."""
    old = tmp_path / "old" / "torch"
    old.mkdir(parents=True)
    (a_torch(old, "2.9.1") / "__init__.py").touch()
    done = run_setup(
        copy, "build_ext", "--inplace", SWIN_FAST_BUILD=wanted, CXX=sys.executable, PYTHONPATH=str(old.parent)
    )
    assert done.returncode != 0
    assert sentence in done.stderr


BROKEN = {"CMAKE_ARGS": "-DCMAKE_CXX_COMPILER=/nonexistent/c++"}


def test_auto_survives_a_failing_compiler(library: Path, copy: Path) -> None:
    done = run_setup(copy, "build_ext", "--inplace", SWIN_FAST_BUILD="auto", **BROKEN)
    assert done.returncode == 0, done.stderr
    assert "swin_fast build: nothing after all, the build failed" in done.stdout


def test_cpu_does_not_survive_a_failing_compiler(library: Path, copy: Path) -> None:
    done = run_setup(copy, "build_ext", "--inplace", SWIN_FAST_BUILD="cpu", **BROKEN)
    assert done.returncode != 0
    assert "SWIN_FAST_BUILD=cpu, and the build failed" in done.stderr


def test_auto_makes_do_with_less(setup_globals: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Without CUDA where that fails, then with nothing."""
    build = setup_globals["CMakeBuild"]
    tried: list[bool] = []

    class Failing(build):  # type: ignore[misc, valid-type]
        inplace = True
        works_without_cuda = True

        def __init__(self) -> None: ...

        def build_with_cmake(self, prefix: Path, with_cuda: bool) -> None:
            tried.append(with_cuda)
            if with_cuda or not self.works_without_cuda:
                raise subprocess.CalledProcessError(1, ["cmake"])

    build.run.__globals__.update(native=("cpu", "cuda"), WANTED="auto")
    Failing().run()
    assert tried == [True, False]
    assert "cpu alone after all, the build failed" in capsys.readouterr().out
    Failing.works_without_cuda = False
    Failing().run()
    assert "nothing after all, the build failed" in capsys.readouterr().out
    build.run.__globals__.update(WANTED="cuda")
    with pytest.raises(SystemExit, match="SWIN_FAST_BUILD=cuda, and the build failed"):
        Failing().run()


# ---------------------------------------------------------------------------------------------------------------------
# Without the library, and as a wheel


def test_without_the_library_everything_runs_on_the_reference(copy: Path, run_script: Callable[..., str]) -> None:
    out = run_script(
        f"import sys; sys.path.insert(0, {str(copy)!r})\n{COMPUTE}"
        f"assert swin_fast.__file__.startswith({str(copy)!r})\n"
        "print(swin_fast.backends(), swin_fast.explain())\n"
        "try: swin_fast.window_attention(qkv, None, window_size=4, backend='cpu')\n"
        "except NotImplementedError as error: print(error)\n",
        timeout=120,
    )
    assert "('reference',)" in out
    assert out.count("the CPU library is not built") == 2  # explain, and the refusal
    assert out.count("the CUDA library is not built") == 1


def build_wheel(folder: Path, target: Path, wanted: str, **changes: str) -> zipfile.ZipFile:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"]
    command = [*pip, "--no-build-isolation", "--no-deps", "--wheel-dir", str(target), str(folder)]
    inherited = {name: os.environ[name] for name in ["CMAKE_ARGS"] if name in os.environ}  # so that nothing is rebuilt
    variables = environment(SWIN_FAST_BUILD=wanted, **{**inherited, **changes})
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = target.glob("*.whl")
    return zipfile.ZipFile(wheel)


def package_files() -> set[str]:
    """What every wheel brings: the Python files, and the launch parameters measured on a device."""
    package = ROOT / "swin_fast"
    paths = [*package.rglob("*.py"), *package.glob("backends/configs/*.json"), package / "py.typed"]
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_pure_wheel(copy: Path, tmp_path: Path) -> None:
    wheel = build_wheel(copy, tmp_path, "none")
    info = f"swin_fast-{swin_fast.__version__}.dist-info"
    assert Path(str(wheel.filename)).name == f"swin_fast-{swin_fast.__version__}-py3-none-any.whl"
    names = {name for name in wheel.namelist() if not name.startswith(info)}
    assert names == package_files()
    assert [name for name in wheel.namelist() if name.startswith(info) and name.endswith("/LICENSE")]
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"Version: {swin_fast.__version__}\n" in metadata
    assert "Requires-Python: >=3.10\n" in metadata
    assert "Requires-Dist: torch>=2.10\n" in metadata


@pytest.mark.slow  # it compiles everything once more: 85 s
def test_native_wheel_serves_every_python_and_runs(
    library: Path, objects: Path, tmp_path: Path, run_script: Callable[..., str]
) -> None:
    wheel = build_wheel(ROOT, tmp_path, "cpu")
    assert re.fullmatch(r"swin_fast-[\d.]+-py3-none-\w+_\w+\.whl", Path(str(wheel.filename)).name)
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names >= {*package_files(), f"swin_fast/lib/{library.name}"}
    assert {name for name in names if name.endswith(".so")} - {f"swin_fast/lib/{library.name}"} == {
        name for name in names if name.startswith("swin_fast/_C.")
    }
    site = tmp_path / "site"
    wheel.extractall(site)
    out = run_script(
        f"import sys; sys.path.insert(0, {str(site)!r})\n{COMPUTE}print(swin_fast.__file__, swin_fast.backends())",
        timeout=120,
    )
    assert str(site) in out
    assert "'cpu'" in out


# ---------------------------------------------------------------------------------------------------------------------
# The library: facts and symbols


def test_build_facts(library: Path) -> None:
    facts = native.cpu_build_info()
    assert facts["version"] == swin_fast.__version__
    assert facts["torch_target"] == "2.10"
    assert "TORCH_TARGET_VERSION=0x020a000000000000ULL" in (ROOT / "CMakeLists.txt").read_text()
    assert facts["compiler"]
    assert facts["isa_compiled"][0] == "scalar"
    assert [49, 32] in facts["instances"]


def test_c_module_tells_the_facts_of_the_loaded_library(library: Path, run_script: Callable[..., str]) -> None:
    spec = importlib.util.find_spec("swin_fast._C")
    if spec is None or spec.origin is None:
        pytest.skip("_C was left out of this build: no pybind11, or another Python")
    from swin_fast import _C  # type: ignore[attr-defined]

    assert _C.build_info()["cpu"] == native.cpu_build_info()
    assert _C.build_info()["cuda"] == (native.cuda_build_info() or None)
    assert _C.build_info()["python"] == ".".join(map(str, sys.version_info[:3]))
    # Alone it must not load the library: a second registration of its operators would end the process.
    alone = (
        f"from importlib import util; spec = util.spec_from_file_location('_C', {spec.origin!r})\n"
        "module = util.module_from_spec(spec); spec.loader.exec_module(module); print(module.build_info())"
    )
    assert "'cpu': None, 'cuda': None" in run_script(alone, timeout=60)


def test_library_exports_its_three_functions_alone(library: Path) -> None:
    symbols = [line.split()[-1] for line in tool("nm", "-D", "--defined-only", library).splitlines()]
    named = {symbol for symbol in symbols if "swin_fast" in symbol or "torch" in symbol}
    assert named == {"swin_fast_cpu_build_info", "swin_fast_cpu_isa", "swin_fast_cpu_select_isa"}


def test_library_needs_the_c_shims_of_torch_alone(library: Path) -> None:
    symbols = [line.split()[-1].partition("@")[0] for line in tool("nm", "-D", "-u", library).splitlines()]
    from_torch = {symbol for symbol in symbols if "torch" in symbol}
    assert from_torch
    assert {symbol for symbol in from_torch if not symbol.startswith(("aoti_torch_", "torch_"))} == set()
    mangled = re.compile(r"_Z\w*?(2at|3c10|6caffe2|5torch|8pybind11)")
    assert [symbol for symbol in symbols if mangled.match(symbol)] == []
    assert [symbol for symbol in symbols if symbol.startswith(("Py", "_Py"))] == []


def test_library_finds_torch_without_a_path_of_this_machine(library: Path) -> None:
    dynamic = tool("readelf", "-d", library)
    assert "libtorch_cpu.so" in dynamic
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


@pytest.mark.parametrize("source", BASE_OBJECTS)
def test_base_objects_hold_no_vector_extension(objects: Path, source: str) -> None:
    """They run on every x86-64, so nothing beyond SSE2 may slip in."""
    disassembly = tool("objdump", "-d", "--no-show-raw-insn", objects / f"{source}.o")
    assert re.search(r"\bret", disassembly)
    assert re.findall(r".*%[yz]mm.*", disassembly)[:3] == []
    assert re.findall(r".*\bv(?:mov|add|mul|fmadd|xor|cvt)\w* .*", disassembly)[:3] == []


@pytest.mark.parametrize("source", ISA_OBJECTS)
def test_isa_objects_share_no_code_and_run_none_at_load(objects: Path, source: str) -> None:
    """A shared inline function compiled with AVX could be the copy that the linker keeps for all; so could a
    constructor run where there is no AVX."""
    if not (objects / f"{source}.o").exists():
        pytest.skip("this build has the scalar sources alone")
    shared = [line for line in tool("nm", "-C", objects / f"{source}.o").splitlines() if re.search(r" [WVu] ", line)]
    assert [line for line in shared if " [clone" not in line] == []
    assert ".init_array" not in tool("objdump", "-h", objects / f"{source}.o")


def test_isa_objects_use_the_instructions_they_are_for(objects: Path) -> None:
    if not (objects / f"{ISA_OBJECTS[0]}.o").exists():
        pytest.skip("this build has the scalar sources alone")
    registers = {
        source: set(re.findall(r"%([yz]mm)", tool("objdump", "-d", "--no-show-raw-insn", objects / f"{source}.o")))
        for source in ISA_OBJECTS
    }
    assert registers["cpu/kernels_avx2.cpp"] == {"ymm"}
    assert "zmm" in registers["cpu/kernels_avx512.cpp"]
    bf16 = tool("objdump", "-d", "--no-show-raw-insn", objects / "cpu/kernels_avx512_bf16.cpp.o")
    assert "vdpbf16ps" in bf16
