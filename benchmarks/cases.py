# SPDX-License-Identifier: Apache-2.0
"""Everything that is measured: cases, the rows made of them, their work and traffic, and the bars.

A row is a case with a batch, a dtype, a direction and a number of threads. The rows of a suite stand in the order of
their importance, so that a run that is cut short has measured what matters most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar, Protocol

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DIRECTIONS = ("fwd", "fwd+bwd")
#: On a GPU large batches come first, then the small ones where latency counts.
BATCHES = {"cpu": (1, 8), "cuda": (128, 1, 8, 64)}
BATCHES_DENSE = {"cpu": (1,), "cuda": (8, 1)}
#: A CPU's fp16 is emulated; on a GPU it runs as fast as bf16, and the op alone is measured in both.
DTYPES_OF = {"cpu": ("fp32", "bf16"), "cuda": ("bf16", "fp32")}
DTYPES_OF_OP = {"cpu": ("fp32", "bf16"), "cuda": ("bf16", "fp16", "fp32")}
#: A call of more operations is not measured on a CPU: it takes 3 s on one Zen4 core in fp32, and everybody is called a
#: dozen times.
MOST_GFLOP_ON_CPU = 250.0
#: Operations of attention forward and backward, in those of its forward: two products, then five (the scores again, dV,
#: dP, dQ, dK). Every contender is credited with this number, whether it recomputes the scores or stores them.
ATTENTION_TRAINING = 3.5
#: The same of a Linear: y; dx and dW.
LINEAR_TRAINING = 3.0
PATCH, CHANNELS, CLASSES = 4, 3, 1000


# --------------------------------------------------------------------------------------------------------------- cases


class Case(Protocol):
    """A thing that is measured, without batch and dtype."""

    @property
    def id(self) -> str: ...

    @property
    def facts(self) -> dict[str, Any]:
        """What the result file says about it; "case" is its name."""


@dataclass(frozen=True)
class Stage:
    """The attention geometry of one stage of a model; square images and windows, as in the published models.

    `size`: tokens along one side of the image; `version`: of Swin, 1 or 2.
    """

    name: str
    size: int
    heads: int
    window: int
    shift: int
    head_dim: int = 32
    version: int = 1

    @property
    def id(self) -> str:
        return f"{self.name}-shift{self.shift}"

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "case": self.name,
            "version": self.version,
            "shift": self.shift,
            "window": self.window,
            "heads": self.heads,
            "size": self.size,
        }

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def tokens(self) -> int:
        """Of one window."""
        return self.window**2

    @property
    def windows(self) -> int:
        """Of one image."""
        return (self.size // self.window) ** 2

    @property
    def attention_flops(self) -> float:
        """Of one image: q kᵀ and P v, two operations per multiply-add; no padding, softmax or bias."""
        return 4.0 * self.windows * self.heads * self.tokens**2 * self.head_dim


@dataclass(frozen=True)
class Model:
    """A Swin: a classifier, or with `features` a backbone that gives the normed map of each stage.

    `geometry` is that of our model; `libraries` have a model that gives the same results for such images.
    """

    name: str
    version: int
    image: tuple[int, int]
    window: int
    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    geometry: str = "ms"
    features: bool = False
    libraries: tuple[str, ...] = ("timm", "torchvision", "transformers")

    @property
    def id(self) -> str:
        return f"{self.name}-{self.image[0]}x{self.image[1]}"

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "case": self.id,
            "version": self.version,
            "window": self.window,
            "geometry": self.geometry,
            "heads": self.heads[0],
            "size": list(self.image),
        }

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads[0]

    @property
    def maps(self) -> list[tuple[int, int]]:
        """(tokens, channels) of each stage."""
        H, W = (side // PATCH for side in self.image)
        found = []
        for stage in range(len(self.depths)):
            found.append((H * W, self.dim * 2**stage))
            H, W = -(-H // 2), -(-W // 2)
        return found


SWIN_T = (
    Stage("swin_t_s1", 56, 3, 7, 3),
    Stage("swin_t_s1", 56, 3, 7, 0),
    Stage("swin_t_s2", 28, 6, 7, 3),
    Stage("swin_t_s3", 14, 12, 7, 3),
    Stage("swin_t_s4", 7, 24, 7, 0),  # one window: Swin drops the shift
)
OPS = (SWIN_T[0], Stage("swin_b384_s1", 96, 4, 12, 6), *SWIN_T[1:])
BLOCKS = (*SWIN_T, Stage("swinv2_t_s1", 64, 3, 8, 4, version=2))

_S: dict[str, Any] = {"depths": (2, 2, 18, 2)}
_B: dict[str, Any] = {"dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}
_L: dict[str, Any] = {"dim": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48)}
MODELS = (
    Model("swin_t", 1, (224, 224), 7),
    Model("swin_b", 1, (224, 224), 7, **_B),
    Model("swin_b", 1, (384, 384), 12, **_B),
    Model("swinv2_t", 2, (256, 256), 8),
    Model("swin_s", 1, (224, 224), 7, **_S),
    Model("swinv2_b", 2, (256, 256), 8, **_B),
    Model("swin_l", 1, (224, 224), 7, **_L),
    Model("swin_l", 1, (384, 384), 12, **_L),
)
#: Backbones of detectors and segmenters. timm rolls before it pads, and so gives another result.
_DENSE: dict[str, Any] = {"geometry": "dense", "features": True, "libraries": ("torchvision", "transformers")}
DENSE = (
    Model("swin_t", 1, (512, 512), 7, **_DENSE),
    Model("swin_s", 1, (512, 512), 7, **_S, **_DENSE),
    Model("swin_b", 1, (512, 512), 7, **_B, **_DENSE),
    Model("swin_t", 1, (480, 640), 7, **_DENSE),
)

#: Everything above in a size at which a run takes seconds.
_TOY: dict[str, Any] = {"dim": 16, "depths": (2, 2), "heads": (2, 4)}
TOY_STAGE = Stage("toy", 8, 2, 4, 2, head_dim=8)
TOY_STAGE_V2 = Stage("toy_v2", 8, 2, 4, 2, head_dim=8, version=2)
TOY_MODEL = Model("toy", 1, (32, 32), 4, **_TOY)
TOY_MODEL_V2 = Model("toy_v2", 2, (32, 32), 4, **_TOY)
TOY_DENSE = Model("toy", 1, (40, 56), 4, **_TOY, **_DENSE)


# ---------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Row(ABC):
    """One line of the result. `threads` are the CPU's."""

    case: Any  # a Case
    batch: int
    dtype_name: str
    direction: str
    threads: int = 1

    @property
    def id(self) -> str:
        threads = "" if self.threads == 1 else f"-t{self.threads}"
        return f"{self.case.id}-b{self.batch}-{self.dtype_name}-{self.direction}{threads}"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def backward(self) -> bool:
        return self.direction == "fwd+bwd"

    @property
    @abstractmethod
    def quick(self) -> bool:
        """Part of the quick run."""

    @property
    def bar(self) -> float | None:
        """What `Suite.held_against` over swin_fast has to reach on a CPU; None: no bar."""
        return None

    @property
    @abstractmethod
    def flops(self) -> float:
        """Useful floating point operations: those of matrix products, two per multiply-add."""

    @property
    @abstractmethod
    def bytes(self) -> float:
        """The least traffic with memory, everything read once and written once."""


