# SPDX-License-Identifier: Apache-2.0
"""What the demo measures: two Swin blocks, how exact and how fast every backend computes them.

The yardstick is `eager`: the blocks in plain PyTorch with every step in the input dtype, as Microsoft's and timm's code
runs them. In float64 the same code is the truth that all errors are measured against.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from . import dispatch
from .attention import WindowAttention
from .blocks import SwinBlock
from .functional import window_attention

PATCH, DIM, NUM_HEADS, WINDOW, SHIFT = 4, 96, 3, 7, 3  # the first stage of Swin-T
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WARM_UP = 2


@dataclass(frozen=True)
class Row:
    """One path in one dtype."""

    dtype: str
    path: str
    max_error: float  # of both blocks' output, against float64
    error_ratio: float  # to eager's error
    within_rule: bool  # error <= 2 * eager's + one epsilon of the dtype
    blocks_ms: float
    core_ms: float
    core_speed: float  # eager's core_ms / core_ms


# -------------------------------------------------------------------------------------- The network and its eager twin


class TwoBlocks(nn.Module):
    """The beginning of Swin-T: patch embedding (Conv 4x4, LayerNorm), one regular and one shifted block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.norm = nn.LayerNorm(DIM)
        self.regular = SwinBlock(DIM, None, NUM_HEADS, WINDOW, 0)
        self.shifted = SwinBlock(DIM, None, NUM_HEADS, WINDOW, SHIFT)

    def tokens(self, image: Tensor) -> Tensor:
        """(B, 3, 4H, 4W) -> (B, H, W, C)."""
        out: Tensor = self.norm(self.embed(image).permute(0, 2, 3, 1))
        return out

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, 4H, 4W) -> (B, H, W, C)."""
        out: Tensor = self.shifted(self.regular(self.tokens(image)))
        return out


class EagerAttention:
    """The core op in plain PyTorch, every step in qkv's dtype: pad, roll, cut, attend, put together, roll back.

    The index and the mask are made once, here, outside anything timed, as Microsoft's modules keep them in buffers.

    Source: microsoft/Swin-Transformer@f82860b, models/swin_transformer.py, written anew for (B, H, W, 3, nH, hd).
    """

    def __init__(self, block: SwinBlock, height: int, width: int) -> None:
        self.attn, self.shift = block.attn, block.shift_size
        wh, ww = block.window_size
        self.size = (height, width)
        self.padded = (height + -height % wh, width + -width % ww)
        ys, xs = (g.flatten() for g in torch.meshgrid(torch.arange(wh), torch.arange(ww), indexing="ij"))
        dy, dx = ys[:, None] - ys, xs[:, None] - xs  # (N, N), query minus key
        self.index = (dy + wh - 1) * (2 * ww - 1) + dx + ww - 1
        windows = self.regions().view(self.padded[0] // wh, wh, self.padded[1] // ww, ww).transpose(1, 2)
        windows = windows.reshape(-1, wh * ww)  # (nW, N)
        self.mask = torch.where(windows[:, :, None] == windows[:, None], 0.0, -100.0)  # (nW, N, N)
        self.mask = self.mask.to(block.attn.qkv.weight.dtype)

    def regions(self) -> Tensor:
        """(Hp, Wp) of the rolled grid: tokens of one window attend to each other only within one number."""
        rows, columns = (
            (torch.arange(p) >= p - w).long() + (torch.arange(p) >= p - s).long() if s else torch.zeros(p).long()
            for p, w, s in zip(self.padded, self.attn.window_size, self.shift, strict=True)
        )
        return rows[:, None] * 3 + columns

    def attend(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """qkv (B, H, W, 3, nH, hd) -> probabilities (B*nW, nH, N, N), v (B*nW, nH, N, hd)."""
        (b, h, w), heads, (hp, wp), (wh, ww) = qkv.shape[:3], qkv.shape[3:], self.padded, self.attn.window_size
        if self.padded != self.size:
            grid = self.attn.qkv.bias.view(heads).expand(b, hp, wp, *heads).clone()  # a padded token is zero
            grid[:, :h, :w] = qkv
            qkv = grid
        if any(self.shift):
            qkv = qkv.roll((-self.shift[0], -self.shift[1]), (1, 2))
        windows = qkv.view(b, hp // wh, wh, wp // ww, ww, *heads).permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = windows.reshape(3, -1, heads[1], wh * ww, heads[2])  # each (B*nW, nH, N, hd)
        scores = (q * self.attn.scale) @ k.transpose(-2, -1)
        scores = scores + self.attn.relative_position_bias_table[self.index].permute(2, 0, 1)
        if any(self.shift):
            scores = (scores.view(b, -1, *scores.shape[1:]) + self.mask[:, None]).view(scores.shape)
        return scores.softmax(-1), v

    def __call__(self, qkv: Tensor) -> Tensor:
        """qkv (B, H, W, 3, nH, hd) -> (B, H, W, C)."""
        (b, h, w), (hp, wp), (wh, ww) = qkv.shape[:3], self.padded, self.attn.window_size
        probabilities, v = self.attend(qkv)
        out = (probabilities @ v).view(b, hp // wh, wp // ww, -1, wh, ww, v.shape[-1])
        out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, hp, wp, -1)
        if any(self.shift):
            out = out.roll(self.shift, (1, 2))
        return out[:, :h, :w]


def eager_twins(model: TwoBlocks, image: Tensor) -> tuple[EagerAttention, EagerAttention]:
    """Eager's attention for both blocks, at the size of this image."""
    height, width = image.shape[2] // PATCH, image.shape[3] // PATCH
    return EagerAttention(model.regular, height, width), EagerAttention(model.shifted, height, width)


