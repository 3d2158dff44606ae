# SPDX-License-Identifier: Apache-2.0
"""The published Swin Transformers by name, with random weights. Options as in the two classes they make."""

from __future__ import annotations

from typing import Any

from .swin_transformer import SwinTransformer, SwinTransformerV2

__all__ = [
    "SwinTransformer",
    "SwinTransformerV2",
    "swin_base_patch4_window7_224",
    "swin_base_patch4_window12_384",
    "swin_large_patch4_window7_224",
    "swin_large_patch4_window12_384",
    "swin_small_patch4_window7_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_base_window8_256",
    "swinv2_base_window12_192",
    "swinv2_base_window12to16_256",
    "swinv2_base_window12to24_384",
    "swinv2_base_window16_256",
    "swinv2_large_window12_192",
    "swinv2_large_window12to16_256",
    "swinv2_large_window12to24_384",
    "swinv2_small_window8_256",
    "swinv2_small_window16_256",
    "swinv2_tiny_window8_256",
    "swinv2_tiny_window16_256",
]


_TINY: dict[str, Any] = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
_SMALL: dict[str, Any] = {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)}
_BASE: dict[str, Any] = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
_LARGE: dict[str, Any] = {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)}
_W12: dict[str, Any] = {"pretrained_window_sizes": (12, 12, 12, 6)}


def swin_tiny_patch4_window7_224(**options: Any) -> SwinTransformer:
    """Swin-T at 224, 28,288,354 parameters; options as in `SwinTransformer`."""
    return SwinTransformer(**{"img_size": 224, "window_size": 7, **_TINY, **options})


def swin_small_patch4_window7_224(**options: Any) -> SwinTransformer:
    """Swin-S at 224, 49,606,258 parameters; options as in `SwinTransformer`."""
    return SwinTransformer(**{"img_size": 224, "window_size": 7, **_SMALL, **options})


def swin_base_patch4_window7_224(**options: Any) -> SwinTransformer:
    """Swin-B at 224, 87,768,224 parameters; options as in `SwinTransformer`."""
    return SwinTransformer(**{"img_size": 224, "window_size": 7, **_BASE, **options})


def swin_large_patch4_window7_224(**options: Any) -> SwinTransformer:
    """Swin-L at 224, 196,532,476 parameters; options as in `SwinTransformer`."""
    return SwinTransformer(**{"img_size": 224, "window_size": 7, **_LARGE, **options})


def swin_base_patch4_window12_384(**options: Any) -> SwinTransformer:
    """Swin-B at 384, 87,903,584 parameters; options as in `SwinTransformer`."""
    return SwinTransformer(**{"img_size": 384, "window_size": 12, **_BASE, **options})


def swin_large_patch4_window12_384(**options: Any) -> SwinTransformer:
    """Swin-L at 384, 196,735,516 parameters; options as in `SwinTransformer`."""
    return SwinTransformer(**{"img_size": 384, "window_size": 12, **_LARGE, **options})


def swinv2_tiny_window8_256(**options: Any) -> SwinTransformerV2:
    """Swin V2-T at 256, window 8, 28,347,154 parameters; options as in `SwinTransformerV2`."""
    return SwinTransformerV2(**{"img_size": 256, "window_size": 8, **_TINY, **options})


def swinv2_small_window8_256(**options: Any) -> SwinTransformerV2:
    """Swin V2-S at 256, window 8, 49,728,418 parameters; options as in `SwinTransformerV2`."""
    return SwinTransformerV2(**{"img_size": 256, "window_size": 8, **_SMALL, **options})


def swinv2_base_window8_256(**options: Any) -> SwinTransformerV2:
    """Swin V2-B at 256, window 8, 87,918,816 parameters; options as in `SwinTransformerV2`."""
    return SwinTransformerV2(**{"img_size": 256, "window_size": 8, **_BASE, **options})


def swinv2_tiny_window16_256(**options: Any) -> SwinTransformerV2:
    """Swin V2-T at 256, window 16, 28,347,154 parameters; options as in `SwinTransformerV2`."""
    return SwinTransformerV2(**{"img_size": 256, "window_size": 16, **_TINY, **options})


def swinv2_small_window16_256(**options: Any) -> SwinTransformerV2:
    """Swin V2-S at 256, window 16, 49,728,418 parameters; options as in `SwinTransformerV2`."""
    return SwinTransformerV2(**{"img_size": 256, "window_size": 16, **_SMALL, **options})


def swinv2_base_window16_256(**options: Any) -> SwinTransformerV2:
    """Swin V2-B at 256, window 16, 87,918,816 parameters; options as in `SwinTransformerV2`."""
    return SwinTransformerV2(**{"img_size": 256, "window_size": 16, **_BASE, **options})


def swinv2_base_window12_192(**options: Any) -> SwinTransformerV2:
    """Swin V2-B at 192, window 12, 21,841 classes, 109,280,841 parameters; options as in `SwinTransformerV2`."""
    return SwinTransformerV2(**{"img_size": 192, "window_size": 12, "num_classes": 21841, **_BASE, **options})


def swinv2_large_window12_192(**options: Any) -> SwinTransformerV2:
    """Swin V2-L at 192, window 12, 21,841 classes, 228,772,549 parameters; options as in `SwinTransformerV2`."""
    return SwinTransformerV2(**{"img_size": 192, "window_size": 12, "num_classes": 21841, **_LARGE, **options})


def swinv2_base_window12to16_256(**options: Any) -> SwinTransformerV2:
    """Swin V2-B at 256, window 12 grown to 16, 87,918,816 parameters; options as in `SwinTransformerV2`."""
    return SwinTransformerV2(**{"img_size": 256, "window_size": 16, **_W12, **_BASE, **options})


def swinv2_large_window12to16_256(**options: Any) -> SwinTransformerV2:
    """Swin V2-L at 256, window 12 grown to 16, 196,739,932 parameters; options as in `SwinTransformerV2`."""
    return SwinTransformerV2(**{"img_size": 256, "window_size": 16, **_W12, **_LARGE, **options})


def swinv2_base_window12to24_384(**options: Any) -> SwinTransformerV2:
    """Swin V2-B at 384, window 12 grown to 24, 87,918,816 parameters; options as in `SwinTransformerV2`."""
    return SwinTransformerV2(**{"img_size": 384, "window_size": 24, **_W12, **_BASE, **options})


def swinv2_large_window12to24_384(**options: Any) -> SwinTransformerV2:
    """Swin V2-L at 384, window 12 grown to 24, 196,739,932 parameters; options as in `SwinTransformerV2`."""
    return SwinTransformerV2(**{"img_size": 384, "window_size": 24, **_W12, **_LARGE, **options})
