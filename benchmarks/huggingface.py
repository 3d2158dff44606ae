# SPDX-License-Identifier: Apache-2.0
"""Swin and Swin V2 of Hugging Face's transformers, with our shapes for input and output, without dropout.

transformers is imported when something is built. Its V2 computes attention itself and has no other implementation.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from .cases import CLASSES, Model, Stage


class Wrapper(nn.Module):
    """Names of parameters begin with "module."."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Block(Wrapper):
    """(B, H, W, C) -> (B, H, W, C), views of what theirs takes and gives."""

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        return self.module(x.flatten(1, 2), (H, W))[0].unflatten(1, (H, W))


class Classifier(Wrapper):
    """Images -> logits (B, classes)."""

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images).logits


class Backbone(Wrapper):
    """Images -> a map (B, C, H, W) of each stage."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.module(images).feature_maps


def block(stage: Stage) -> nn.Module:
    models = transformers().models
    layer = models.swin.modeling_swin.SwinLayer if stage.version == 1 else models.swinv2.modeling_swinv2.Swinv2Layer
    options = config(stage.version, window_size=stage.window)
    return Block(layer(options, stage.dim, (stage.size, stage.size), stage.heads, shift_size=stage.shift))


def model(model: Model) -> nn.Module:
    library = transformers()
    swin = library.SwinForImageClassification if model.version == 1 else library.Swinv2ForImageClassification
    return Classifier(swin(config_of(model, num_labels=CLASSES)))


def backbone(model: Model) -> nn.Module:
    """All stages of V1, each with a norm, whatever the size of the image. Their backbone of V2 has no norms."""
    if model.version != 1:
        raise NotImplementedError("transformers' backbone of Swin V2 has no norms")
    stages = [f"stage{i + 1}" for i in range(len(model.depths))]
    swin = transformers().SwinBackbone(config_of(model, out_features=stages))
    swin.swin.layernorm = nn.Identity()  # they normalise the last map with it, too, and drop the result
    return Backbone(swin)


def config_of(model: Model, **more: Any) -> Any:
    return config(
        model.version,
        image_size=model.image,
        embed_dim=model.dim,
        depths=model.depths,
        num_heads=model.heads,
        window_size=model.window,
        **more,
    )


def config(version: int, **options: Any) -> Any:
    if version == 1:
        return transformers().SwinConfig(drop_path_rate=0.0, attn_implementation="sdpa", **options)
    return transformers().Swinv2Config(drop_path_rate=0.0, **options)


def transformers() -> Any:
    from . import peer_imports  # noqa: F401  transformers imports torchvision, which has to come from here

    return importlib.import_module("transformers")
