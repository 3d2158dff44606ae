# SPDX-License-Identifier: Apache-2.0
"""The doctor: what this installation is, which backend runs which published model and why, and whether models run."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__, dispatch, models
from .backends import native
from .eager import eager_twin, randomize

__all__ = ["doctor", "doctor_report"]

ENVIRONMENT = {
    "SWIN_FAST_BACKEND": "backend chosen automatically",
    "SWIN_FAST_BUILD": "auto, when installing",
    "SWIN_FAST_CUDA_ARCHS": "all architectures of the CUDA library, when installing",
    "SWIN_FAST_ISA": "best instruction set of this CPU",
    "SWIN_FAST_REQUIRE": "tests may skip a backend that cannot run",
    "SWIN_FAST_LOG": "no log",
}
# Who complains about a value; SWIN_FAST_ISA is the matter of the native library, which says why it is not usable.
CHECKS = {"SWIN_FAST_BACKEND": dispatch.check_backend, "SWIN_FAST_LOG": dispatch.check_log_level}

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CHECKED_DTYPES = (torch.float32, torch.bfloat16)  # of the models that are run


def doctor(as_json: bool) -> None:
    """Prints the report: as JSON, with rich where it is installed, or as plain text."""
    report = doctor_report()
    if as_json:
        print(json.dumps(report, indent=2))
    elif importlib.util.find_spec("rich") is not None:
        _print_rich(report)
    else:
        _print_plain(report)


def doctor_report() -> dict[str, Any]:
    """What this installation is and can do, as plain JSON values. Never raises: a fact that cannot be had says why."""
    return {
        "versions": _fact(_versions),
        "native": _fact(_native),
        "native_cuda": _fact(_native_cuda),
        "machine": _fact(_machine),
        "gpu": _fact(_gpu),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "environment_errors": _environment_errors(),
        "models": _fact(_check_models),
        "shapes": _fact(_shapes),
        "dispatch": _fact(_dispatch_table),
    }


def _fact(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # the doctor reports what is broken; it does not break on it
        return {"error": f"{type(error).__name__}: {error}"}


def _versions() -> dict[str, str]:
    return {
        "swin_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }


def _native() -> dict[str, Any]:
    reasons = native.cpu_why_not()
    facts: dict[str, Any] = {"cpu_library": "loaded" if not reasons else "not usable", "why_not": reasons}
    if native.cpu_library() is not None:
        facts["build"] = native.cpu_build_info()
        facts["isa_in_use"] = native.cpu_isa()
        facts["isa_available"] = list(native.cpu_isas())
    return facts


def _native_cuda() -> dict[str, Any]:
    state = "not usable" if native.cuda_library() is None else "loaded"
    facts: dict[str, Any] = {"cuda_library": state, "why_not": native.cuda_why_not()}
    return {**facts, "build": native.cuda_build_info()} if state == "loaded" else facts


def _machine() -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_name(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores_usable": len(affinity(0)) if affinity else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu() -> dict[str, Any]:
    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
            }
        )
    return {"torch_cuda": torch.version.cuda, "devices": devices}


def _environment_errors() -> list[str]:
    errors = []
    for name, check in CHECKS.items():
        try:
            if value := os.environ.get(name):
                check(value)
        except ValueError as error:
            errors.append(str(error))
    return errors


def _devices() -> list[torch.device]:
    return [torch.device(name) for name in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))]


# ------------------------------------------------------------------------------------------- which backend runs what


@functools.cache
def _shapes() -> list[dict[str, Any]]:
    """Every (window, head_dim) of the published models, and who has it in which stages (1 to 4), from the models."""
    found: dict[tuple[int, int, int], dict[str, list[int]]] = {}
    for name in models.__all__:
        factory = getattr(models, name)
        if isinstance(factory, type):
            continue
        with torch.device("meta"):  # shapes without weights; of a stage's blocks, one tells them all
            model = factory(depths=(1, 1, 1, 1))
        for stage, layer in enumerate(model.layers, 1):
            attn = layer.blocks[0].attn
            found.setdefault((*attn.window_size, attn.head_dim), {}).setdefault(name, []).append(stage)
    return [
        {"window_size": [Wh, Ww], "head_dim": head_dim, "models": found[Wh, Ww, head_dim]}
        for Wh, Ww, head_dim in sorted(found)
    ]


def _dispatch_table() -> list[dict[str, Any]]:
    forced = os.environ.get("SWIN_FAST_BACKEND") or None
    rows = []
    for shape in _shapes():
        window_size, head_dim = shape["window_size"], shape["head_dim"]
        for dtype in DTYPES:
            for device in _devices():
                problem = dispatch.problem_of(dtype, device, math.prod(window_size), head_dim)
                rows.append(
                    {
                        "window_size": window_size,
                        "head_dim": head_dim,
                        "dtype": _name(dtype),
                        "device": device.type,
                        "chosen": _fact(functools.partial(dispatch.choose, problem, forced)),
                        "chosen_backward": _fact(functools.partial(dispatch.choose, problem, forced, "bwd")),
                        "measured": dispatch.measurements(problem),
                        "why_not": {name: dispatch.why_not(name, problem) for name in dispatch.BACKENDS},
                    }
                )
    return rows


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ------------------------------------------------------------------------------------------------- whether models run


def _check_models() -> list[dict[str, str]]:
    """A small Swin of each version, forward and backward, on every backend that can run: "ok", or what is wrong."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small that more threads only wait for each other: on a busy machine, for seconds
    try:
        return _checked_models()
    finally:
        torch.set_num_threads(threads)


