# SPDX-License-Identifier: Apache-2.0
"""The demo's picture: windows, shift, mask and attention on the photograph, the feature maps of a Swin-T, and times."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.transforms import blended_transform_factory
from PIL import Image
from torch import Tensor

from .demo_measure import CROP, PATCH, SHIFT, SUBJECTS, WINDOW, Row, Subjects, core_input
from .eager import EagerAttention, padded, regions
from .geometry import Pair

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)

REGION_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442", "#7B3FBF")
PATH_COLORS = {"eager": "#9AA0A6", "reference": "#56B4E9", "cpu": "#D55E00", "triton": "#009E73", "cuda": "#7B3FBF"}
QUERY_COLOR, INK, CAPTION_INK = "#00C8FF", "#1B1F24", "#57606A"
MAX_WEIGHT = 0.15  # of the attention that is shown
SHIFT_PIXELS, WINDOW_PIXELS = SHIFT * PATCH, WINDOW * PATCH


@dataclass(frozen=True)
class Scene:
    """The photograph under the windows of the first stage."""

    photo: Pixels
    size: Pair  # in tokens
    grid: Pair  # the same, made up to whole windows
    canvas: Pixels  # the photograph on that grid, in pixels
    colors: npt.NDArray[np.float64]  # (*grid, 4): red, green, blue and alpha of each token's region, rolled


@dataclass(frozen=True)
class Query:
    """One token of the shifted block and where one head looks from it, on the padded and rolled token grid."""

    head: int
    heads: int
    corner: Pair  # the window's first token
    token: Pair  # within the window
    weights: npt.NDArray[np.float64]  # (Wh, Ww), sums to 1


def set_scene(photo: Pixels) -> Scene:
    """The first stage's windows over a photograph."""
    window, shift = (WINDOW, WINDOW), (SHIFT, SHIFT)
    size = (-(-photo.shape[0] // PATCH), -(-photo.shape[1] // PATCH))
    grid = padded(size, window)
    canvas = np.full((grid[0] * PATCH, grid[1] * PATCH, 3), 235, dtype=np.uint8)
    canvas[: photo.shape[0], : photo.shape[1]] = photo
    colors = np.zeros((*grid, 4))
    numbers = regions(size, window, shift).numpy()
    for number, color in enumerate(REGION_COLORS, 1):
        colors[numbers == number] = (*to_rgb(color), 0.6)
    return Scene(photo, size, grid, canvas, colors)


def choose_query(subjects: Subjects, scene: Scene) -> Query:
    """The token and head with the most varied attention of those that do not look at one place only.

    Windows free of pads and mask come first, if there are any.
    """
    attn = subjects.photo_model.layers[0].blocks[1].attn
    qkv = core_input(subjects.photo_model, subjects.photo)
    pad_value = attn.qkv.bias.view(qkv.shape[3:])
    probabilities, _ = EagerAttention(attn).attend(qkv, (SHIFT, SHIFT), pad_value)  # (nW, nH, N, N)
    (height, width), (hp, wp) = scene.size, scene.grid
    rows, columns = hp // WINDOW, wp // WINDOW
    y, x = (torch.arange(hp) + SHIFT) % hp, (torch.arange(wp) + SHIFT) % wp  # grid position -> token
    real = ((y < height)[:, None] & (x < width)).view(rows, WINDOW, columns, WINDOW).transpose(1, 2)
    real = real.reshape(-1, WINDOW * WINDOW)  # (nW, N)
    if rows > 1 and columns > 1:
        inner = torch.zeros(rows, columns, dtype=torch.bool)
        inner[: rows - 1, : columns - 1] = True
        real = real & inner.view(-1, 1)
    spread = probabilities.std(-1) - (probabilities.amax(-1) > MAX_WEIGHT).float()
    spread = spread.where(real[:, None], -2.0)  # (nW, nH, N)
    window, head, token = (int(i) for i in np.unravel_index(int(spread.argmax()), spread.shape))
    return Query(
        head=head,
        heads=attn.num_heads,
        corner=(window // columns * WINDOW, window % columns * WINDOW),
        token=(token // WINDOW, token % WINDOW),
        weights=probabilities[window, head, token].double().view(WINDOW, WINDOW).numpy(),
    )


def draw(photo: Pixels, crop: Pixels, subjects: Subjects, rows: list[Row], seed: int) -> Figure:
    """Four rows of panels: windows whole and shifted and their mask; attention and the crop; feature maps; times."""
    scene = set_scene(photo)
    query = choose_query(subjects, scene)
    maps = subjects.photo_model(subjects.photo)
    ratio = scene.canvas.shape[0] / scene.canvas.shape[1]

    # Everything in inches: under a heading, rows of equal panels, each with a title above and a caption below.
    gap, edge, heading, title = 0.4, 0.35, 1.15, 0.4
    inner = 3 * 5.0 + 2 * gap
    upper = min(max(5.0 * ratio, 3.2), 7.5)
    lower = min(max((inner - 3 * gap) / 4 * photo.shape[0] / photo.shape[1], 0.4), 5.5)
    plan = ((3, upper, 1.0), (3, upper, 1.0), (4, lower, 0.85), (3, 2.7, 0.75))  # panels, height, caption
    total = (inner + 2 * edge, heading + sum(title + height + caption for _, height, caption in plan))
    figure = Figure(figsize=total, dpi=110, facecolor="white")
    panels: list[Axes] = []
    top = total[1] - heading
    for count, height, caption in plan:
        width = (inner - (count - 1) * gap) / count
        for column in range(count):
            left, bottom = edge + column * (width + gap), top - title - height
            place = (left / total[0], bottom / total[1], width / total[0], height / total[1])
            panels.append(figure.add_axes(place, anchor="NW"))
        top -= title + height + caption
    warning = (
        f"swin_fast demo: a whole Swin-T. RANDOM WEIGHTS (seed {seed}), not a trained model: geometry and times are "
        "real; what the head and the feature maps show means nothing."
    )
    x, y, aspect = edge / total[0], 1 - 0.3 / total[1], upper / 5.0
    figure.text(x, y, "Swin-T on a photograph", size=22, weight="bold", color=INK, va="top")
    figure.text(x, y - 0.46 / total[1], warning, size=12.5, color="#B42318", va="top")
    _draw_windows(panels[0], scene)
    _draw_shifted(panels[1], scene)
    _draw_corner(panels[2], scene, aspect)
    _draw_attention(panels[3], scene, query)
    _draw_query_window(panels[4], panels[3], scene, query, aspect)
    _draw_crop(panels[5], crop)
    for stage, features in enumerate(maps):
        _draw_features(panels[6 + stage], scene, features[0], stage)
    sizes = {"crop": f"Swin-T at {CROP} x {CROP}", "photo": f"Swin-T at {photo.shape[1]} x {photo.shape[0]}"}
    for number, (subject, ax) in enumerate(zip(SUBJECTS, panels[10:], strict=True), 11):
        name = sizes.get(subject, "the core op alone, as in 2")
        _draw_times(ax, [row for row in rows if row.subject == subject], f"{number}  Time of {name}")
    return figure


def _label(ax: Axes, title: str, caption: str, columns: int = 66) -> None:
    ax.set_title(title, loc="left", size=13, weight="bold", color=INK, pad=7)
    ax.annotate(
        textwrap.fill(caption, columns),
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


def _show(ax: Axes, scene: Scene, image: npt.NDArray[Any], **options: Any) -> None:
    """An image over the whole canvas, in pixel coordinates: (0, 0) is the upper left corner of the first pixel."""
    ax.imshow(image, extent=(0, scene.canvas.shape[1], scene.canvas.shape[0], 0), **options)


def _draw_grid(ax: Axes, scene: Scene, shift: int = 0) -> None:
    """Window borders, thinner where there are many."""
    height, width = scene.canvas.shape[:2]
    span = float(np.ptp(ax.get_xlim()) + np.ptp(ax.get_ylim()))
    look: dict[str, Any] = {"color": "white", "alpha": 0.85, "lw": min(1.6, max(0.25, 52 * WINDOW_PIXELS / span))}
    line = {**look, "solid_capstyle": "butt", "scalex": False, "scaley": False}
    for y in range(shift, height + 1, WINDOW_PIXELS):
        ax.plot((0, width), (y, y), **line)
    for x in range(shift, width + 1, WINDOW_PIXELS):
        ax.plot((x, x), (0, height), **line)


def _hatch_padding(ax: Axes, scene: Scene, shift: int = 0) -> None:
    """Hatches what the op pads, right and below, on a canvas rolled up and left by `shift` pixels."""
    (height, width), (padded_height, padded_width) = scene.photo.shape[:2], scene.canvas.shape[:2]
    style: dict[str, Any] = {"facecolor": "none", "edgecolor": "#57606A", "hatch": "////", "lw": 0.0}
    if padded_height > height:
        ax.add_patch(Rectangle((0, height - shift), padded_width, padded_height - height, **style))
    if padded_width > width:
        ax.add_patch(Rectangle((width - shift, 0), padded_width - width, padded_height, **style))


def _draw_windows(ax: Axes, scene: Scene) -> None:
    _show(ax, scene, scene.canvas)
    _hatch_padding(ax, scene)
    _draw_grid(ax, scene)
    rows, columns = (p // WINDOW for p in scene.grid)
    _label(
        ax,
        "1  Windows of the regular block",
        f"{rows} x {columns} windows of {WINDOW} x {WINDOW} tokens, {WINDOW_PIXELS} x {WINDOW_PIXELS} pixels each. A "
        "token attends to its own window only. Hatched: padding, which the op makes up as it reads.",
    )


def _draw_shifted(ax: Axes, scene: Scene) -> None:
    _show(ax, scene, scene.canvas)
    _show(ax, scene, np.roll(scene.colors, (SHIFT, SHIFT), (0, 1)), interpolation="nearest")
    _hatch_padding(ax, scene)
    _draw_grid(ax, scene, SHIFT_PIXELS)
    _label(
        ax,
        "2  Windows of the shifted block",
        f"Moved by {SHIFT} tokens, {SHIFT_PIXELS} pixels. What is cut off at one border shares windows with the "
        "opposite border. Colours: the shift regions that the mask keeps apart there.",
    )


def _draw_corner(ax: Axes, scene: Scene, aspect: float) -> None:
    height, width = scene.canvas.shape[:2]
    _show(ax, scene, np.roll(scene.canvas, (-SHIFT_PIXELS, -SHIFT_PIXELS), (0, 1)))
    _show(ax, scene, scene.colors, interpolation="nearest")
    _hatch_padding(ax, scene, SHIFT_PIXELS)
    side = 3.5 * WINDOW_PIXELS
    ax.set_xlim(max(0, width - side), width)
    ax.set_ylim(height, max(0, height - side * aspect))
    _draw_grid(ax, scene)
    corner = (width - WINDOW_PIXELS, height - WINDOW_PIXELS)
    ax.add_patch(Rectangle(corner, WINDOW_PIXELS, WINDOW_PIXELS, fill=False, ec=INK, lw=3, clip_on=False))
    _label(
        ax,
        "3  The last shifted windows, as the op sees them",
        "The lower right corner of the padded and rolled grid. In one window a token attends to its own colour only; "
        "the framed one has four. Neither grid nor mask is ever stored.",
    )


def _draw_attention(ax: Axes, scene: Scene, query: Query) -> None:
    _show(ax, scene, _dim(scene.canvas), cmap="gray", vmin=0, vmax=1)
    heat = np.full(scene.grid, np.nan)
    rows, columns = (
        (np.arange(start, start + WINDOW) + SHIFT) % p for start, p in zip(query.corner, scene.grid, strict=True)
    )
    heat[np.ix_(rows, columns)] = query.weights
    _show(ax, scene, heat, cmap="inferno", interpolation="nearest")
    _label(
        ax,
        "4  Where one token looks",
        f"At the {WINDOW * WINDOW} tokens of its window in the shifted block. Head {query.head + 1} of {query.heads}; "
        f"the token and head whose attention varies most, with no weight above {MAX_WEIGHT:.0%}.",
    )


def _draw_query_window(ax: Axes, overview: Axes, scene: Scene, query: Query, aspect: float) -> None:
    """The query's window on the rolled grid, where it is one piece, with lines from its place on the overview."""
    _show(ax, scene, np.roll(_dim(scene.canvas), (-SHIFT_PIXELS, -SHIFT_PIXELS), (0, 1)), cmap="gray", vmin=0, vmax=1)
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
    if right <= scene.canvas.shape[1] and bottom <= scene.canvas.shape[0]:
        style: dict[str, Any] = {"color": QUERY_COLOR, "lw": 1.5}
        overview.add_patch(Rectangle((left, top), WINDOW_PIXELS, WINDOW_PIXELS, fill=False, **style))
        edge = blended_transform_factory(ax.transAxes, overview.transData)
        for start, end in (((right, top), (0, 0)), ((right, bottom), (0, scene.canvas.shape[0]))):
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


def _draw_crop(ax: Axes, crop: Pixels) -> None:
    """The crop under the windows of all four stages: the later the stage, the thicker their borders."""
    ax.imshow(crop, extent=(0, CROP, CROP, 0))
    for stage, (color, width) in enumerate((("white", 0.7), ("#56B4E9", 1.6), ("#F0E442", 3.0))):
        side = WINDOW_PIXELS * 2**stage
        for at in range(side, CROP, side):
            line: dict[str, Any] = {"color": color, "lw": width, "scalex": False, "scaley": False}
            ax.plot((0, CROP), (at, at), **line)
            ax.plot((at, at), (0, CROP), **line)
    ax.add_patch(Rectangle((0, 0), CROP, CROP, fill=False, ec="#D55E00", lw=4, clip_on=False))
    _label(
        ax,
        f"6  The {CROP} x {CROP} crop",
        "Shorter side to 256, middle 224 x 224, as for ImageNet. Its windows fit: 8 x 8 in the first stage (white), "
        "then 4 x 4 (blue), 2 x 2 (yellow), and one (red).",
    )


def _draw_features(ax: Axes, scene: Scene, features: Tensor, stage: int) -> None:
    """features (H, W, C) over the photograph; what they hold of its padding is cut off."""
    height, width, channels = features.shape
    side = PATCH * 2**stage
    ax.imshow(three_components(features), extent=(0, width * side, height * side, 0), interpolation="nearest")
    ax.set_xlim(0, scene.photo.shape[1])
    ax.set_ylim(scene.photo.shape[0], 0)
    _label(
        ax,
        f"{7 + stage}  Features of stage {stage + 1}",
        f"{height} x {width} tokens of {side} x {side} pixels, {channels} channels. Colours: their three principal "
        "components.",
        46,
    )


def three_components(features: Tensor) -> npt.NDArray[np.float64]:
    """features (H, W, C) -> (H, W, 3) in 0 .. 1: every token normed, then the three widest components of them all."""
    tokens = torch.nn.functional.layer_norm(features.double(), features.shape[-1:]).flatten(0, 1)
    tokens = tokens - tokens.mean(0)
    _, vectors = torch.linalg.eigh(tokens.T @ tokens)
    vectors = vectors[:, -3:].flip(1)  # widest first
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # a sign that is no accident
    values = tokens @ vectors
    low, high = (torch.quantile(values, q, dim=0) for q in (0.02, 0.98))
    spread = (high - low).clamp(min=1e-9)
    colors: npt.NDArray[np.float64] = ((values - low) / spread).clamp(0, 1).view(*features.shape[:2], 3).numpy()
    return colors


def _draw_times(ax: Axes, rows: Sequence[Row], title: str) -> None:
    slowest = max(row.ms for row in rows)
    y = 0.0
    for index, row in enumerate(rows):
        if index and row.path == "eager":
            y += 0.6
        ratio = "" if row.path == "eager" else f", {row.speed:.2f}x eager's speed"
        ax.text(0, y - 0.32, f"{row.dtype} {row.path}: {row.ms:.1f} ms{ratio}", va="bottom", size=10.5, color=INK)
        ax.barh(y, row.ms, color=PATH_COLORS[row.path], height=0.5)
        y += 1.25
    ax.set_xlim(0, slowest)
    ax.set_ylim(y - 0.7, -1.0)
    threads = f"CPU threads: {torch.get_num_threads()}"
    _label(ax, title, f"Medians, batch 1; {threads}. Eager: plain PyTorch, windows cut, masks stored.")
