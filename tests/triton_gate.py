# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels for GPUs that are not there, and says what would go wrong on them.

`triton.compile` lets much pass: a body that is only `trap`, more shared or tensor memory than the GPU has, registers
that spill to memory. All of that stands in the binary, which the tools inside the Triton wheel take apart.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from swin_fast.backends import configs, triton_plan

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
#: Bytes of shared memory that a block may have: CUDA C++ Programming Guide, table of technical specifications.
SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
#: Triton makes the same PTX of a kernel for these as for sm_80 (`test_triton.py` looks): only the assembler runs anew.
AS_SM_80 = (86, 89)
TENSOR_COLUMNS = 512
TENSOR_CORES = r"\b(?:HMMA|HGMMA|UTCHMMA)\b"
POINTERS = {
    **dict.fromkeys(("qkv", "pad_value", "out", "dqkv", "grad_out"), "*{}"),
    **dict.fromkeys(
        ("bias", "logit_scale", "dbias_parts", "dlogit_scale_parts", "dpad_value_parts", "statistics"), "*fp32"
    ),
}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
#: What a call may have beside a shift and a bias.
VARIANTS: dict[str, dict[str, bool]] = {
    "plain": {},
    "cosine": {"COSINE": True},
    "everything": {"COSINE": True, "PADDED": True},
}


@dataclass(frozen=True)
class Build:
    """What kernels are compiled for. `str` of it keys the table of known spills."""

    arch: int
    dtype: torch.dtype
    window: int
    variant: str = "plain"

    def __str__(self) -> str:
        return f"sm_{self.arch}-{TYPES[self.dtype]}-w{self.window}-{self.variant}"


@dataclass(frozen=True)
class Binary:
    """What stands in the binary of a kernel. `loops`: instructions of each loop, times the warps."""

    arch: int
    registers: int
    stack: int
    shared: int
    tensor_columns: int
    trap: bool
    tensor_cores: bool
    loops: tuple[int, ...]

    def faults(self, *, tensor_cores: bool, stack: int = 0) -> list[str]:
        """What is wrong with it; `stack`: bytes of spills that are allowed."""
        found = []
        if self.trap:
            found.append("its body is a trap")
        if self.shared > SHARED[self.arch]:
            found.append(f"{self.shared} bytes of shared memory, sm_{self.arch} has {SHARED[self.arch]}")
        if self.tensor_columns > TENSOR_COLUMNS:
            found.append(f"{self.tensor_columns} columns of tensor memory, there are {TENSOR_COLUMNS}")
        if self.stack > stack:
            found.append(f"{self.stack} bytes of stack, allowed {stack}")
        if self.tensor_cores != tensor_cores:
            found.append("no tensor core instruction" if tensor_cores else "a tensor core instruction in float32")
        return found


def constants(window: int, hd: int = 32, **changes: Any) -> dict[str, Any]:
    """A shifted block with a bias, and `changes`."""
    return {
        "WH": window,
        "WW": window,
        "HD": hd,
        "D": max(16, triton.next_power_of_2(hd)),
        "HAS_BIAS": True,
        "COSINE": False,
        "PADDED": False,
        "SHIFTED": True,
        "ROLL_PAD": False,
        "WIDE": False,
        "PRECISION": "ieee",
        **changes,
    }


def launches(dtype: torch.dtype, window: int, hd: int = 32) -> list[tuple[Any, dict[str, int]]]:
    """(kernel, options) of what a call and its backward launch by the rule."""
    N = window**2
    return [
        launch
        for direction in ("fwd", "bwd")
        for launch in triton_plan.kernels_of(direction, configs.rule(direction, dtype, N, hd), N)
    ]


def binaries(build: Build) -> dict[str, Binary]:
    """The binary of every kernel of `launches`, by name."""
    found = {}
    for kernel, options in launches(build.dtype, build.window):
        told = constants(build.window, **VARIANTS[build.variant])
        found[kernel.fn.__name__] = compile_kernel(kernel, build.dtype, build.arch, told, options)
    return found


def compile_kernel(
    kernel: Any, dtype: torch.dtype, arch: int, constants: dict[str, Any], options: dict[str, int]
) -> Binary:
    """The binary of a kernel of ours for an architecture. `options`: as `triton_plan.kernels_of` has them."""
    built = translate(kernel, dtype, 80 if arch in AS_SM_80 else arch, constants, options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        if arch in AS_SM_80:
            ptx = Path(folder) / "kernel.ptx"
            ptx.write_text(built.asm["ptx"].replace(".target sm_80", f".target sm_{arch}"))
            _run("ptxas", f"--gpu-name=sm_{arch}", ptx, "-o", cubin)
        else:
            cubin.write_bytes(built.asm["cubin"])
        usage = _run("cuobjdump", "-res-usage", cubin)
        assembly = _run("nvdisasm", "-c", cubin)
    numbers = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert numbers, usage
    return Binary(
        arch,
        registers=int(numbers[1]),
        stack=int(numbers[2]),
        shared=built.metadata.shared,
        tensor_columns=getattr(built.metadata, "tmem_size", 0) or 0,
        trap=re.search(r"^\s*trap;", built.asm["ptx"], re.M) is not None,
        tensor_cores=re.search(TENSOR_CORES, assembly) is not None,
        loops=tuple(options["num_warps"] * length for length in loop_lengths(assembly)),
    )


def translate(kernel: Any, dtype: torch.dtype, arch: int, constants: dict[str, Any], options: dict[str, int]) -> Any:
    """What Triton makes of a kernel; pointers and strides are aligned, as they mostly are."""
    constants = constants | {name: value for name, value in options.items() if name.isupper()}
    options = {name: value for name, value in options.items() if not name.isupper()}
    signature: dict[str, str] = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in POINTERS:
            signature[name] = POINTERS[name].format(TYPES[dtype])
        else:
            signature[name] = "fp32" if name in ("scale", "mask_value") else "i32"
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or "stride" in name]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def loop_lengths(assembly: str, least: int = 100) -> list[int]:
    """Instructions of each loop, inner ones included, in the order of their ends; short ones wait, and are left out."""
    labels: dict[str, int] = {}
    found, count = [], 0
    for line in assembly.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = count
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*)", line):
            count += 1
            target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instruction[1])
            if target and count - labels.get(target[1], count) >= least:
                found.append(count - labels[target[1]])
    return found


def issued(binary: Binary, tiles: int) -> int:
    """Warp instructions of a (window, head): the loop over windows, whose loop over tiles of queries, if there is one,
    runs `tiles` times. What waits for tensor cores of sm_100 and up spins in loops, and is not counted so.
    """
    inner = binary.loops[0] if len(binary.loops) > 1 else 0
    return binary.loops[-1] + (tiles - 1) * inner


def _run(tool: str, *arguments: str | Path) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
