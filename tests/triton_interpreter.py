# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter, mended for tests.

numpy has no bfloat16: the interpreter multiplies bit patterns in `tl.dot` as if they were integers (triton-lang/triton
issue 11584), cuts float32 off instead of rounding it, and makes large numbers of very small ones. A computed bound of a
loop is an array of one number, which recent numpy does not take for an index. And a product in float32 that is added to
a sum is computed first and then added, where a GPU adds its terms to the sum, one by one, which is less exact.
`test_triton_interpreted.py` fails as soon as a mend is not needed any more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_ORIGINALS = {
    (interpreter.InterpreterBuilder, "create_dot"): interpreter.InterpreterBuilder.create_dot,
    (interpreter, "_convert_float"): interpreter._convert_float,
    (interpreter, "_patch_lang_tensor"): interpreter._patch_lang_tensor,
}


def install() -> None:
    interpreter.InterpreterBuilder.create_dot = _dot
    interpreter._convert_float = _convert_float
    interpreter._patch_lang_tensor = _patch_lang_tensor


def uninstall() -> None:
    for (owner, name), original in _ORIGINALS.items():
        setattr(owner, name, original)


def _dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    element = getattr(a.dtype, "scalar", a.dtype)
    if element == tl.float32 and d.data.any():
        return interpreter.TensorHandle(_chain(a.data, b.data, d.data), d.dtype.scalar)
    if element != tl.bfloat16:
        return _ORIGINALS[interpreter.InterpreterBuilder, "create_dot"](self, a, b, d, *options)
    product = np.matmul(_by_value(a.data), _by_value(b.data), dtype=d.data.dtype)
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


def _chain(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """total + a @ b, each term multiplied and added with one rounding."""
    for i in range(a.shape[1]):
        terms = a[:, i, None].astype(np.float64) * b[i].astype(np.float64)
        total = (terms + total).astype(np.float32)
    return total


def _convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
    if (source, target) == (tl.float32, tl.bfloat16):
        rounded = torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16).reshape(data.shape)
    if (source, target) == (tl.bfloat16, tl.float32):
        return _by_value(data).view(np.uint32)
    return _ORIGINALS[interpreter, "_convert_float"](data, source, target, rounding)


def _patch_lang_tensor(tensor: Any, scope: Any) -> None:
    _ORIGINALS[interpreter, "_patch_lang_tensor"](tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _by_value(bits: np.ndarray) -> np.ndarray:
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
