# SPDX-License-Identifier: Apache-2.0
"""The CUDA library, built by nvcc beside whatever PyTorch is here, and loaded without a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from test_build import ROOT, build_wheel, copy_sources, package_files, tool
from test_cusim import call, find_nvcc

pytestmark = pytest.mark.slow  # nvcc takes minutes, on two cores


class Built(NamedTuple):
    sources: Path
    wheel: set[str]
    site: Path

    @property
    def library(self) -> Path:
        return self.site / "swin_fast" / "lib" / "libswin_fast_cuda.so"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A wheel for one architecture, unpacked. Its CPU library has the scalar sources alone, to save a minute."""
    if find_nvcc() is None:
        pytest.skip("no nvcc")
    folder = tmp_path_factory.mktemp("cuda")
    sources = copy_sources(folder / "copy")
    arguments = "-DSWIN_FAST_X86=OFF -DSWIN_FAST_PYTHON=OFF -DSWIN_FAST_WERROR=ON"
    wheel = build_wheel(sources, folder, "cuda", SWIN_FAST_CUDA_ARCHS="90", CMAKE_ARGS=arguments)
    wheel.extractall(folder / "site")
    return Built(sources, {name for name in wheel.namelist() if ".dist-info/" not in name}, folder / "site")


def test_the_wheel_has_both_libraries(built: Built) -> None:
    libraries = {f"swin_fast/lib/libswin_fast_{name}.so" for name in ("cpu", "cuda")}
    assert built.wheel == package_files() | libraries


LOAD = """
import json, sys
sys.path.insert(0, {site!r})
import torch, swin_fast
from swin_fast import dispatch, ops
from swin_fast.backends import native
assert swin_fast.__file__.startswith({site!r}) and native.cuda_library() is not None
assert not torch.cuda.is_initialized()
qkv = torch.zeros(1, 8, 8, 3, 1, 32, dtype=torch.float16)
arguments = qkv, None, None, None, (7, 7), (3, 3), 1.0, "pad_roll", -100.0
def refusal(call):
    try: call()
    except NotImplementedError as error: return str(error)
print(json.dumps({{
    "facts": native.cuda_build_info(),
    "keys": [torch._C._dispatch_dump(f"swin_fast::window_attention_{{name}}.cuda") for name in ("fwd", "bwd")],
    "refusals": [
        refusal(lambda: ops.WINDOW_ATTENTION_FWD["cuda"](*arguments)),
        refusal(lambda: ops.WINDOW_ATTENTION_BWD["cuda"](qkv[..., 0, 0, :], *arguments)),
        refusal(lambda: swin_fast.window_attention(qkv, None, window_size=7, backend="cuda")),
    ],
    "no_gpu": dispatch.why_not("cuda", dispatch.Problem(torch.float16, "cuda", None, 49, 32)),
}}))
"""


