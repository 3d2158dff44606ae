# SPDX-License-Identifier: Apache-2.0
"""Drives CMake and ninja. What is built is decided here and said in one line.

SWIN_FAST_BUILD=auto  the CPU library where it can be built, else pure Python, and that of CUDA where PyTorch is one for
                      CUDA and nvcc is found; never fails an install (the default)
                cpu   the CPU library, or an error
                cuda  the CPU and CUDA libraries, or an error; any PyTorch will do, and no GPU is needed
                none  pure Python
SWIN_FAST_CUDA_ARCHS  of the CUDA library, such as 80;90; the last also as PTX. The default stands in CMakeLists.txt
CMAKE_ARGS            further arguments to cmake; CMakeLists.txt lists the switches
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH = "torch>=2.10"
FIND_TORCH = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
CMAKE_ARGS = shlex.split(os.environ.get("CMAKE_ARGS", ""))


def find_torch() -> "Path | None":
    """The torch to build against: the build environment's own, else that of the environment which pip installs into.

    Under build isolation the second is hidden by PYTHONPATH, which -E ignores. Taking it spares a second copy of torch.
    """
    for flags in ([], ["-E"]):
        command = [sys.executable, *flags, "-c", FIND_TORCH]
        folder = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        if folder and (Path(folder) / "version.py").exists():
            return Path(folder)
    return None


def find_tool(name: str) -> "str | None":
    """A program of the PATH, or of the environment whose Python this is without being activated."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def find_nvcc() -> "str | None":
    """nvcc of the PATH, of CUDA_HOME, or where toolkits are usually installed."""
    folders = filter(None, [os.environ.get("CUDA_HOME"), "/usr/local/cuda"])
    return find_tool("nvcc") or next(filter(None, (shutil.which("nvcc", path=f"{f}/bin") for f in folders)), None)


def cmake_architectures(wanted: str) -> str:
    """SWIN_FAST_CUDA_ARCHS as CMake spells it: a binary for each, and PTX of the last; "" is the default."""
    numbers = wanted.replace(",", ";").split(";") if wanted else []
    wrong = [number for number in numbers if not re.fullmatch(r"[89]\d|1[0-9]\d", number)]
    if wrong or sorted(set(numbers), key=int) != numbers:
        raise SystemExit(
            f"swin_fast: SWIN_FAST_CUDA_ARCHS is {wanted!r}; it wants ascending numbers of architectures from 80 on, "
            "such as 80;90"
        )
    return ";".join([*(f"{number}-real" for number in numbers[:-1]), *numbers[-1:]])


def decide(wanted: str, torch: "Path | None") -> "tuple[tuple[str, ...], str]":
    """Which libraries to build, of cpu and cuda, and why, in words."""
    if wanted not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"swin_fast: SWIN_FAST_BUILD is {wanted!r}; it wants auto, cpu, cuda or none")
    if wanted == "none":
        return (), "as asked"
    if sys.platform == "win32":
        return (), "the native sources need Linux or macOS"
    version, for_cuda = "none", False
    if torch is not None:
        text = (torch / "version.py").read_text()
        version = re.search(r"__version__ = '(.+?)'", text)[1]
        for_cuda = re.search(r"^cuda\b.*= '.+'", text, re.M) is not None
    compilers = [*os.environ.get("CXX", "").split()[:1], "c++", "g++", "clang++"]
    compiler = next(filter(None, map(find_tool, compilers)), None)
    missing = [name for name in ("cmake", "ninja") if find_tool(name) is None]
    if compiler is None:
        missing.append("a C++ compiler")
    if torch is None or tuple(map(int, version.split(".")[:2])) < (2, 10):
        missing.append(f"{TORCH} (found: {version})")
    nvcc = find_nvcc() if wanted == "cuda" or (wanted == "auto" and for_cuda) else None
    if wanted == "cuda" and nvcc is None:
        missing.append("nvcc (looked on PATH, in CUDA_HOME and in /usr/local/cuda)")
    if missing:
        return (), "missing: " + ", ".join(missing)
    x86 = platform.machine() in ("x86_64", "AMD64", "amd64")
    sources = "scalar, AVX2 and AVX-512 sources" if x86 else "scalar sources only, this is not x86-64"
    tools = compiler if nvcc is None else f"{compiler}, {nvcc}"
    libraries = ("cpu",) if nvcc is None else ("cpu", "cuda")
    return libraries, f"{sources}; {tools}, torch {version}, {platform.system()} {platform.machine()}"


