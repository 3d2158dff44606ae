# SPDX-License-Identifier: Apache-2.0
"""Swin blocks and stages, V1 and V2, on the fused core op, with Microsoft's constructor arguments and parameter names.

Tensors between blocks are images of tokens, (B, H, W, C); nothing here pads, rolls or cuts windows: the core op does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import WindowAttention, WindowAttentionV2, check_window
from .geometry import FIXED, Pair, check_geometry, fit_window, pad_order, pair, shift_at
from .layers import DropPath, Mlp, NormLayer, PatchMerging, as_image, probability

Downsample = Callable[..., nn.Module]


class SwinTransformerBlock(nn.Module):
    """One Swin V1 block on NHWC tokens: window attention and an MLP, each normed first and added back.

    `x = x + drop_path(attn(norm1(x)));  out = x + drop_path(mlp(norm2(x)))`

    Args:
        dim: C.
        input_resolution: (H, W) of the tokens, or None. "ms" and "timm" fit window and shift to it, and forward takes
            this size only. None: window and shift stay as given, and any H and W run, padded inside the op to a
            multiple of the window. Inputs of the form (B, L, C) need it in every geometry.
        num_heads: nH.
        window_size: (Wh, Ww), or one int for both.
        shift_size: (sh, sw), or one int for both; each 0 <= s < window.
        mlp_ratio: hidden width of the MLP is int(dim * mlp_ratio).
        qkv_bias, qk_scale, attn_drop: as in `WindowAttention`.
        drop: dropout after the projection and in the MLP.
        drop_path: stochastic depth on both branches, per sample.
        act_layer: activation class of the MLP.
        norm_layer: class called with `dim`, twice.
        fused_window_process: accepted for Microsoft's configurations; the attention is always fused.
        geometry: how window and shift follow the size of the map, see `swin_fast.geometry`: "ms", "timm",
            "torchvision" or "dense".
        always_partition: with "timm" only: window and shift stay as given.
        strict_img_size: False, with "timm" only: other sizes than `input_resolution` run, with its window and shift.

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
        norm_layer: NormLayer = nn.LayerNorm,
        fused_window_process: bool = False,
        *,
        geometry: str = "ms",
        always_partition: bool = False,
        strict_img_size: bool = True,
    ) -> None:
        super().__init__()
        self._build(
            dim,
            input_resolution,
            num_heads,
            window_size,
            shift_size,
            mlp_ratio,
            drop,
            drop_path,
            act_layer,
            norm_layer,
            geometry,
            always_partition,
            strict_img_size,
            lambda window: WindowAttention(dim, window, num_heads, qkv_bias, qk_scale, attn_drop, drop),
        )

    def _build(
        self,
        dim: int,
        input_resolution: int | Sequence[int] | None,
        num_heads: int,
        window_size: int | Sequence[int],
        shift_size: int | Sequence[int],
        mlp_ratio: float,
        drop: float,
        drop_path: float,
        act_layer: Callable[[], nn.Module],
        norm_layer: NormLayer,
        geometry: str,
        always_partition: bool,
        strict_img_size: bool,
        attention: Callable[[Pair], WindowAttention],
    ) -> None:
        check_geometry(geometry, always_partition, strict_img_size)
        probability(drop, "drop")  # here, for WindowAttention has another name for it
        self.dim = dim
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.geometry = geometry
        self.always_partition = always_partition
        self.strict_img_size = strict_img_size
        self._pad_order = pad_order(geometry)
        self._wanted = self._check_window(window_size, shift_size)  # before they are fitted to a map
        resolution = None if input_resolution is None else pair(input_resolution, "input_resolution", minimum=1)
        self.input_resolution = resolution
        self.window_size, self.shift_size = self._fit(resolution, *self._wanted, always_partition)

        self.norm1 = norm_layer(dim)
        self.attn = attention(self.window_size)
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        self.register_load_state_dict_pre_hook(_forget_attn_mask)  # type: ignore[no-untyped-call]

    @staticmethod
    def _check_window(window_size: int | Sequence[int], shift_size: int | Sequence[int]) -> tuple[Pair, Pair]:
        window = pair(window_size, "window_size", minimum=1)
        shift = pair(shift_size, "shift_size", minimum=0)
        if shift[0] >= window[0] or shift[1] >= window[1]:
            raise ValueError(f"shift_size: got {shift}, want each axis below window_size = {window}")
        return window, shift

    def _fit(self, resolution: Pair | None, window: Pair, shift: Pair, always_partition: bool) -> tuple[Pair, Pair]:
        if resolution is None:
            return window, shift
        return fit_window(self.geometry, resolution, window, shift, always_partition)

    def set_input_size(
        self,
        feat_size: int | Sequence[int],
        window_size: int | Sequence[int] | None = None,
        always_partition: bool | None = None,
    ) -> None:
        """Changes the map that "ms" and "timm" fit window and shift to; a bias table follows a new window.

        Args:
            feat_size: (H, W) of the tokens.
            window_size: None: the one this block was built with, before it was fitted. Given: the new one, and the
                shift, where there was one, becomes half of it.
            always_partition: None: as it is.

        Raises:
            ValueError, TypeError: an argument is wrong, or the geometry refuses the size; nothing has changed then.
        """
        plan = self._plan(pair(feat_size, "feat_size", minimum=1), window_size, always_partition)
        self.input_resolution, self.always_partition, self._wanted, (self.window_size, self.shift_size) = plan
        self.attn.set_window_size(self.window_size)

    def _plan(
        self, resolution: Pair, window_size: int | Sequence[int] | None, always_partition: bool | None
    ) -> tuple[Pair, bool, tuple[Pair, Pair], tuple[Pair, Pair]]:
        """What `set_input_size` would set; raises what it raises."""
        always = self.always_partition if always_partition is None else always_partition
        check_geometry(self.geometry, always, self.strict_img_size)
        window, shift = self._wanted
        if window_size is not None:
            window = pair(window_size, "window_size", minimum=1)
            shift = (window[0] // 2, window[1] // 2) if any(shift) else shift
        fitted = self._fit(resolution, window, shift, always)
        check_window(fitted[0])
        return resolution, always, (window, shift), fitted

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C), or (B, L, C) with `input_resolution`; any floating dtype and strides -> the same shape.

        Raises:
            ValueError: x has another rank, its last dimension is not C, or (H, W) is not the `input_resolution` given.
        """
        image = as_image(x, self.dim, self.input_resolution)
        size = (image.shape[1], image.shape[2])
        fixed = self.geometry in FIXED and self.strict_img_size and self.input_resolution is not None
        if fixed and size != self.input_resolution:
            raise ValueError(
                f"x: got (H, W) = {size}, want the block's input_resolution = {self.input_resolution}; a block built "
                "with input_resolution=None, or with geometry='torchvision' or 'dense', takes any size"
            )
        out = self._residual(image, shift_at(self.geometry, size, self.window_size, self.shift_size))
        return out if x.dim() == 4 else out.flatten(1, 2)

    def _residual(self, x: Tensor, shift_size: Pair) -> Tensor:  # (B, H, W, C) -> (B, H, W, C)
        x = x + self.drop_path(self.attn(self.norm1(x), shift_size=shift_size, pad_order=self._pad_order))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, input_resolution={self.input_resolution}, num_heads={self.num_heads}, "
            f"window_size={self.window_size}, shift_size={self.shift_size}, mlp_ratio={self.mlp_ratio}, "
            f"geometry={self.geometry!r}"
        )


SwinBlock = SwinTransformerBlock


class SwinTransformerV2Block(SwinTransformerBlock):
    """One Swin V2 block: cosine attention and an MLP, each normed before it is added back.

    `x = x + drop_path(norm1(attn(x)));  out = x + drop_path(norm2(mlp(x)))`

    Args:
        pretrained_window_size: as in `WindowAttentionV2`; the rest as in `SwinTransformerBlock`, which has a qk_scale
            that V2 has no use for.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong kind; the message names it.

    Source: Liu et al. 2022 §3.2; microsoft/Swin-Transformer@f82860b, models/swin_transformer_v2.py.

    Example:
        >>> block = SwinTransformerV2Block(96, None, 3, window_size=8, shift_size=4)
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
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: NormLayer = nn.LayerNorm,
        pretrained_window_size: int | Sequence[int] = 0,
        *,
        geometry: str = "ms",
        always_partition: bool = False,
        strict_img_size: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        self._build(
            dim,
            input_resolution,
            num_heads,
            window_size,
            shift_size,
            mlp_ratio,
            drop,
            drop_path,
            act_layer,
            norm_layer,
            geometry,
            always_partition,
            strict_img_size,
            lambda window: WindowAttentionV2(dim, window, num_heads, qkv_bias, attn_drop, drop, pretrained_window_size),
        )

    def _residual(self, x: Tensor, shift_size: Pair) -> Tensor:  # (B, H, W, C) -> (B, H, W, C)
        x = x + self.drop_path(self.norm1(self.attn(x, shift_size=shift_size, pad_order=self._pad_order)))
        out: Tensor = x + self.drop_path(self.norm2(self.mlp(x)))
        return out


