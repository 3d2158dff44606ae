# SPDX-License-Identifier: Apache-2.0
"""Everything wrong that a caller can pass: the error has the right type and names the argument, got and wanted."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import swin_fast
from swin_fast import ops

NAN, INF = float("nan"), float("inf")


class Bad(NamedTuple):
    """One wrong call: `change` replaces arguments of a good one."""

    id: str
    error: type[Exception]
    argument: str
    change: dict[str, Any]


def _good() -> dict[str, Any]:
    """B 2, H 5, W 7, nH 3, hd 4, window (2, 3)."""
    return {"qkv": torch.zeros(2, 5, 7, 3, 3, 4), "bias": torch.zeros(3, 3, 5), "window_size": (2, 3)}


def _qkv(*shape: int, **options: Any) -> dict[str, Any]:
    return {"qkv": torch.zeros(shape, **options), "bias": None}


def _nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls the strided layout a prototype; users make it all the same
        return torch.nested.nested_tensor([torch.zeros(5, 7, 3, 3, 4)] * 2)


def _of_dtype(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.zeros(shape).to(dtype)


NOT_TENSORS = {
    "none": None,
    "array": np.zeros((2, 5, 7, 3, 3, 4), np.float32),
    "list": [[1.0]],
    "float": 1.0,
    "str": "qkv",
}
WRONG_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex128)
}
NOT_PAIRS = {
    "none": None,
    "float": 2.0,
    "str": "2",
    "bool": True,
    "floats": (2.0, 3.0),
    "bools": (True, 1),
    "nones": (None, 2),
}
NOT_NUMBERS = {
    "str": "0.5",
    "bool": True,
    "tensor": torch.tensor(0.5),
    "complex": 1j,
    "list": [0.5],
    "array": np.ones(1),
}

BAD = [
    # qkv
    *(Bad(f"qkv-{name}", TypeError, "qkv", {"qkv": value}) for name, value in NOT_TENSORS.items()),
    *(
        Bad(f"qkv-{name}", TypeError, "qkv", {"qkv": _of_dtype(dtype, 2, 5, 7, 3, 3, 4), "bias": None})
        for name, dtype in WRONG_DTYPES.items()
    ),
    Bad("qkv-float8", TypeError, "qkv", _qkv(2, 5, 7, 3, 3, 4, dtype=torch.float8_e4m3fn)),
    Bad("qkv-sparse", TypeError, "qkv", {"qkv": torch.zeros(2, 5, 7, 3, 3, 4).to_sparse()}),
    Bad("qkv-nested", TypeError, "qkv", {"qkv": _nested()}),
    Bad("qkv-0-dims", ValueError, "qkv", _qkv()),
    Bad("qkv-3-dims", ValueError, "qkv", _qkv(2, 35, 36)),
    Bad("qkv-4-dims", ValueError, "qkv", _qkv(2, 5, 7, 36)),
    Bad("qkv-5-dims", ValueError, "qkv", _qkv(5, 7, 3, 3, 4)),
    Bad("qkv-7-dims", ValueError, "qkv", _qkv(1, 2, 5, 7, 3, 3, 4)),
    Bad("qkv-2-parts", ValueError, "qkv", _qkv(2, 5, 7, 2, 3, 4)),
    Bad("qkv-heads-first", ValueError, "qkv", _qkv(2, 5, 7, 6, 3, 4)),
    Bad("qkv-H-0", ValueError, "qkv", _qkv(2, 0, 7, 3, 3, 4)),
    Bad("qkv-W-0", ValueError, "qkv", _qkv(2, 5, 0, 3, 3, 4)),
    Bad("qkv-nH-0", ValueError, "qkv", _qkv(2, 5, 7, 3, 0, 4)),
    Bad("qkv-hd-0", ValueError, "qkv", _qkv(2, 5, 7, 3, 3, 0)),
    Bad("qkv-hd-1", ValueError, "qkv", _qkv(2, 5, 7, 3, 3, 1)),
    Bad("qkv-hd-odd", ValueError, "qkv", _qkv(2, 5, 7, 3, 3, 31)),
    Bad("qkv-hd-130", ValueError, "qkv", _qkv(2, 5, 7, 3, 3, 130)),
    # bias
    *(
        Bad(f"bias-{name}", TypeError, "bias", {"bias": value})
        for name, value in NOT_TENSORS.items()
        if value is not None
    ),
    *(
        Bad(f"bias-{name}", TypeError, "bias", {"bias": _of_dtype(dtype, 3, 3, 5)})
        for name, dtype in WRONG_DTYPES.items()
    ),
    *(
        Bad(f"bias-shape-{'x'.join(map(str, shape))}", ValueError, "bias", {"bias": torch.zeros(shape)})
        for shape in [
            (),
            (3,),
            (3, 5),
            (1, 3, 5),
            (4, 3, 5),
            (3, 5, 3),
            (3, 6, 5),
            (3, 1, 1),
            (15, 3),
            (3, 36),
            (3, 15),
        ]
    ),
    Bad("bias-per-window", ValueError, "bias", {"bias": torch.zeros(9, 3, 6, 6)}),
    Bad("bias-heads-last", ValueError, "bias", {"bias": torch.zeros(6, 6, 3)}),
    Bad("bias-device", ValueError, "bias", {"bias": torch.zeros(3, 3, 5, device="meta")}),
    Bad("bias-sparse", TypeError, "bias", {"bias": torch.zeros(3, 3, 5).to_sparse()}),
    # window_size
    *(
        Bad(f"window_size-{name}", TypeError, "window_size", {"window_size": value})
        for name, value in NOT_PAIRS.items()
    ),
    Bad("window_size-0", ValueError, "window_size", {"window_size": 0}),
    Bad("window_size-0-wide", ValueError, "window_size", {"window_size": (2, 0)}),
    Bad("window_size-negative", ValueError, "window_size", {"window_size": (-2, 3)}),
    Bad("window_size-both-negative", ValueError, "window_size", {"window_size": (-2, -3)}),
    Bad("window_size-1-int", ValueError, "window_size", {"window_size": (7,)}),
    Bad("window_size-3-ints", ValueError, "window_size", {"window_size": (2, 7, 7)}),
    Bad("window_size-empty", ValueError, "window_size", {"window_size": ()}),
    Bad("window_size-33x32", ValueError, "window_size", {"window_size": (33, 32)}),
    Bad("window_size-1x1025", ValueError, "window_size", {"window_size": (1, 1025)}),
    Bad("window_size-huge", ValueError, "window_size", {"window_size": 2**40}),
    Bad("window_size-tensor", TypeError, "window_size", {"window_size": torch.tensor([2, 3])}),
    Bad("window_size-array", TypeError, "window_size", {"window_size": np.array([2, 3])}),
    Bad("window_size-missing", TypeError, "window_size", {"window_size": ...}),
    # shift_size
    *(Bad(f"shift_size-{name}", TypeError, "shift_size", {"shift_size": value}) for name, value in NOT_PAIRS.items()),
    Bad("shift_size-negative", ValueError, "shift_size", {"shift_size": -1}),
    Bad("shift_size-negative-wide", ValueError, "shift_size", {"shift_size": (0, -1)}),
    Bad("shift_size-window", ValueError, "shift_size", {"shift_size": (2, 3)}),
    Bad("shift_size-window-high", ValueError, "shift_size", {"shift_size": (2, 0)}),
    Bad("shift_size-window-wide", ValueError, "shift_size", {"shift_size": (0, 3)}),
    Bad("shift_size-int-above-one-axis", ValueError, "shift_size", {"shift_size": 2}),
    Bad("shift_size-1-int", ValueError, "shift_size", {"shift_size": (1,)}),
    Bad("shift_size-3-ints", ValueError, "shift_size", {"shift_size": (1, 1, 1)}),
    Bad("shift_size-tensor", TypeError, "shift_size", {"shift_size": torch.tensor([1, 1])}),
    # scale
    *(Bad(f"scale-{name}", TypeError, "scale", {"scale": value}) for name, value in NOT_NUMBERS.items()),
    Bad("scale-nan", ValueError, "scale", {"scale": NAN}),
    Bad("scale-inf", ValueError, "scale", {"scale": INF}),
    Bad("scale-minus-inf", ValueError, "scale", {"scale": -INF}),
    Bad("scale-and-logit_scale", ValueError, "scale", {"scale": 0.5, "logit_scale": torch.ones(3)}),
    # logit_scale
    *(
        Bad(f"logit_scale-{name}", TypeError, "logit_scale", {"logit_scale": value})
        for name, value in NOT_TENSORS.items()
        if value is not None
    ),
    *(
        Bad(f"logit_scale-{name}", TypeError, "logit_scale", {"logit_scale": _of_dtype(dtype, 3)})
        for name, dtype in WRONG_DTYPES.items()
    ),
    *(
        Bad(
            f"logit_scale-shape-{'x'.join(map(str, shape))}",
            ValueError,
            "logit_scale",
            {"logit_scale": torch.ones(shape)},
        )
        for shape in [(), (1,), (2,), (4,), (3, 1), (3, 1, 1), (1, 3), (0,)]
    ),
    Bad("logit_scale-device", ValueError, "logit_scale", {"logit_scale": torch.ones(3, device="meta")}),
    # pad_value
    *(
        Bad(f"pad_value-{name}", TypeError, "pad_value", {"pad_value": value})
        for name, value in NOT_TENSORS.items()
        if value is not None
    ),
    *(
        Bad(f"pad_value-{name}", TypeError, "pad_value", {"pad_value": _of_dtype(dtype, 3, 3, 4)})
        for name, dtype in WRONG_DTYPES.items()
    ),
    *(
        Bad(f"pad_value-shape-{'x'.join(map(str, shape))}", ValueError, "pad_value", {"pad_value": torch.ones(shape)})
        for shape in [(), (36,), (3, 12), (3, 4, 3), (1, 3, 4), (3, 1, 4), (3, 3, 1), (1, 1, 1, 3, 3, 4), (9, 4)]
    ),
    Bad("pad_value-device", ValueError, "pad_value", {"pad_value": torch.ones(3, 3, 4, device="meta")}),
    # pad_order
    *(
        Bad(f"pad_order-{value!r}", ValueError, "pad_order", {"pad_order": value})
        for value in ("", "pad", "PAD_ROLL", "pad-roll", "roll_pad ", None, True, 0, ("pad_roll",), ["roll_pad"])
    ),
    # mask_value
    *(Bad(f"mask_value-{name}", TypeError, "mask_value", {"mask_value": value}) for name, value in NOT_NUMBERS.items()),
    Bad("mask_value-none", TypeError, "mask_value", {"mask_value": None}),
    Bad("mask_value-nan", ValueError, "mask_value", {"mask_value": NAN}),
    # backend
    *(
        Bad(f"backend-{value!r}", ValueError, "backend", {"backend": value})
        for value in ("", "CPU", "auto", "cudnn", True, 0, ("cpu",), torch.device("cpu"))
    ),
]


def _arguments(bad: Bad) -> dict[str, Any]:
    return {name: value for name, value in {**_good(), **bad.change}.items() if value is not ...}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_window_attention_names_the_argument(bad: Bad) -> None:
    with pytest.raises(bad.error) as error:
        swin_fast.window_attention(**_arguments(bad))
    assert type(error.value) is bad.error
    message = str(error.value)
    if bad.id == "window_size-missing":
        assert "window_size" in message  # Python's own words
        return
    assert re.match(rf"{bad.argument}: got .+, want ", message), message


def test_there_are_at_least_100_and_all_differ() -> None:
    assert len(BAD) >= 100
    assert len({bad.id for bad in BAD}) == len(BAD)


def test_the_good_call_is_good() -> None:
    assert swin_fast.window_attention(**_good()).shape == (2, 5, 7, 12)


def test_an_int_or_a_list_is_a_pair() -> None:
    qkv = torch.randn(1, 6, 6, 3, 1, 2)
    want = swin_fast.window_attention(qkv, None, window_size=(3, 3), shift_size=(1, 1))
    assert torch.equal(swin_fast.window_attention(qkv, None, window_size=3, shift_size=1), want)
    assert torch.equal(swin_fast.window_attention(qkv, None, window_size=[3, 3], shift_size=[1, 1]), want)


@pytest.mark.parametrize(
    ("error", "argument", "call"),
    [
        (TypeError, "window_size", lambda: swin_fast.relative_position_index(None)),
        (TypeError, "window_size", lambda: swin_fast.relative_position_index(7.0)),
        (ValueError, "window_size", lambda: swin_fast.relative_position_index((7, 0))),
        (ValueError, "window_size", lambda: swin_fast.relative_position_index((7, 7, 7))),
        (ValueError, "window_size", lambda: swin_fast.relative_position_index(33)),
        (TypeError, "window_size", lambda: swin_fast.relative_position_bias(torch.zeros(169, 3), "7")),
        (TypeError, "table", lambda: swin_fast.relative_position_bias(None, 7)),
        (TypeError, "table", lambda: swin_fast.relative_position_bias(np.zeros((169, 3)), 7)),
        (TypeError, "table", lambda: swin_fast.relative_position_bias(torch.zeros(169, 3, dtype=torch.int64), 7)),
        (ValueError, "table", lambda: swin_fast.relative_position_bias(torch.zeros(3, 169), 7)),
        (ValueError, "table", lambda: swin_fast.relative_position_bias(torch.zeros(169), 7)),
        (ValueError, "table", lambda: swin_fast.relative_position_bias(torch.zeros(169, 3, 1), 7)),
        (ValueError, "table", lambda: swin_fast.relative_position_bias(torch.zeros(225, 3), 7)),
    ],
)
def test_relative_position_functions_name_the_argument(
    error: type[Exception], argument: str, call: Callable[[], Any]
) -> None:
    with pytest.raises(error, match=rf"^{argument}: got .+, want "):
        call()


# --- the second fence: a native op that is called past the public function refuses, and never crashes


def _raw(dtype: torch.dtype, hd: int, **change: Any) -> list[Any]:
    good = {
        "qkv": torch.zeros(2, 5, 7, 3, 3, hd, dtype=dtype),
        "bias": torch.zeros(3, 3, 5),
        "logit_scale": None,
        "pad_value": torch.zeros(3, 3, hd, dtype=dtype),
        "window_size": (2, 3),
        "shift_size": (1, 2),
        "scale": 0.5,
        "pad_order": "pad_roll",
        "mask_value": -100.0,
    }
    assert set(change) <= set(good)
    return list({**good, **change}.values())


def _wrong(dtype: torch.dtype, hd: int) -> dict[str, dict[str, Any]]:
    return {
        "qkv-float64": {"qkv": torch.zeros(2, 5, 7, 3, 3, hd, dtype=torch.float64)},
        "qkv-int64": {"qkv": torch.zeros(2, 5, 7, 3, 3, hd, dtype=torch.int64)},
        "qkv-5-dims": {"qkv": torch.zeros(5, 7, 3, 3, hd, dtype=dtype)},
        "qkv-7-dims": {"qkv": torch.zeros(1, 2, 5, 7, 3, 3, hd, dtype=dtype)},
        "qkv-2-parts": {"qkv": torch.zeros(2, 5, 7, 2, 3, hd, dtype=dtype)},
        "qkv-hd-odd": {"qkv": torch.zeros(2, 5, 7, 3, 3, hd + 1, dtype=dtype), "pad_value": None},
        "qkv-hd-130": {"qkv": torch.zeros(2, 5, 7, 3, 3, 130, dtype=dtype), "pad_value": None},
        "bias-float64": {"bias": torch.zeros(3, 3, 5, dtype=torch.float64)},
        "bias-float16": {"bias": torch.zeros(3, 3, 5, dtype=torch.float16)},
        "bias-dims": {"bias": torch.zeros(3, 15)},
        "bias-heads": {"bias": torch.zeros(2, 3, 5)},
        "bias-shape": {"bias": torch.zeros(3, 6, 5)},
        "logit_scale-float16": {"logit_scale": torch.zeros(3, dtype=torch.float16)},
        "logit_scale-short": {"logit_scale": torch.zeros(2)},
        "logit_scale-dims": {"logit_scale": torch.zeros(3, 1)},
        "pad_value-dtype": {"pad_value": torch.zeros(3, 3, hd, dtype=torch.float64)},
        "pad_value-heads": {"pad_value": torch.zeros(3, 2, hd, dtype=dtype)},
        "pad_value-dims": {"pad_value": torch.zeros(9 * hd, dtype=dtype)},
        "window_size-0": {"window_size": (0, 3), "bias": None},
        "window_size-negative": {"window_size": (-2, 3), "bias": None},
        "window_size-large": {"window_size": (33, 32), "bias": None},
        "window_size-huge": {"window_size": (2**32, 2**32), "bias": None},
        "shift_size-negative": {"shift_size": (-1, 0)},
        "shift_size-window": {"shift_size": (2, 0)},
        "pad_order-unknown": {"pad_order": "pad"},
        "pad_order-empty": {"pad_order": ""},
        "qkv-H-0": {"qkv": torch.zeros(2, 0, 7, 3, 3, hd, dtype=dtype)},
    }


def _wrong_gradients(dtype: torch.dtype, hd: int) -> dict[str, torch.Tensor]:
    return {
        "shape": torch.zeros(2, 5, 7, 3 * hd - 1, dtype=dtype),
        "dims": torch.zeros(2, 5, 7, 3, hd, dtype=dtype),
        "batch": torch.zeros(1, 5, 7, 3 * hd, dtype=dtype),
        "float64": torch.zeros(2, 5, 7, 3 * hd, dtype=torch.float64),
        "float8": torch.zeros(2, 5, 7, 3 * hd, dtype=torch.float8_e4m3fn),
    }


@pytest.fixture
def native_backend(backend: str) -> str:
    if backend == "reference":
        pytest.skip("the reference is Python: its errors are PyTorch's")
    return backend


SIZES = (torch.float32, 4)


@pytest.fixture
def sizes(native_backend: str) -> tuple[torch.dtype, int]:
    """A dtype and head_dim that the backend takes."""
    return (torch.bfloat16, 32) if native_backend == "cuda" else SIZES


@pytest.mark.parametrize("name", _wrong(*SIZES))
def test_native_ops_refuse(native_backend: str, device: str, name: str, sizes: tuple[torch.dtype, int]) -> None:
    wrong = _raw(*sizes, **_wrong(*sizes)[name])
    arguments = [x.to(device) if isinstance(x, torch.Tensor) else x for x in wrong]
    with pytest.raises(RuntimeError):
        ops.WINDOW_ATTENTION_FWD[native_backend](*arguments)
    dtype, hd = sizes
    with pytest.raises(RuntimeError):
        ops.WINDOW_ATTENTION_BWD[native_backend](torch.zeros(2, 5, 7, 3 * hd, dtype=dtype, device=device), *arguments)


@pytest.mark.parametrize("name", _wrong_gradients(*SIZES))
def test_native_backward_refuses_a_wrong_gradient(
    native_backend: str, device: str, name: str, sizes: tuple[torch.dtype, int]
) -> None:
    arguments = [x.to(device) if isinstance(x, torch.Tensor) else x for x in _raw(*sizes)]
    with pytest.raises(RuntimeError):
        ops.WINDOW_ATTENTION_BWD[native_backend](_wrong_gradients(*sizes)[name].to(device), *arguments)


def test_native_ops_take_the_good_call(native_backend: str, device: str, sizes: tuple[torch.dtype, int]) -> None:
    dtype, hd = sizes
    arguments = [x.to(device) if isinstance(x, torch.Tensor) else x for x in _raw(*sizes)]
    assert ops.WINDOW_ATTENTION_FWD[native_backend](*arguments).shape == (2, 5, 7, 3 * hd)
    grad_out = torch.zeros(2, 5, 7, 3 * hd, dtype=dtype, device=device)
    assert len(ops.WINDOW_ATTENTION_BWD[native_backend](grad_out, *arguments)) == 4
