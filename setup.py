# SPDX-License-Identifier: Apache-2.0
"""Drives CMake and ninja. What is built is decided here and said in one line.

SWIN_FAST_BUILD=auto  the CPU library where it can be built, else pure Python; never fails an install (the default)
                cpu   the CPU library, or an error
                cuda  an error: this version has no CUDA sources
                none  pure Python
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


def decide(wanted: str, torch: "Path | None") -> "tuple[bool, str]":
    """Whether to build the CPU library, and why, in words."""
    if wanted not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"swin_fast: SWIN_FAST_BUILD is {wanted!r}; it wants auto, cpu, cuda or none")
    if wanted == "cuda":
        raise SystemExit("swin_fast: SWIN_FAST_BUILD=cuda, but this version has no CUDA sources; use auto, cpu or none")
    if wanted == "none":
        return False, "as asked"
    if sys.platform == "win32":
        return False, "the native sources need Linux or macOS"
    version = "none"
    if torch is not None:
        version = re.search(r"__version__ = '(.+?)'", (torch / "version.py").read_text())[1]
    compilers = [*os.environ.get("CXX", "").split()[:1], "c++", "g++", "clang++"]
    compiler = next(filter(None, map(find_tool, compilers)), None)
    missing = [name for name in ("cmake", "ninja") if find_tool(name) is None]
    if compiler is None:
        missing.append("a C++ compiler")
    if torch is None or tuple(map(int, version.split(".")[:2])) < (2, 10):
        missing.append(f"{TORCH} (found: {version})")
    if missing:
        return False, "missing: " + ", ".join(missing)
    x86 = platform.machine() in ("x86_64", "AMD64", "amd64")
    sources = "scalar, AVX2 and AVX-512 sources" if x86 else "scalar sources only, this is not x86-64"
    return True, f"{sources}; {compiler}, torch {version}, {platform.system()} {platform.machine()}"


class CMakeBuild(build_ext):
    """cmake configures and builds in build/, then installs into the source tree or into the wheel."""

    def run(self) -> None:
        if not native:
            return
        try:
            self.build_with_cmake(ROOT if self.inplace else Path(self.build_lib).resolve())
        except subprocess.CalledProcessError as error:
            failed = f"the build failed: exit status {error.returncode} from {shlex.join(error.cmd)}"
            if WANTED != "auto":
                raise SystemExit(f"swin_fast: SWIN_FAST_BUILD={WANTED}, and {failed}") from error
            print(f"swin_fast build: nothing after all, {failed}", flush=True)

    def build_with_cmake(self, prefix: Path) -> None:
        # Its own folder for each Python and each CMAKE_ARGS, as both stay in CMake's cache.
        digest = hashlib.sha256("\0".join([sys.prefix, *CMAKE_ARGS]).encode()).hexdigest()[:8]
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{digest}"
        cmake = find_tool("cmake")
        defines = {
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "SWIN_FAST_TORCH_DIR": TORCH_FOLDER,
        }
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
        sources = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp"))
        return ["CMakeLists.txt", *(str(path.relative_to(ROOT)) for path in sources)]


class AnyPythonWheel(bdist_wheel):
    """One wheel per platform: the op libraries hold no Python symbol, and _C, which does, is optional."""

    def get_tag(self) -> "tuple[str, str, str]":
        return ("py3", "none", super().get_tag()[2])


WANTED = os.environ.get("SWIN_FAST_BUILD", "auto")
TORCH_FOLDER = find_torch()
native, why = decide(WANTED, TORCH_FOLDER)
if {"bdist_wheel", "build", "build_ext", "editable_wheel", "install"} & set(sys.argv):
    print(f"swin_fast build: {'cpu' if native else 'pure Python'} (SWIN_FAST_BUILD={WANTED}): {why}", flush=True)
    if WANTED == "cpu" and not native:
        raise SystemExit(f"swin_fast: SWIN_FAST_BUILD=cpu, but the CPU library cannot be built: {why}")

setup(
    license="Apache-2.0",
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
    ext_modules=[Extension("swin_fast._C", sources=[])] if native else [],
    # A file of an earlier build must not slip into a wheel that was asked to be without it.
    options={"build": {"build_lib": f"build/lib-{'cpu' if native else 'none'}"}},
    # Answered only when pip asks what an isolated build needs: torch, where there is none to build against.
    setup_requires=[TORCH] if "egg_info" in sys.argv and TORCH_FOLDER is None and WANTED != "none" else [],
)
