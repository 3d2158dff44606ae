# SPDX-License-Identifier: Apache-2.0
"""One Swin block of each library: x (B, H, W, C) -> (B, H, W, C)."""

from __future__ import annotations

from torch import nn

import swin_fast

from .cases import BlockRow, Stage
from .module_contenders import ModuleProblem


class Problem(ModuleProblem):
    """A block between others: its input has a gradient."""

    row: BlockRow
    input_gradient = True

    def __init__(self, row: BlockRow, device: str = "cpu", seed: int = 0) -> None:
        super().__init__(row, ("timm", "torchvision", "transformers"), device, seed)

    def shapes(self) -> list[tuple[int, ...]]:
        stage = self.row.case
        return 2 * [(self.row.batch, stage.size, stage.size, stage.dim)]

    def build(self, library: str) -> nn.Module:
        stage = self.row.case
        if library == "transformers":
            from . import huggingface

            return huggingface.block(stage)
        return {"swin_fast": our_block, "timm": timm_block, "torchvision": torchvision_block}[library](stage)


def our_block(stage: Stage) -> nn.Module:
    block = swin_fast.SwinTransformerBlock if stage.version == 1 else swin_fast.SwinTransformerV2Block
    return block(stage.dim, stage.size, stage.heads, window_size=stage.window, shift_size=stage.shift)


def timm_block(stage: Stage) -> nn.Module:
    from .peer_imports import timm

    if stage.version == 1:
        block = timm.models.swin_transformer.SwinTransformerBlock
    else:
        block = timm.models.swin_transformer_v2.SwinTransformerV2Block
    resolution = (stage.size, stage.size)
    return block(stage.dim, resolution, num_heads=stage.heads, window_size=stage.window, shift_size=stage.shift)


def torchvision_block(stage: Stage) -> nn.Module:
    from .peer_imports import torchvision

    library = torchvision.models.swin_transformer
    block = library.SwinTransformerBlock if stage.version == 1 else library.SwinTransformerBlockV2
    window, shift = [stage.window, stage.window], [stage.shift, stage.shift]
    return block(stage.dim, stage.heads, window_size=window, shift_size=shift)
