# SPDX-License-Identifier: Apache-2.0
"""Two Swin blocks over a photograph: a table of how exact and how fast every backend is, and a picture of the op."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.transforms import blended_transform_factory
from PIL import Image, ImageOps, UnidentifiedImageError
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from .demo_measure import (
    DIM,
    DTYPES,
    NUM_HEADS,
    PATCH,
    SHIFT,
    WARM_UP,
    WINDOW,
    EagerAttention,
    Row,
    TwoBlocks,
    core_input,
    eager_twins,
    measure,
    why_not,
)
from .dispatch import BACKENDS

__all__ = ["DemoError", "run"]

SEED = 0
SAMPLE = "grace_hopper.jpg"
MAX_PIXELS = 2_000_000  # float64 takes some 13 kB per token, so about 2 GB

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)


class DemoError(Exception):
    """The demo cannot run as asked; the message says why, to the user."""


# ------------------------------------------------------------------------------------------------------------- The run


def run(*, image: str | None, output: str, repeats: int, threads: int | None) -> bool:
    """Runs the demo, prints its table and saves its picture. Returns whether every backend kept the tolerance rule.

    Args:
        image: path of a photograph, or None for the one that matplotlib ships.
        output: path of the picture; the extension names the format.
        repeats: timed runs of each path.
        threads: CPU threads for torch, or None to leave them.

    Raises:
        DemoError: the photograph cannot be read or the picture cannot be written.
    """
    console = Console(highlight=False)
    if threads is not None:
        torch.set_num_threads(threads)
    photo, about = load_photo(image)
    target = Path(output)
    if target.suffix.lower() not in {".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp"}:
        raise DemoError(f"--output: got {output!r}, want a file name that ends in .png (or .jpg, .webp, .pdf, .svg)")
    if not target.absolute().parent.is_dir():
        raise DemoError(f"--output: the folder of {output!r} does not exist")

    pixels = torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 127.5 - 1.0  # (3, height, width), -1 .. 1
    pixels = F.pad(pixels, (0, -photo.shape[1] % PATCH, 0, -photo.shape[0] % PATCH))[None]
    height, width = pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = TwoBlocks().eval()
    console.print(f"{about}; {height} x {width} tokens", markup=False, style="bold")
    console.print(
        f"Patch embedding and two blocks of Swin-T's first stage (C = {DIM}, {NUM_HEADS} heads, window {WINDOW}), "
        f"regular and shifted by {SHIFT}; CPU threads: {torch.get_num_threads()}. "
        f"[bold]The weights are random[/] (seed {SEED}): nothing here is a trained model."
    )

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress, torch.inference_mode():
        backends = {name: [b for b in BACKENDS if not why_not(b, name)] for name in DTYPES}
        steps = sum((1 + len(paths)) * 2 * (repeats + WARM_UP) + 1 for paths in backends.values())
        task = progress.add_task("measuring", total=steps + 1)
        rows: list[Row] = []
        for name, paths in backends.items():
            rows += measure(model, pixels, name, paths, repeats, partial(progress.update, task, advance=1))
        progress.update(task, description="drawing the picture")
        try:
            draw(photo, model, pixels, rows).savefig(target)
        except OSError as error:
            raise DemoError(f"--output: cannot write {output!r}: {error.strerror or error}") from None
        progress.update(task, advance=1, description="done")
    _print_rows(console, rows)
    console.print(f"Picture: {target}", markup=False, style="bold")
    return all(row.within_rule for row in rows)


def load_photo(path: str | None) -> tuple[Pixels, str]:
    """The photograph (height, width, 3) as uint8, upright, and a line about it, which says so if it was scaled down."""
    name = Path(path).name if path else f"{SAMPLE} (a sample that matplotlib ships)"
    try:
        with Image.open(path or matplotlib.cbook.get_sample_data(SAMPLE, asfileobj=False)) as opened:
            photo = ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError:
        raise DemoError(f"--image: {path!r} is not an image that Pillow can read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if path is None:
            reason += "; matplotlib's sample data is missing here, so give a photograph of yours with --image"
        raise DemoError(f"--image: cannot read {path or SAMPLE!r}: {reason}") from None
    about = f"{name}: {photo.width} x {photo.height} pixels"
    if photo.width * photo.height > MAX_PIXELS:
        factor = (MAX_PIXELS / (photo.width * photo.height)) ** 0.5
        photo = photo.resize((max(1, int(photo.width * factor)), max(1, int(photo.height * factor))))
        about += f", scaled down to {photo.width} x {photo.height} (the demo takes {MAX_PIXELS / 1e6:g} million pixels)"
    return np.asarray(photo), about


def _print_rows(console: Console, rows: list[Row]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("dtype", "path"):
        table.add_column(title, no_wrap=True)
    for title in ("max error", "/ eager's", "parity", "blocks ms", "core ms", "core speed"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        if row.path == "eager" and row is not rows[0]:
            table.add_section()
        table.add_row(
            row.dtype,
            row.path,
            f"{row.max_error:.1e}",
            f"{row.error_ratio:.2f}",
            "[green]ok[/]" if row.within_rule else "[red]FAILED[/]",
            f"{row.blocks_ms:.1f}",
            f"{row.core_ms:.1f}",
            f"{row.core_speed:.2f}x",
        )
    console.print(table)
    console.print(
        "eager: plain PyTorch, every step in the dtype. max error: after both blocks, against float64 from the same "
        "weights and pixels. parity: at most 2 x eager's error + one epsilon of the dtype. core: the shifted block's "
        "core op alone. Times: medians."
    )
    reasons = {(b, reason) for name in DTYPES for b in BACKENDS for reason in why_not(b, name)}
    for backend, reason in sorted(reasons):
        console.print(f"{backend} cannot run this: {reason}", markup=False)


# --------------------------------------------------------------------------------------------------------- The picture

REGION_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442", "#7B3FBF")
PATH_COLORS = {"eager": "#9AA0A6", "reference": "#56B4E9", "cpu": "#D55E00", "triton": "#009E73", "cuda": "#7B3FBF"}
QUERY_COLOR, INK, CAPTION_INK = "#00C8FF", "#1B1F24", "#57606A"
SHIFT_PIXELS, WINDOW_PIXELS = SHIFT * PATCH, WINDOW * PATCH


@dataclass(frozen=True)
class Query:
    """One token of the shifted block and where one head looks from it, on the padded and rolled token grid."""

    head: int
    corner: tuple[int, int]  # the window's first token
    token: tuple[int, int]  # within the window
    weights: npt.NDArray[np.float64]  # (Wh, Ww), sums to 1


def choose_query(model: TwoBlocks, attention: EagerAttention, pixels: Tensor) -> Query:
    """The token and head with the most varied attention; windows free of pads and mask come first, if there are any."""
    qkv = core_input(model.shifted, model.regular(model.tokens(pixels)))
    probabilities, _ = attention.attend(qkv)  # (nW, nH, N, N)
    (height, width), (hp, wp) = attention.size, attention.padded
    rows, columns = hp // WINDOW, wp // WINDOW
    y, x = (torch.arange(hp) + SHIFT) % hp, (torch.arange(wp) + SHIFT) % wp  # grid position -> token
    real = ((y < height)[:, None] & (x < width)).view(rows, WINDOW, columns, WINDOW).transpose(1, 2)
    real = real.reshape(-1, WINDOW * WINDOW)  # (nW, N)
    if rows > 1 and columns > 1:
        inner = torch.zeros(rows, columns, dtype=torch.bool)
        inner[: rows - 1, : columns - 1] = True
        real = real & inner.view(-1, 1)
    spread = probabilities.std(-1).where(real[:, None], -1.0)  # (nW, nH, N)
    window, head, token = (int(i) for i in np.unravel_index(int(spread.argmax()), spread.shape))
    return Query(
        head=head,
        corner=(window // columns * WINDOW, window % columns * WINDOW),
        token=(token // WINDOW, token % WINDOW),
        weights=probabilities[window, head, token].double().view(WINDOW, WINDOW).numpy(),
    )


def draw(photo: Pixels, model: TwoBlocks, pixels: Tensor, rows: list[Row]) -> Figure:
    """Six panels: windows, shifted windows, a border corner of them, one head's attention far and near, and times."""
    attention = eager_twins(model, pixels)[1]
    query = choose_query(model, attention, pixels)
    canvas = np.full((attention.padded[0] * PATCH, attention.padded[1] * PATCH, 3), 235, dtype=np.uint8)
    canvas[: photo.shape[0], : photo.shape[1]] = photo
    regions = np.zeros((*attention.padded, 4))  # red, green, blue, alpha of each token of the rolled grid
    numbers = attention.regions().numpy()
    for number, color in enumerate(REGION_COLORS, 1):
        regions[numbers == number] = (*to_rgb(color), 0.6)

    # Everything in inches: six equal panels with a title above and a caption below, under a heading.
    width, gap, edge, heading, title, caption = 5.0, 0.4, 0.35, 1.15, 0.4, 1.0
    height = min(max(width * canvas.shape[0] / canvas.shape[1], 3.2), 7.5)
    total = (3 * width + 2 * gap + 2 * edge, heading + 2 * (title + height + caption))
    figure = Figure(figsize=total, dpi=110, facecolor="white")
    panels = []
    for row, column in np.ndindex(2, 3):
        left = edge + column * (width + gap)
        bottom = total[1] - heading - (row + 1) * (title + height) - row * caption
        panels.append(
            figure.add_axes((left / total[0], bottom / total[1], width / total[0], height / total[1]), anchor="NW")
        )
    warning = (
        f"swin_fast demo: patch embedding and two Swin blocks. RANDOM WEIGHTS (seed {SEED}), not a trained model: the "
        "geometry and the times are real, where the head looks means nothing."
    )
    x, y, aspect = edge / total[0], 1 - 0.3 / total[1], height / width
    figure.text(x, y, "Shifted-window attention on a photograph", size=22, weight="bold", color=INK, va="top")
    figure.text(x, y - 0.46 / total[1], warning, size=12.5, color="#B42318", va="top")
    _draw_windows(panels[0], canvas, photo, attention)
    _draw_shifted(panels[1], canvas, photo, regions)
    _draw_corner(panels[2], canvas, photo, regions, aspect)
    _draw_attention(panels[3], canvas, attention, query)
    _draw_query_window(panels[4], panels[3], canvas, query, aspect)
    _draw_times(panels[5], rows)
    return figure


