# SPDX-License-Identifier: Apache-2.0
"""The four rules by which Swin's descendants fit windows to images. Integers in, integers out.

"ms"           Window and shift are fitted to the map once, when its size is set: where one window covers the shorter
               axis, the window becomes that axis, on both axes, and the shift 0. Maps that are not multiples of the
               window, odd maps before a merging and images that are not multiples of the patch are refused.
"timm"         Fitted once too, but each axis by itself. Maps are rolled, then padded; images as in "ms".
"torchvision"  The window stays; along an axis that one window covers, this call does not shift. Maps are padded, then
               rolled. Pixels beyond the last whole patch are cut off.
"dense"        Window and shift stay. Maps are padded, then rolled. Images are padded to whole patches.

"ms" is microsoft/Swin-Transformer@f82860b, "timm" is timm 1.0.31, "torchvision" is torchvision 0.28, and "dense" is the
family of detectors and segmenters: the Swin repositories for both, OpenMMLab, and Hugging Face's SwinBackbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

GEOMETRIES = ("ms", "timm", "torchvision", "dense")
#: Geometries whose window and shift follow a size that is known before the image is.
FIXED = ("ms", "timm")

Pair = tuple[int, int]  # vertical, horizontal


def pair(value: int | Sequence[int], name: str, minimum: int) -> Pair:
    """`value` as (vertical, horizontal): one int stands for both."""
    found = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(found) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) for v in found):
        raise TypeError(f"{name}: got {value!r}, want an int or two ints")
    if min(found) < minimum:
        raise ValueError(f"{name}: got {value!r}, want at least {minimum} on each axis")
    return found[0], found[1]


def window_per_stage(window_size: int | Sequence[Any], stages: int) -> list[Pair]:
    """One window for every stage: from one int, from one pair of ints, or from one int or pair for each stage."""
    if isinstance(window_size, Sequence) and len(window_size) == stages:
        nested = any(isinstance(w, Sequence) for w in window_size)
        if nested or stages != 2:
            return [pair(w, "window_size", minimum=1) for w in window_size]
    return [pair(window_size, "window_size", minimum=1)] * stages


def check_geometry(geometry: str, always_partition: bool, strict_img_size: bool) -> None:
    """Raises ValueError for an unknown geometry, and for a switch of timm's beside another geometry."""
    if geometry not in GEOMETRIES:
        raise ValueError(f"geometry: got {geometry!r}, want one of {', '.join(GEOMETRIES)}")
    if always_partition and geometry != "timm":
        want = "geometry='timm'; 'dense' always does so"
        raise ValueError(f"always_partition: got True with geometry={geometry!r}, want {want}")
    if not strict_img_size and geometry != "timm":
        want = "geometry='timm'" if geometry == "ms" else f"True: geometry={geometry!r} takes any size as it is"
        raise ValueError(f"strict_img_size: got False with geometry={geometry!r}, want {want}")


def pad_order(geometry: str) -> str:
    """The order of padding and rolling, as `window_attention` takes it."""
    return "roll_pad" if geometry == "timm" else "pad_roll"


def fit_window(geometry: str, resolution: Pair, window: Pair, shift: Pair, always_partition: bool) -> tuple[Pair, Pair]:
    """(window_size, shift_size) of a block for maps of `resolution` = (H, W).

    Where a map fits into one window there is nothing to shift, say "ms" and "timm": the window becomes the map and the
    shift 0. "ms" does so on both axes as soon as the shorter one fits. (For a window that is not square, which
    Microsoft does not have, each axis goes by itself.)

    Raises:
        ValueError: geometry is "ms" and the map is not a multiple of the window.
    """
    if geometry not in FIXED or always_partition:
        return window, shift
    if geometry == "ms" and window[0] == window[1]:
        smallest = min(resolution)
        window, shift = ((smallest, smallest), (0, 0)) if smallest <= window[0] else (window, shift)
    else:
        axes = [(size, 0) if size <= w else (w, s) for size, w, s in zip(resolution, window, shift, strict=True)]
        window, shift = (axes[0][0], axes[1][0]), (axes[0][1], axes[1][1])
    if geometry == "ms" and any(size % w for size, w in zip(resolution, window, strict=True)):
        raise ValueError(
            f"input_resolution: got {resolution}, want multiples of the window {window} with geometry='ms'; "
            "geometry='timm', 'torchvision' or 'dense' pads"
        )
    return window, shift


def shift_at(geometry: str, size: Pair, window: Pair, shift: Pair) -> Pair:
    """shift_size for one call on a map of `size`: under "torchvision", no shift along an axis that has one window only.

    Arithmetic instead of a branch: size may be symbolic, and a branch would tie a traced graph to one side of it.
    """
    if geometry != "torchvision":
        return shift
    dropped = [s * torch.sym_min(1, torch.sym_max(0, n - w)) for n, w, s in zip(size, window, shift, strict=True)]
    return dropped[0], dropped[1]


def stage_maps(geometry: str, img_size: Pair, patch_size: Pair, stages: int) -> list[Pair]:
    """(H, W) of the tokens in each stage: the image in patches, then halved, upwards, from stage to stage.

    Raises:
        ValueError: the geometry refuses such an image.
    """
    whole = all(size % patch == 0 for size, patch in zip(img_size, patch_size, strict=True))
    if geometry in FIXED and not whole:
        raise ValueError(
            f"img_size: got {img_size}, want multiples of patch_size = {patch_size} with geometry={geometry!r}; "
            "geometry='torchvision' cuts the rest off, 'dense' pads"
        )
    up = [patch - 1 if geometry == "dense" else 0 for patch in patch_size]
    H, W = ((size + u) // patch for size, u, patch in zip(img_size, up, patch_size, strict=True))
    if not H or not W:
        raise ValueError(f"img_size: got {img_size}, want at least one patch of {patch_size}; geometry='dense' pads")
    maps = [(H, W)]
    for stage in range(1, stages):
        if geometry == "ms" and (H % 2 or W % 2):
            raise ValueError(
                f"img_size: got {img_size}, which gives stage {stage - 1} a map of {(H, W)}; want even sizes before "
                "each merging with geometry='ms'; geometry='timm', 'torchvision' or 'dense' pads"
            )
        H, W = (H + 1) // 2, (W + 1) // 2
        maps.append((H, W))
    return maps
