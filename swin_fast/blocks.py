# SPDX-License-Identifier: Apache-2.0
"""Swin V1 blocks on the fused core op, with Microsoft's constructor arguments and parameter names.

Tensors between blocks are images of tokens, (B, H, W, C); nothing here pads, rolls or cuts windows: the core op does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import reference
from .functional import MAX_HEAD_DIM, MAX_WINDOW_AREA, window_attention

__all__ = ["DropPath", "Mlp", "SwinBlock", "SwinTransformerBlock", "WindowAttention"]


class DropPath(nn.Module):
    """Stochastic depth: drops whole samples of a residual branch in training and rescales the rest.

    `out[b] = x[b] * keep[b] / (1 - p)` with `keep[b]` from Bernoulli(1 - p), one draw per sample.

    Args:
        drop_prob: p, 0 <= p <= 1.

    Raises:
        ValueError: `drop_prob` lies outside [0, 1].

    Source: Huang et al. 2016; draws its random numbers as timm's DropPath does, so equal seeds drop equal samples.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = _probability(drop_prob, "drop_path")

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> the same shape and dtype."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1.0 - self.drop_prob
        keep = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep_prob)  # (B, 1, ..., 1)
        if keep_prob > 0.0:
            keep = keep / keep_prob
        return x * keep

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


class Mlp(nn.Module):
    """The block's MLP: `fc2(drop(act(fc1(x))))`, then dropout again.

    Args:
        in_features: C of the input.
        hidden_features: width between the two Linears, default C.
        out_features: C of the output, default C.
        act_layer: activation class; nn.GELU is the exact (erf) GELU that every Swin checkpoint was trained with.
        drop: dropout probability after each Linear.

    Source: microsoft/Swin-Transformer, models/swin_transformer.py, Mlp.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        hidden_features = hidden_features or in_features
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, out_features or in_features)
        self.drop = nn.Dropout(_probability(drop, "drop"))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        x = self.drop(self.act(self.fc1(x)))
        out: Tensor = self.drop(self.fc2(x))
        return out


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
    """

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
        if num_heads < 1:
            raise ValueError(f"num_heads: got {num_heads}, want at least 1")
        if dim < 1 or dim % num_heads:
            raise ValueError(f"dim: got {dim}, want a positive multiple of num_heads = {num_heads}")
        if dim // num_heads % 2 or dim // num_heads > MAX_HEAD_DIM:
            want = f"dim / num_heads even and at most {MAX_HEAD_DIM}"
            raise ValueError(f"num_heads: got {num_heads} with dim = {dim}, want {want}")
        self.dim = dim
        self.window_size = _pair(window_size, "window_size", minimum=1)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = float(qk_scale or self.head_dim**-0.5)

        wh, ww = self.window_size
        if wh * ww > MAX_WINDOW_AREA:
            raise ValueError(f"window_size: got {self.window_size}, want at most {MAX_WINDOW_AREA} tokens")
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * wh - 1) * (2 * ww - 1), num_heads))
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(_probability(attn_drop, "attn_drop"))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(_probability(proj_drop, "proj_drop"))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_load_state_dict_pre_hook(_forget_relative_position_index)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, *, shift_size: tuple[int, int] = (0, 0)) -> Tensor:
        """Attention within windows of the image, cyclically shifted by `shift_size` = (sh, sw).

        Args:
            x: (B, H, W, C), any floating dtype, any strides.
            shift_size: each 0 <= s < window; (0, 0) is W-MSA.

        Returns:
            (B, H, W, C), dtype of the projection's output.

        Raises:
            ValueError: x is not 4-D or its last dimension is not C, or shift_size is out of range.
        """
        _check_tokens(x, self.dim)
        wh, ww = self.window_size
        heads = (3, self.num_heads, self.head_dim)
        qkv = self.qkv(x).view(*x.shape[:3], *heads)  # (B, H, W, 3, nH, hd)
        bias = self.relative_position_bias_table.t().view(-1, 2 * wh - 1, 2 * ww - 1)  # (nH, 2Wh-1, 2Ww-1)
        # Upstream pads zeros after norm1, before this Linear: a padded token's qkv row is the Linear's bias.
        pad_value = None if self.qkv.bias is None else self.qkv.bias.view(heads)  # (3, nH, hd)

        drop = self.attn_drop.p if self.attn_drop.training else 0.0
        if drop > 0.0:
            # The fused kernels have no dropout, and the op has no argument for it.
            out = reference.window_attention(
                qkv,
                bias,
                window_size=self.window_size,
                shift_size=shift_size,
                scale=self.scale,
                pad_value=pad_value,
                attn_drop=drop,
            )
        else:
            out = window_attention(
                qkv,
                bias,
                window_size=self.window_size,
                shift_size=shift_size,
                scale=self.scale,
                pad_value=pad_value,
            )
        projected: Tensor = self.proj_drop(self.proj(out))  # (B, H, W, C)
        return projected

    def extra_repr(self) -> str:
        return f"dim={self.dim}, window_size={self.window_size}, num_heads={self.num_heads}"


