# SPDX-License-Identifier: Apache-2.0
"""What a result was measured on and with. No host names and no paths: results are published."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import swin_fast
from swin_fast.backends import native
from swin_fast.backends.configs import slug

from .clocks import CpuClock, CudaClock

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks") / "results"

#: Whose versions a result names, if they are there.
PEERS = ("timm", "torchvision", "transformers", "onnxruntime", "openvino")

#: glibc by default gives freed buffers of some MB back to the system and faults them in again at the next call, which
#: hits contenders unevenly; here it keeps them, for all contenders alike.
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={size}"
    for name, size in (("mmap_threshold", 2**30), ("trim_threshold", 2**32), ("top_pad", 2**28))
)
#: With two threads, one that waits sleeps: by default it spins, and on a shared machine calls take ten times as long.
CPU_ENVIRONMENT = {
    "GLIBC_TUNABLES": ALLOCATOR,
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
#: The profiler, which counts memory, announces itself at every call.
QUIET = {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}

#: (vendor, family) -> (first model, last model, name); from the vendors' lists.
MICROARCHITECTURES = {
    ("AuthenticAMD", 23): [(0x00, 0x2F, "zen1"), (0x30, 0xFF, "zen2")],
    ("AuthenticAMD", 25): [
        (0x00, 0x0F, "zen3"),
        (0x10, 0x1F, "zen4"),
        (0x20, 0x5F, "zen3"),
        (0x60, 0x7F, "zen4"),
        (0xA0, 0xAF, "zen4"),
    ],
    ("AuthenticAMD", 26): [(0x00, 0xFF, "zen5")],
    ("GenuineIntel", 6): [
        (0x3F, 0x3F, "haswell"),
        (0x4F, 0x4F, "broadwell"),
        (0x55, 0x55, "skylake"),
        (0x6A, 0x6C, "icelake"),
        (0x8F, 0x8F, "sapphirerapids"),
        (0xAD, 0xAE, "graniterapids"),
        (0xCF, 0xCF, "emeraldrapids"),
    ],
}


def environment(device: str) -> dict[str, str]:
    """Of the measuring process; libraries read it when they start."""
    return {**CPU_ENVIRONMENT, **QUIET} if device == "cpu" else QUIET


def allocator_keeps_memory(mebibytes: int = 64, attempts: int = 20) -> bool:
    """Whether a buffer that was freed comes back without page faults, as ALLOCATOR promises."""
    page = os.sysconf("SC_PAGE_SIZE")
    for _ in range(attempts):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(mebibytes << 18).fill_(1.0)
        if (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * page < mebibytes << 16:
            return True
    return False


def cpu_facts() -> dict[str, str]:
    """The first processor of /proc/cpuinfo as it stands there; empty on other systems."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def microarchitecture(facts: dict[str, str]) -> str | None:
    if not {"vendor_id", "cpu family", "model"} <= facts.keys():
        return None
    model = int(facts["model"])
    for first, last, name in MICROARCHITECTURES.get((facts["vendor_id"], int(facts["cpu family"])), []):
        if first <= model <= last:
            return name
    return None


def device_slug(device: str, facts: dict[str, str] | None = None) -> str:
    """The folder of a device's results: amd-epyc-zen4, nvidia-h200.

    A CPU is the brand without its model number, and the microarchitecture where it is known: results of one slug are
    meant to be comparable, and virtual machines seldom tell the model.
    """
    if device == "cuda":
        return slug(torch.cuda.get_device_name())
    facts = cpu_facts() if facts is None else facts
    brand = facts.get("model name") or platform.processor() or platform.machine()
    name = microarchitecture(facts)
    if name is None:
        return slug(brand)
    words = [word for word in slug(brand).split("-") if not re.search(r"\d|^(cpu|core|processor|r|tm)$", word)]
    return "-".join([*words, name])


def result_path(device: str, suite_file: str) -> Path:
    return RESULTS / device_slug(device) / suite_file


def commit() -> dict[str, Any]:
    """Commit and dirty state: from SWIN_FAST_COMMIT and SWIN_FAST_DIRTY (0 or 1) if set, else from git.

    Results themselves do not make a tree dirty. Where neither is known, the commit is "unknown" and counts as dirty.
    """
    if "SWIN_FAST_COMMIT" in os.environ:
        return {"id": os.environ["SWIN_FAST_COMMIT"], "dirty": os.environ.get("SWIN_FAST_DIRTY", "1") != "0"}
    head = git("rev-parse", "HEAD")
    if head is None:
        return {"id": "unknown", "dirty": True}
    changes = git("status", "--porcelain", "--", ".", f":!{RESULTS}")
    return {"id": head, "dirty": changes is None or bool(changes)}


def git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def gpu_facts() -> dict[str, Any] | None:
    """The present GPU, without its serial number; None where there is none."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    asked = "--query-gpu=driver_version,clocks.max.sm,clocks.max.memory"
    told = output_of("nvidia-smi", asked, "--format=csv,noheader")
    driver, *clocks = [word.strip() for word in (told or "").splitlines()[0].split(",")] if told else [None]
    return {
        "name": properties.name,
        "driver": driver,
        "clocks": dict(zip(("sm", "memory"), clocks, strict=False)),
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "multiprocessors": properties.multi_processor_count,
        "l2_mb": round(properties.L2_cache_size / 1e6, 1),
    }


def find_nvcc() -> str | None:
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(toolkit))


def nvcc_version() -> str | None:
    nvcc = find_nvcc()
    found = re.search(r"release ([\d.]+)", (output_of(nvcc, "--version") if nvcc else None) or "")
    return found[1] if found else None


def output_of(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine_info(device: str) -> dict[str, Any]:
    facts = cpu_facts()
    flags = facts.get("flags", "").split()
    told = re.compile(r"sse4_2|avx|fma$|f16c|amx|bmi2")
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    peers = {package: version_of(package) for package in PEERS}
    clocks = [CpuClock(1), CpuClock(2)] if device == "cpu" else [CudaClock]
    return {
        "device": device_slug(device, facts),
        "kind": device,
        "cpu": {
            "vendor": facts.get("vendor_id"),
            "name": facts.get("model name", platform.processor()),
            "microarchitecture": microarchitecture(facts),
            "cores": os.cpu_count(),
            "flags": " ".join(sorted(flag for flag in flags if told.match(flag))),
        },
        "gpu": gpu_facts() if device == "cuda" else None,
        "system": {"name": platform.system(), "machine": platform.machine(), "libc": " ".join(platform.libc_ver())},
        "python": platform.python_version(),
        "torch": {
            "version": torch.__version__,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        },
        "triton": version_of("triton") if device == "cuda" else None,  # on a CPU it computes nothing
        "nvcc": nvcc_version(),
        "peers": {package: version for package, version in peers.items() if version},
        "swin_fast": {"version": swin_fast.__version__, "isa": native.cpu_isa(), "build": native.cpu_build_info()},
        "clock": "; two threads: ".join(clock.sentence for clock in clocks),
        "allocator": {
            "glibc_tunables": os.environ.get("GLIBC_TUNABLES"),
            "as_stated": os.environ.get("GLIBC_TUNABLES") == ALLOCATOR,
            "keeps_memory": allocator_keeps_memory(),
            "transparent_huge_pages": huge.read_text().strip() if huge.exists() else None,
        },
    }
