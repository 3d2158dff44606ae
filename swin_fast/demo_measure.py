# SPDX-License-Identifier: Apache-2.0
"""What the demo measures: a whole Swin-T, twice, and the core op alone: how exact and how fast every backend is."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .attention import WindowAttention
from .eager import EagerAttention, eager_twin, randomize
from .functional import window_attention
from .models import SwinTransformer, swin_tiny_patch4_window7_224

PATCH, WINDOW, SHIFT, HEAD_DIM, CROP = 4, 7, 3, 32, 224
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SUBJECTS = ("crop", "photo", "core")
#: Options of the model beside Swin-T's own.
OPTIONS: dict[str, Any] = {}
#: No subject is timed for longer than this in one dtype, once every path has been timed once.
SECONDS = 5.0

Outputs = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Row:
    """One path in one dtype on one subject."""

    subject: str  # one of SUBJECTS
    dtype: str
    path: str
    max_error: float  # against float64, as a part of the tensor's largest number; of several tensors the largest
    rms_error: float  # root mean square, against float64, as a part of the tensor's; of several tensors the largest
    error_ratio: float  # of the root mean squares, to eager's; of several tensors the largest
    within_rule: bool  # both errors <= 2 * eager's + one epsilon of the dtype, for every tensor
    ms: float
    speed: float  # eager's ms / ms


@dataclass(frozen=True)
class Subjects:
    """What is measured: one set of weights in two models, each with its image (1, 3, height, width)."""

    crop_model: SwinTransformer  # geometry "ms": 224 x 224 -> logits
    crop: Tensor
    photo_model: SwinTransformer  # geometry "dense": any size -> the feature maps of the four stages
    photo: Tensor


def build_models(seed: int) -> tuple[SwinTransformer, SwinTransformer]:
    """Swin-T with random weights, as a classifier of 224 x 224 and as a backbone for any size."""
    with torch.random.fork_rng(devices=[]):
        crop_model = swin_tiny_patch4_window7_224(**OPTIONS).eval()
    randomize(crop_model, seed)
    with torch.device("meta"):  # it takes the other's weights
        photo_model = swin_tiny_patch4_window7_224(geometry="dense", out_indices=(0, 1, 2, 3), **OPTIONS)
    weights = crop_model.state_dict()
    photo_model.load_state_dict({name: weights[name] for name in photo_model.state_dict()}, assign=True)
    return crop_model, photo_model.eval()


def core_input(model: SwinTransformer, image: Tensor) -> Tensor:
    """What the first shifted block hands to the core op: (1, 3, height, width) -> qkv (1, H, W, 3, nH, hd)."""
    regular, shifted = model.layers[0].blocks
    x = regular(model.patch_embed(image))
    qkv: Tensor = shifted.attn.qkv(shifted.norm1(x))
    return qkv.view(*x.shape[:3], 3, shifted.num_heads, HEAD_DIM)


def core_call(attn: WindowAttention, qkv: Tensor) -> Tensor:
    """The first shifted block's call of the core op, alone."""
    n = 2 * WINDOW - 1
    return window_attention(
        qkv,
        attn.relative_position_bias_table.t().view(-1, n, n),
        window_size=attn.window_size,
        shift_size=(SHIFT, SHIFT),
        scale=attn.scale,
        pad_value=attn.qkv.bias.view(qkv.shape[3:]),
    )


def eager_core(attn: WindowAttention, qkv: Tensor) -> Outputs:
    """The same in plain PyTorch; what is returned computes it."""
    eager, pad_value = EagerAttention(attn), attn.qkv.bias.view(qkv.shape[3:])
    return lambda: [eager.core(qkv, (SHIFT, SHIFT), pad_value)]


# ------------------------------------------------------------------------------------------------------- Error and time


def why_not(backend: str, dtype_name: str) -> list[str]:
    """Sentences saying why `backend` cannot compute the model in the dtype called so; empty when it can."""
    return dispatch.why_not(backend, dispatch.Problem(DTYPES[dtype_name], "cpu", None, WINDOW**2, HEAD_DIM))


def steps(backends: Sequence[str], repeats: int) -> int:
    """How often `measure` ticks."""
    return len(SUBJECTS) * (1 + (1 + len(backends)) * (1 + repeats))