def _label(ax: Axes, title: str, caption: str) -> None:
    ax.set_title(title, loc="left", size=13, weight="bold", color=INK, pad=7)
    ax.annotate(
        textwrap.fill(caption, 66),
        (0, 0),
        xytext=(0, -7),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        size=10.5,
        color=CAPTION_INK,
        linespacing=1.3,
    )
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _show(ax: Axes, canvas: Pixels, image: npt.NDArray[Any], **options: Any) -> None:
    """An image over the whole canvas, in pixel coordinates: (0, 0) is the upper left corner of the first pixel."""
    ax.imshow(image, extent=(0, canvas.shape[1], canvas.shape[0], 0), **options)


def _draw_grid(ax: Axes, canvas: Pixels, shift: int = 0) -> None:
    """Window borders, thinner where there are many."""
    height, width = canvas.shape[:2]
    span = float(np.ptp(ax.get_xlim()) + np.ptp(ax.get_ylim()))
    look: dict[str, Any] = {"color": "white", "alpha": 0.85, "lw": min(1.6, max(0.25, 52 * WINDOW_PIXELS / span))}
    line = {**look, "solid_capstyle": "butt", "scalex": False, "scaley": False}
    for y in range(shift, height + 1, WINDOW_PIXELS):
        ax.plot((0, width), (y, y), **line)
    for x in range(shift, width + 1, WINDOW_PIXELS):
        ax.plot((x, x), (0, height), **line)