def eager_forward(model: TwoBlocks, twins: tuple[EagerAttention, EagerAttention], image: Tensor) -> Tensor:
    """The model in plain PyTorch: (B, 3, 4H, 4W) -> (B, H, W, C)."""
    x = model.tokens(image)
    for block, attention in zip((model.regular, model.shifted), twins, strict=True):
        x = x + block.attn.proj(attention(core_input(block, x)))
        x = x + block.mlp(block.norm2(x))
    return x


def core_input(block: SwinBlock, x: Tensor) -> Tensor:
    """What the block hands to the core op: x (B, H, W, C) -> qkv (B, H, W, 3, nH, hd)."""
    qkv: Tensor = block.attn.qkv(block.norm1(x))
    return qkv.view(*x.shape[:3], 3, NUM_HEADS, DIM // NUM_HEADS)


def core_call(attn: WindowAttention, qkv: Tensor) -> Tensor:
    """The shifted block's call of the core op, alone."""
    n = 2 * WINDOW - 1
    bias = attn.relative_position_bias_table.t().view(NUM_HEADS, n, n)
    pad_value = attn.qkv.bias.view(qkv.shape[3:])
    return window_attention(
        qkv, bias, window_size=attn.window_size, shift_size=(SHIFT, SHIFT), scale=attn.scale, pad_value=pad_value
    )


# ------------------------------------------------------------------------------------------------------- Error and time


def why_not(backend: str, dtype_name: str) -> list[str]:
    """Sentences saying why `backend` cannot compute the blocks in the dtype called so; empty when it can."""
    return dispatch.why_not(
        backend, dispatch.Problem(DTYPES[dtype_name], "cpu", None, WINDOW * WINDOW, DIM // NUM_HEADS)
    )


def measure(
    model: TwoBlocks, pixels: Tensor, name: str, backends: list[str], repeats: int, tick: Callable[..., None]
) -> list[Row]:
    """Error and time of eager and of each backend, in the dtype called `name`."""
    model = copy.deepcopy(model).to(DTYPES[name])
    pixels = pixels.to(DTYPES[name])

    # The truth starts from the same rounded weights and pixels: what is measured is the arithmetic alone.
    exact = copy.deepcopy(model).double()
    truth = eager_forward(exact, eager_twins(exact, pixels), pixels.double())
    tick(description=f"{name}: float64")

    twins = eager_twins(model, pixels)
    qkv = core_input(model.shifted, model.regular(model.tokens(pixels)))
    epsilon = torch.finfo(DTYPES[name]).eps * truth.abs().max().item()
    rows: list[Row] = []
    for path in ["eager", *backends]:
        blocks: Callable[[], Tensor]
        core: Callable[[], Tensor]
        context: AbstractContextManager[None]
        if path == "eager":
            blocks, core = partial(eager_forward, model, twins, pixels), partial(twins[1], qkv)
            context = nullcontext()
        else:
            blocks, core = partial(model, pixels), partial(core_call, model.shifted.attn, qkv)
            context = dispatch.use_backend(path)
        with context:
            error = _max_error(blocks(), truth)
            blocks_ms = _median_ms(blocks, repeats, partial(tick, description=f"{name}: {path}, blocks"))
            core_ms = _median_ms(core, repeats, partial(tick, description=f"{name}: {path}, core op"))
        eager_error, eager_ms = (rows[0].max_error, rows[0].core_ms) if rows else (error, core_ms)
        within_rule = error <= 2 * eager_error + epsilon
        ratio = error / eager_error if eager_error else float(error > 0)
        rows.append(Row(name, path, error, ratio, within_rule, blocks_ms, core_ms, eager_ms / core_ms))
    return rows


def _max_error(out: Tensor, truth: Tensor) -> float:
    error = (out.double() - truth).abs().max().item()
    return error if math.isfinite(error) else float("inf")


def _median_ms(function: Callable[[], Tensor], repeats: int, tick: Callable[[], None]) -> float:
    times = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e3)
        tick()
    return statistics.median(times[WARM_UP:])
