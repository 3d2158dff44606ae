# SPDX-License-Identifier: Apache-2.0
"""A whole Swin of each library: images (B, 3, height, width) -> class scores (B, 1000), or the maps of all stages."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import swin_fast

from .cases import CHANNELS, CLASSES, PATCH, Model, ModelRow
from .module_contenders import ModuleProblem


class Problem(ModuleProblem):
    """A model at the end of which stands a loss, and at its beginning an image, which needs no gradient."""

    row: ModelRow
    input_gradient = False

    def __init__(self, row: ModelRow, device: str = "cpu", seed: int = 0) -> None:
        super().__init__(row, row.case.libraries, device, seed)

    def shapes(self) -> list[tuple[int, ...]]:
        B, model = self.row.batch, self.row.case
        image = (B, CHANNELS, *model.image)
        if not model.features:
            return [image, (B, CLASSES)]
        sides = [[-(-side // (PATCH * 2**stage)) for side in model.image] for stage in range(len(model.depths))]
        return [image, *((B, dim, *side) for side, (_, dim) in zip(sides, model.maps, strict=True))]

    def build(self, library: str) -> nn.Module:
        model = self.row.case
        if library == "transformers":
            from . import huggingface

            return huggingface.backbone(model) if model.features else huggingface.model(model)
        return {"swin_fast": our_model, "timm": timm_model, "torchvision": torchvision_model}[library](model)


def options_of(model: Model) -> dict[str, Any]:
    """As Microsoft, timm and we name them."""
    return {
        "img_size": model.image,
        "embed_dim": model.dim,
        "depths": model.depths,
        "num_heads": model.heads,
        "window_size": model.window,
        "drop_path_rate": 0.0,
    }


def our_model(model: Model) -> nn.Module:
    if model.features:
        return OurBackbone(model)
    swin = swin_fast.SwinTransformer if model.version == 1 else swin_fast.SwinTransformerV2
    return swin(**options_of(model), geometry=model.geometry)


class OurBackbone(swin_fast.SwinTransformer):
    """The map of every stage, normed, (B, C, H, W) as detectors and segmenters take them; Microsoft's names."""

    def __init__(self, model: Model) -> None:
        stages = range(len(model.depths))
        super().__init__(**options_of(model), geometry=model.geometry, out_indices=tuple(stages))
        for i in stages:
            self.add_module(f"norm{i}", nn.LayerNorm(model.dim * 2**i))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = super().forward(x)
        return tuple(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2) for i, x in enumerate(maps))


def timm_model(model: Model) -> nn.Module:
    from .peer_imports import timm

    if model.version == 1:
        swin = timm.models.swin_transformer.SwinTransformer
    else:
        swin = timm.models.swin_transformer_v2.SwinTransformerV2
    return swin(**options_of(model))


def torchvision_model(model: Model) -> nn.Module:
    from .peer_imports import torchvision

    library = torchvision.models.swin_transformer
    parts = {}
    if model.version == 2:
        parts = {"block": library.SwinTransformerBlockV2, "downsample_layer": library.PatchMergingV2}
    swin = library.SwinTransformer(
        patch_size=[PATCH, PATCH],
        embed_dim=model.dim,
        depths=list(model.depths),
        num_heads=list(model.heads),
        window_size=[model.window, model.window],
        stochastic_depth_prob=0.0,
        **parts,
    )
    return TorchvisionBackbone(swin, model) if model.features else swin


class TorchvisionBackbone(nn.Module):
    """torchvision's stages, a norm for the map of each, as torchvision's own users cut a backbone out of it."""

    def __init__(self, swin: nn.Module, model: Model) -> None:
        super().__init__()
        self.features = swin.features
        for i in range(len(model.depths)):
            self.add_module(f"norm{i}", nn.LayerNorm(model.dim * 2**i))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for i, part in enumerate(self.features):
            x = part(x)
            if i % 2:  # embedding, stage, merging, stage, ...
                maps.append(self.get_submodule(f"norm{i // 2}")(x).permute(0, 3, 1, 2))
        return tuple(maps)
