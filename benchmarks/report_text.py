# SPDX-License-Identifier: Apache-2.0
"""The Markdown of the report and of its block in the README: the sections, and their tables."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from statistics import geometric_mean, median
from textwrap import shorten
from typing import Any

from .plots import DIRECTIONS, DTYPES, OURS, RIVALS, Info, Plot, in_order, shown

Result = dict[str, Any]
Devices = dict[str, dict[str, Result]]

OPENING = """\
# Benchmark report

Written by `python -m benchmarks.report` from the files under `benchmarks/results/`; not edited by hand. How the numbers
come about stands in [README.md](README.md).

A Swin Transformer cuts an image of tokens into windows and lets the tokens of a window attend to each other. Every
other block first shifts the image cyclically by half a window, and masks pairs of tokens that were not neighbours. In
plain PyTorch that is a dozen steps, most of which copy the image or store the scores: roll, partition, two matrix
products, bias, mask, softmax, reverse, roll back. `swin_fast` does all of it in one op, forward and backward, which
reads qkv and writes its output in image order.

All contenders get the same inputs and weights, and each is compared with float64 before it is timed. A peer that is not
equal or cannot run is left out, and listed with its reason."""

ABOUT = {
    "op": "One call of the attention op, from the output of the QKV linear to the input of the output projection. fwd "
    "runs without autograd; the training step has the gradients of qkv and of the bias table. A case is a stage of a "
    "published Swin: its image of tokens, heads, window and shift.",
    "block": "One Swin block, tokens to tokens: norms, QKV linear, attention, projection, MLP and both residuals. The "
    "training step has the gradients of the input and of all parameters. Linears, norms and GELU are in the time of "
    "everybody, so the ratio is smaller than that of the op.",
    "model": "A whole classifier, from images to class scores. The training step is forward and backward, without loss "
    "and optimizer, which are everybody's alike. Images/s is the batch over the time.",
    "dense": 'A Swin backbone as detection and segmentation use it (`geometry="dense"`): images of any size to feature '
    "maps, padded where the windows do not fit. Detection and segmentation heads are not part of it.",
}
FAMILIES = {
    "eager": "plain PyTorch, step by step; in whole modules our own module in plain PyTorch",
    "sdpa": "`scaled_dot_product_attention`, bias and mask given as its mask",
    "compile": "`torch.compile` of eager and sdpa",
    "autotune": "the same with `max-autotune`",
    "flex": "compiled FlexAttention, bias and mask as its score function",
    "cached": "other work: sdpa with bias and mask expanded before the clock runs",
    "timm_order": "other work: roll and partition move the input of the QKV linear, as in timm's model",
    "timm": "timm's module as it runs by default",
    "timm_sdpa": "timm's module with its fused attention",
    "timm_compile": "`torch.compile` of timm's module",
    "timm_autotune": "the same with `max-autotune`",
    "timm_cudagraphs": "the same with CUDA graphs",
    "torchvision": "torchvision's module",
    "transformers": "Hugging Face's module",
    "onnxruntime": "the exported module in ONNX Runtime",
    "openvino": "the exported module in OpenVINO",
}
READING = """\
## How to read this

* **ms**: with one CPU thread the minimum over the rounds of the CPU time of the process, so waiting for others is not
  counted; with two threads the minimum of wall time; on a GPU the median of the time between two CUDA events, with the
  20th and the 80th percentile in brackets. Contenders take turns, so that all meet the same state of the machine.
* **fwd**: inference. **fwd+bwd**: training step, forward and all gradients.
* **ratio**: time of the peer over time of swin_fast. Above 1 swin_fast is faster, below 1 it is slower. The **best
  peer** is the fastest one that does the same work on the same inputs. **published** leaves out our own rearrangements
  of peers.
* **Summaries** are geometric means of the ratios of rows, with the smallest and the largest row.
* **GFLOP/s** count useful operations, the same for everybody: matrix products, not softmax, norms or recomputation.
* **% of roof**: the least time that the row could take at the measured ceilings, over the time it took. The least time
  is the larger of the useful operations at the ceiling of arithmetic (**compute**) and the unavoidable bytes at the
  ceiling of copying (**memory**). Ceilings are what this machine was seen to reach, not data sheets: small cases that
  fit into a cache can pass the ceiling of memory.
