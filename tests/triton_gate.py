# SPDX-License-Identifier: Apache-2.0
"""Compiles a Triton kernel for a GPU that is not there, and says what would go wrong on it.

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

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
#: Bytes of shared memory that a block may have: CUDA C++ Programming Guide, table of technical specifications.
SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
TENSOR_COLUMNS = 512
TENSOR_CORES = r"\b(?:HMMA|HGMMA|UTCHMMA)\b"
POINTERS = {
    **dict.fromkeys(("qkv", "pad_value", "out", "dqkv", "grad_out"), "*{}"),
    **dict.fromkeys(
        ("bias", "logit_scale", "dbias_parts", "dlogit_scale_parts", "dpad_value_parts", "statistics"), "*fp32"
    ),
}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


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


def compile_kernel(kernel: Any, dtype: torch.dtype, arch: int, constants: dict[str, Any], warps: int) -> Binary:
    """The binary of a kernel of ours for an architecture; pointers and strides are aligned, as they mostly are."""
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
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "num_stages": 1})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        assembly = _run("nvdisasm", "-c", file.name)
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
        loops=tuple(warps * length for length in loop_lengths(assembly)),
    )


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


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
