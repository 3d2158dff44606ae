# SPDX-License-Identifier: Apache-2.0
"""The yardstick: a Swin model's eager twin, in plain PyTorch with every step in the input dtype.

That is how Microsoft's, timm's and OpenMMLab's code runs it: windows cut out of a padded and rolled copy, and an
attention mask that is stored. In float64 the twin is the truth that every error is measured against: it shares nothing
with the backends, so a mistake of theirs cannot hide in it.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import WindowAttention, WindowAttentionV2
from .geometry import Pair

Swin = TypeVar("Swin", bound=nn.Module)


class EagerAttention(nn.Module):
    """A `WindowAttention` or `WindowAttentionV2` in plain PyTorch: pad, roll, cut, attend, put together, roll back.

    Index and masks are made once for each size of map, at the first call, as others keep them in buffers; what is timed
    afterwards does not pay for them.

    Args:
        attn: the attention; its parameters are used, not copied.

    Source: microsoft/Swin-Transformer@f82860b, models/swin_transformer.py and swin_transformer_v2.py, written anew for
    (B, H, W, C).
    """

    def __init__(self, attn: WindowAttention) -> None:
        super().__init__()
        self.attn = attn
        self._index: Tensor  # a buffer, so that it lies on the device of the parameters
        self.register_buffer("_index", _relative_index(attn.window_size), persistent=False)
        self._masks: dict[tuple[Pair, Pair, torch.dtype, torch.device], Tensor] = {}

    def forward(self, x: Tensor, *, shift_size: Pair = (0, 0), pad_order: str = "pad_roll") -> Tensor:
        """x (B, H, W, C) -> the same shape, as `WindowAttention.forward`; pad_order is "pad_roll"."""
        if pad_order != "pad_roll":
            raise ValueError(f"pad_order: got {pad_order!r}, want 'pad_roll': the twin knows no other")
        qkv, pad_value = self._qkv(x)
        heads = (3, self.attn.num_heads, self.attn.head_dim)
        pad_value = None if pad_value is None else pad_value.view(heads)
        out: Tensor = self.attn.proj(self.core(qkv.view(*x.shape[:3], *heads), shift_size, pad_value))
        return out

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor | None]:  # as WindowAttention._qkv, by F.linear on every device
        attn = self.attn
        if not isinstance(attn, WindowAttentionV2):
            return attn.qkv(x), attn.qkv.bias
        bias = None
        if attn.q_bias is not None and attn.v_bias is not None:
            bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
        return F.linear(x, attn.qkv.weight, bias), bias

    def core(self, qkv: Tensor, shift_size: Pair, pad_value: Tensor | None) -> Tensor:
        """The core op alone: qkv (B, H, W, 3, nH, hd), pad_value (3, nH, hd) or None -> (B, H, W, C)."""
        (B, H, W), (Wh, Ww) = qkv.shape[:3], self.attn.window_size
        Hp, Wp = padded((H, W), self.attn.window_size)
        probabilities, v = self.attend(qkv, shift_size, pad_value)
        out = (probabilities @ v).view(B, Hp // Wh, Wp // Ww, -1, Wh, Ww, v.shape[-1])
        out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(B, Hp, Wp, -1)
        if any(shift_size):
            out = out.roll(shift_size, (1, 2))
        return out[:, :H, :W]

    def attend(self, qkv: Tensor, shift_size: Pair, pad_value: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `core` -> probabilities (B*nW, nH, N, N), v (B*nW, nH, N, hd)."""
        (B, H, W), heads, (Wh, Ww) = qkv.shape[:3], qkv.shape[3:], self.attn.window_size
        Hp, Wp = padded((H, W), self.attn.window_size)
        if (Hp, Wp) != (H, W):
            pads = qkv.new_zeros(heads) if pad_value is None else pad_value
            grid = pads.expand(B, Hp, Wp, *heads).clone()
            grid[:, :H, :W] = qkv
            qkv = grid
        if any(shift_size):
            qkv = qkv.roll((-shift_size[0], -shift_size[1]), (1, 2))
        windows = qkv.view(B, Hp // Wh, Wh, Wp // Ww, Ww, *heads).permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = windows.reshape(3, -1, heads[1], Wh * Ww, heads[2])  # each (B*nW, nH, N, hd)
        logit_scale = self.attn._logit_scale()
        if logit_scale is None:
            scores = (q * self.attn.scale) @ k.transpose(-2, -1)
        else:
            scores = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * logit_scale.view(-1, 1, 1)
        scores = scores + self.attn._bias_table()[self._index].permute(2, 0, 1)
        if any(shift_size):
            mask = self._mask((H, W), shift_size, qkv)
            scores = (scores.view(B, -1, *scores.shape[1:]) + mask[:, None]).view(scores.shape)
        return scores.softmax(-1), v

    def _mask(self, size: Pair, shift_size: Pair, like: Tensor) -> Tensor:  # (nW, N, N)
        key = (size, shift_size, like.dtype, like.device)
        if key not in self._masks:
            Wh, Ww = self.attn.window_size
            numbers = regions(size, self.attn.window_size, shift_size)
            windows = numbers.view(numbers.shape[0] // Wh, Wh, -1, Ww).transpose(1, 2).reshape(-1, Wh * Ww)
            self._masks[key] = torch.where(windows[:, :, None] == windows[:, None], 0.0, -100.0).to(like)
        return self._masks[key]


class PlainLinear(nn.Linear):
    """An nn.Linear that `swin_fast.linear` leaves alone: it takes over nn.Linear itself, and none of its subclasses."""


def padded(size: Pair, window_size: Pair) -> Pair:
    """(Hp, Wp): the map of `size` made up to whole windows."""
    return size[0] + -size[0] % window_size[0], size[1] + -size[1] % window_size[1]


def regions(size: Pair, window_size: Pair, shift_size: Pair) -> Tensor:
    """(Hp, Wp) of the padded and rolled grid: tokens of one window attend to each other only within one number."""
    rows, columns = (
        (torch.arange(p) >= p - w).long() + (torch.arange(p) >= p - s).long() if s else torch.zeros(p).long()
        for p, w, s in zip(padded(size, window_size), window_size, shift_size, strict=True)
    )
    return rows[:, None] * 3 + columns


def eager_twin(model: Swin) -> Swin:
    """A model or block with every attention and Linear in plain PyTorch: another one, of the same parameters."""
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    twin = copy.deepcopy(model, shared)
    for block in list(twin.modules()):
        attn = getattr(block, "attn", None)
        if isinstance(attn, WindowAttention):
            block.attn = EagerAttention(attn)
    for module in twin.modules():
        if type(module) is nn.Linear:
            module.__class__ = PlainLinear
    return twin


def randomize(model: nn.Module, seed: int) -> None:
    """Random weights of such sizes that every parameter matters, biases and tables too, from a fixed seed.

    Matrices have deviation fan_in**-0.5, so that no layer drowns another; factors of the norms lie around 1; logit
    scales keep their start. The caller's random numbers are left alone.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith("logit_scale"):
                continue
            noise = torch.randn(parameter.shape)
            if name.endswith("relative_position_bias_table"):
                noise = noise * 0.5
            elif parameter.dim() > 1:
                noise = noise * math.prod(parameter.shape[1:]) ** -0.5
            else:
                noise = 0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            parameter.copy_(noise)


def _relative_index(window_size: Pair) -> Tensor:  # (N, N): row of the table, query minus key
    Wh, Ww = window_size
    ys, xs = (grid.flatten() for grid in torch.meshgrid(torch.arange(Wh), torch.arange(Ww), indexing="ij"))
    return (ys[:, None] - ys + Wh - 1) * (2 * Ww - 1) + xs[:, None] - xs + Ww - 1