def measure(
    subjects: Subjects, name: str, backends: Sequence[str], repeats: int, tick: Callable[..., None]
) -> list[Row]:
    """Error and time of eager and of each backend on each subject, in the dtype called `name`.

    Args:
        subjects: models and images in float32.
        name: a key of DTYPES.
        backends: those that can run.
        repeats: timed runs, fewer where they take more than SECONDS.
        tick: called with description=... after every step, with advance=... where steps are left out.
    """
    rows: list[Row] = []
    pairs = (("crop", subjects.crop_model, subjects.crop), ("photo", subjects.photo_model, subjects.photo))
    for subject, model, pixels in pairs:
        model, pixels = copy.deepcopy(model).to(DTYPES[name]), pixels.to(DTYPES[name])
        # The truth starts from the same rounded weights and pixels: what is measured is the arithmetic alone.
        exact = copy.deepcopy(model).double()
        tick(description=f"{name}: {subject}, float64", advance=0)
        truth = _outputs(eager_twin(exact), pixels.double())()
        tick()
        eager, ours = _outputs(eager_twin(model), pixels), _outputs(model, pixels)
        rows += _measure(subject, name, truth, eager, ours, backends, repeats, tick)
        if subject == "photo":
            attn, qkv = model.layers[0].blocks[1].attn, core_input(model, pixels)
            truth = eager_core(exact.layers[0].blocks[1].attn, qkv.double())()
            tick()
            rows += _measure("core", name, truth, eager_core(attn, qkv), _core(attn, qkv), backends, repeats, tick)
    return rows


def _outputs(model: SwinTransformer, pixels: Tensor) -> Outputs:
    def run() -> Sequence[Tensor]:
        out = model(pixels)
        return [out] if isinstance(out, Tensor) else out

    return run


def _core(attn: WindowAttention, qkv: Tensor) -> Outputs:
    return lambda: [core_call(attn, qkv)]


def _measure(
    subject: str,
    name: str,
    truth: Sequence[Tensor],
    eager: Outputs,
    ours: Outputs,
    backends: Sequence[str],
    repeats: int,
    tick: Callable[..., None],
) -> list[Row]:
    paths = {"eager": eager, **dict.fromkeys(backends, ours)}
    largest: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    epsilon = torch.finfo(DTYPES[name]).eps
    times: dict[str, list[float]] = {path: [] for path in paths}
    for path, run in paths.items():  # the first run warms up, and tells the error
        with _forced(path):
            out = run()
        largest[path], errors[path] = max_errors(out, truth), rms_errors(out, truth)
        tick(description=f"{name}: {subject}, {path}")
    begin = time.perf_counter()
    for done in range(repeats):
        if done and time.perf_counter() - begin > SECONDS:
            tick(advance=(repeats - done) * len(paths))
            break
        for path, run in paths.items():  # in turn: what disturbs the machine disturbs them alike
            with _forced(path):
                start = time.perf_counter()
                run()
                times[path].append((time.perf_counter() - start) * 1e3)
            tick(description=f"{name}: {subject}, {path}")
    ms = {path: statistics.median(values) for path, values in times.items()}
    return [
        Row(
            subject,
            name,
            path,
            max(largest[path]),
            max(errors[path]),
            max(_ratio(error, yardstick) for error, yardstick in zip(errors[path], errors["eager"], strict=True)),
            all(within_rule(found[path], found["eager"], epsilon) for found in (largest, errors)),
            ms[path],
            ms["eager"] / ms[path],
        )
        for path in paths
    ]


def _forced(path: str) -> AbstractContextManager[None]:
    return nullcontext() if path == "eager" else dispatch.use_backend(path)


def max_errors(got: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """For each tensor the largest error, as a part of the largest number of the truth; infinite if not finite."""
    return [
        _relative((out.double() - exact).abs().max(), exact.abs().max()) for out, exact in zip(got, truth, strict=True)
    ]


def rms_errors(got: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """For each tensor the root mean square of the error, as a part of the truth's; infinite if not finite."""
    return [_relative(_rms(out.double() - exact), _rms(exact)) for out, exact in zip(got, truth, strict=True)]


def _relative(error: Tensor, scale: Tensor) -> float:
    value = error.item() / (scale.item() or 1.0)
    return value if math.isfinite(value) else math.inf


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def within_rule(errors: Sequence[float], eager: Sequence[float], epsilon: float) -> bool:
    """Whether every error is at most twice that of eager plus one epsilon; an eager error that is infinite is none."""
    bounds = (2 * yardstick + epsilon if math.isfinite(yardstick) else epsilon for yardstick in eager)
    return all(error <= bound for error, bound in zip(errors, bounds, strict=True))


def _ratio(error: float, eager: float) -> float:
    return error / eager if eager and math.isfinite(eager) else float(error > 0)
