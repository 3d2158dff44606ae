# SPDX-License-Identifier: Apache-2.0
"""The plots of the report: which numbers stand in each, the stamp that says so, and how each kind is drawn.

A plot is its data. The stamp, a digest of them with the version of the drawing, is written into the SVG: so whether a
plot is current can be told without drawing it, and without matplotlib. Raise DRAWING when the drawing changes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWING = 1
Info = dict[str, Any]

_LIBRARIES = ("timm", "timm_sdpa", "timm_compile", "timm_autotune", "timm_cudagraphs", "torchvision", "transformers")
#: Families that do the same work on the same inputs as swin_fast, in the order of columns; others do other work.
RIVALS = {
    "op": ("eager", "sdpa", "compile", "autotune", "flex"),
    "block": ("eager", *_LIBRARIES, "onnxruntime", "openvino"),
    "model": ("eager", *_LIBRARIES, "onnxruntime", "openvino"),
    "dense": ("eager", "torchvision", "transformers"),
}
DTYPES = ("fp32", "bf16", "fp16")
DIRECTIONS = {"fwd": "inference", "fwd+bwd": "training step"}
OURS = "swin_fast"

# Okabe and Ito's colours, which stay apart for the colour-blind; the strongest is ours, and no peer's.
STRONG = "#D55E00"
COLOURS = {
    OURS: STRONG,
    "eager": "#999999",
    "sdpa": "#56B4E9",
    "compile": "#0072B2",
    "autotune": "#1B3A57",
    "flex": "#009E73",
    "timm": "#0072B2",
    "timm_sdpa": "#56B4E9",
    "timm_compile": "#1B3A57",
    "timm_autotune": "#B3A200",
    "timm_cudagraphs": "#44AA99",
    "torchvision": "#009E73",
    "transformers": "#CC79A7",
    "onnxruntime": "#8C6D31",
    "openvino": "#6A51A3",
    "fp32": "#0072B2",
    "bf16": STRONG,
    "fp16": "#009E73",
}
MARKERS = {
    OURS: "D",
    "eager": "s",
    "timm": "o",
    "timm_sdpa": "v",
    "timm_compile": "^",
    "timm_autotune": "p",
    "timm_cudagraphs": "h",
    "torchvision": "P",
    "transformers": "X",
    "onnxruntime": "<",
    "openvino": ">",
}
SUITE_MARKERS = {"op": "o", "block": "s", "model": "^", "dense": "D"}

#: Marks of a logarithmic axis, for axes that span less than so much.
LOG_STEPS = (
    (2, (1, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)),
    (4, (1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)),
    (20, (1, 1.5, 2, 3, 5, 7)),
    (300, (1, 2, 5)),
    (3000, (1, 3)),
)
WIDTH = 9.0  # inches: 864 px, which GitHub shows about as they are
STYLE = {
    "svg.hashsalt": OURS,  # ids in the file are otherwise random
    "svg.fonttype": "path",  # the fonts of whoever looks are unknown
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
    "figure.facecolor": "white",  # so that black text can be read on a dark page, too
    "figure.constrained_layout.use": True,
    "path.simplify": False,
}


@dataclass(frozen=True)
class Plot:
    """A plot of a suite, or of all (""). `kind` names the function that draws it; `data` is all that it is given."""

    device: str
    suite: str
    name: str
    kind: str
    title: str
    data: Any

    @property
    def path(self) -> str:
        return f"plots/{self.device}/{self.name}.svg"

    @property
    def stamp(self) -> str:
        drawn = json.dumps([self.kind, self.title, self.data], sort_keys=True)
        return f"drawing {DRAWING}, data sha256 {hashlib.sha256(drawn.encode()).hexdigest()}"


def plots(device: str, suites: dict[str, list[Info]]) -> list[Plot]:
    """All plots for which a device has data, by suite."""
    found = [*latency(device, suites.get("op", []))]
    for suite, rows in suites.items():
        found += speedup(device, suite, rows)
        found += memory(device, suite, rows) if suite in ("model", "dense") else []
    return [*found, *roofline(device, suites)]


def in_order(found: Iterable[str], known: Iterable[str]) -> list[str]:
    """What was found, in the known order; whatever is not known comes last."""
    found = set(found)
    return [*(name for name in known if name in found), *sorted(found - set(known))]


def least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def one_thread(rows: list[Info]) -> list[Info]:
    """The rows with the fewest threads: a plot does not mix them."""
    fewest = min((row.get("threads", 1) for row in rows), default=1)
    return [row for row in rows if row.get("threads", 1) == fewest]


def panels_of(rows: list[Info]) -> list[tuple[str, str, list[Info]]]:
    """Dtype, direction and the rows of both, where there are any."""
    dtypes = in_order((row["dtype"] for row in rows), DTYPES)
    directions = in_order((row["direction"] for row in rows), DIRECTIONS)
    found = [
        (dtype, direction, [row for row in rows if (row["dtype"], row["direction"]) == (dtype, direction)])
        for direction in directions
        for dtype in dtypes
    ]
    return [panel for panel in found if panel[2]]


def latency(device: str, rows: list[Info]) -> list[Plot]:
    """The op by stage, one plot per batch: shifted rows, and of a stage that drops the shift the one it has."""
    found, rows = [], one_thread([row for row in rows if row.get("ms")])
    for batch in sorted({row["batch"] for row in rows}):
        panels = []
        for dtype, direction, some in panels_of([row for row in rows if row["batch"] == batch]):
            stages = {row["case"]: row for row in sorted(some, key=lambda row: row.get("shift", 0))}
            stages = {row["case"]: stages[row["case"]] for row in some}  # in the order of the result
            names = in_order({name for row in stages.values() for name in row.get("family_ms", {})}, RIVALS["op"])
            bars = {
                name: [row.get("family_ms", {}).get(name) for row in stages.values()]
                for name in names
                if name in RIVALS["op"]
            }
            bars = {OURS: [row.get("ms") for row in stages.values()], **bars}
            panels.append(
                {"title": f"{dtype}, {DIRECTIONS.get(direction, direction)}", "cases": [*stages], "bars": bars}
            )
        title = f"The op by stage, batch {batch}: milliseconds, lower is better"
        found.append(Plot(device, "op", f"latency-b{batch}", "latency", title, panels))
    return found


def speedup(device: str, suite: str, rows: list[Info]) -> list[Plot]:
    lanes = [
        (f"{dtype}, {DIRECTIONS.get(direction, direction)}", dtype, direction)
        for dtype, direction, _ in panels_of(rows)
    ]
    names = in_order(
        {name for row in rows for name, ratio in row.get("family_ratio", {}).items() if ratio}, RIVALS[suite]
    )
    points = {
        name: [
            [
                row["family_ratio"][name]
                for row in rows
                if (row["dtype"], row["direction"]) == (dtype, direction) and row.get("family_ratio", {}).get(name)
            ]
            for _, dtype, direction in lanes
        ]
        for name in names
    }
    title = f"Suite {suite}: time of each peer over that of swin_fast, one dot per row; right of 1 swin_fast is faster"
    data = {"lanes": lanes, "points": points, "other": [name for name in names if name not in RIVALS[suite]]}
    return [Plot(device, suite, f"speedup-{suite}", "speedup", title, data)] if names else []


def memory(device: str, suite: str, rows: list[Info]) -> list[Plot]:
    """Peak memory of swin_fast and, per family, the least of its variants."""
    panels = []
    for direction, label in DIRECTIONS.items():
        some = [row for row in one_thread(rows) if row["direction"] == direction and row.get("peak_mb")]
        points = {OURS: [row["peak_mb"] for row in some]}
        for name in RIVALS[suite]:
            peaks = [
                least(peer.get("peak_mb") for peer in row.get("peers", {}).values() if peer.get("family") == name)
                for row in some
            ]
            points |= {name: peaks} if any(peaks) else {}
        labels = [f"{row['case']}, batch {row['batch']}, {row['dtype']}" for row in some]
        panels += [{"title": label, "rows": labels, "points": points}] if some else []
    title = f"Suite {suite}: peak memory in MB, further left is better"
    return [Plot(device, suite, f"memory-{suite}", "memory", title, panels)] if panels else []


def roofline(device: str, suites: dict[str, list[Info]]) -> list[Plot]:
    placed = [
        (suite, row)
        for suite, rows in suites.items()
        for row in rows
        if all(row.get(key) for key in ("gflop", "mbytes", "gflops", "ceiling_gflops", "ceiling_gb_per_s"))
    ]
    panels = []
    for dtype in in_order((row["dtype"] for _, row in placed), DTYPES):
        for threads in sorted({row.get("threads", 1) for _, row in placed}):
            some = [(suite, row) for suite, row in placed if (row["dtype"], row.get("threads", 1)) == (dtype, threads)]
            points = []
            for suite, row in some:
                peer_ms = row.get("peers", {}).get(row.get("best_peer"), {}).get("ms")
                peer = row["gflop"] / peer_ms * 1e3 if peer_ms else None
                points.append([suite, row["gflop"] / row["mbytes"] * 1e3, row["gflops"], peer])
            roofs = sorted({(row["ceiling_gflops"], row["ceiling_gb_per_s"]) for _, row in some})
            title = f"{dtype}{f', {threads} threads' if threads > 1 else ''}"
            panels += [{"title": title, "roofs": roofs, "points": points}] if some else []
    title = "Roofline: work done per second, against the work there is per byte of unavoidable traffic"
    return [Plot(device, "", "roofline", "roofline", title, panels)] if panels else []


def draw(plot: Plot) -> bytes:
    """The plot as SVG; the same data give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: neither a display nor state that stays

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure()
        DRAW[plot.kind](figure, plot.data)
        figure.suptitle(plot.title, fontsize=11.5, x=0.01, ha="left")
        file = io.BytesIO()
        metadata = {"Title": plot.title, "Description": plot.stamp, "Date": None, "Creator": None}
        figure.savefig(file, format="svg", metadata=metadata)
    # Matplotlib ends lines of paths in a space, which `git diff --check` complains about.
    return b"\n".join(line.rstrip() for line in file.getvalue().splitlines()) + b"\n"