def _checked_models() -> list[dict[str, str]]:
    rows = []
    for device in _devices():
        for backend in dispatch.BACKENDS:
            for dtype in CHECKED_DTYPES:
                if dispatch.why_not(backend, dispatch.problem_of(dtype, device, 49, 32)):
                    continue
                for model in (models.SwinTransformer, models.SwinTransformerV2):
                    verdict = _fact(functools.partial(_check_model, model, backend, dtype, device.type))
                    rows.append(
                        {
                            "device": device.type,
                            "backend": backend,
                            "dtype": _name(dtype),
                            "model": model.__name__,
                            "verdict": verdict if isinstance(verdict, str) else verdict["error"],
                        }
                    )
    return rows


def _check_model(kind: type[models.SwinTransformer], backend: str, dtype: torch.dtype, device: str) -> str:
    """ "ok", or which result breaks the rule: error against float64 <= 2 * that of eager + one epsilon.

    Errors are root mean squares: of results as small as these, the largest error is a matter of luck.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Maps of 10 x 9 and 5 x 5 tokens: padded on both axes, and shifted.
        model = kind(36, 4, 3, 10, 32, (2, 2), (1, 2), 7, drop_path_rate=0.0, geometry="dense")
        randomize(model, 0)
        image, weight = torch.randn(2, 3, 40, 36).to(dtype), torch.randn(2, 10)
    model.to(dtype)
    with torch.inference_mode(False), torch.enable_grad():
        exact = _results(eager_twin(copy.deepcopy(model).double()), image.double(), weight.double())
        model.to(device)
        eager = _results(eager_twin(model), image.to(device), weight.to(device))
        with dispatch.use_backend(backend):
            ours = _results(model, image.to(device), weight.to(device))
    for name, truth in exact.items():
        error, yardstick = (_rms(results[name].double().cpu() - truth) for results in (ours, eager))
        if not math.isfinite(error):
            return f"{name}: not finite"
        bound = 2 * yardstick + torch.finfo(dtype).eps * _rms(truth)
        if error > bound:
            return f"{name}: error {error:.1e}, want at most {bound:.1e} (plain PyTorch: {yardstick:.1e})"
    return "ok"


def _results(model: models.SwinTransformer, image: Tensor, weight: Tensor) -> dict[str, Tensor]:
    image = image.clone().requires_grad_()
    model.zero_grad()
    logits = model(image)
    assert isinstance(logits, Tensor)
    (logits * weight).sum().backward()
    parameters = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert image.grad is not None
    return {"logits": logits.detach(), "image gradient": image.grad, "parameter gradients": parameters}


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


# ---------------------------------------------------------------------------------------------------------- the print


def _sections(report: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The report's facts, less the dispatch table, as titled (name, value) rows."""
    environment = [
        (name, repr(value) if value is not None else f"not set: {ENVIRONMENT[name]}")
        for name, value in report["environment"].items()
    ]
    environment += [("wrong", error) for error in report["environment_errors"]]
    gpu = dict(report["gpu"])
    for index, device in enumerate(gpu.pop("devices", [])):
        gpu[f"device {index}"] = f"{device['name']}, capability {device['capability']}, {device['memory_gib']} GiB"
    gpu_rows = _rows(gpu) if len(gpu) > 1 or "error" in gpu else [*_rows(gpu), ("devices", "none that torch can use")]
    return [
        ("Versions", _rows(report["versions"])),
        ("Native CPU library", _rows(report["native"])),
        ("Native CUDA library", _rows(report["native_cuda"])),
        ("Machine", _rows(report["machine"])),
        ("GPU", gpu_rows),
        ("Models", _model_rows(report["models"])),
        ("Environment", environment),
    ]