@pytest.fixture
def loaded(built: Built, run_script: Callable[..., str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(run_script(LOAD.format(site=str(built.site)), timeout=120))
    return report


def test_it_loads_without_a_gpu_and_registers_both_ops(loaded: dict[str, Any]) -> None:
    assert all(re.search(r"^CUDA: registered at .*cuda\.cpp", dump, re.M) for dump in loaded["keys"])


def test_tensors_of_the_cpu_are_refused_in_words(loaded: dict[str, Any]) -> None:
    forward, backward, public = loaded["refusals"]
    for name, refusal in (("fwd", forward), ("bwd", backward)):
        assert f"'swin_fast::window_attention_{name}.cuda' with arguments from the 'CPU' backend" in refusal
    assert "the cuda backend takes tensors on cuda, not on cpu" in public
    assert "PyTorch sees no CUDA device" in loaded["no_gpu"]


def test_its_facts(loaded: dict[str, Any]) -> None:
    facts = loaded["facts"]
    assert facts["architectures"] == facts["ptx"] == [90]
    assert facts["compiler"].startswith("nvcc ")
    assert facts["torch_target"] == "2.10"
    for kernel in facts["forward"] + facts["backward"]:
        assert kernel["window_area"][0] <= kernel["window_area"][1] <= 1024
        assert all(hd % 2 == 0 and 0 < hd <= 128 for hd in kernel["head_dims"])
        assert kernel["dtypes"] in (["float16", "bfloat16"], ["float32"])
        assert (ROOT / "csrc" / "cuda" / f"{kernel['name']}.h").exists()


def test_it_exports_its_two_functions_alone(built: Built) -> None:
    symbols = [line.split()[-1] for line in tool("nm", "-D", "--defined-only", built.library).splitlines()]
    named = {symbol for symbol in symbols if re.search("swin_fast|torch|cuda", symbol)}
    assert named == {"swin_fast_cuda_build_info", "swin_fast_cuda_driver_version"}


def test_it_needs_the_c_shims_of_torch_and_no_cuda_at_all(built: Built) -> None:
    lines = [line.split()[-2:] for line in tool("nm", "-D", "-u", built.library).splitlines()]
    wanted = {symbol.partition("@")[0]: kind for kind, symbol in lines}
    from_torch = {symbol for symbol in wanted if "torch" in symbol}
    assert {symbol for symbol in from_torch if not symbol.startswith(("aoti_torch_", "torch_"))} == set()
    # Weak: a PyTorch without CUDA has none. And libtorch is there, which brings it in where there is one.
    assert wanted["aoti_torch_get_current_cuda_stream"] == "w"
    assert [symbol for symbol in wanted if symbol.startswith(("cu", "Py", "_Py"))] == []
    dynamic = tool("readelf", "-d", built.library)
    needed = set(re.findall(r"NEEDED.*\[(\w+)", dynamic))
    assert {"libtorch", "libtorch_cpu"} <= needed
    assert not {name for name in needed if "cuda" in name or "python" in name}
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


CALL = """
#include <cstdio>
#include <stdexcept>
#include "cuda/window_attention.h"
int main() {
  using namespace swin_fast;
  float memory[1];
  WindowAttentionFwdParams p{};
  p.B = p.H = p.W = p.nH = 1;
  p.window_size[0] = p.window_size[1] = 7;
  p.dtype = ScalarType::kFloat16;
  p.qkv = p.out = memory;
  for (int hd : {32, 6}) {
    p.hd = hd;
    try {
      cuda::window_attention_fwd(p, 0, nullptr, nullptr);
      std::puts("launched");
    } catch (const std::runtime_error& error) {
      std::puts(error.what());
    }
  }
}
"""


def test_a_launch_without_a_gpu_says_so(built: Built, tmp_path: Path) -> None:
    """The library's own objects, called past PyTorch."""
    source, program = tmp_path / "call.cpp", tmp_path / "call"
    source.write_text(CALL)
    [folder] = built.sources.glob("build/cmake-*/CMakeFiles")
    objects = [path for path in folder.glob("swin_fast_cuda*/csrc/cuda/*.o")]
    assert len(objects) >= 4
    call([find_nvcc(), "-std=c++17", "-I", built.sources / "csrc", source, *objects, "-o", program])
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60, env=hidden)
    no_device, no_kernel = done.stdout.splitlines()
    assert no_device.startswith("swin_fast cuda: there is no CUDA device that this library can use: ")
    assert no_kernel == (
        "swin_fast cuda: there is no forward kernel for float16, windows of 49 tokens and head_dim 6; the triton "
        "backend takes it"
    )


def test_a_broken_nvcc_fails_loudly(tmp_path: Path) -> None:
    sources = copy_sources(tmp_path / "copy")
    (sources / "bin").mkdir()
    broken = sources / "bin" / "nvcc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    variables = {**os.environ, "SWIN_FAST_BUILD": "cuda", "PATH": f"{broken.parent}:{os.environ['PATH']}"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=sources, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "SWIN_FAST_BUILD=cuda, and the build failed" in done.stderr
