# SPDX-License-Identifier: Apache-2.0
"""Does an op bound as ours are keep to PyTorch's current stream, into its CUDA graphs and on its tensors' device?

`python -m benchmarks.stream_probe [--device cpu|cuda] [--check NAME ...]` builds scripts/stream_probe.cu, one small op
on LibTorch's stable ABI whose kernel lasts as long as one asks, loads it and looks. On a CPU the same source, build and
call are tried, but there is no stream to look at.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .machine import ROOT, find_nvcc

SOURCE = ROOT / "scripts" / "stream_probe.cu"
BUILT = ROOT / "build" / "stream_probe"
TORCH = Path(torch.__file__).parent

#: Clock ticks that a slow call lasts: a quarter of a second at 2 GHz, long beside any delay of the host.
TICKS = 500_000_000
SIZE = 1000

Outcome = dict[str, Any]
Verdict = tuple[bool | None, str]  # None: cannot be checked here, and the words say why


# --------------------------------------------------------------------------------------------------------------- build


def compile_command(architecture: str | None, target: Path) -> list[str]:
    """Compiles and links the probe for `architecture`, such as sm_90; None is the host.

    Beside a PyTorch without CUDA the CUDA variant is linked, too, but cannot be loaded.

    Raises:
        FileNotFoundError: no compiler.
    """
    version = re.search(r"TORCH_TARGET_VERSION=\w+", (ROOT / "CMakeLists.txt").read_text())
    assert version, "CMakeLists.txt names no TORCH_TARGET_VERSION"
    shared = ["-shared", "-std=c++17", "-O2", f"-D{version[0]}", "-isystem", str(TORCH / "include"), "-o", str(target)]
    present = [name for name in ("torch_cpu", "torch_cuda") if (TORCH / "lib" / f"lib{name}.so").exists()]
    libraries = [f"-L{TORCH / 'lib'}", *(f"-l{name}" for name in present)]
    if architecture is None:
        compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
        flags = ["-fPIC", "-fvisibility=hidden", "-x", "c++", str(SOURCE), "-x", "none", "-Wl,--no-as-needed"]
    else:
        compiler = find_nvcc()
        host = ["-Xcompiler=-fPIC,-fvisibility=hidden", "-Xlinker=--no-as-needed"]
        flags = ["-DUSE_CUDA", f"-arch={architecture}", "-cudart=static", *host, str(SOURCE)]
    if compiler is None:
        raise FileNotFoundError("no C++ compiler" if architecture is None else "no nvcc on PATH or in CUDA_HOME")
    return [compiler, *shared, *flags, *libraries]


def build(architecture: str | None, folder: Path = BUILT) -> Path:
    """The library, built unless the same source has been built with the same command and PyTorch."""
    told = [*compile_command(architecture, Path()), torch.__version__, SOURCE.read_text()]
    library = folder / f"libstream_probe-{hashlib.sha256(chr(0).join(told).encode()).hexdigest()[:12]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        half = library.with_suffix(f".{os.getpid()}")
        subprocess.run(compile_command(architecture, half), check=True)
        half.replace(library)
    return library


@functools.cache  # loading the namespace a second time would end the process
def load(device: str) -> Callable[[Tensor, int], Tensor]:
    architecture = None if device == "cpu" else "sm_{}{}".format(*torch.cuda.get_device_capability())
    torch.ops.load_library(str(build(architecture)))
    return torch.ops.swin_fast_probe.add_slowly.default


# -------------------------------------------------------------------------------------------------------------- checks


def check_build(device: str) -> Verdict:
    load(device)
    return True, f"built, or built before, and loaded, for torch {torch.__version__}"


def check_call(device: str) -> Verdict:
    """Values alone: contiguous or not, one element, and none."""
    add_slowly = load(device)
    x = torch.arange(2.0 * SIZE, device=device)
    inputs = {"contiguous": x, "strided": x[::2], "one element": x[:1], "empty": x[:0]}
    wrong = [name for name, given in inputs.items() if not torch.equal(add_slowly(given, 0), given + 1)]
    return not wrong, f"wrong values: {', '.join(wrong)}" if wrong else f"x + 1 of {', '.join(inputs)} inputs"


def check_stream(device: str) -> Verdict:
    """On a side stream: after what stands there before it, before what follows, and out of the default stream's way."""
    if device == "cpu":
        return None, "not on a CPU"
    add_slowly = load(device)
    default, side = torch.cuda.default_stream(), torch.cuda.Stream()

    def work(ticks: int) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(side):
            x = torch.zeros(SIZE, device=device)
            doubled = 2 * add_slowly(add_slowly(x, ticks), 0)
            return doubled, side.record_event()

    work(0)[1].synchronize()  # the first launch of a kernel loads it, which may wait for the device
    default.record_event().synchronize()
    result, done = work(TICKS)
    default.record_event().synchronize()
    overtaken = not done.query()
    with torch.cuda.stream(side):
        ordered = bool((result.cpu() == 4).all())  # copied on that stream: nothing here waits for the device
    if not overtaken:
        return False, "an event of the default stream waited for the call: it ran there, or held up the device"
    return ordered, "ordered on its stream, default stream free" if ordered else "not ordered with its stream's work"


