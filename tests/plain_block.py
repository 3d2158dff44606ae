# SPDX-License-Identifier: Apache-2.0
"""The blocks' oracle: a block of Microsoft's shape in plain PyTorch, over cut windows, with a stored mask and index."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracles import relative_index, shift_regions
from swin_fast import SwinBlock, WindowAttention


class PlainAttention(nn.Module):
    """Window attention over cut windows, (B*nW, N, C), with Microsoft's parameters and buffer."""

    def __init__(self, ours: WindowAttention) -> None:
        super().__init__()
        dim, nH, (Wh, Ww) = ours.dim, ours.num_heads, ours.window_size
        self.num_heads, self.scale = nH, ours.scale
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * Wh - 1) * (2 * Ww - 1), nH))
        self.register_buffer("relative_position_index", relative_index((Wh, Ww)))
        self.qkv = nn.Linear(dim, 3 * dim, bias=ours.qkv.bias is not None)
        self.attn_drop = nn.Dropout(ours.attn_drop.p)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(ours.proj_drop.p)
        self.softmax: Callable[[Tensor], Tensor] = partial(torch.softmax, dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        B_, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B_, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(N, N, -1)
        scores = scores + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            scores = scores.view(-1, mask.shape[0], self.num_heads, N, N) + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.num_heads, N, N)
        probabilities = self.attn_drop(self.softmax(scores))
        return self.proj_drop(self.proj((probabilities @ v).transpose(1, 2).reshape(B_, N, C)))


class PlainBlock(nn.Module):
    """The block as Microsoft runs it, every step in the input's dtype; pads after norm1, as dense prediction does."""

    def __init__(self, ours: SwinBlock, height: int, width: int) -> None:
        super().__init__()
        self.window, self.shift, (Wh, Ww) = ours.window_size, ours.shift_size, ours.window_size
        self.padded = (height + -height % Wh, width + -width % Ww)
        self.norm1 = copy.deepcopy(ours.norm1)
        self.attn = PlainAttention(ours.attn)
        self.drop_path_probability = ours.drop_path.drop_prob
        self.norm2 = copy.deepcopy(ours.norm2)
        self.mlp = copy.deepcopy(ours.mlp)
        mask = None
        if any(self.shift):
            regions = shift_regions(self.padded, self.window, self.shift, "cpu")
            regions = self.partition(regions[None, :, :, None]).squeeze(-1)
            differ = regions[:, None, :] != regions[:, :, None]
            mask = torch.zeros(differ.shape).masked_fill(differ, -100.0)
        self.register_buffer("attn_mask", mask)
        self.load_state_dict(ours.state_dict(), strict=False)

    def partition(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        Wh, Ww = self.window
        return x.view(B, H // Wh, Wh, W // Ww, Ww, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, Wh * Ww, C)

    def drop_path(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path_probability == 0.0:
            return x
        keep = 1.0 - self.drop_path_probability
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        (Ph, Pw), (Wh, Ww), (sh, sw) = self.padded, self.window, self.shift
        shortcut, x = x, F.pad(self.norm1(x), (0, 0, 0, Pw - W, 0, Ph - H))
        windows = self.attn(self.partition(x.roll((-sh, -sw), (1, 2))), self.attn_mask)
        x = windows.view(B, Ph // Wh, Pw // Ww, Wh, Ww, C).permute(0, 1, 3, 2, 4, 5).reshape(B, Ph, Pw, C)
        x = shortcut + self.drop_path(x.roll((sh, sw), (1, 2))[:, :H, :W])
        return x + self.drop_path(self.mlp(self.norm2(x)))
