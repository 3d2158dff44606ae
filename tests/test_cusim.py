# SPDX-License-Identifier: Apache-2.0
"""The emulator that runs CUDA kernels on the CPU (tests/cusim), and that nvcc takes the primitives it emulates.

The program checks the emulated primitives against their definitions, and that mistakes planted in small kernels are
noticed. It needs g++ on x86-64 Linux, and neither PyTorch nor a GPU.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
CUSIM = ROOT / "tests" / "cusim"
#: The emulator itself, which every program of kernels is linked with.
EMULATOR = (CUSIM / "cusim.cpp", CUSIM / "emulated_primitives.cpp")

WARNINGS = ("-Wall", "-Wextra", "-Werror")


def call(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        pytest.fail(f"{shlex.join(map(str, command))}\n{done.stderr[-4000:]}", pytrace=False)


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def emulator_flags(folder: Path) -> list[str | Path]:
    """The compiler of kernels for the emulator, with its flags. Skips where there is none."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the emulator switches stacks by hand, on x86-64 Linux only")
    flags: list[str | Path] = [compiler, "-std=c++17", "-DSWIN_FAST_CUSIM"]
    # Variables that a kernel forgets to initialise hold the same nonsense each time. gcc has it from 12 on.
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}\n")
    pattern = "-ftrivial-auto-var-init=pattern"
    known = subprocess.run([compiler, pattern, "-fsyntax-only", probe], capture_output=True, check=False)
    return [*flags, pattern] if known.returncode == 0 else flags


def test_emulator(tmp_path: Path) -> None:
    program = tmp_path / "test_cusim"
    sources = [CUSIM / "test_cusim.cpp", *EMULATOR]
    call([*emulator_flags(tmp_path), "-O1", *WARNINGS, "-I", CUSIM.parent, *sources, "-o", program])
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        failures = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        pytest.fail(f"exit status {done.returncode}\n" + "\n".join(failures) + done.stderr[-2000:], pytrace=False)
    print(done.stdout.splitlines()[-1])


# Each primitive with each of its types; the kernel computes nothing sensible. And the kernel that the emulator runs.
EVERY_PRIMITIVE = """
#include "cuda/primitives.h"
#include "cusim/product_kernel.h"
#include "window.h"

using namespace swin_fast::cuda;

template __global__ void cusim_test::product<Half16, cusim_test::Mistake::none>(const uint16_t*, const uint16_t*,
                                                                                float*, float*);

template <class T>
__device__ float of_type(const uint32_t (&a)[4], uint32_t b) {
  float d[4] = {};
  mma_m16n8k16<T>(d, a, b, a[0]);
  mma_m16n8k8<T>(d, a[1], a[2], b);
  const Float2 pair = unpack<T>(pack<T>(d[0], d[1]));
  return pair.x + pair.y + to_float<T>(from_float<T>(d[2])) + d[3];
}

template <class V>
__device__ void move(char* memory, const char* in, char* out) {
  const int offset = 16 * threadIdx.x;
  store_shared(memory + offset, load_global<V>(in + offset));
  sync_warp();
  store_global(out + offset, load_shared<V>(memory + (offset ^ 16)));
  sync_threads();
}

__global__ void __launch_bounds__(128) every_primitive(const char* in, char* out) {
  char* memory = shared_memory();
  move<float>(memory, in, out);
  move<uint32_t>(memory, in, out);
  move<uint16_t>(memory, in, out);
  move<Float2>(memory, in, out);
  move<UInt2>(memory, in, out);
  move<Float4>(memory, in, out);
  move<UInt4>(memory, in, out);
  copy_async_16(memory + 16 * threadIdx.x, in + 16 * threadIdx.x, threadIdx.x < 100);
  copy_async_commit();
  copy_async_wait<1>();
  copy_async_wait<0>();
  sync_threads();
  sync_team(threadIdx.x / 64, 64);
  uint32_t four[4], four_transposed[4], two[2], two_transposed[2];
  ldmatrix_x4(four, memory + 16 * threadIdx.x);
  ldmatrix_x4_trans(four_transposed, memory + 16 * threadIdx.x);
  ldmatrix_x2(two, memory + 16 * threadIdx.x);
  ldmatrix_x2_trans(two_transposed, memory + 16 * threadIdx.x);
  stmatrix(memory + 16 * threadIdx.x, four);
  stmatrix(memory + 16 * threadIdx.x, two);
  stmatrix(memory + 16 * threadIdx.x, {four[0]});
  float sum = of_type<Half16>(four, two[0]) + of_type<BFloat16>(four_transposed, two_transposed[1]);
  float product[4] = {sum, sum, sum, sum};
  mma_m16n8k8_tf32(product, {sum, sum, sum, sum}, sum, sum);
  sum += product[0] + product[3];
  SWIN_FAST_UNROLL
  for (int mask = 1; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
  sum += shuffle(sum, 3);
  sum += static_cast<float>(shuffle(shuffle_xor(two[1], 1), 2));
  if (any_lane(sum > 0.f)) sum = exp2_approx(sum) + rsqrt_approx(sum) + reciprocal_approx(sum);
  const int64_t blocks = swin_fast::ceil_div(gridDim.x, 2);
  store_global(out + 4 * (blockIdx.x * blockDim.x + threadIdx.x) + blocks, sum);
}
"""


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
def test_primitives_compile(architecture: str, tmp_path: Path) -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False)
    if architecture not in listed.stdout.split():
        pytest.skip(f"this nvcc does not compile for {architecture}")
    source = tmp_path / "every_primitive.cu"
    source.write_text(EVERY_PRIMITIVE)
    ptx = tmp_path / "every_primitive.ptx"
    flags = ["-std=c++17", f"-arch={architecture}", "--Werror", "all-warnings", "-I", CSRC, "-I", ROOT / "tests"]
    call([nvcc, *flags, "-cubin", source, "-o", tmp_path / "every_primitive.cubin"])
    call([nvcc, *flags, "-ptx", source, "-o", ptx])
    # Loads and stores of 16 bytes remain one instruction, and of shared memory at that.
    text = ptx.read_text()
    for instruction in ("ld.shared.v4", "st.shared.v4", "ld.global.nc.v4", "st.global.v4", "ld.shared.v2"):
        assert instruction in text, f"no {instruction} for {architecture}"
