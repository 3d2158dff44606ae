# SPDX-License-Identifier: Apache-2.0
"""timm and torchvision, imported so that a CPU build of torch is enough: take them from here.

The torchvision wheel of a package index is linked against CUDA. Beside a torch without CUDA its library of compiled ops
does not load, and its import then fails at the schema of one of them, and timm's with it. Two schemas are all it
needs; what is missing then are compiled ops that no Swin uses. After this module, transformers can be imported too.
"""

from __future__ import annotations

import torch


def _declare_torchvision_ops() -> torch.library.Library | None:
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


TORCHVISION_OPS = _declare_torchvision_ops()  # kept alive: the schemas go with it

import timm  # noqa: E402
import torchvision  # noqa: E402

__all__ = ["TORCHVISION_OPS", "timm", "torchvision"]
