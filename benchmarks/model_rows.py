# SPDX-License-Identifier: Apache-2.0
"""The rows of whole models: published ones, from an image to class scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .block_rows import linear_flops
from .rows import ATTENTION_TRAINING, BATCHES, DTYPES, LINEAR_TRAINING, Row, every

PATCH, CHANNELS, CLASSES = 4, 3, 1000


@dataclass(frozen=True)
class Model:
    """A Swin-T.

    `geometry` is that of our model; `libraries` have a model that gives the same result for such images, the first of
    them is the yardstick.
    """

    name: str
    version: int
    image: tuple[int, int]
    window: int
    geometry: str = "ms"
    libraries: tuple[str, ...] = ("timm", "torchvision")
    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)

    @property
    def id(self) -> str:
        return f"{self.name}-{self.image[0]}x{self.image[1]}"

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "case": self.id,
            "window": self.window,
            "geometry": self.geometry,
            "heads": self.heads[0],
            "size": list(self.image),
        }


@dataclass(frozen=True)
class ModelRow(Row):
    """A model; its training step has no gradient of the image."""

    case: Model

    @property
    def quick(self) -> bool:
        return self.case.id == "swin_t-224x224" and self.batch == 1

    @property
    def flops(self) -> float:
        """Linears (the patch embedding's convolution is one) and attention, without padding."""
        model = self.case
        H, W = (side // PATCH for side in model.image)
        embedding = 2.0 * H * W * CHANNELS * PATCH**2 * model.dim
        linear = attention = 0.0
        for stage, depth in enumerate(model.depths):
            dim, tokens = model.dim * 2**stage, H * W
            linear += depth * tokens * linear_flops(dim)
            attention += depth * 4.0 * tokens * model.window**2 * dim
            if stage < len(model.depths) - 1:
                H, W = -(-H // 2), -(-W // 2)
                linear += 2.0 * H * W * (4 * dim) * (2 * dim)
        linear += 2.0 * dim * CLASSES
        if self.backward:
            # The embedding needs no gradient of its input.
            embedding, linear, attention = 2 * embedding, LINEAR_TRAINING * linear, ATTENTION_TRAINING * attention
        return self.batch * (embedding + linear + attention)


#: What detection does to a classifier's backbone. timm rolls before it pads, and so gives another result.
DENSE = Model("swin_t_dense", 1, (480, 640), 7, geometry="dense", libraries=("torchvision",))

ROWS = (
    *every(ModelRow, (Model("swin_t", 1, (224, 224), 7), Model("swinv2_t", 2, (256, 256), 8))),
    *(ModelRow(DENSE, BATCHES[0], dtype, "fwd") for dtype in DTYPES),
)
