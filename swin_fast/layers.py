# SPDX-License-Identifier: Apache-2.0
"""What stands around the attention: DropPath, Mlp, PatchEmbed and the two patch mergings, with Microsoft's names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geometry import FIXED, Pair, check_geometry, pair, stage_maps
from .linear import linear

NormLayer = Callable[[int], nn.Module]


def probability(value: float, name: str) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: got {value}, want a probability in [0, 1]")
    return float(value)


def as_image(x: Tensor, dim: int, resolution: Pair | None) -> Tensor:
    """x (B, H, W, C) as it is, or (B, L, C) with L = H*W of `resolution` -> (B, H, W, C).

    Raises:
        ValueError: another rank, another number of channels, or tokens that are no image of that resolution.
    """
    if x.dim() not in (3, 4):
        raise ValueError(f"x: got {x.dim()} dimensions, want 4: (B, H, W, C), or 3: (B, L, C)")
    if x.shape[-1] != dim:
        raise ValueError(f"x: got {x.shape[-1]} channels in its last dimension, want dim = {dim}: x is (B, H, W, C)")
    if x.dim() == 4:
        return x
    if resolution is None:
        raise ValueError("x: got 3 dimensions, want 4: (B, H, W, C); (B, L, C) needs an input_resolution")
    if x.shape[1] != resolution[0] * resolution[1]:
        want = f"L = {resolution[0] * resolution[1]}, the input_resolution = {resolution}"
        raise ValueError(f"x: got L = {x.shape[1]} tokens, want {want}")
    return x.view(x.shape[0], *resolution, dim)


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
        self.drop_prob = probability(drop_prob, "drop_path")

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
        self.drop = nn.Dropout(probability(drop, "drop"))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        x = self.drop(self.act(linear(self.fc1, x)))
        out: Tensor = self.drop(linear(self.fc2, x))
        return out


class PatchEmbed(nn.Module):
    """An image cut into patches, each mapped to C numbers by one Linear (a convolution whose stride is its kernel).

    Args:
        img_size: (height, width) in pixels, or one int for both.
        patch_size: (height, width) of a patch, or one int for both.
        in_chans: channels of the image.
        embed_dim: C.
        norm_layer: class called with `embed_dim`, or None.
        flatten: whether the tokens come as upstream gives them, (B, L, C); False: (B, H, W, C).
        geometry: what images are taken. "ms" and "timm": those of `img_size`. "torchvision": any; rows and columns of
            pixels that do not fill a patch are dropped. "dense": any; zeros are added right and below.
        strict_img_size: False, with "timm" only: any multiple of the patch is taken.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong kind; the message names it.

    Source: microsoft/Swin-Transformer@f82860b, models/swin_transformer.py, PatchEmbed.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: NormLayer | None = None,
        *,
        flatten: bool = True,
        geometry: str = "ms",
        strict_img_size: bool = True,
    ) -> None:
        super().__init__()
        check_geometry(geometry, False, strict_img_size)
        self.patch_size = pair(patch_size, "patch_size", minimum=1)
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.flatten = flatten
        self.geometry = geometry
        self.strict_img_size = strict_img_size
        self.set_input_size(img_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, self.patch_size)
        self.norm = None if norm_layer is None else norm_layer(embed_dim)

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Sets the size that `forward` takes and `patches_resolution` follows.

        Raises:
            ValueError, TypeError: the geometry refuses such an image.
        """
        size = pair(img_size, "img_size", minimum=1)
        (self.patches_resolution,) = stage_maps(self.geometry, size, self.patch_size, 1)
        self.img_size = size
        self.num_patches = self.patches_resolution[0] * self.patches_resolution[1]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_chans, height, width), contiguous or channels_last -> (B, L, C), or (B, H, W, C).

        Raises:
            ValueError: x has another rank or other channels, or a size that the geometry refuses.
        """
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"x: got shape {tuple(x.shape)}, want (B, {self.in_chans}, height, width)")
        if self.geometry in FIXED:
            self._check_size((x.shape[2], x.shape[3]))
        elif self.geometry == "dense" and self._rest(x):
            height, width = self.patch_size
            x = F.pad(x, (0, -x.shape[3] % width, 0, -x.shape[2] % height))
        x = self.proj(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        if self.norm is not None:
            x = self.norm(x)
        return x.flatten(1, 2) if self.flatten else x

    def _rest(self, x: Tensor) -> bool:
        # A branch would tie a traced graph to sizes that leave no rest; padding by nothing costs it nothing.
        if torch.compiler.is_compiling():
            return True
        return x.shape[2] % self.patch_size[0] != 0 or x.shape[3] % self.patch_size[1] != 0

    def _check_size(self, size: Pair) -> None:
        if self.strict_img_size:
            if size != self.img_size:
                raise ValueError(
                    f"x: got an image of {size}, want img_size = {self.img_size} with geometry={self.geometry!r}; "
                    "set_input_size changes it, geometry='torchvision' or 'dense' takes any size"
                )
        elif size[0] % self.patch_size[0] or size[1] % self.patch_size[1]:
            raise ValueError(
                f"x: got an image of {size}, want multiples of patch_size = {self.patch_size} with geometry='timm'; "
                "geometry='torchvision' cuts the rest off, 'dense' pads"
            )

    def extra_repr(self) -> str:
        return f"img_size={self.img_size}, geometry={self.geometry!r}"


class PatchMerging(nn.Module):
    """Halves the map and doubles the channels: `reduction(norm(four neighbours side by side))`.

    The neighbours stand in Microsoft's order, (row, column) = (0, 0), (1, 0), (0, 1), (1, 1). An odd map is padded with
    zeros, right and below. (Microsoft's refuses it; a whole model of geometry "ms" does so here, when it is built.)

    Args:
        input_resolution: (H, W) for inputs of the form (B, L, C), or None.
        dim: C.
        norm_layer: class called with 4C.

    Source: microsoft/Swin-Transformer@f82860b, models/swin_transformer.py, PatchMerging.
    """

    def __init__(
        self, input_resolution: int | Sequence[int] | None, dim: int, norm_layer: NormLayer = nn.LayerNorm
    ) -> None:
        super().__init__()
        self.input_resolution = None
        if input_resolution is not None:
            self.input_resolution = pair(input_resolution, "input_resolution", minimum=1)
        self.dim = dim
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = self._make_norm(norm_layer)

    def _make_norm(self, norm_layer: NormLayer) -> nn.Module:
        return norm_layer(4 * self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, 2C), or (B, L, C) -> (B, ⌈H/2⌉·⌈W/2⌉, 2C).

        Raises:
            ValueError: x has another rank, other channels, or L is not that of `input_resolution`.
        """
        out = self._reduce(_four_neighbours(as_image(x, self.dim, self.input_resolution)))
        return out if x.dim() == 4 else out.flatten(1, 2)

    def _reduce(self, x: Tensor) -> Tensor:
        return linear(self.reduction, self.norm(x))

    def extra_repr(self) -> str:
        return f"input_resolution={self.input_resolution}, dim={self.dim}"


class PatchMergingV2(PatchMerging):
    """`norm(reduction(four neighbours side by side))`: Swin V2 norms after the Linear, over 2C channels.

    Arguments, shapes and errors as `PatchMerging`, but `norm_layer` is called with 2C.

    Source: microsoft/Swin-Transformer@f82860b, models/swin_transformer_v2.py, PatchMerging.
    """

    def _make_norm(self, norm_layer: NormLayer) -> nn.Module:
        return norm_layer(2 * self.dim)

    def _reduce(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(linear(self.reduction, x))
        return out


def _four_neighbours(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, 4C): rows first, then columns, as every Swin but OpenMMLab's."""
    H, W = x.shape[1], x.shape[2]
    if torch.compiler.is_compiling() or H % 2 or W % 2:  # see PatchEmbed._rest
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
    return torch.cat((x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]), dim=-1)