@dataclass(frozen=True)
class OpRow(Row):
    """A stage's attention between the QKV linear and the projection."""

    case: Stage

    #: Speed of swin_fast over the best of eager, SDPA and torch.compile that the project holds itself to.
    BARS: ClassVar = {
        ("swin_t_s1", "fwd"): {"fp32": 3.0, "bf16": 4.0},
        ("swin_t_s1", "fwd+bwd"): {"fp32": 2.5, "bf16": 3.0},
        ("swin_b384_s1", "fwd"): {"fp32": 2.5, "bf16": 3.0},
        ("swin_b384_s1", "fwd+bwd"): {"fp32": 2.0, "bf16": 2.0},
    }
    QUICK: ClassVar = (("swin_t_s1", 1), ("swin_t_s1", 8), ("swin_b384_s1", 1))

    @property
    def quick(self) -> bool:
        """The shifted first stages, without the rows that take longest."""
        return self.case.shift > 0 and self.threads == 1 and (self.case.name, self.batch) in self.QUICK

    @property
    def bar(self) -> float | None:
        if not self.case.shift or self.threads != 1:
            return None
        return self.BARS.get((self.case.name, self.direction), {}).get(self.dtype_name)

    @property
    def flops(self) -> float:
        return self.batch * self.case.attention_flops * (ATTENTION_TRAINING if self.backward else 1.0)

    @property
    def bytes(self) -> float:
        """The traffic of an op that keeps nothing but its inputs, in tensors of B*H*W*C elements.

        Forward: qkv in (3), out (1). Backward: qkv (3) and grad_out (1) in, dqkv out (3).
        """
        tensor = self.batch * self.case.size**2 * self.case.dim * self.dtype.itemsize
        return float(tensor * (11 if self.backward else 4))