* **CUDA graph ms**: swin_fast replayed as a CUDA graph, and the ratio of the best peer replayed as one to that.
* **bar**: the ratio that the project holds this row to, over the peer it names; **met** says whether it was reached.
* **peak MB**: the most memory that was allocated at one time, where it was measured.
* **-**: not measured, or not in the result."""


@dataclass(frozen=True)
class Column:
    """A column of a table. `needed`: shown even if no row has a value."""

    name: str
    cell: Callable[[Info], str]
    side: str = "right"
    needed: bool = True


# ---- numbers and tables


def number(value: float | None, digits: int = 3) -> str:
    """With so many significant digits, but no exponent; "-" where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    exponent = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def spread(ratios: list[float]) -> str:
    """Geometric mean, and the least and the largest."""
    if len(ratios) < 2:
        return ratio(ratios[0] if ratios else None)
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def cell(text: object) -> str:
    """As it may stand in a table: one line, without paths of a machine, and not taken for markup."""
    line = " ".join(str(text).split())
    line = re.sub(r"(?<![\w.:/])/(?:[\w.+-]+/)+", "", line)
    return line.replace("|", "\\|").replace("<", "&lt;")


def grid(columns: list[Column], rows: Iterable[Info]) -> str:
    rows = list(rows)
    cells = [[cell(column.cell(row)) for row in rows] for column in columns]
    kept = [i for i, column in enumerate(columns) if column.needed or set(cells[i]) - {"-"}]
    lines = [[columns[i].name for i in kept], ["---:" if columns[i].side == "right" else "---" for i in kept]]
    lines += [[cells[i][row] for i in kept] for row in range(len(rows))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def count(found: int, noun: str) -> str:
    return f"{found} {noun}{'' if found == 1 else 's'}"


# ---- what a result holds


def rows_of(result: Result) -> list[Info]:
    return [{"id": benchmark.get("param"), **benchmark["extra_info"]} for benchmark in result["benchmarks"]]


def machine(result: Result) -> Info:
    return result.get("machine_info", {})


def on_gpu(results: dict[str, Result]) -> bool:
    return any(machine(result).get("kind") == "cuda" for result in results.values())


def distinct(results: dict[str, Result], text: Callable[[Info], object]) -> str:
    """What the suites' machines say, once if they agree."""
    found = dict.fromkeys(str(text(machine(result)) or "-") for result in results.values())
    return "; ".join(found)


def best_peer(row: Info) -> Info:
    return row.get("peers", {}).get(row.get("best_peer"), {})


def groups(results: dict[str, Result]) -> list[tuple[str, int, str, str, list[Info]]]:
    """Suite, threads, dtype and direction, and the rows of each."""
    found: dict[tuple[str, int, str, str], list[Info]] = defaultdict(list)
    for suite, result in results.items():
        for row in rows_of(result):
            found[suite, row.get("threads", 1), row["dtype"], row["direction"]].append(row)
    places = [list(RIVALS), sorted({key[1] for key in found}), list(DTYPES), list(DIRECTIONS)]

    def place(key: tuple[Any, ...]) -> list[int]:
        return [known.index(part) if part in known else len(known) for part, known in zip(key, places, strict=True)]

    return [(*key, found[key]) for key in sorted(found, key=place)]


def ratios(rows: list[Info]) -> list[float]:
    return [row["ratio"] for row in rows if row.get("ratio")]


# ---- sections


def summary(results: dict[str, Result]) -> str:
    """One line per suite, threads, dtype and direction."""

    def roofs(rows: list[Info]) -> str:
        found = [row["percent_of_roof"] for row in rows if row.get("percent_of_roof") is not None]
        between = f" ({min(found):.0f} to {max(found):.0f})" if len(found) > 1 else ""
        return f"{median(found):.0f}{between}" if found else "-"

    def bars(rows: list[Info]) -> str:
        found = [row["met"] for row in rows if row.get("met") is not None]
        return f"{sum(found)} of {len(found)}" if found else "-"

    def slower(line: Info) -> str:
        found = ratios(line["rows"])
        return str(sum(value < 1 for value in found)) if found else "-"

    lines = [
        {"suite": suite, "threads": threads, "dtype": dtype, "direction": direction, "rows": rows}
        for suite, threads, dtype, direction, rows in groups(results)
    ]
    threaded = any(line["threads"] > 1 for line in lines)
    columns = [
        Column("suite", lambda line: line["suite"], "left"),
        Column("threads", lambda line: str(line["threads"]) if threaded else "-", needed=False),
        Column("dtype", lambda line: line["dtype"], "left"),
        Column("direction", lambda line: line["direction"], "left"),
        Column("rows", lambda line: str(len(line["rows"]))),
        Column("speed-up over the best peer: mean (least to most)", lambda line: spread(ratios(line["rows"]))),
        Column("rows where a peer is faster", slower),
        Column("% of roof: median (least to most)", lambda line: roofs(line["rows"])),
        Column("bars met", lambda line: bars(line["rows"]), needed=False),
    ]
    return grid(columns, lines)


def not_ours(results: dict[str, Result]) -> str:
    """On a GPU the backend `reference` is plain PyTorch; whoever reads the numbers has to know."""
    rows = [row for result in results.values() if on_gpu({"": result}) for row in rows_of(result)]
    reference = [row for row in rows if row.get("backend") == "reference"]
    if not reference:
        return ""
    which = "every row" if len(reference) == len(rows) else f"{len(reference)} of {count(len(rows), 'row')}"
    return (
        f"**On this GPU {which} of swin_fast ran its backend `reference`, which is plain PyTorch: these are not our "
        "kernels, and their ratios say nothing about them.**"
    )


def in_short(devices: Devices) -> list[str]:
    parts = ["## In short"]
    for device, results in devices.items():
        rows = [row for result in results.values() for row in rows_of(result)]
        missed = sum(row.get("met") is False for row in rows)
        left = sum(len(result.get("not_measured", [])) for result in results.values())
        said = [f"{count(len(rows), 'row')} measured"]
        said += [f"{left} not measured"] if left else []
        said += [f"{missed} fell short of their bar"] if missed else []
        parts += [f"**{device}** ({hardware(results)}): {', '.join(said)}."]
        parts += [text for text in (not_ours(results), summary(results)) if text]
    return parts


def hardware(results: dict[str, Result]) -> str:
    def text(found: Info) -> str:
        return found["gpu"]["name"] if found.get("gpu") else cpu(found, "name")

    return distinct(results, text)


def cpu(found: Info, *names: str) -> str:
    chip = found.get("cpu", {})
    parts = [chip.get(name) for name in names] + [count(chip["cores"], "core") if chip.get("cores") else None]
    return ", ".join(part for part in parts if part)


def about_machine(results: dict[str, Result]) -> list[str]:
    def versions(found: Info) -> str:
        torch = found.get("torch", {})
        own = {"Python": found.get("python"), "torch": torch.get("version"), "CUDA": torch.get("cuda")}
        own |= {"cuDNN": torch.get("cudnn"), "triton": found.get("triton"), "nvcc": found.get("nvcc")}
        return ", ".join(f"{name} {version}" for name, version in {**own, **found.get("peers", {})}.items() if version)

    def gpu(found: Info) -> str:
        card = found.get("gpu")
        if not card:
            return ""
        units = {"driver": "driver {}", "capability": "compute capability {}", "memory_gb": "{} GB"}
        units |= {"multiprocessors": "{} multiprocessors", "l2_mb": "{} MB of L2"}
        return ", ".join([card["name"], *(text.format(card[key]) for key, text in units.items() if card.get(key))])

    def built(found: Info) -> str:
        own = found.get("swin_fast", {})
        return ", ".join(str(part) for part in (own.get("version"), own.get("isa")) if part)

    def allocator(found: Info) -> str:
        own = found.get("allocator", {})
        text = own.get("glibc_tunables", "")
        return f"{text} (NOT in force)" if own.get("as_stated") is False else text

    lines = {
        "GPU": gpu,
        "CPU": lambda found: cpu(found, "name", "microarchitecture"),
        "system": lambda found: " ".join(found.get("system", {}).values()),
        "swin_fast": built,
        "versions": versions,
        "how time was taken": lambda found: found.get("clock"),
        "allocator": allocator,
    }
    facts = [{"name": name, "text": distinct(results, text)} for name, text in lines.items()]
    told = [fact for fact in facts if fact["text"] != "-"]
    facts_grid = grid([Column("", lambda f: f["name"], "left"), Column("", lambda f: f["text"], "left")], told)

    def load(run: Info) -> str:
        found = machine(run).get("load_average", [])  # at the beginning and the end of each run
        return ", ".join(f"{a:g} to {b:g}" for a, b in zip(found[::2], found[1::2], strict=True)) or "-"

    def commits(run: Info) -> str:
        """Of the last run, and of earlier ones whose rows were taken over."""
        found = [run.get("commit_info", {}).get("id", "-"), *(row.get("commit") for row in rows_of(run))]
        return ", ".join(dict.fromkeys(commit[:12] for commit in found if commit))

    runs = [{"suite": suite, **result} for suite, result in results.items()]
    names = list(dict.fromkeys(name for run in runs for name in machine(run).get("ceilings", {})))
    columns = [
        Column("suite", lambda run: run["suite"], "left"),
        Column("measured", lambda run: run.get("datetime", "-")[:16].replace("T", " "), "left"),
        Column("commit", commits, "left"),
        Column("rows", lambda run: str(len(run["benchmarks"]))),
        Column("s per row", lambda run: number(machine(run).get("budget_s"), 2), needed=False),
        Column("load average", load),
        *(Column(ceiling(name), lambda run, n=name: number(machine(run).get("ceilings", {}).get(n))) for name in names),
    ]
    text = "Each suite is a run of its own, with its own ceilings, measured at its start."
    return ["### The machine", facts_grid, text, grid(columns, runs)]


def ceiling(name: str) -> str:
    """A ceiling's name as words: fma_fp32_gflops_2t is "fma fp32, GFLOP/s, 2 threads"."""
    name, threads = re.subn(r"_(\d+)t$", "", name)[0], re.search(r"_(\d+)t$", name)
    for suffix, unit in {"_gflops": "GFLOP/s", "_gb_per_s": "GB/s"}.items():
        name = name.replace(suffix, f", {unit}")
    return name.replace("_", " ") + (f", {threads[1]} threads" if threads else "")


def row_columns(suite: str, rows: list[Info], gpu: bool) -> list[Column]:
    def milliseconds(info: Info) -> str:
        both = info.get("p20_ms") is not None and info.get("p80_ms") is not None
        between = f" ({number(info['p20_ms'])} to {number(info['p80_ms'])})" if gpu and both else ""
        return number(info.get("ms")) + between

    def roof(row: Info) -> str:
        return f"{number(row.get('percent_of_roof'), 2)} {row.get('bound') or ''}".strip()

    def peaks(row: Info) -> str:
        return f"{number(row.get('peak_mb'))} / {number(best_peer(row).get('peak_mb'))}".replace("- / -", "-")

    def bar(row: Info) -> str:
        over = row.get("held_against")
        return "-" if row.get("bar") is None else f"{row['bar']:g}{f' over {shown(over)}' if over else ''}"

    def graph(row: Info) -> str:
        found = row.get("graph") or {}
        over = f", {ratio(found.get('ratio'))} over {shown(found['best_peer'])}" if found.get("best_peer") else ""
        return number(found.get("ms")) + over

    def over(family: str) -> Column:
        name = f"over {shown(family)}{'' if family in RIVALS[suite] else ' (other work)'}"
        return Column(name, lambda row: ratio(row.get("family_ratio", {}).get(family)))

    def images(row: Info) -> str:
        return number(row.get("images_per_s")) if suite in ("model", "dense") else "-"

    threaded = any(row.get("threads", 1) > 1 for row in rows)
    published = any(row.get("best_published_peer") != row.get("best_peer") for row in rows)
    families = in_order({name for row in rows for name in row.get("family_ratio", {})}, FAMILIES)
    return [
        Column("case", lambda row: row["case"], "left"),
        Column("shift", lambda row: str(row.get("shift", "-")), needed=False),
        Column("batch", lambda row: str(row.get("batch", "-"))),
        Column("threads", lambda row: str(row.get("threads", 1)) if threaded else "-", needed=False),
        Column("dtype", lambda row: row["dtype"], "left"),
        Column("direction", lambda row: row["direction"], "left"),
        Column("backend", lambda row: row.get("backend", "-") if gpu else "-", "left", needed=False),
        Column("swin_fast ms", milliseconds),
        Column("images/s", images, needed=False),
        Column("best peer", lambda row: shown(row.get("best_peer") or "-"), "left"),
        Column("its ms", lambda row: milliseconds(best_peer(row))),
        Column("**ratio**", lambda row: ratio(row.get("ratio"))),
        Column("published", lambda row: ratio(row.get("ratio_published")) if published else "-", needed=False),
        *(over(family) for family in families),
        Column("% of roof", roof),
        Column("bar", bar, needed=False),
        Column("met", lambda row: {True: "yes", False: "**no**"}.get(row.get("met"), "-"), "left", needed=False),
        Column("peak MB, ours / best peer", peaks, needed=False),
        Column("CUDA graph ms", graph, needed=False),
    ]


def suite_section(suite: str, result: Result, drawn: list[Plot]) -> list[str]:
    rows, left = rows_of(result), result.get("not_measured", [])
    gpu = on_gpu({suite: result})
    families = in_order({name for row in rows for name in row.get("family_ratio", {})}, FAMILIES)
    parts = [f"### Suite {suite}", ABOUT[suite]]
    told = [f"* {shown(name)}: {FAMILIES[name]}" for name in families if name in FAMILIES]
    parts += ["Compared with:\n\n" + "\n".join(told)] if told else []
    if note := not_ours({suite: result}):
        parts += [note]
    if left:
        parts += [f"{count(len(left), 'row')} of {len(left) + len(rows)} not measured; they are listed at the end."]
    parts += [f"![{plot.title}]({plot.path})" for plot in drawn]
    missed = [row for row in rows if row.get("met") is False]
    if missed:
        columns = [
            Column("row", lambda row: f"`{row['id']}`", "left"),
            Column("bar", lambda row: f"{row['bar']:g}" if row.get("bar") is not None else "-"),
            Column("over", lambda row: shown(row.get("held_against") or "-"), "left"),
            Column("reached", lambda row: number(row.get("held_ratio"), 4)),
        ]
        parts += [f"**Fell short** of their bar: {count(len(missed), 'row')}.", grid(columns, missed)]
    if rows:
        parts += [folded(f"All {count(len(rows), 'row')}", grid(row_columns(suite, rows, gpu), rows))]
    return parts


def seed_table(result: Result) -> list[str]:
    """The columns that segmentation papers give, of what this project can measure: the backbone."""
    rows = [row for row in rows_of(result) if row["case"].startswith("swin_") and row.get("size") == [512, 512]]
    rows = [row for row in rows if (row["direction"], row.get("batch")) == ("fwd", 1)]
    if not rows:
        return []

    lines = []
    for row in rows:
        peers = sorted(row.get("peers", {}).items(), key=lambda peer: peer[0] != "eager")
        for name, found in [(OURS, {**row, "ratio": 1.0 if row.get("ms") else None}), *peers]:
            per_s = row.get("images_per_s") if name == OURS else 1e3 / found["ms"] if found.get("ms") else None
            peak, ours = found.get("peak_mb"), row.get("peak_mb")
            more = peak / ours if peak and ours else None
            facts = {"who": name, "peak": peak, "per_s": per_s, "over": found.get("ratio"), "more": more}
            lines.append({**row, **facts})
    columns = [
        Column("backbone", lambda line: line["case"], "left"),
        Column("threads", lambda line: str(line.get("threads", "-"))),
        Column("dtype", lambda line: line["dtype"], "left"),
        Column("run by", lambda line: f"**{OURS}**" if line["who"] == OURS else shown(line["who"]), "left"),
        Column("peak MB", lambda line: number(line["peak"])),
        Column("images/s", lambda line: number(line["per_s"])),
        Column("times the memory of swin_fast", lambda line: ratio(line["more"])),
        Column("times the time of swin_fast", lambda line: ratio(line["over"])),
    ]
    text = (
        "MMSegmentation states memory and images per second of whole UperNets with a Swin backbone. This is **the "
        "backbone alone**, one image of 512 x 512, inference: without decode head, data and post-processing, so not to "
        "be compared with numbers of whole networks. `eager` is the same backbone in plain PyTorch."
    )
    return ["### The backbone of UperNet alone, at 512 x 512", text, grid(columns, lines)]


def merged(reasons: Iterable[str]) -> dict[str, int]:
    """Reasons, and how often each was given; those that differ in numbers alone are one, with least and largest."""
    numeral = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.]*[A-Za-z_])")
    alike: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for reason in reasons:
        parts = numeral.split(reason)
        alike[tuple(parts[::2])].append(parts[1::2])
    found = {}
    for texts, numbers in alike.items():
        ends = [(min(column, key=float), max(column, key=float)) for column in zip(*numbers, strict=True)]
        spans = [low if low == high else f"{low} to {high}" for low, high in ends]
        found["".join(part for pair in zip(texts, [*spans, ""], strict=True) for part in pair)] = len(numbers)
    return found


