# SPDX-License-Identifier: Apache-2.0
"""What a result was measured on and with. No host names and no paths: results are published."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import swin_fast
from swin_fast.backends import native

from .measure import ALLOCATOR, allocator_keeps_memory

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks") / "results"

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
    """The folder of a device's results: amd-epyc-zen4, nvidia-h200. The one place where it is made.

    A CPU is the brand without its model number, and the microarchitecture where it is known: results of one slug are
    meant to be comparable, and virtual machines seldom tell the model.
    """
    if device == "cuda":
        return slugify(torch.cuda.get_device_name())
    facts = cpu_facts() if facts is None else facts
    brand = facts.get("model name") or platform.processor() or platform.machine()
    name = microarchitecture(facts)
    if name is None:
        return slugify(brand)
    words = [word for word in slugify(brand).split("-") if not re.search(r"\d|^(cpu|core|processor|r|tm)$", word)]
    return "-".join([*words, name])


def slugify(text: str) -> str:
    text = re.sub(r"\((r|tm|c)\)", " ", text.lower()).split("@")[0]
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


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


def machine_info() -> dict[str, Any]:
    facts = cpu_facts()
    flags = facts.get("flags", "").split()
    told = re.compile(r"sse4_2|avx|fma$|f16c|amx|bmi2")
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "device": device_slug("cpu", facts),
        "cpu": {
            "vendor": facts.get("vendor_id"),
            "name": facts.get("model name", platform.processor()),
            "microarchitecture": microarchitecture(facts),
            "cores": os.cpu_count(),
            "flags": " ".join(sorted(flag for flag in flags if told.match(flag))),
        },
        "system": {"name": platform.system(), "machine": platform.machine(), "libc": " ".join(platform.libc_ver())},
        "python": platform.python_version(),
        "torch": {
            "version": torch.__version__,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "swin_fast": {"version": swin_fast.__version__, "isa": native.cpu_isa(), "build": native.cpu_build_info()},
        "clock": "CPU time of the process (time.process_time), minimum over interleaved rounds",
        "allocator": {
            "glibc_tunables": os.environ.get("GLIBC_TUNABLES"),
            "as_stated": os.environ.get("GLIBC_TUNABLES") == ALLOCATOR,
            "keeps_memory": allocator_keeps_memory(),
            "transparent_huge_pages": huge.read_text().strip() if huge.exists() else None,
        },
    }
