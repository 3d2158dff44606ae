# SPDX-License-Identifier: Apache-2.0
"""swin_fast: shifted-window attention as one fused op, and Swin Transformer blocks on top of it."""

__version__ = "0.1.0"

from .blocks import SwinBlock, SwinTransformerBlock, WindowAttention
from .dispatch import backends, explain, use_backend
from .functional import relative_position_bias, relative_position_index, window_attention

__all__ = [
    "SwinBlock",
    "SwinTransformerBlock",
    "WindowAttention",
    "__version__",
    "backends",
    "explain",
    "relative_position_bias",
    "relative_position_index",
    "use_backend",
    "window_attention",
]