def shown(name: str) -> str:
    return name if name == OURS else name.replace("_", " ")


def log_axis(axes: Axes, which: str, unit: str = "") -> None:
    """A logarithmic axis with numbers as people write them, as many as there is room for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    low, high = axis.get_view_interval()
    steps = next((some for spans, some in LOG_STEPS if high / low < spans), (1,))
    axis.set_major_locator(LogLocator(subs=steps, numticks=99))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}{unit}"))
    axis.set_minor_locator(NullLocator())


def draw_latency(figure: Figure, panels: list[dict[str, Any]]) -> None:
    figure.set_size_inches(WIDTH, 0.9 + 2.0 * len(panels))
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        cases, bars = panel["cases"], panel["bars"]
        width = 0.84 / len(bars)
        for i, (name, values) in enumerate(bars.items()):
            at = [x + (i - (len(bars) - 1) / 2) * width for x, value in enumerate(values) if value]
            heights = [value for value in values if value]
            axes.bar(at, heights, 0.92 * width, color=COLOURS[name])
            for x, height in zip(at, heights, strict=True) if name == OURS else ():
                # Into the gap on the left, not over the bars on the right.
                axes.text(x + width / 2, 1.06 * height, f"{height:.3g}", fontsize=8.5, ha="right")
        values = [value for some in bars.values() for value in some if value]
        axes.set_yscale("log")
        axes.set_ylim(0.6 * min(values), 1.5 * max(values))
        log_axis(axes, "y")
        axes.set(title=panel["title"], ylabel="ms, log scale", xlim=(-0.6, len(cases) - 0.4))
        axes.set_xticks(range(len(cases)), cases, fontsize=9 if sum(map(len, cases)) < 110 else 8)
        if sum(map(len, cases)) > 130:
            axes.tick_params(axis="x", rotation=20)
        axes.grid(False, axis="x")
    legend(figure, {shown(name): {"marker": "s", "color": COLOURS[name]} for panel in panels for name in panel["bars"]})


def draw_speedup(figure: Figure, data: dict[str, Any]) -> None:
    lanes, points, other = data["lanes"], data["points"], data["other"]
    step = 0.84 / len(lanes)
    figure.set_size_inches(WIDTH, 1.3 + len(points) * max(0.45, 0.15 * len(lanes)))
    axes = figure.subplots()
    ratios = [ratio for lanes_of in points.values() for lane in lanes_of for ratio in lane]
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, 0.85 * min(ratios)), max(1.25, 1.15 * max(ratios)))
    log_axis(axes, "x", "×")
    axes.axvspan(axes.get_xlim()[0], 1, color="#F2F2F2", zorder=0)
    axes.axvline(1, color="black", linewidth=1.2)
    for y, lanes_of in enumerate(points.values()):
        for i, (lane, (_, dtype, direction)) in enumerate(zip(lanes_of, lanes, strict=True)):
            at = [y + (i - (len(lanes) - 1) / 2) * step] * len(lane)
            axes.scatter(lane, at, 26, **dot(COLOURS[dtype], direction == "fwd"), alpha=0.75, clip_on=False)
        mean = geometric_mean([ratio for lane in lanes_of for ratio in lane])
        axes.plot([mean, mean], [y - 0.46, y + 0.46], color="black", linewidth=1, linestyle=(0, (3, 2)))
        axes.text(1.01, y, f"{mean:.2f}×", transform=axes.get_yaxis_transform(), va="center")
    for y in range(1, len(points)):
        axes.axhline(y - 0.5, color="#C8C8C8", linewidth=0.8)
    axes.text(1.01, 1.0, "geometric\nmean", transform=axes.transAxes, fontsize=9, va="bottom")
    labels = [f"{shown(name)}\n(other work)" if name in other else shown(name) for name in points]
    axes.set_yticks(range(len(points)), labels)
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    legend(figure, {label: dot(COLOURS[dtype], direction == "fwd") for label, dtype, direction in lanes})


def draw_memory(figure: Figure, panels: list[dict[str, Any]]) -> None:
    heights = [len(panel["rows"]) for panel in panels]
    figure.set_size_inches(WIDTH, 1.2 + 0.75 * len(panels) + 0.24 * sum(heights))
    grid = figure.subplots(len(panels), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    marks: dict[str, dict[str, Any]] = {}
    for axes, panel in zip(grid, panels, strict=True):
        rows = range(len(panel["rows"]))
        for name, values in reversed(panel["points"].items()):  # ours last, above the others
            marks[name] = {"marker": MARKERS[name], "color": COLOURS[name]}
            some = [(value, y) for value, y in zip(values, rows, strict=True) if value]
            axes.scatter(*zip(*some, strict=True), 55 if name == OURS else 34, **marks[name], alpha=0.9)
        axes.set_xscale("log")
        axes.set(title=panel["title"], ylim=(len(panel["rows"]) - 0.5, -0.5))
        axes.set_yticks(rows, panel["rows"], fontsize=9)
        axes.tick_params(axis="x", labelbottom=True)
        axes.grid(True, axis="y")
    for axes in grid:
        log_axis(axes, "x")
    grid[-1].set_xlabel("MB")
    legend(figure, {shown(name): marks[name] for name in in_order(marks, (OURS, *RIVALS["model"]))})


def draw_roofline(figure: Figure, panels: list[dict[str, Any]]) -> None:
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure.set_size_inches(WIDTH, 1.0 + 3.6 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    points = [point for panel in panels for point in panel["points"]]
    left, right = 0.6 * min(x for _, x, _, _ in points), 1.8 * max(x for _, x, _, _ in points)
    bottom = 0.5 * min(min(ours, peer or ours) for _, _, ours, peer in points)
    top = 2.2 * max(max(roof for panel in panels for roof, _ in panel["roofs"]), max(ours for _, _, ours, _ in points))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set(xlim=(left, right), ylim=(bottom, top), title=panel["title"])
        log_axis(axes, "x")
        log_axis(axes, "y")
        for gflops, gb_per_s in panel["roofs"]:
            corner = min(max(gflops / gb_per_s, left), right)
            axes.plot([left, corner, right], [left * gb_per_s, gflops, gflops], color="black", linewidth=1, zorder=1)
        gflops, gb_per_s = (max(values) for values in zip(*panel["roofs"], strict=True))
        text = f"{gflops:,.0f} GFLOP/s, {gb_per_s:,.0f} GB/s"
        axes.text(0.96 * right, 1.08 * gflops, text, fontsize=9, ha="right", va="bottom")
        for _, x, ours, peer in panel["points"]:
            axes.plot([x, x], [peer or ours, ours], color="#C8C8C8", linewidth=0.8, zorder=2)
        for suite in in_order((point[0] for point in panel["points"]), RIVALS):
            some = [point[1:] for point in panel["points"] if point[0] == suite]
            xs, ours, peers = zip(*some, strict=True)
            axes.scatter(
                xs, [peer or math.nan for peer in peers], 26, **dot("#555555", False, SUITE_MARKERS[suite]), zorder=3
            )
            axes.scatter(xs, ours, 30, **dot(STRONG, True, SUITE_MARKERS[suite]), zorder=4, alpha=0.85)
    for axes in grid[:, 0]:
        axes.set_ylabel("GFLOP/s")
    for axes in grid[-1]:
        axes.set_xlabel("flop per byte")
    suites = in_order({suite for suite, _, _, _ in points}, RIVALS)
    marks = {f"{OURS}, {suite}": dot(STRONG, True, SUITE_MARKERS[suite]) for suite in suites}
    legend(figure, {**marks, "best peer": dot("#555555", False)})


def dot(colour: str, filled: bool, marker: str = "o") -> dict[str, Any]:
    return {"marker": marker, "facecolors": colour if filled else "white", "edgecolors": colour, "linewidths": 1.2}


def legend(figure: Figure, marks: dict[str, dict[str, Any]]) -> None:
    """Below the plot, one mark per name, in lines of at most five."""
    handles = [figure.axes[0].scatter([], [], 40, **mark) for mark in marks.values()]
    columns = math.ceil(len(marks) / math.ceil(len(marks) / 5))
    figure.legend(handles, [*marks], loc="outside lower center", ncols=columns, handletextpad=0.2)


DRAW = {"latency": draw_latency, "speedup": draw_speedup, "memory": draw_memory, "roofline": draw_roofline}