class CMakeBuild(build_ext):
    """cmake configures and builds in build/, then installs into the source tree or into the wheel."""

    def run(self) -> None:
        without_cuda = tuple(name for name in native if name != "cuda")
        for libraries in dict.fromkeys((native, without_cuda)):  # auto makes do with less
            if not libraries:
                return
            try:
                self.build_with_cmake(ROOT if self.inplace else Path(self.build_lib).resolve(), "cuda" in libraries)
                return
            except subprocess.CalledProcessError as error:
                failed = f"the build failed: exit status {error.returncode} from {shlex.join(error.cmd)}"
                if WANTED != "auto":
                    raise SystemExit(f"swin_fast: SWIN_FAST_BUILD={WANTED}, and {failed}") from error
                instead = "cpu alone" if "cuda" in libraries else "nothing"
                print(f"swin_fast build: {instead} after all, {failed}", flush=True)

    def build_with_cmake(self, prefix: Path, with_cuda: bool) -> None:
        # Its own folder for each Python, each list of architectures and each CMAKE_ARGS, as they stay in CMake's cache.
        told = [sys.prefix, *([ARCHITECTURES] if ARCHITECTURES else []), *CMAKE_ARGS]
        digest = hashlib.sha256("\0".join(told).encode()).hexdigest()[:8]
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{digest}"
        cmake = find_tool("cmake")
        defines = {
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "SWIN_FAST_TORCH_DIR": TORCH_FOLDER,
            "SWIN_FAST_CUDA": "ON" if with_cuda else "OFF",
        }
        if with_cuda:
            defines["CMAKE_CUDA_COMPILER"] = find_nvcc()
            if ARCHITECTURES:
                defines["CMAKE_CUDA_ARCHITECTURES"] = ARCHITECTURES
        for command in (
            [cmake, "-G", "Ninja", "-S", ROOT, "-B", build, *(f"-D{k}={v}" for k, v in defines.items()), *CMAKE_ARGS],
            [cmake, "--build", build],
            [cmake, "--install", build, "--prefix", prefix],
        ):
            subprocess.run([str(part) for part in command], check=True)

    def get_outputs(self) -> "list[str]":
        package = Path(self.build_lib) / "swin_fast"
        return [] if self.inplace else [str(path) for pattern in ("lib/*", "_C.*.so") for path in package.glob(pattern)]

    def get_output_mapping(self) -> "dict[str, str]":
        return {}

    def get_source_files(self) -> "list[str]":
        sources = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu"))
        return ["CMakeLists.txt", *(str(path.relative_to(ROOT)) for path in sources)]


class AnyPythonWheel(bdist_wheel):
    """One wheel per platform: the op libraries hold no Python symbol, and _C, which does, is optional."""

    def get_tag(self) -> "tuple[str, str, str]":
        return ("py3", "none", super().get_tag()[2])


WANTED = os.environ.get("SWIN_FAST_BUILD", "auto")
TORCH_FOLDER = find_torch()
ARCHITECTURES = cmake_architectures(os.environ.get("SWIN_FAST_CUDA_ARCHS", ""))
native, why = decide(WANTED, TORCH_FOLDER)
if {"bdist_wheel", "build", "build_ext", "editable_wheel", "install"} & set(sys.argv):
    what = " and ".join(native) or "pure Python"
    print(f"swin_fast build: {what} (SWIN_FAST_BUILD={WANTED}): {why}", flush=True)
    if WANTED in ("cpu", "cuda") and not native:
        raise SystemExit(f"swin_fast: SWIN_FAST_BUILD={WANTED}, but the library cannot be built: {why}")

setup(
    license="Apache-2.0",
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
    ext_modules=[Extension("swin_fast._C", sources=[])] if native else [],
    # A file of an earlier build must not slip into a wheel that was asked to be without it.
    options={"build": {"build_lib": f"build/lib-{'-'.join(native) or 'none'}"}},
    # Answered only when pip asks what an isolated build needs: torch, where there is none to build against.
    setup_requires=[TORCH] if "egg_info" in sys.argv and TORCH_FOLDER is None and WANTED != "none" else [],
)
