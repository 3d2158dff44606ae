# SPDX-License-Identifier: Apache-2.0
"""A whole Swin-T over a photograph: a table of how exact and how fast every backend is, and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.cbook
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from .demo_measure import CROP, DTYPES, PATCH, SUBJECTS, Row, Subjects, build_models, measure, steps, why_not
from .demo_picture import Pixels, draw
from .dispatch import BACKENDS

__all__ = ["DemoError", "run"]

SEED = 0
SAMPLE = "grace_hopper.jpg"
MAX_PIXELS = 500_000  # keeps the float64 truth to some seconds
RESIZED = 256  # the shorter side, of which the middle CROP pixels are taken
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels


class DemoError(Exception):
    """The demo cannot run as asked; the message says why, to the user."""


@dataclass(frozen=True)
class Photo:
    """A photograph, upright."""

    own: Pixels  # at its own size, or scaled down to MAX_PIXELS
    crop: Pixels  # (CROP, CROP, 3), as ImageNet's evaluation takes it
    about: str  # name and size; says so if it was scaled down


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
    photo = load_photo(image)
    target = Path(output)
    if target.suffix.lower() not in {".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp"}:
        raise DemoError(f"--output: got {output!r}, want a file name that ends in .png (or .jpg, .webp, .pdf, .svg)")
    if not target.absolute().parent.is_dir():
        raise DemoError(f"--output: the folder of {output!r} does not exist")

    height, width = (-(-size // PATCH) for size in photo.own.shape[:2])
    console.print(f"{photo.about}; {height} x {width} tokens", markup=False, style="bold")
    crop_model, photo_model = build_models(SEED)
    millions = sum(p.numel() for p in crop_model.parameters()) / 1e6
    console.print(
        f"A whole Swin-T ({millions:.1f} million parameters), batch 1, CPU threads: {torch.get_num_threads()}. "
        f"[bold]The weights are random[/] (seed {SEED}): nothing here is a trained model."
    )

    subjects = Subjects(crop_model, _normalized(photo.crop), photo_model, _normalized(photo.own))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress, torch.inference_mode():
        backends = {name: [b for b in BACKENDS if not why_not(b, name)] for name in DTYPES}
        total = sum(steps(paths, repeats) for paths in backends.values())
        task = progress.add_task("measuring", total=total + 1)
        rows: list[Row] = []
        for name, paths in backends.items():
            rows += measure(subjects, name, paths, repeats, partial(progress.update, task, advance=1))
        progress.update(task, description="drawing the picture")
        try:
            draw(photo.own, photo.crop, subjects, rows, SEED).savefig(target)
        except OSError as error:
            raise DemoError(f"--output: cannot write {output!r}: {error.strerror or error}") from None
        progress.update(task, advance=1, description="done")
    _print_rows(console, rows, photo)
    console.print(f"Picture: {target}", markup=False, style="bold")
    return all(row.within_rule for row in rows)


def load_photo(path: str | None) -> Photo:
    """The photograph at `path`, or the one that matplotlib ships.

    Raises:
        DemoError: there is none, or Pillow cannot read it.
    """
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
    crop = _center_crop(photo)
    if photo.width * photo.height > MAX_PIXELS:
        factor = (MAX_PIXELS / (photo.width * photo.height)) ** 0.5
        photo = photo.resize((max(1, int(photo.width * factor)), max(1, int(photo.height * factor))))
        about += f", scaled down to {photo.width} x {photo.height} (the demo takes {MAX_PIXELS / 1e6:g} million pixels)"
    return Photo(np.asarray(photo), np.asarray(crop), about)


def _center_crop(photo: Image.Image) -> Image.Image:
    """The shorter side resized to 256, the middle 224 x 224 of that: in one step, however long the longer side is."""
    side = min(photo.size) * CROP / RESIZED
    left, top = (photo.width - side) / 2, (photo.height - side) / 2
    return photo.resize((CROP, CROP), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def _normalized(pixels: Pixels) -> Tensor:
    """(height, width, 3) in 0 .. 255 -> (1, 3, height, width), as models trained on ImageNet take it."""
    image = torch.from_numpy(pixels.copy()).float() / 255
    return ((image - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(2, 0, 1)[None].contiguous()


def _print_rows(console: Console, rows: list[Row], photo: Photo) -> None:
    names = {"crop": f"{CROP} crop", "photo": "photo", "core": "core op"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("what", "dtype", "path"):
        table.add_column(title, no_wrap=True)
    for title in ("max err", "rms err", "/ eager", "parity", "ms", "speed"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: SUBJECTS.index(row.subject)):
        if row.path == "eager":
            table.add_section()
        table.add_row(
            names[row.subject],
            row.dtype,
            row.path,
            f"{row.max_error:.1e}",
            f"{row.rms_error:.1e}",
            f"{row.error_ratio:.2f}",
            "[green]ok[/]" if row.within_rule else "[red]FAILED[/]",
            f"{row.ms:.1f}",
            f"{row.speed:.2f}x",
        )
    console.print(table)
    console.print(
        f"{CROP} crop: shorter side to {RESIZED}, middle {CROP} x {CROP}; image to logits, geometry 'ms'. photo: "
        f"{photo.own.shape[1]} x {photo.own.shape[0]} pixels; image to the feature maps of all four stages, geometry "
        "'dense'. core op: the photo's first shifted block, the op alone.\n"
        "eager: plain PyTorch, every step in the dtype. max err, rms err: the largest and the root mean square error, "
        "against float64 from the same weights and pixels, as a part of the truth's. parity: both at most 2 x "
        "eager's + one epsilon of the dtype. ms: medians. speed: beside eager's."
    )
    reasons = {(b, reason) for name in DTYPES for b in BACKENDS for reason in why_not(b, name)}
    for backend, reason in sorted(reasons):
        console.print(f"{backend} cannot run this: {reason}", markup=False)