class SwinTransformerBlock(nn.Module):
    """One Swin V1 block on NHWC tokens: window attention and an MLP, each normed first and added back.

    `x = x + drop_path(attn(norm1(x)));  out = x + drop_path(mlp(norm2(x)))`

    Args:
        dim: C.
        input_resolution: (H, W) of the tokens, or None. Given: upstream's rule holds and forward takes this size only.
            With a square window, min(H, W) <= window sets the shift to 0 and the window to min(H, W), on both axes.
            (For a non-square window, which upstream does not have, the rule works on each axis by itself.) None: window
            and shift stay as given, and any H and W run, padded inside the op to a multiple of the window.
        num_heads: nH.
        window_size: (Wh, Ww), or one int for both.
        shift_size: (sh, sw), or one int for both; each 0 <= s < window.
        mlp_ratio: hidden width of the MLP is int(dim * mlp_ratio).
        qkv_bias, qk_scale, attn_drop: as in `WindowAttention`.
        drop: dropout after the projection and in the MLP.
        drop_path: stochastic depth on both branches, per sample.
        act_layer: activation class of the MLP.
        norm_layer: class called with `dim`, twice.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong kind; the message names it.

    Keys of the state dict are Microsoft's, less the buffers `attn.relative_position_index` and `attn_mask`. A
    checkpoint that holds those two, and only those two, beside the parameters loads strictly.

    Source: Liu et al. 2021 §3.2, eq. 3; microsoft/Swin-Transformer@f82860b, models/swin_transformer.py.

    Example:
        >>> block = SwinTransformerBlock(96, None, 3, window_size=7, shift_size=3)
        >>> block(torch.randn(1, 30, 45, 96)).shape
        torch.Size([1, 30, 45, 96])
    """

    def __init__(
        self,
        dim: int,
        input_resolution: int | Sequence[int] | None,
        num_heads: int,
        window_size: int | Sequence[int] = 7,
        shift_size: int | Sequence[int] = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        window = _pair(window_size, "window_size", minimum=1)
        shift = _pair(shift_size, "shift_size", minimum=0)
        resolution = None if input_resolution is None else _pair(input_resolution, "input_resolution", minimum=1)
        if resolution is not None:
            window, shift = _fit_window(resolution, window, shift)
        if shift[0] >= window[0] or shift[1] >= window[1]:
            raise ValueError(f"shift_size: got {shift}, want each axis below window_size = {window}")
        _probability(drop, "drop")  # here, for WindowAttention has another name for it
        self.dim = dim
        self.input_resolution = resolution
        self.num_heads = num_heads
        self.window_size = window
        self.shift_size = shift
        self.mlp_ratio = mlp_ratio

        self.norm1 = norm_layer(dim)
        self.attn = WindowAttention(dim, window, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        self.register_load_state_dict_pre_hook(_forget_attn_mask)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C), any floating dtype and strides -> (B, H, W, C).

        Raises:
            ValueError: x is not 4-D, its last dimension is not C, or (H, W) is not the `input_resolution` given.
        """
        _check_tokens(x, self.dim)
        if self.input_resolution is not None and (x.shape[1], x.shape[2]) != self.input_resolution:
            raise ValueError(
                f"x: got (H, W) = ({x.shape[1]}, {x.shape[2]}), want the block's input_resolution = "
                f"{self.input_resolution}; a block built with input_resolution=None takes any size"
            )
        x = x + self.drop_path(self.attn(self.norm1(x), shift_size=self.shift_size))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, input_resolution={self.input_resolution}, num_heads={self.num_heads}, "
            f"window_size={self.window_size}, shift_size={self.shift_size}, mlp_ratio={self.mlp_ratio}"
        )


SwinBlock = SwinTransformerBlock


def _pair(value: int | Sequence[int], name: str, minimum: int) -> tuple[int, int]:
    """`value` as (vertical, horizontal): one int stands for both."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) for v in pair):
        raise TypeError(f"{name}: got {value!r}, want an int or two ints")
    if min(pair) < minimum:
        raise ValueError(f"{name}: got {value!r}, want at least {minimum} on each axis")
    return pair[0], pair[1]


def _probability(value: float, name: str) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: got {value}, want a probability in [0, 1]")
    return float(value)


def _fit_window(
    resolution: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(window, shift) for a fixed map: where the map fits into one window there is nothing to shift."""
    if window[0] == window[1]:
        smallest = min(resolution)
        return ((smallest, smallest), (0, 0)) if smallest <= window[0] else (window, shift)
    axes = [(size, 0) if size <= w else (w, s) for size, w, s in zip(resolution, window, shift, strict=True)]
    return (axes[0][0], axes[1][0]), (axes[0][1], axes[1][1])


def _check_tokens(x: Tensor, dim: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"x: got {x.dim()} dimensions, want 4: (B, H, W, C)")
    if x.shape[3] != dim:
        raise ValueError(f"x: got {x.shape[3]} channels in its last dimension, want dim = {dim}: x is (B, H, W, C)")


def _forget_relative_position_index(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    state_dict.pop(prefix + "relative_position_index", None)


def _forget_attn_mask(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    state_dict.pop(prefix + "attn_mask", None)