def left_out(devices: Devices) -> list[str]:
    lines, lists = [], []
    for device, results in devices.items():
        for suite, result in results.items():
            reasons: dict[str, list[str]] = defaultdict(list)
            for row in rows_of(result):
                for peer, found in row.get("left_out", {}).items():
                    reasons[peer].append(shorten(found.get("reason", "-"), 240, placeholder=" …"))
            for peer in sorted(reasons):
                for reason, rows in merged(reasons[peer]).items():
                    lines.append({"device": device, "suite": suite, "peer": peer, "reason": reason, "rows": rows})
            ids = result.get("not_measured", [])
            if ids:
                title = f"{device}, suite {suite}: {count(len(ids), 'row')} not measured"
                lists.append(folded(title, "\n".join(f"* `{row}`" for row in ids)))
    names = ("device", "suite", "peer", "reason")
    columns = [Column(name, lambda line, name=name: line[name], "left") for name in names]
    parts = ["## Left out, and why"]
    if lines:
        parts += [
            "Peers that could not run, or whose outputs or gradients were not equal, and in how many rows.",
            grid([*columns, Column("rows", lambda line: str(line["rows"]))], lines),
        ]
    if lists:
        parts += ["Rows that were not measured, since time or memory ran out or they were not selected:", *lists]
    return parts if lines or lists else [*parts, "Nothing."]


