# SPDX-License-Identifier: Apache-2.0
"""Whole Swin Transformers, V1 and V2: Microsoft's arguments and parameter names, timm's habits, any geometry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BasicLayer, BasicLayerV2
from .geometry import FIXED, Pair, check_geometry, pair, stage_maps, window_per_stage
from .layers import NormLayer, PatchEmbed, PatchMerging, PatchMergingV2, probability

__all__ = ["SwinTransformer", "SwinTransformerV2"]


class SwinTransformer(nn.Module):
    """Swin Transformer V1, from an image to class scores, or to the feature maps of its stages.

    Args:
        img_size: (height, width) in pixels, or one int for both. "ms" and "timm" fit windows to it and take this size
            only; the other geometries take any.
        patch_size: (height, width) of a patch, or one int for both.
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0: no classifier, `forward` gives the pooled features.
        embed_dim: C of the first stage; it doubles from stage to stage.
        depths: blocks of each stage.
        num_heads: nH of each stage.
        window_size: one int, one (Wh, Ww), or one of these for each stage.
        mlp_ratio, qkv_bias, qk_scale: as in `SwinTransformerBlock`.
        drop_rate: dropout after patch embedding, after every projection and in the MLPs.
        attn_drop_rate: dropout of the attention probabilities; above 0, training runs the plain PyTorch reference.
        drop_path_rate: stochastic depth of the last block; it grows from 0 linearly over the blocks.
        norm_layer: class of the norms.
        ape: whether a learned absolute position embedding is added. For another size than `img_size`, geometries that
            take one interpolate it (bicubic).
        patch_norm: whether the patch embedding is normed.
        use_checkpoint: as `set_grad_checkpointing`.
        fused_window_process: accepted for Microsoft's configurations; the attention is always fused.
        geometry: how windows, shifts and paddings follow the size of the image, see `swin_fast.geometry`: "ms", "timm",
            "torchvision" or "dense".
        always_partition: with "timm" only: windows and shifts stay as given, however small a map is.
        strict_img_size: False, with "timm" only: any multiple of the patch is taken, windows and shifts of `img_size`.
        global_pool: "avg", the mean over all tokens, or "": the classifier sees every token.
        out_indices: stages whose feature maps `forward` returns, (B, H, W, C) before their downsampling and norm, as
            timm's features_only does. The model then ends with the last of them and has neither norm nor head.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong kind, or the geometry refuses the image; the
            message names it, and says which geometry would take it.

    Keys of the state dict are Microsoft's, less the buffers `relative_position_index` and `attn_mask`. A checkpoint
    that holds those and the other derived buffers (`relative_coords_table`, `k_bias`), and only those, beside the
    parameters loads strictly.

    Source: Liu et al. 2021; microsoft/Swin-Transformer@f82860b, models/swin_transformer.py.

    Example:
        >>> model = SwinTransformer(geometry="dense", out_indices=(0, 1, 2, 3))
        >>> [tuple(x.shape) for x in model(torch.randn(1, 3, 300, 450))]
        [(1, 75, 113, 96), (1, 38, 57, 192), (1, 19, 29, 384), (1, 10, 15, 768)]
    """

    absolute_pos_embed: nn.Parameter | None
    layers: Sequence[BasicLayer]

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | Sequence[Any] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_layer: NormLayer = nn.LayerNorm,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        fused_window_process: bool = False,
        *,
        geometry: str = "ms",
        always_partition: bool = False,
        strict_img_size: bool = True,
        global_pool: str = "avg",
        out_indices: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self._build(
            img_size,
            patch_size,
            in_chans,
            num_classes,
            embed_dim,
            depths,
            num_heads,
            window_size,
            drop_rate,
            drop_path_rate,
            norm_layer,
            ape,
            patch_norm,
            geometry,
            always_partition,
            strict_img_size,
            global_pool,
            out_indices,
            BasicLayer,
            PatchMerging,
            [{"qk_scale": qk_scale}] * len(depths),
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop_rate,
            use_checkpoint=use_checkpoint,
        )
        self._init_weights()

    def _build(
        self,
        img_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        in_chans: int,
        num_classes: int,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int | Sequence[Any],
        drop_rate: float,
        drop_path_rate: float,
        norm_layer: NormLayer,
        ape: bool,
        patch_norm: bool,
        geometry: str,
        always_partition: bool,
        strict_img_size: bool,
        global_pool: str,
        out_indices: Sequence[int] | None,
        layer: type[BasicLayer],
        merging: type[PatchMerging],
        stage_options: Sequence[dict[str, Any]],
        **options: Any,
    ) -> None:
        check_geometry(geometry, always_partition, strict_img_size)
        _check_pool(global_pool)
        if len(num_heads) != len(depths) or not depths:
            raise ValueError(f"num_heads: got {tuple(num_heads)}, want one for each of depths = {tuple(depths)}")
        self.num_classes = num_classes if out_indices is None else 0
        self.num_layers = len(depths)
        self.embed_dim = embed_dim
        self.global_pool = global_pool
        self.geometry = geometry
        self.out_indices = None if out_indices is None else _stage_indices(out_indices, self.num_layers, "out_indices")
        if self.out_indices is not None:
            self.num_layers = max(self.out_indices) + 1
        self.num_features = embed_dim * 2 ** (self.num_layers - 1)
        size, patch = pair(img_size, "img_size", minimum=1), pair(patch_size, "patch_size", minimum=1)
        maps = stage_maps(geometry, size, patch, self.num_layers)
        windows = window_per_stage(window_size, len(depths))

        self.patch_embed = PatchEmbed(
            size,
            patch,
            in_chans,
            embed_dim,
            norm_layer if patch_norm else None,
            flatten=False,
            geometry=geometry,
            strict_img_size=strict_img_size,
        )
        if ape:
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, maps[0][0] * maps[0][1], embed_dim))
            self._ape_map = maps[0]
        else:
            self.absolute_pos_embed = None
        self.pos_drop = nn.Dropout(probability(drop_rate, "drop_rate"))
        blocks, last = sum(depths), probability(drop_path_rate, "drop_path_rate")
        rates = iter([last * i / max(blocks - 1, 1) for i in range(blocks)])
        layers = nn.ModuleList()
        for i in range(self.num_layers):
            try:
                stage = layer(
                    embed_dim * 2**i,
                    maps[i],
                    depths[i],
                    num_heads[i],
                    windows[i],
                    drop=drop_rate,
                    drop_path=[next(rates) for _ in range(depths[i])],
                    norm_layer=norm_layer,
                    downsample=merging if i < self.num_layers - 1 else None,
                    geometry=geometry,
                    always_partition=always_partition,
                    strict_img_size=strict_img_size,
                    **stage_options[i],
                    **options,
                )
            except ValueError as error:
                raise _refusal(size, i, error) from None
            layers.append(stage)
        self.layers = layers  # type: ignore[assignment]
        if self.out_indices is None:
            self.norm = norm_layer(self.num_features)
            self.head = self._make_head(num_classes)

    def _make_head(self, num_classes: int) -> nn.Module:
        if num_classes < 0:
            raise ValueError(f"num_classes: got {num_classes}, want 0 (no classifier) or more")
        return nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def _init_weights(self) -> None:
        """Microsoft's initial weights: Linears and tables from a normal of deviation 0.02, truncated; biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _init_linear(module)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    # ----------------------------------------------------------------------------------------------------- forward

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """x (B, in_chans, height, width) -> (B, num_classes), or with `out_indices` a list of (B, H, W, C).

        Raises:
            ValueError: x has another rank, other channels, or a size that the geometry refuses.
        """
        if self.out_indices is not None:
            maps = self._maps(x, self.num_layers - 1)
            return [maps[i] for i in self.out_indices]
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """x (B, in_chans, height, width) -> (B, H, W, C) of the last stage, normed."""
        x = self._embed(x)
        for layer in self.layers:
            x = layer(x)
        return x if self.out_indices is not None else self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """x (B, H, W, C) of `forward_features` -> (B, num_classes); with `pre_logits` the pooled features (B, C).

        With global_pool="" nothing is pooled: (B, H, W, num_classes), or (B, H, W, C).
        """
        if self.global_pool == "avg":
            x = x.mean(dim=(1, 2))
        return x if pre_logits or self.out_indices is not None else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The feature maps of stages, before their downsampling, and the last features.

        Args:
            x: (B, in_chans, height, width).
            indices: stages, negative ones from the end; an int n: the last n; None: all.
            norm: whether the last stage's map is normed (the model's norm fits no other).
            stop_early: whether to leave out the stages after the last index; the features are then those of that stage.
            output_fmt: "NCHW", contiguous.
            intermediates_only: whether to return the maps alone.

        Returns:
            ((B, H, W, C) features, normed if they are the last stage's, list of (B, C, H, W) maps), or the list.

        Raises:
            ValueError, TypeError: an index out of range, another format, or an image that the geometry refuses.

        Source: the interface of timm's models.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: got {output_fmt!r}, want 'NCHW'")
        if norm and self.out_indices is not None:
            raise ValueError("norm: got True, want False: a model with out_indices has no norm")
        taken = _stage_indices(indices, self.num_layers, "indices")
        maps = self._maps(x, taken[-1] if stop_early or intermediates_only else self.num_layers - 1)
        last, ends = maps[-1], len(maps) == self.num_layers and self.out_indices is None
        features = self.norm(last) if ends and (norm or not intermediates_only) else last
        if norm:
            maps[-1] = features
        chosen = [maps[i].permute(0, 3, 1, 2).contiguous() for i in taken]
        return chosen if intermediates_only else (features, chosen)

    def _maps(self, x: Tensor, last: int) -> list[Tensor]:
        """The maps (B, H, W, C) of the stages up to `last`, each before its downsampling."""
        x = self._embed(x)
        maps: list[Tensor] = []
        for i, layer in enumerate(self.layers[: last + 1]):
            x = layer.forward_blocks(x)
            maps.append(x)
            if i < last and layer.downsample is not None:
                x = layer.downsample(x)
        return maps

    def _embed(self, x: Tensor) -> Tensor:  # -> (B, H, W, C)
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            size = (x.shape[1], x.shape[2])
            embedding = self.absolute_pos_embed.view(1, *self._ape_map, -1)
            if self.geometry not in FIXED or self._ape_map != size:
                embedding = _resized(embedding, size)
            x = x + embedding
        out: Tensor = self.pos_drop(x)
        return out

    # -------------------------------------------------------------------------------------------------- timm's habits

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """One entry for each map that `out_indices` (or all stages) gives: its channels, its stride, its module."""
        stride = max(self.patch_embed.patch_size)
        stages = range(self.num_layers) if self.out_indices is None else self.out_indices
        return [{"num_chs": self.embed_dim * 2**i, "reduction": stride * 2**i, "module": f"layers.{i}"} for i in stages]

    def set_input_size(
        self,
        img_size: int | Sequence[int] | None = None,
        window_size: int | Sequence[Any] | None = None,
        always_partition: bool | None = None,
    ) -> None:
        """Changes the image size, and the windows, that "ms" and "timm" fit windows and shifts to.

        Tables and the absolute position embedding are resized where they no longer fit (bicubic): new parameters, so
        make the optimizer afterwards. Other than timm's, this keeps the windows unless `window_size` is given.

        Args:
            img_size: (height, width), or one int for both; None: as it is.
            window_size: one int, one (Wh, Ww), or one of these for each stage; None: as built.
            always_partition: as in the constructor; None: as it is.

        Raises:
            ValueError, TypeError: an argument is wrong, or the geometry refuses the size; nothing has changed then.
        """
        embed = self.patch_embed
        size = embed.img_size if img_size is None else pair(img_size, "img_size", minimum=1)
        maps = stage_maps(self.geometry, size, embed.patch_size, self.num_layers)
        windows: list[Pair | None] = [None] * self.num_layers
        if window_size is not None:
            windows = [*window_per_stage(window_size, self.num_layers)]
        for i, layer in enumerate(self.layers):
            try:
                layer.check_input_size(maps[i], windows[i], always_partition)
            except ValueError as error:
                raise _refusal(size, i, error) from None
        embed.set_input_size(size)
        for layer, feat_size, window in zip(self.layers, maps, windows, strict=True):
            layer.set_input_size(feat_size, window, always_partition)
        if self.absolute_pos_embed is not None and self._ape_map != maps[0]:
            with torch.no_grad():
                embedding = _resized(self.absolute_pos_embed.view(1, *self._ape_map, -1), maps[0])
            self.absolute_pos_embed = nn.Parameter(embedding.flatten(1, 2), self.absolute_pos_embed.requires_grad)
            self._ape_map = maps[0]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, freshly initialised, on the device and in the dtype of the model; 0 classes: none.

        Raises:
            ValueError: global_pool is neither "avg" nor "", or the model was built with out_indices.
        """
        if self.out_indices is not None:
            raise ValueError("reset_classifier: this model was built with out_indices and has no classifier")
        if global_pool is not None:
            _check_pool(global_pool)
        like = next(self.parameters())
        self.head = self._make_head(num_classes).to(like.device, like.dtype)
        if isinstance(self.head, nn.Linear):
            _init_linear(self.head)
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool

    def get_classifier(self) -> nn.Module:
        """The classifier: a Linear, or an Identity for 0 classes."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training recomputes each block in the backward pass instead of keeping its activations."""
        for layer in self.layers:
            layer.use_checkpoint = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that upstream's recipes exempt from weight decay."""
        exempt = ("absolute_pos_embed", "relative_position_bias_table", "cpb_mlp", "logit_scale")
        return {name for name, _ in self.named_parameters() if any(word in name for word in exempt)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters by depth, for layer-wise learning rates, in the form that timm reads."""
        blocks = [
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^layers\.(\d+)\.downsample", (99999,)),  # timm's sign for: with the parameters before
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^absolute_pos_embed|^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else blocks}


class SwinTransformerV2(SwinTransformer):
    """Swin Transformer V2: cosine attention, a continuous position bias, norms after each branch.

    Args:
        pretrained_window_sizes: for each stage the window of the pretraining, 0: the stage's own; see
            `WindowAttentionV2`. The rest as in `SwinTransformer`, which has a qk_scale that V2 has no use for.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong kind, or the geometry refuses the image; the
            message names it, and says which geometry would take it.

    Source: Liu et al. 2022; microsoft/Swin-Transformer@f82860b, models/swin_transformer_v2.py.

    Example:
        >>> model = SwinTransformerV2(img_size=256, window_size=8)
        >>> model(torch.randn(1, 3, 256, 256)).shape
        torch.Size([1, 1000])
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | Sequence[Any] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_layer: NormLayer = nn.LayerNorm,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        pretrained_window_sizes: Sequence[int] | None = None,
        *,
        geometry: str = "ms",
        always_partition: bool = False,
        strict_img_size: bool = True,
        global_pool: str = "avg",
        out_indices: Sequence[int] | None = None,
    ) -> None:
        nn.Module.__init__(self)
        pretrained = [0] * len(depths) if pretrained_window_sizes is None else list(pretrained_window_sizes)
        if len(pretrained) != len(depths):
            want = f"one for each of depths = {tuple(depths)}"
            raise ValueError(f"pretrained_window_sizes: got {tuple(pretrained)}, want {want}")
        self._build(
            img_size,
            patch_size,
            in_chans,
            num_classes,
            embed_dim,
            depths,
            num_heads,
            window_size,
            drop_rate,
            drop_path_rate,
            norm_layer,
            ape,
            patch_norm,
            geometry,
            always_partition,
            strict_img_size,
            global_pool,
            out_indices,
            BasicLayerV2,
            PatchMergingV2,
            [{"pretrained_window_size": window} for window in pretrained],
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop_rate,
            use_checkpoint=use_checkpoint,
        )
        self._init_weights()

    def _init_weights(self) -> None:
        """As V1, and the norms of the residual branches start at zero: a fresh block is the identity."""
        super()._init_weights()
        for layer in self.layers:
            for block in layer.blocks:
                for norm in (block.norm1, block.norm2):
                    for parameter in norm.parameters():
                        nn.init.zeros_(parameter)


def _init_linear(module: nn.Linear) -> None:
    nn.init.trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _check_pool(global_pool: str) -> None:
    if global_pool not in ("avg", ""):
        raise ValueError(f"global_pool: got {global_pool!r}, want 'avg' or ''")


def _stage_indices(indices: int | Sequence[int] | None, stages: int, name: str) -> tuple[int, ...]:
    """Stage numbers from timm's forms: all, the last n, or some, negative ones from the end."""
    if indices is None:
        return tuple(range(stages))
    wanted = range(-indices, 0) if isinstance(indices, int) else indices
    if not wanted or not all(-stages <= i < stages for i in wanted):
        raise ValueError(f"{name}: got {indices!r}, want stages from {-stages} to {stages - 1}, at least one")
    return tuple(sorted({i % stages for i in wanted}))


def _refusal(size: Pair, stage: int, error: ValueError) -> ValueError:
    return ValueError(f"img_size: got {size}; its stage {stage} says: {error}")


def _resized(embedding: Tensor, size: Pair) -> Tensor:
    """(1, H, W, C) -> (1, *size, C), bicubic."""
    return F.interpolate(embedding.permute(0, 3, 1, 2), size, mode="bicubic").permute(0, 2, 3, 1)