def linear_flops(dim: int) -> float:
    """Of one token in a block: QKV (C x 3C), projection (C x C) and the MLP (C x 4C, 4C x C)."""
    return 2.0 * dim * (3 * dim + dim + 4 * dim + 4 * dim)


def training_bytes(maps: float, weights: float) -> float:
    """Forward and backward of something between two maps, from `maps`, the bytes of both, and those of the weights.

    The forward reads one map and writes the other; the backward reads the input again and the output's gradient, and
    writes the input's. Weights are read twice, and their gradients written.
    """
    return 2.5 * maps + 3 * weights


@dataclass(frozen=True)
class BlockRow(Row):
    """A Swin block between two maps of tokens."""

    case: Stage

    #: Speed of swin_fast over timm's block as timm runs it by default, of the shifted first stage of Swin-T, batch 8.
    BARS: ClassVar = {("fp32", "fwd"): 1.2, ("bf16", "fwd"): 1.3, ("fp32", "fwd+bwd"): 1.2, ("bf16", "fwd+bwd"): 1.2}
    #: Of every other row: never slower.
    BAR: ClassVar = 1.0

    @property
    def quick(self) -> bool:
        """The shifted first stages."""
        return self.case.name.endswith("_s1") and self.case.shift > 0 and self.threads == 1

    @property
    def bar(self) -> float | None:
        if self.threads != 1:
            return None
        barred = (self.case.name, self.batch) == ("swin_t_s1", 8) and self.case.shift
        return self.BARS[self.dtype_name, self.direction] if barred else self.BAR

    @property
    def flops(self) -> float:
        """Linears and attention. Left out: norms, GELU, softmax, and V2's small MLP, whose input is one window's."""
        linear, attention = self.case.size**2 * linear_flops(self.case.dim), self.case.attention_flops
        if self.backward:
            linear, attention = LINEAR_TRAINING * linear, ATTENTION_TRAINING * attention
        return self.batch * (linear + attention)

    @property
    def bytes(self) -> float:
        """As if the whole block were one kernel: the map in and out, and the weights."""
        maps = 2.0 * self.batch * self.case.size**2 * self.case.dim
        weights = 12.0 * self.case.dim**2
        return self.dtype.itemsize * (training_bytes(maps, weights) if self.backward else maps + weights)