def _hatch_padding(ax: Axes, canvas: Pixels, photo: Pixels, shift: int = 0) -> None:
    """Hatches what the op pads, right and below, on a canvas rolled up and left by `shift` pixels."""
    (height, width), (padded_height, padded_width) = photo.shape[:2], canvas.shape[:2]
    style: dict[str, Any] = {"facecolor": "none", "edgecolor": "#57606A", "hatch": "////", "lw": 0.0}
    if padded_height > height:
        ax.add_patch(Rectangle((0, height - shift), padded_width, padded_height - height, **style))
    if padded_width > width:
        ax.add_patch(Rectangle((width - shift, 0), padded_width - width, padded_height, **style))


def _draw_windows(ax: Axes, canvas: Pixels, photo: Pixels, attention: EagerAttention) -> None:
    _show(ax, canvas, canvas)
    _hatch_padding(ax, canvas, photo)
    _draw_grid(ax, canvas)
    rows, columns = (p // WINDOW for p in attention.padded)
    _label(
        ax,
        "1  Windows of the regular block",
        f"{rows} x {columns} windows of {WINDOW} x {WINDOW} tokens, {WINDOW_PIXELS} x {WINDOW_PIXELS} pixels each. A "
        "token attends to its own window only. Hatched: padding, which the op makes up as it reads.",
    )


def _draw_shifted(ax: Axes, canvas: Pixels, photo: Pixels, regions: npt.NDArray[np.float64]) -> None:
    _show(ax, canvas, canvas)
    _show(ax, canvas, np.roll(regions, (SHIFT, SHIFT), (0, 1)), interpolation="nearest")
    _hatch_padding(ax, canvas, photo)
    _draw_grid(ax, canvas, SHIFT_PIXELS)
    _label(
        ax,
        "2  Windows of the shifted block",
        f"Moved by {SHIFT} tokens, {SHIFT_PIXELS} pixels. What is cut off at one border shares windows with the "
        "opposite border. Colours: the shift regions that the mask keeps apart there.",
    )


def _draw_corner(ax: Axes, canvas: Pixels, photo: Pixels, regions: npt.NDArray[np.float64], aspect: float) -> None:
    height, width = canvas.shape[:2]
    _show(ax, canvas, np.roll(canvas, (-SHIFT_PIXELS, -SHIFT_PIXELS), (0, 1)))
    _show(ax, canvas, regions, interpolation="nearest")
    _hatch_padding(ax, canvas, photo, SHIFT_PIXELS)
    side = 3.5 * WINDOW_PIXELS
    ax.set_xlim(max(0, width - side), width)
    ax.set_ylim(height, max(0, height - side * aspect))
    _draw_grid(ax, canvas)
    corner = (width - WINDOW_PIXELS, height - WINDOW_PIXELS)
    ax.add_patch(Rectangle(corner, WINDOW_PIXELS, WINDOW_PIXELS, fill=False, ec=INK, lw=3, clip_on=False))
    _label(
        ax,
        "3  The last shifted windows, as the op sees them",
        "The lower right corner of the padded and rolled grid. In one window a token attends to its own colour only; "
        "the framed one has four. Neither grid nor mask is ever stored.",
    )


def _draw_attention(ax: Axes, canvas: Pixels, attention: EagerAttention, query: Query) -> None:
    _show(ax, canvas, _dim(canvas), cmap="gray", vmin=0, vmax=1)
    heat = np.full(attention.padded, np.nan)
    rows, columns = (
        (np.arange(start, start + WINDOW) + SHIFT) % p for start, p in zip(query.corner, attention.padded, strict=True)
    )
    heat[np.ix_(rows, columns)] = query.weights
    _show(ax, canvas, heat, cmap="inferno", interpolation="nearest")
    _label(
        ax,
        "4  Where one token looks",
        f"At the {WINDOW * WINDOW} tokens of its window in the shifted block. Head {query.head + 1} of {NUM_HEADS}; "
        "the token and head whose attention varies most.",
    )


def _draw_query_window(ax: Axes, overview: Axes, canvas: Pixels, query: Query, aspect: float) -> None:
    """The query's window on the rolled grid, where it is one piece, with lines from its place on the overview."""
    _show(ax, canvas, np.roll(_dim(canvas), (-SHIFT_PIXELS, -SHIFT_PIXELS), (0, 1)), cmap="gray", vmin=0, vmax=1)
    top, left = query.corner[0] * PATCH, query.corner[1] * PATCH
    bottom, right = top + WINDOW_PIXELS, left + WINDOW_PIXELS
    ax.imshow(query.weights, cmap="inferno", extent=(left, right, bottom, top), alpha=0.8, interpolation="nearest")
    low, high = query.weights.min(), query.weights.max()
    for (row, column), weight in np.ndenumerate(query.weights):
        ax.text(
            left + (column + 0.5) * PATCH,
            top + (row + 0.5) * PATCH,
            f"{100 * weight:.1f}",
            ha="center",
            va="center",
            size=10,
            color="white" if weight < low + 0.6 * (high - low) else "black",
        )
    token = (left + query.token[1] * PATCH, top + query.token[0] * PATCH)
    ax.add_patch(Rectangle(token, PATCH, PATCH, fill=False, ec=QUERY_COLOR, lw=3))
    half = WINDOW_PIXELS / 2 + 1.25 * PATCH
    half_x = max(half, half / aspect)
    ax.set_xlim((left + right) / 2 - half_x, (left + right) / 2 + half_x)
    ax.set_ylim((top + bottom) / 2 + half_x * aspect, (top + bottom) / 2 - half_x * aspect)
    # On the overview nothing is rolled: the same window lies SHIFT tokens further down and right, in one piece or not.
    left, top, right, bottom = (at + SHIFT_PIXELS for at in (left, top, right, bottom))
    if right <= canvas.shape[1] and bottom <= canvas.shape[0]:
        style: dict[str, Any] = {"color": QUERY_COLOR, "lw": 1.5}
        overview.add_patch(Rectangle((left, top), WINDOW_PIXELS, WINDOW_PIXELS, fill=False, **style))
        edge = blended_transform_factory(ax.transAxes, overview.transData)
        for start, end in (((right, top), (0, 0)), ((right, bottom), (0, canvas.shape[0]))):
            overview.figure.add_artist(ConnectionPatch(start, end, overview.transData, edge, **style))
    _label(
        ax,
        "5  The same window, near",
        f"Attention weights in percent, as computed; evenly spread, each would be {100 / WINDOW**2:.1f}. Blue frame: "
        "the token that looks.",
    )


def _dim(canvas: Pixels) -> npt.NDArray[np.float64]:
    """The photograph in dark gray, for colours to stand out on."""
    return 0.2 + 0.45 * np.asarray(Image.fromarray(canvas).convert("L"), dtype=np.float64) / 255


def _draw_times(ax: Axes, rows: list[Row]) -> None:
    slowest = max(row.core_ms for row in rows)
    y = 0.0
    for index, row in enumerate(rows):
        if index and row.path == "eager":
            y += 0.6
        ratio = "" if row.path == "eager" else f", {row.core_speed:.1f}x eager's speed"
        ax.text(0, y - 0.32, f"{row.dtype} {row.path}: {row.core_ms:.1f} ms{ratio}", va="bottom", size=11.5, color=INK)
        ax.barh(y, row.core_ms, color=PATH_COLORS[row.path], height=0.5)
        y += 1.25
    ax.set_xlim(0, slowest)
    ax.set_ylim(y - 0.7, -1.0)
    _label(
        ax,
        "6  Time of the core op on this photograph",
        f"Medians; CPU threads: {torch.get_num_threads()}. Eager is plain PyTorch: pad, roll, cut, attend, put "
        "together, roll back.",
    )
