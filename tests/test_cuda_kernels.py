# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels without a GPU: executed by the emulator of tests/cusim, and compiled for GPUs that are not there.

So far there is one, the forward of windows of up to 64 tokens; nothing calls it yet.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from test_cusim import CSRC, ROOT, call, emulator_flags, find_nvcc

DRIVER = ROOT / "tests" / "cusim" / "test_window_attention.cpp"


def build(sources: Path, program: Path, *flags: str) -> Path:
    """The driver with the kernels in `sources`, which has csrc and tests."""
    driver = sources / DRIVER.relative_to(ROOT)
    call([*emulator_flags(program.parent), *flags, "-I", sources / "tests", driver, "-o", program])
    return program


def test_kernels_in_the_emulator(tmp_path: Path) -> None:
    done = subprocess.run(
        [build(ROOT, tmp_path / "kernels", "-O1", "-Wall", "-Wextra", "-Werror")],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


# -------------------------------------------------------------------------------------------------------- planted bugs


@dataclass(frozen=True)
class Bug:
    """One wrong line: `old`, which must stand in the file exactly once, becomes `new`."""

    old: str
    new: str
    file: str = "csrc/cuda/window_attention_fwd.h"


BUGS = {
    "no barrier before the bias is read": Bug("  sync_threads();\n\n  const float factor", "\n  const float factor"),
    "rows read before other lanes' copies are seen": Bug(
        "    copy_async_wait<0>();\n    sync_warp();  // rows that other lanes fetched\n", "    copy_async_wait<0>();\n"
    ),
    "a wait that is too weak": Bug("copy_async_wait<0>();", "copy_async_wait<1>();"),
    "the next rows overwrite those being read": Bug(
        "    sync_warp();  // k, v and the other q may be written now\n", ""
    ),
    "the result is read before it is written": Bug(
        "    sync_warp();\n    const int32_t row_size", "    const int32_t row_size"
    ),
    "one q for two windows": Bug("window + stride, next_q_rows", "window + stride, q_rows"),
    "the swizzle is lost": Bug("return ((chunk ^ (row >> 1)) & 3) * 16;", "return chunk * 16;"),
    "an odd number of rows": Bug("(kTokens + 1) / 2 * 2 * kRowBytes", "kTokens * kRowBytes"),
    "rows that do not exist are not zero": Bug("i < kZeroBytes / 4;", "i < 0;"),
    "rows behind the window are read": Bug("return row < count() ? base", "return row < count() + 15 ? base"),
    "halves of a fragment swapped": Bug("k[tile][half][0] = four[0];", "k[tile][half][0] = four[1];"),
    "v not transposed": Bug("ldmatrix_x4_trans(four", "ldmatrix_x4(four"),
    "probabilities of the upper rows twice": Bug(
        "(j & 1) * 2 + 1] = pack<T>(weight[2], weight[3]);", "(j & 1) * 2 + 1] = pack<T>(weight[0], weight[1]);"
    ),
    "bias of the wrong row": Bug("of_lane / 4 + (place & 2) * 4", "of_lane / 4 + (place & 2) * 2"),
    "bias of the first head for all": Bug("size_t{4} * Sizes::kBiasFloats * head_slot + lane", "lane"),
    "bias transposed": Bug("(head * tokens + row) * tokens + key", "(head * tokens + key) * tokens + row"),
    "no mask": Bug("s[j][e] += problem.mask_value;", ""),
    "regions of the neighbour": Bug("(e & 1)) & 15) != row_region", "(~e & 1)) & 15) != row_region"),
    "keys that do not exist take part": Bug(
        "+ (e & 1) >= tokens) s[j][e] = -INFINITY;", "+ (e & 1) >= tokens) s[j][e] = 0;"
    ),
    "largest score of one lane": Bug("top[i] = fmaxf(top[i], shuffle_xor(top[i], 2));", ""),
    "sum of two lanes": Bug("sum[i] += shuffle_xor(sum[i], 2);", ""),
    "a row wholly -inf is NaN": Bug("sum[i] == 0.0f ? 0.0f : ", ""),
    "a shuffle of some lanes": Bug(
        "of_key[0] = shuffle(key_inverse[j], pair * 4);",
        "if (lane != 5) of_key[0] = shuffle(key_inverse[j], pair * 4);",
    ),
    "norm of another key": Bug("shuffle(key_inverse[j], pair * 4 + 4)", "shuffle(key_inverse[j], pair * 4)"),
    "padding has no value": Bug("which > 0 && problem.pad_value != nullptr", "false"),
    "padding of v is that of k": Bug("(which * problem.nH + head) * kHeadDim", "(problem.nH + head) * kHeadDim"),
    "results of padding are stored": Bug(
        "!self.pixel(window_y, window_x, token, &y, &x)) continue",
        "(self.pixel(window_y, window_x, token, &y, &x), y < 0)) continue",
    ),
    "every image is the first": Bug("b * problem.qkv_stride[0]", "0 * problem.qkv_stride[0]"),
    "windows are left out": Bug("int64_t{p.blocks} * p.windows", "int64_t{p.blocks} * p.windows + 1"),
    "it ends with copies on their way": Bug("window + stride < p.all_windows)", "window < p.all_windows)"),
}


def run_planted(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    bug = BUGS[name]
    for part in ("csrc", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    source = folder / bug.file
    text = source.read_text()
    assert text.count(bug.old) == 1, f"stands {text.count(bug.old)} times in {bug.file}"
    source.write_text(text.replace(bug.old, bug.new))
    program = build(folder, folder / "kernels", "-O1", "-w", "-DSWIN_FAST_ONE_TYPE")
    return subprocess.run([program, "quick"], capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def planted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The bugs that this run asks for, on all cores."""

    def is_mine(item: pytest.Item) -> bool:
        return item.path == request.path and "planted" in item.fixturenames

    wanted = [item.callspec.params["name"] for item in request.session.items if is_mine(item)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(run_planted, name, tmp_path_factory.mktemp("planted")) for name in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, planted: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    done = planted[name].result()
    assert done.returncode != 0, done.stdout[-3000:]


# ---------------------------------------------------------------------------------------------------- the compile gate

INSTANCES = """
#include "cuda/window_attention_fwd.h"
namespace swin_fast::cuda {
template __global__ void small_windows_fwd<BFloat16, 7, false, true>(const SmallFwdParams);
template __global__ void small_windows_fwd<BFloat16, 7, true, true>(const SmallFwdParams);
template __global__ void small_windows_fwd<Half16, 8, false, true>(const SmallFwdParams);
template __global__ void small_windows_fwd<Half16, 8, true, true>(const SmallFwdParams);
template __global__ void small_windows_fwd<BFloat16, 0, true, false>(const SmallFwdParams);
}
"""


#: Bytes of stack, all of the instance for any window and any alignment, with cosine attention. The aim is none.
KNOWN_SPILLS = {"sm_100": 32, "sm_120": 40}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_no_register_is_spilled(architecture: str, tmp_path: Path) -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    source = tmp_path / "instances.cu"
    source.write_text(INSTANCES)
    flags = ["-std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-I", CSRC]
    done = subprocess.run(
        [nvcc, *flags, source, "-o", tmp_path / "instances.cubin"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    spills = [int(size) for size in re.findall(r"(\d+) bytes stack frame", done.stderr)]
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", done.stderr)]
    print(architecture, registers)
    assert len(spills) == len(registers) == 5
    assert sum(spills) <= KNOWN_SPILLS.get(architecture, 0), spills
