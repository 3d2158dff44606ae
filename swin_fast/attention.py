# SPDX-License-Identifier: Apache-2.0
"""The attention of Swin V1 and V2 as modules: one Linear, the fused core op, one Linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import reference
from .functional import MAX_HEAD_DIM, MAX_WINDOW_AREA, relative_position_bias, window_attention
from .geometry import Pair, pair
from .layers import probability
from .linear import functional_linear, linear

MAX_LOGIT_SCALE = math.log(100.0)


class WindowAttention(nn.Module):
    """Window attention over an image of tokens, shifted or not, with relative position bias.

    `out = proj(window_attention(qkv(x)))`: one Linear, the fused core op, one Linear. H and W need not be multiples of
    the window; a padded position is a zero token, so its qkv row is the QKV bias and it takes part in the softmax.

    Args:
        dim: C, a multiple of `num_heads`.
        window_size: (Wh, Ww), or one int for both.
        num_heads: nH.
        qkv_bias: whether the QKV Linear has a bias.
        qk_scale: factor on the scores; None or 0 means head_dim ** -0.5.
        attn_drop: dropout on the attention probabilities. Above 0 in training the plain PyTorch reference runs.
        proj_drop: dropout after the projection.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong kind; the message names it.

    Parameters: `qkv`, `proj` and `relative_position_bias_table` ((2Wh-1)(2Ww-1), nH). Microsoft's buffer
    `relative_position_index` does not exist here and is ignored, and only it, when a checkpoint holds it.

    Source: Liu et al. 2021 §3.2; microsoft/Swin-Transformer@f82860b, models/swin_transformer.py, WindowAttention.

    Example:
        >>> attn = WindowAttention(96, 7, 3)
        >>> attn(torch.randn(1, 30, 45, 96), shift_size=(3, 3)).shape
        torch.Size([1, 30, 45, 96])
        >>> attn(torch.randn(35, 49, 96)).shape  # windows that are already cut
        torch.Size([35, 49, 96])
    """

    #: What other implementations keep in the state dict although the window alone determines it.
    ignored_buffers: tuple[str, ...] = ("relative_position_index",)

    def __init__(
        self,
        dim: int,
        window_size: int | Sequence[int],
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self._set_shape(dim, window_size, num_heads)
        self.scale = float(qk_scale or self.head_dim**-0.5)
        wh, ww = self.window_size
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * wh - 1) * (2 * ww - 1), num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self._make_output(attn_drop, proj_drop)

    def _set_shape(self, dim: int, window_size: int | Sequence[int], num_heads: int) -> None:
        if num_heads < 1:
            raise ValueError(f"num_heads: got {num_heads}, want at least 1")
        if dim < 1 or dim % num_heads:
            raise ValueError(f"dim: got {dim}, want a positive multiple of num_heads = {num_heads}")
        if dim // num_heads % 2 or dim // num_heads > MAX_HEAD_DIM:
            want = f"dim / num_heads even and at most {MAX_HEAD_DIM}"
            raise ValueError(f"num_heads: got {num_heads} with dim = {dim}, want {want}")
        self.dim = dim
        self.window_size = check_window(window_size)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads

    def _make_output(self, attn_drop: float, proj_drop: float) -> None:
        self.attn_drop = nn.Dropout(probability(attn_drop, "attn_drop"))
        self.proj = nn.Linear(self.dim, self.dim)
        self.proj_drop = nn.Dropout(probability(proj_drop, "proj_drop"))
        self.register_load_state_dict_pre_hook(_forget_buffers)  # type: ignore[no-untyped-call]

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (..., C) -> its queries, keys and values (..., 3C), and those of a zero token (3C), None for zeros."""
        return linear(self.qkv, x), self.qkv.bias

    def _bias_table(self) -> Tensor:  # ((2Wh-1)(2Ww-1), nH)
        return self.relative_position_bias_table

    def _logit_scale(self) -> Tensor | None:  # (nH,)
        return None

    def set_window_size(self, window_size: int | Sequence[int]) -> None:
        """Changes the window; the table is resized by bicubic interpolation, as Microsoft does when it loads weights.

        The parameter is a new one where its size changes: make the optimizer afterwards.

        Raises:
            ValueError, TypeError: window_size is out of range or of the wrong kind; nothing has changed then.
        """
        new = check_window(window_size)
        if new == self.window_size:
            return
        table = self.relative_position_bias_table
        sizes = [(2 * wh - 1, 2 * ww - 1) for wh, ww in (self.window_size, new)]
        with torch.no_grad():
            image = table.t().reshape(1, self.num_heads, *sizes[0])
            # float32: bicubic interpolation of 16-bit numbers would round between its two passes.
            wide = image if image.dtype == torch.float64 else image.float()
            resized = F.interpolate(wide, sizes[1], mode="bicubic").to(table.dtype)
        self.relative_position_bias_table = nn.Parameter(resized.flatten(2)[0].t().contiguous(), table.requires_grad)
        self.window_size = new

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, shift_size: Pair = (0, 0), pad_order: str = "pad_roll"
    ) -> Tensor:
        """Attention within windows of an image, cyclically shifted by `shift_size` = (sh, sw), or within cut windows.

        Args:
            x: (B, H, W, C), an image; or (B_, N, C), windows that upstream's `window_partition` has cut. Any floating
                dtype, any strides.
            mask: with cut windows only: (nW, N, N), added to the scores of window i modulo nW. Plain PyTorch then does
                the attention: the fused op makes its own mask, from shift_size.
            shift_size: with an image only: each 0 <= s < window; (0, 0) is W-MSA.
            pad_order: as in `window_attention`.

        Returns:
            The shape of x, dtype of the projection's output.

        Raises:
            ValueError: x has another rank or other channels, shift_size is out of range, or mask does not go with x.
        """
        wh, ww = self.window_size
        if x.dim() not in (3, 4):
            raise ValueError(f"x: got {x.dim()} dimensions, want 4: (B, H, W, C), or 3: (B_, N, C)")
        if x.shape[-1] != self.dim:
            raise ValueError(f"x: got {x.shape[-1]} channels in its last dimension, want dim = {self.dim}")
        if x.dim() == 4:
            if mask is not None:
                raise ValueError(
                    "mask: got one with an image (B, H, W, C), want shift_size instead, or x as (B_, N, C)"
                )
            out = self._fused(x, shift_size, pad_order)
        elif x.shape[1] != wh * ww or any(shift_size):
            want = f"N = {wh * ww}, the window {self.window_size}, and no shift_size"
            raise ValueError(f"x: got windows of {x.shape[1]} tokens and shift_size = {shift_size}, want {want}")
        elif mask is None:
            out = self._fused(x.view(-1, wh, ww, self.dim), (0, 0), pad_order).view_as(x)
        else:
            out = self._masked(x, mask)
        projected: Tensor = self.proj_drop(linear(self.proj, out))
        return projected

    def _fused(self, x: Tensor, shift_size: Pair, pad_order: str) -> Tensor:  # (B, H, W, C) -> (B, H, W, C)
        wh, ww = self.window_size
        heads = (3, self.num_heads, self.head_dim)
        qkv, pad_value = self._qkv(x)
        arguments: dict[str, Any] = {
            "qkv": qkv.view(*x.shape[:3], *heads),  # (B, H, W, 3, nH, hd)
            "bias": self._bias_table().t().view(-1, 2 * wh - 1, 2 * ww - 1),  # (nH, 2Wh-1, 2Ww-1)
            "window_size": self.window_size,
            "shift_size": shift_size,
            "logit_scale": self._logit_scale(),
            # Upstream pads zeros before the QKV Linear: a padded token's qkv row is the Linear's bias.
            "pad_value": None if pad_value is None else pad_value.view(heads),  # (3, nH, hd)
            "pad_order": pad_order,
        }
        drop = self.attn_drop.p if self.attn_drop.training else 0.0
        if drop > 0.0:
            # The fused kernels have no dropout, and the op has no argument for it.
            return reference.window_attention(**arguments, scale=self.scale, attn_drop=drop)
        return window_attention(**arguments, scale=self.scale if arguments["logit_scale"] is None else None)

    def _masked(self, x: Tensor, mask: Tensor) -> Tensor:  # (B_, N, C) -> (B_, N, C)
        B_, N, C = x.shape
        if mask.dim() != 3 or mask.shape[1:] != (N, N) or B_ % mask.shape[0]:
            want = f"(nW, {N}, {N}) with nW a divisor of B_ = {B_}"
            raise ValueError(f"mask: got shape {tuple(mask.shape)}, want {want}")
        qkv, _ = self._qkv(x)
        q, k, v = qkv.view(B_, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        logit_scale = self._logit_scale()
        if logit_scale is None:
            scores = (q * self.scale) @ k.mT  # (B_, nH, N, N)
        else:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * logit_scale.view(-1, 1, 1)
        scores = scores + relative_position_bias(self._bias_table(), self.window_size)
        scores = scores.view(-1, mask.shape[0], self.num_heads, N, N) + mask[:, None]
        attention = self.attn_drop(scores.softmax(-1).view(B_, self.num_heads, N, N))
        out: Tensor = (attention.to(v.dtype) @ v).transpose(1, 2).reshape(B_, N, C)
        return out

    def extra_repr(self) -> str:
        return f"dim={self.dim}, window_size={self.window_size}, num_heads={self.num_heads}"


class WindowAttentionV2(WindowAttention):
    """Window attention of Swin V2: cosine scores with a learned scale, and a bias that a small MLP makes.

    `scores = exp(min(logit_scale, ln 100)) cos(q, k) + 16 sigmoid(cpb_mlp(coordinates))`, coordinates on a log scale.

    Args:
        dim, window_size, num_heads, attn_drop, proj_drop: as in `WindowAttention`.
        qkv_bias: whether queries and values have a bias; keys have none.
        pretrained_window_size: (Wh, Ww) whose coordinates cpb_mlp was trained with, one int for both; 0: this one.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong kind; the message names it.

    Parameters: `qkv.weight`, `q_bias`, `v_bias`, `proj`, `logit_scale` (nH, 1, 1), `cpb_mlp.{0,2}`. The buffers
    `relative_position_index`, `relative_coords_table` and `k_bias` of other implementations are ignored, and only they.

    Source: Liu et al. 2022 §3.2-3.3; microsoft/Swin-Transformer@f82860b, models/swin_transformer_v2.py.

    Example:
        >>> attn = WindowAttentionV2(96, 8, 3)
        >>> attn(torch.randn(1, 30, 45, 96), shift_size=(4, 4)).shape
        torch.Size([1, 30, 45, 96])
    """

    ignored_buffers = ("relative_position_index", "relative_coords_table", "k_bias")
    relative_coords_table: Tensor

    def __init__(
        self,
        dim: int,
        window_size: int | Sequence[int],
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        pretrained_window_size: int | Sequence[int] = 0,
    ) -> None:
        nn.Module.__init__(self)
        self._set_shape(dim, window_size, num_heads)
        self.pretrained_window_size = pair(pretrained_window_size, "pretrained_window_size", minimum=0)
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, num_heads, bias=False))
        self.init_non_persistent_buffers()
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self._make_output(attn_drop, proj_drop)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.q_bias is None or self.v_bias is None:
            return linear(self.qkv, x), None
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        return functional_linear(x, self.qkv.weight, bias), bias

    def _bias_table(self) -> Tensor:  # ((2Wh-1)(2Ww-1), nH)
        return 16 * torch.sigmoid(self.cpb_mlp(self.relative_coords_table))

    def _logit_scale(self) -> Tensor | None:  # (nH,)
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp().flatten()

    def set_window_size(self, window_size: int | Sequence[int]) -> None:
        """Changes the window; cpb_mlp then makes its bias for the new one.

        Raises:
            ValueError, TypeError: window_size is out of range or of the wrong kind; nothing has changed then.
        """
        self.window_size = check_window(window_size)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Computes what no checkpoint holds: to be called after `to_empty`, as in timm."""
        like = self.logit_scale
        device = torch.device("cpu") if like.is_meta else like.device  # a model built on meta is then complete
        coordinates = log_coordinates(self.window_size, self.pretrained_window_size, device).to(like.dtype)
        self.register_buffer("relative_coords_table", coordinates, persistent=False)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pretrained_window_size={self.pretrained_window_size}"


def check_window(window_size: int | Sequence[int]) -> Pair:
    window = pair(window_size, "window_size", minimum=1)
    if window[0] * window[1] > MAX_WINDOW_AREA:
        raise ValueError(f"window_size: got {window}, want at most {MAX_WINDOW_AREA} tokens")
    return window


def log_coordinates(window_size: Pair, pretrained_window_size: Pair, device: torch.device) -> Tensor:
    """((2Wh-1)(2Ww-1), 2) float32: sign(c) log2(1 + 8|c|/(w-1)) / 3 for every offset c, with w of the pretraining.

    In float32 whatever the module's dtype: checkpoints were trained with these roundings.
    """
    axes = []
    for window, pretrained in zip(window_size, pretrained_window_size, strict=True):
        offsets = torch.arange(-(window - 1), window, dtype=torch.float32, device=device)
        scaled = 8 * (offsets / max((pretrained or window) - 1, 1))  # a window of 1 has the offset 0 alone
        axes.append(torch.sign(scaled) * torch.log2(torch.abs(scaled) + 1.0) / math.log2(8))
    return torch.cartesian_prod(*axes)


def _forget_buffers(module: WindowAttention, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in module.ignored_buffers:
        state_dict.pop(prefix + name, None)
