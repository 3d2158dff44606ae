# SPDX-License-Identifier: Apache-2.0
"""swin_fast: shifted-window attention as one fused op, and Swin Transformer blocks and models on top of it."""

__version__ = "0.1.0"

from . import models
from .attention import WindowAttention, WindowAttentionV2
from .blocks import BasicLayer, BasicLayerV2, SwinBlock, SwinTransformerBlock, SwinTransformerV2Block
from .dispatch import backends, explain, use_backend
from .functional import relative_position_bias, relative_position_index, window_attention
from .layers import PatchEmbed, PatchMerging, PatchMergingV2
from .models import *  # noqa: F403  the models that models.__all__ names

__all__ = [
    "BasicLayer",
    "BasicLayerV2",
    "PatchEmbed",
    "PatchMerging",
    "PatchMergingV2",
    "SwinBlock",
    "SwinTransformerBlock",
    "SwinTransformerV2Block",
    "WindowAttention",
    "WindowAttentionV2",
    "__version__",
    "backends",
    "explain",
    "relative_position_bias",
    "relative_position_index",
    "use_backend",
    "window_attention",
    *models.__all__,
]
