# SPDX-License-Identifier: Apache-2.0
"""One Swin block of each library: x (B, H, W, C) -> (B, H, W, C)."""

from __future__ import annotations

from torch import nn

import swin_fast

from .block_rows import BlockRow
from .module_contenders import ModuleProblem
from .peer_imports import timm, torchvision
from .rows import Stage


class Problem(ModuleProblem):
    """A block between others: its input has a gradient."""

    row: BlockRow
    input_gradient = True

    def __init__(self, row: BlockRow, seed: int = 0) -> None:
        super().__init__(row, ("timm", "torchvision"), seed)

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        stage = self.row.case
        shape = (self.row.batch, stage.size, stage.size, stage.dim)
        return shape, shape

    def build(self, library: str) -> nn.Module:
        return {"swin_fast": our_block, "timm": timm_block, "torchvision": torchvision_block}[library](self.row.case)


def our_block(stage: Stage) -> nn.Module:
    block = swin_fast.SwinTransformerBlock if stage.version == 1 else swin_fast.SwinTransformerV2Block
    return block(stage.dim, stage.size, stage.heads, window_size=stage.window, shift_size=stage.shift)


def timm_block(stage: Stage) -> nn.Module:
    if stage.version == 1:
        block = timm.models.swin_transformer.SwinTransformerBlock
    else:
        block = timm.models.swin_transformer_v2.SwinTransformerV2Block
    resolution = (stage.size, stage.size)
    return block(stage.dim, resolution, num_heads=stage.heads, window_size=stage.window, shift_size=stage.shift)


def torchvision_block(stage: Stage) -> nn.Module:
    library = torchvision.models.swin_transformer
    block = library.SwinTransformerBlock if stage.version == 1 else library.SwinTransformerBlockV2
    window, shift = [stage.window, stage.window], [stage.shift, stage.shift]
    return block(stage.dim, stage.heads, window_size=window, shift_size=shift)