@dataclass(frozen=True)
class ModelRow(Row):
    """A model; its training step has no gradient of the image."""

    case: Model

    @property
    def quick(self) -> bool:
        return self.case.name in ("swin_t", "toy") and self.batch == 1 and self.threads == 1

    @property
    def flops(self) -> float:
        """Linears (the patch embedding's convolution is one) and attention, without padding."""
        model = self.case
        tokens, dim = model.maps[0]
        embedding = 2.0 * tokens * CHANNELS * PATCH**2 * dim
        linear = attention = 0.0
        for stage, (depth, (tokens, dim)) in enumerate(zip(model.depths, model.maps, strict=True)):
            linear += depth * tokens * linear_flops(dim)
            attention += depth * 4.0 * tokens * model.window**2 * dim
            if stage < len(model.depths) - 1:
                linear += 2.0 * model.maps[stage + 1][0] * (4 * dim) * (2 * dim)
        if not model.features:
            linear += 2.0 * dim * CLASSES
        if self.backward:
            # The embedding needs no gradient of its input.
            embedding, linear, attention = 2 * embedding, LINEAR_TRAINING * linear, ATTENTION_TRAINING * attention
        return self.batch * (embedding + linear + attention)

    @property
    def bytes(self) -> float:
        """As if embedding, each block, each merging and the head were one kernel each."""
        model = self.case
        between: list[tuple[float, float]] = []  # (elements of both maps, of the weights)
        tokens, dim = model.maps[0]
        pixels = tokens * CHANNELS * PATCH**2
        between.append((pixels + tokens * dim, CHANNELS * PATCH**2 * dim))
        for stage, (depth, (tokens, dim)) in enumerate(zip(model.depths, model.maps, strict=True)):
            between += depth * [(2.0 * tokens * dim, 12.0 * dim**2)]
            if stage < len(model.depths) - 1:
                next_tokens, next_dim = model.maps[stage + 1]
                between.append((tokens * dim + next_tokens * next_dim, 8.0 * dim**2))
        if not model.features:
            between.append((tokens * dim + CLASSES, dim * CLASSES))
        parts = ((self.batch * maps, weights) for maps, weights in between)
        return self.dtype.itemsize * sum(training_bytes(*part) if self.backward else sum(part) for part in parts)


# -------------------------------------------------------------------------------------------------------------- suites


def every(
    row: type[Row], cases: Iterable[Any], device: str, dtypes: tuple[str, ...], batches: tuple[int, ...]
) -> tuple[Row, ...]:
    """All cases with all batches, dtypes and directions; on a CPU without the calls that take too long, and the first
    case, at its largest batch, with two threads, too.
    """
    if device == "cpu":
        rows = [row(*parts) for parts in product(cases, batches, dtypes, DIRECTIONS)]
        first = [one for one in rows if one.case == rows[0].case]
        threaded = [replace(one, threads=2) for one in first if one.batch == max(batches)]
        rows[len(first) : len(first)] = threaded
        return tuple(one for one in rows if one.flops <= 1e9 * MOST_GFLOP_ON_CPU)
    orders = product(dtypes, batches, cases, DIRECTIONS)
    return tuple(row(case, batch, dtype, direction) for dtype, batch, case, direction in orders)


def rows_of(suite: str, device: str) -> tuple[Row, ...]:
    """The rows of a suite on "cpu" or "cuda"."""
    if suite == "op":
        return every(OpRow, OPS, device, DTYPES_OF_OP[device], BATCHES[device])
    if suite == "block":
        return every(BlockRow, BLOCKS, device, DTYPES_OF[device], BATCHES[device])
    if suite == "model":
        return every(ModelRow, MODELS, device, DTYPES_OF[device], BATCHES[device])
    return every(ModelRow, DENSE, device, DTYPES_OF[device], BATCHES_DENSE[device])


def toy_rows(suite: str) -> tuple[Row, ...]:
    """Few and small: every dtype, direction and number of threads once, so that every path is taken."""
    row: type[Row] = {"op": OpRow, "block": BlockRow}.get(suite, ModelRow)
    first = {"op": TOY_STAGE, "block": TOY_STAGE, "model": TOY_MODEL, "dense": TOY_DENSE}[suite]
    last = {"op": TOY_STAGE, "block": TOY_STAGE_V2, "model": TOY_MODEL_V2, "dense": TOY_DENSE}[suite]
    return row(first, 2, "fp32", "fwd"), row(last, 2, "bf16", "fwd+bwd"), row(first, 1, "bf16", "fwd", threads=2)