def _model_rows(rows: Any) -> list[tuple[str, str]]:
    """One row for each backend on each device: what went well in one sentence, then whatever did not."""
    if isinstance(rows, dict):
        return _rows(rows)
    grouped: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        grouped.setdefault(f"{row['backend']} on {row['device']}", []).append(row)
    text = []
    for name, checks in grouped.items():
        good = [f"{row['model']} {row['dtype']}" for row in checks if row["verdict"] == "ok"]
        text += [(name, f"{row['model']} {row['dtype']}: {row['verdict']}") for row in checks if row["verdict"] != "ok"]
        if good:
            text.append((name, f"ok, forward and backward: {', '.join(good)}"))
    return text


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            rows += _rows(value)
        elif value != []:
            rows.append((name, _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_item, value))
    return "none" if value is None else str(value)


def _item(value: Any) -> str:
    if isinstance(value, dict):  # kernels of CUDA
        (least, most), heads = value["window_area"], ", ".join(map(str, value["head_dims"]))
        return f"{value['name']} ({', '.join(value['dtypes'])}; N {least} to {most}, hd {heads})"
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _dispatch_lines(table: list[dict[str, Any]]) -> tuple[list[str], list[list[str]], list[str]]:
    """(header, rows, notes): one column per backend, and a numbered note for each reason why one cannot run, or is
    chosen where it was measured.
    """
    notes: list[str] = []
    rows = []
    for entry in table:
        row = [f"N={math.prod(entry['window_size'])} hd={entry['head_dim']}", entry["dtype"], entry["device"]]
        for backend, reasons in entry["why_not"].items():
            for reason in reasons:
                if f"{backend}: {reason}" not in notes:
                    notes.append(f"{backend}: {reason}")
            numbers = ",".join(str(notes.index(f"{backend}: {reason}") + 1) for reason in reasons)
            directions = [entry["chosen"] == backend, entry["chosen_backward"] == backend]
            runs = "RUNS" if all(directions) else "RUNS fwd" if directions[0] else "RUNS bwd"
            row.append(f"no ({numbers})" if reasons else runs if any(directions) else "can")
        if isinstance(entry["chosen"], dict) and entry["chosen"]["error"] not in notes:
            notes.append(entry["chosen"]["error"])
        rows.append(row)
        notes += [f"{row[0]} {row[1]}, {sentence}" for sentence in entry["measured"]]
    return ["shape", "dtype", "device", *dispatch.BACKENDS], rows, notes


SIZES = ("tiny", "small", "base", "large")
DISPATCH_TITLE = "Which backend runs (RUNS: chosen; can: if asked for; no: see the note)"


def _shape_lines(shapes: Any) -> list[str]:
    """Who has each window: a line for the shape, then one for each group of models that differ in their size alone."""
    if isinstance(shapes, dict):
        return [shapes["error"]]
    lines = []
    for shape in shapes:
        Wh, Ww = shape["window_size"]
        lines.append(f"N={Wh * Ww} hd={shape['head_dim']}: window {Wh}x{Ww}")
        groups: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
        for name, stages in shape["models"].items():
            family, size, rest = name.split("_", 2)
            groups.setdefault((family, rest, tuple(stages)), []).append(size)
        for (family, rest, stages), sizes in groups.items():
            sizes.sort(key=SIZES.index)
            size = sizes[0] if len(sizes) == 1 else f"{{{','.join(sizes)}}}"
            some = f"stages {stages[0]} to {stages[-1]}" if len(stages) > 1 else f"stage {stages[0]}"
            where = "" if len(stages) == 4 else f", {some}"
            lines.append(f"    {family}_{size}_{rest}{where}")
    return lines


def _print_plain(report: dict[str, Any]) -> None:
    for title, facts in _sections(report):
        print(f"{title}\n{'-' * len(title)}")
        width = max((len(name) for name, _ in facts), default=0)
        for name, value in facts:
            print(f"  {name:<{width}}  {value}")
        print()
    print(f"{DISPATCH_TITLE}\n{'-' * len(DISPATCH_TITLE)}")
    if isinstance(report["dispatch"], dict):
        print(f"  {report['dispatch']['error']}")
        return
    header, rows, notes = _dispatch_lines(report["dispatch"])
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    for line in [*(f"({number}) {note}" for number, note in enumerate(notes, 1)), *_shape_lines(report["shapes"])]:
        print(f"  {line}")


def _print_rich(report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for title, facts in _sections(report):
        section = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
        section.add_column(style="cyan", no_wrap=True)
        section.add_column()
        for name, value in facts:
            section.add_row(name, Text(value))
        console.print(section)
        console.print()
    if isinstance(report["dispatch"], dict):
        console.print(report["dispatch"]["error"], markup=False)
        return
    header, rows, notes = _dispatch_lines(report["dispatch"])
    table = Table(title=DISPATCH_TITLE, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"[green]{cell}[/]" if cell == "RUNS" else cell for cell in row))
    console.print(table)
    for line in [*(f"({number}) {note}" for number, note in enumerate(notes, 1)), *_shape_lines(report["shapes"])]:
        console.print(line, markup=False)
