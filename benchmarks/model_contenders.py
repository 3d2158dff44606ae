# SPDX-License-Identifier: Apache-2.0
"""A whole Swin of each library: images (B, 3, height, width) -> class scores (B, 1000)."""

from __future__ import annotations

from torch import nn

import swin_fast

from .model_rows import CHANNELS, CLASSES, PATCH, Model, ModelRow
from .module_contenders import ModuleProblem
from .peer_imports import timm, torchvision


class Problem(ModuleProblem):
    """A model at the end of which stands a loss, and at its beginning an image, which needs no gradient."""

    row: ModelRow
    input_gradient = False

    def __init__(self, row: ModelRow, seed: int = 0) -> None:
        super().__init__(row, row.case.libraries, seed)

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.row.batch, CHANNELS, *self.row.case.image), (self.row.batch, CLASSES)

    def build(self, library: str) -> nn.Module:
        return {"swin_fast": our_model, "timm": timm_model, "torchvision": torchvision_model}[library](self.row.case)


def our_model(model: Model) -> nn.Module:
    swin = swin_fast.SwinTransformer if model.version == 1 else swin_fast.SwinTransformerV2
    return swin(
        img_size=model.image,
        embed_dim=model.dim,
        depths=model.depths,
        num_heads=model.heads,
        window_size=model.window,
        drop_path_rate=0.0,
        geometry=model.geometry,
    )


def timm_model(model: Model) -> nn.Module:
    if model.version == 1:
        swin = timm.models.swin_transformer.SwinTransformer
    else:
        swin = timm.models.swin_transformer_v2.SwinTransformerV2
    return swin(
        img_size=model.image,
        embed_dim=model.dim,
        depths=model.depths,
        num_heads=model.heads,
        window_size=model.window,
        drop_path_rate=0.0,
    )


def torchvision_model(model: Model) -> nn.Module:
    library = torchvision.models.swin_transformer
    parts = {}
    if model.version == 2:
        parts = {"block": library.SwinTransformerBlockV2, "downsample_layer": library.PatchMergingV2}
    return library.SwinTransformer(
        patch_size=[PATCH, PATCH],
        embed_dim=model.dim,
        depths=list(model.depths),
        num_heads=list(model.heads),
        window_size=[model.window, model.window],
        stochastic_depth_prob=0.0,
        **parts,
    )