def report(devices: Devices, drawn: dict[str, list[Plot]]) -> str:
    parts = [OPENING, *in_short(devices)] if devices else [OPENING, "There are no results yet."]
    for device, results in devices.items():
        parts += [f"## {device}", *about_machine(results)]
        for plot in drawn[device]:
            parts += [f"![{plot.title}]({plot.path})"] if plot.kind == "roofline" else []
        for suite, result in results.items():
            parts += suite_section(suite, result, [plot for plot in drawn[device] if plot.suite == suite])
            parts += seed_table(result) if suite == "dense" else []
    parts += left_out(devices) if devices else []
    return "\n\n".join([*parts, READING]) + "\n"


def readme_block(devices: Devices, drawn: dict[str, list[Plot]]) -> str:
    """For who reads no more than this: per device and suite the speed-ups, and the plot of one suite."""

    def over(direction: str, dtype: str) -> Column:
        name = f"{DIRECTIONS[direction]}, {dtype}"
        return Column(name, lambda line: spread(ratios(line.get((direction, dtype), []))), needed=False)

    kinds = [(direction, dtype) for direction in DIRECTIONS for dtype in DTYPES]
    parts = [
        "Time of the fastest other implementation over that of `swin_fast`: geometric mean over all rows, and the "
        "least and the most of a row. Below 1 swin_fast is slower.",
    ]
    lines = []
    for device, results in devices.items():
        for (suite, threads), some in groupby(groups(results), key=lambda group: group[:2]):
            found = {(direction, dtype): rows for _, _, dtype, direction, rows in some}
            where = f"{device}, {count(threads, 'thread')}" if not on_gpu(results) else device
            lines.append({"device": where, "suite": suite, **found})
    columns = [
        Column("device", lambda line: line["device"], "left"),
        Column("suite", lambda line: line["suite"], "left"),
        *(over(*kind) for kind in kinds),
    ]
    parts += [grid(columns, lines)]
    for device, results in devices.items():
        met = Counter(row.get("met") for result in results.values() for row in rows_of(result))
        barred = met[True] + met[False]
        said = [f"{device}: {met[True]} of {count(barred, 'bar')} met."] if barred else []
        said += [note] if (note := not_ours(results)) else []
        parts += [" ".join(said)] if said else []
        parts += [f"![{p.title}](benchmarks/{p.path})" for p in drawn[device] if p.kind == "speedup"][:1]
    text = "What was measured, against whom, all rows, and what was left out: [the report](benchmarks/REPORT.md)."
    return "\n\n".join([*parts, text] if devices else ["There are no results yet."])