class BasicLayer(nn.Module):
    """One stage of Swin V1: `depth` blocks, every second one shifted by half a window, then an optional downsampling.

    Args:
        dim: C of the blocks.
        input_resolution: (H, W) of the tokens, or None; see `SwinTransformerBlock`.
        depth: number of blocks.
        num_heads, window_size, mlp_ratio, qkv_bias, qk_scale, drop, attn_drop, norm_layer: as in the block.
        drop_path: one probability for all blocks, or one for each.
        downsample: class called with (input_resolution, dim=dim, norm_layer=norm_layer), or None.
        use_checkpoint: whether training recomputes each block in the backward pass instead of keeping its activations.
        fused_window_process, geometry, always_partition, strict_img_size: as in the block.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong kind; the message names it.

    Source: microsoft/Swin-Transformer@f82860b, models/swin_transformer.py, BasicLayer.
    """

    blocks: Sequence[SwinTransformerBlock]
    downsample: nn.Module | None

    def __init__(
        self,
        dim: int,
        input_resolution: int | Sequence[int] | None,
        depth: int,
        num_heads: int,
        window_size: int | Sequence[int],
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float | Sequence[float] = 0.0,
        norm_layer: NormLayer = nn.LayerNorm,
        downsample: Downsample | None = None,
        use_checkpoint: bool = False,
        fused_window_process: bool = False,
        *,
        geometry: str = "ms",
        always_partition: bool = False,
        strict_img_size: bool = True,
    ) -> None:
        super().__init__()
        self._build(
            dim,
            input_resolution,
            depth,
            window_size,
            drop_path,
            norm_layer,
            downsample,
            use_checkpoint,
            SwinTransformerBlock,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            drop=drop,
            attn_drop=attn_drop,
            geometry=geometry,
            always_partition=always_partition,
            strict_img_size=strict_img_size,
        )

    def _build(
        self,
        dim: int,
        input_resolution: int | Sequence[int] | None,
        depth: int,
        window_size: int | Sequence[int],
        drop_path: float | Sequence[float],
        norm_layer: NormLayer,
        downsample: Downsample | None,
        use_checkpoint: bool,
        block: type[SwinTransformerBlock],
        **options: Any,
    ) -> None:
        window = pair(window_size, "window_size", minimum=1)
        rates = list(drop_path) if isinstance(drop_path, Sequence) else [drop_path] * depth
        if len(rates) != depth:
            raise ValueError(f"drop_path: got {len(rates)} probabilities, want one for each of depth = {depth} blocks")
        self.dim = dim
        self.depth = depth
        self.use_checkpoint = use_checkpoint
        resolution = None if input_resolution is None else pair(input_resolution, "input_resolution", minimum=1)
        self.input_resolution = resolution
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            block(
                dim,
                resolution,
                window_size=window,
                shift_size=(window[0] // 2, window[1] // 2) if i % 2 else 0,
                drop_path=rates[i],
                norm_layer=norm_layer,
                **options,
            )
            for i in range(depth)
        )
        self.downsample = None if downsample is None else downsample(resolution, dim=dim, norm_layer=norm_layer)

    def set_input_size(
        self,
        feat_size: int | Sequence[int],
        window_size: int | Sequence[int] | None = None,
        always_partition: bool | None = None,
    ) -> None:
        """`SwinTransformerBlock.set_input_size` of every block; where one refuses, none has changed."""
        resolution = pair(feat_size, "feat_size", minimum=1)
        self.check_input_size(resolution, window_size, always_partition)
        for block in self.blocks:
            block.set_input_size(resolution, window_size, always_partition)
        self.input_resolution = resolution
        if isinstance(self.downsample, PatchMerging):
            self.downsample.input_resolution = resolution

    def check_input_size(
        self, feat_size: Pair, window_size: int | Sequence[int] | None, always_partition: bool | None
    ) -> None:
        """Raises what `set_input_size` would raise, and changes nothing."""
        for block in self.blocks:
            block._plan(feat_size, window_size, always_partition)

    def forward_blocks(self, x: Tensor) -> Tensor:
        """x (B, H, W, C), or (B, L, C) with `input_resolution` -> the same shape: the stage before its downsampling."""
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C), or (B, L, C) with `input_resolution` -> the same rank, downsampled if asked for."""
        x = self.forward_blocks(x)
        out: Tensor = x if self.downsample is None else self.downsample(x)
        return out

    def extra_repr(self) -> str:
        return f"dim={self.dim}, input_resolution={self.input_resolution}, depth={self.depth}"


class BasicLayerV2(BasicLayer):
    """One stage of Swin V2: as `BasicLayer`, of `SwinTransformerV2Block`.

    Args:
        pretrained_window_size: as in `WindowAttentionV2`; the rest as in `BasicLayer`, which has a qk_scale that V2 has
            no use for.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong kind; the message names it.

    Source: microsoft/Swin-Transformer@f82860b, models/swin_transformer_v2.py, BasicLayer.
    """

    def __init__(
        self,
        dim: int,
        input_resolution: int | Sequence[int] | None,
        depth: int,
        num_heads: int,
        window_size: int | Sequence[int],
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float | Sequence[float] = 0.0,
        norm_layer: NormLayer = nn.LayerNorm,
        downsample: Downsample | None = None,
        use_checkpoint: bool = False,
        pretrained_window_size: int | Sequence[int] = 0,
        *,
        geometry: str = "ms",
        always_partition: bool = False,
        strict_img_size: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        self._build(
            dim,
            input_resolution,
            depth,
            window_size,
            drop_path,
            norm_layer,
            downsample,
            use_checkpoint,
            SwinTransformerV2Block,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop=drop,
            attn_drop=attn_drop,
            pretrained_window_size=pretrained_window_size,
            geometry=geometry,
            always_partition=always_partition,
            strict_img_size=strict_img_size,
        )


def _forget_attn_mask(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    state_dict.pop(prefix + "attn_mask", None)
