# SPDX-License-Identifier: Apache-2.0
"""The rules a reader relies on: imports run one way, kernels know nothing of torch, documents tell the truth."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "swin_fast"
CSRC = ROOT / "csrc"

PYTHON = sorted(
    [ROOT / "setup.py", *(p for d in ("swin_fast", "tests", "benchmarks") for p in (ROOT / d).rglob("*.py"))]
)
CPP = sorted(p for d in (CSRC, ROOT / "tests" / "cpp") for p in d.rglob("*") if p.suffix in (".h", ".cpp", ".cu"))
OTHER = [ROOT / name for name in ("CMakeLists.txt", "Makefile", "pyproject.toml", ".clang-format", ".ci/run")]
OTHER += [ROOT / name for name in ("scripts/gpu_check.sh", "scripts/stream_probe.cu", "benchmarks/fma_peak.cpp")]

# Lower first. A module imports modules of lower layers only; modules of one layer do not know each other.
LAYERS = (
    {"backends"},
    {"backends.configs", "backends.triton_window"},
    {"backends.triton_fwd"},
    {"backends.triton_bwd"},
    {"backends.triton_bias", "backends.triton_bwd_blocks"},
    {"backends.triton_plan"},
    {"backends.triton_launch"},
    {"backends.native", "backends.triton_ops", "reference"},
    {"dispatch", "ops"},
    {"functional", "geometry", "linear"},
    {"layers"},
    {"attention"},
    {"blocks"},
    {"swin_transformer"},
    {"models"},
    {""},  # swin_fast/__init__.py
    {"eager"},
    {"demo_measure", "doctor"},
    {"demo_picture"},
    {"demo"},
    {"cli"},
    {"__main__"},
)
# What a module may use besides the standard library.
THIRD_PARTY = {
    **{f"backends.triton_{name}": {"triton"} for name in ("window", "fwd", "bwd", "bwd_blocks", "bias")},
    "backends.triton_plan": {"torch", "triton"},
    "backends.triton_launch": {"torch", "triton"},
    "demo": {"torch", "numpy", "matplotlib", "PIL", "rich"},
    "demo_picture": {"torch", "numpy", "matplotlib", "PIL"},
    "doctor": {"torch", "rich"},
    "cli": set(),
}
HEADERS = {  # the first folder of csrc -> which of these headers it may include
    "torch": re.compile(r'#include\s+[<"](torch|ATen|c10|caffe2)/'),
    "Python": re.compile(r'#include\s+[<"](Python\.h|pybind11)'),
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(module: str) -> tuple[set[str], set[str]]:
    """(modules of swin_fast, third-party packages) that a module of swin_fast imports, anywhere in its text."""
    path = MODULES[module]
    package = ["swin_fast", *module.split(".")] if module else ["swin_fast"]
    if path.name != "__init__.py":
        package = package[:-1]
    ours, others = set(), set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(
                [*package[: len(package) - node.level + 1], node.module or ""] if node.level else [node.module]
            )
            base = base.rstrip(".")
            # `from . import native` names a module, `from .native import f` and `from . import __version__` do not.
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("swin_fast.") in MODULES else base for name in names]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            if top == "swin_fast":
                ours.add(name.removeprefix("swin_fast").removeprefix("."))
            elif top not in sys.stdlib_module_names:
                others.add(top)
    return ours, others


@pytest.mark.parametrize("module", sorted(MODULES), ids=lambda module: module or "swin_fast")
def test_imports_run_one_way(module: str) -> None:
    layer = {name: level for level, names in enumerate(LAYERS) for name in names}
    assert module in layer, f"give swin_fast.{module} its place in LAYERS, and in ARCHITECTURE.md"
    upward = {name for name in imports(module)[0] if layer[name] >= layer[module]}
    assert not upward, f"swin_fast.{module} imports {sorted(upward)}, which do not stand below it"


def test_the_parser_of_imports_sees_every_form() -> None:
    assert imports("dispatch")[0] == {"backends.configs", "backends.native", "backends.triton_ops"}
    assert imports("")[0] == {"attention", "blocks", "dispatch", "functional", "layers", "models"}
    assert "rich" in imports("doctor")[1]  # imported inside a function


@pytest.mark.parametrize("module", sorted(MODULES), ids=lambda module: module or "swin_fast")
def test_third_party_packages_are_the_declared_ones(module: str) -> None:
    foreign = imports(module)[1] - THIRD_PARTY.get(module, {"torch"})
    assert not foreign, f"swin_fast.{module} imports {sorted(foreign)}"


def test_the_demo_extra_names_what_the_demo_imports() -> None:
    block = re.search(r"^demo = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert block
    declared = set(re.findall(r'"([a-z]+)', block[1])) | {"torch", "numpy"}
    third_party = set().union(*(imports(module)[1] for module in ("demo", "demo_picture", "doctor", "cli")))
    assert {{"PIL": "pillow"}.get(name, name) for name in third_party} <= declared


@pytest.mark.parametrize("header", HEADERS)
def test_kernels_know_neither_torch_nor_python(header: str) -> None:
    allowed = {"torch": "csrc/bindings/", "Python": "csrc/module.cpp"}[header]
    users = [relative(path) for path in CPP if HEADERS[header].search(path.read_text())]
    assert users, "the pattern matches nothing any more"
    assert [user for user in users if not user.startswith(allowed)] == []


def test_bindings_use_the_stable_abi_alone() -> None:
    stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/")
    text = "".join(path.read_text() for path in (CSRC / "bindings").iterdir())
    headers = re.findall(r'#include\s+[<"]((?:torch|ATen|c10|caffe2)/[^>"]+)', text)
    assert headers
    assert [header for header in headers if not header.startswith(stable)] == []


@pytest.mark.parametrize("source", [*PYTHON, *CPP, *OTHER], ids=relative)
def test_source_names_its_licence_and_keeps_its_length(source: Path) -> None:
    lines = source.read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines[0].startswith("#!") else lines[0]
    assert first.endswith("SPDX-License-Identifier: Apache-2.0")
    over = [f"{relative(source)}:{number}" for number, line in enumerate(lines, 1) if len(line) > 120]
    assert source.suffix == ".py" or not over, f"more than 120 characters: {', '.join(over)}"  # ruff holds Python to it
    assert len(lines) <= 650, "one reason per file; split where the second reason shows"
    assert source.stem != "utils", "a helper lives where it is used, or it has a name"


@pytest.mark.parametrize("source", [path for path in PYTHON if path.parent.name != "tests"], ids=relative)
def test_nothing_is_unpickled(source: Path) -> None:
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & {"pickle", "dill", "shelve"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True", f"line {node.lineno}: weights_only=True or safetensors"


def test_cmake_names_every_source_and_no_other() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    named = {name for name in re.findall(r"csrc/[\w/]+\.(?:cpp|cu)\b", text) if "SOURCE_DIR" not in name}
    assert named == {relative(path) for path in CSRC.rglob("*.c*") if path.suffix in (".cpp", ".cu")}
    assert "GLOB" not in text


def test_the_readme_lists_the_environment_variables_that_are_read() -> None:
    files = [path for path in PYTHON if path.parent.name != "tests" or path.name == "conftest.py"]
    constants = (node.value for path in files for node in ast.walk(tree_of(path)) if isinstance(node, ast.Constant))
    read = {value for value in constants if isinstance(value, str) and re.fullmatch(r"SWIN_FAST_[A-Z_]+", value)}
    read -= set(re.findall(r"SWIN_FAST_[A-Z_]+", (ROOT / "CMakeLists.txt").read_text()))  # switches given with -D
    listed = re.findall(r"^\| `(SWIN_FAST_[A-Z_]+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert sorted(read) == sorted(listed)


def test_the_version_stands_in_one_place() -> None:
    version = re.search(r'^__version__ = "(.+)"$', (PACKAGE / "__init__.py").read_text(), re.M)
    assert version
    places = [path for path in [*PYTHON, *CPP, *OTHER] if f'"{version[1]}"' in path.read_text()]
    assert [relative(path) for path in places] == ["swin_fast/__init__.py"]


def test_the_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
    capsys.readouterr()


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_documents_name_only_what_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / target).exists(), f"a link to {target}"
    for file, name in re.findall(r"`([\w/.]+\.(?:py|cpp|h)):(\w+)`", text):
        assert (ROOT / file).exists(), f"`{file}`"
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), f"`{name}` in {file}"
    for target in re.findall(r"`make (\w+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"`make {target}`"