def check_graph(device: str) -> Verdict:
    """Captured, not run, by torch.cuda.graph; a replay sees what the static input holds by then."""
    if device == "cpu":
        return None, "not on a CPU"
    add_slowly = load(device)
    default, side = torch.cuda.default_stream(), torch.cuda.Stream()
    static = torch.zeros(SIZE, device=device)
    side.wait_stream(default)
    with torch.cuda.stream(side):
        add_slowly(static, 0)
    default.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = add_slowly(static, TICKS)
    if not default.query():
        return False, "after the capture the default stream was busy: the call ran there instead of being captured"
    for value in (5.0, 7.0):
        static.fill_(value)
        graph.replay()
        if not bool((captured == value + 1).all()):
            return False, f"a replay with {value:g} as the input did not give {value + 1:g}"
    return True, "captured without running; replays follow the input"


def check_second_device(device: str) -> Verdict:
    """A tensor of another device than the current one."""
    if device == "cpu":
        return None, "not on a CPU"
    if torch.cuda.device_count() < 2:
        return None, "one GPU"
    add_slowly = load(device)
    other = (torch.cuda.current_device() + 1) % torch.cuda.device_count()
    x = torch.arange(float(SIZE), device=f"cuda:{other}")
    before, out, after = torch.cuda.current_device(), add_slowly(x, 0), torch.cuda.current_device()
    right = out.device == x.device and torch.equal(out, x + 1) and before == after
    return right, "on its tensor's device, and the current device kept" if right else "wrong device or wrong values"


CHECKS: dict[str, Callable[[str], Verdict]] = {
    "build": check_build,
    "call": check_call,
    "stream": check_stream,
    "graph": check_graph,
    "second_device": check_second_device,
}


def outcome(check: Callable[[str], Verdict], device: str) -> Outcome:
    start = time.perf_counter()
    try:
        ok, detail = check(device)
    except subprocess.CalledProcessError as error:  # its command is full of paths; the compiler has said what is wrong
        ok, detail = False, f"{Path(error.cmd[0]).name}: exit status {error.returncode}"
    except Exception as error:  # whatever goes wrong is the result
        ok, detail = False, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return {"ok": ok, "seconds": round(time.perf_counter() - start, 3), "detail": detail}


def stream_probe(device: str, names: Sequence[str] = tuple(CHECKS)) -> dict[str, Outcome]:
    """Every check's outcome: `ok` (None: cannot be checked here), `seconds`, `detail`. Without a build, that alone."""
    found = {"build": outcome(check_build, device)}
    if found["build"]["ok"]:
        found |= {name: outcome(CHECKS[name], device) for name in names if name != "build"}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream_probe", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--check", nargs="+", choices=CHECKS, default=tuple(CHECKS), help="default: all")
    options = parser.parse_args()
    found = stream_probe(options.device, options.check)
    for name, result in found.items():
        word = {True: "ok", False: "WRONG", None: "skipped"}[result["ok"]]
        print(f"{name:<13} {word:<7} {result['seconds']:7.3f} s  {result['detail']}")
    return 1 if any(result["ok"] is False for result in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
