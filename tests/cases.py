# SPDX-License-Identifier: Apache-2.0
"""Every shape and every tolerance of the tests, and the inputs made from them.

A `Case` is one problem; its id says everything that is not the default: `w7-s3-h3-d32-56x56` is window 7, shift 3,
three heads of 32 channels on a 56 x 56 image. Inputs depend on the case, its seed and the dtype alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

# --------------------------------------------------------------------------------------------------------- tolerances

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPE_IDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}

#: The rule of every kernel: error against float64 <= EAGER_FACTOR * error of eager + epsilon(dtype) * scale.
EAGER_FACTOR = 2.0
#: Orders of the channels in which eager is run; its error is the largest of them. In float32 ours and eager's are of
#: one size, and what decides is luck where few numbers or few scores near a tie make the error: hence many orders.
EAGER_ORDERS = {torch.float32: 8, torch.bfloat16: 2, torch.float16: 2}
#: Two float64 implementations of one formula, as a part of the largest magnitude (at least 1).
FORWARD_FLOAT64 = 1e-12
GRADIENT_FLOAT64 = 1e-10
#: Central differences of a float64 function with this step, and the error they leave.
DIFFERENCE_STEP = 1e-5
DIFFERENCE_ERROR = 1e-7
#: Seconds in which a forked child must have finished.
FORK_SECONDS = 20.0

#: Of `Case.work`, in Triton's interpreter, and in the emulator of CUDA.
MOST_INTERPRETED = 6
MOST_EMULATED = 50
FLOAT32_MIN = torch.finfo(torch.float32).min
#: Names of the native CPU paths, from the plainest on.
ISAS = ("scalar", "avx2", "avx512", "avx512_bf16")


def epsilon(dtype: torch.dtype) -> float:
    """The distance from 1 to the next number of `dtype`."""
    return torch.finfo(dtype).eps


def peak_memory_bound(results: int, nH: int, N: int) -> float:
    """Bytes that a call may take, of which it returns `results`: O(B*H*W*C + nH*N^2).

    A quarter of the results on top of them, 16 times nH*N^2 floats for the dense bias and the slices of its gradient,
    and 16 MiB for threads with their tiles and for the allocator.
    """
    return 1.25 * results + 16 * nH * N**2 * 4 + 16 * 2**20


# ----------------------------------------------------------------------------------------------------------- the case


@dataclass(frozen=True)
class Case:
    """One problem of the core op. Letters: B, H, W, nH heads, hd channels per head."""

    H: int
    W: int
    window: tuple[int, int]
    shift: tuple[int, int]
    nH: int
    hd: int
    B: int = 1
    bias: str = "relative"  # "relative", "dense" or "none"
    pad_value: bool = False
    pad_order: str = "pad_roll"
    mask_value: float = -100.0
    scale: float | None = None
    cosine: bool = False
    values: str = "normal"  # "wide" (logits of +-30), "extreme" (+-1e4), "tiny_rows" (norms below 1e-12), "shut"
    layout: str = "contiguous"  # of qkv, see `lay_out`
    grad_layout: str = "contiguous"  # of grad_out, see `lay_out_grad`
    fixed_seed: int | None = None

    @property
    def N(self) -> int:
        return self.window[0] * self.window[1]

    @property
    def work(self) -> float:
        """Tiles of 64 x 64 scores, at least one for each (window, head)."""
        windows = math.prod(-(-size // w) for size, w in zip((self.H, self.W), self.window, strict=True))
        return self.B * self.nH * windows * max(1, self.N / 64) ** 2

    @property
    def seed(self) -> int:
        return zlib.crc32(str(self).encode()) if self.fixed_seed is None else self.fixed_seed

    @property
    def effective_scale(self) -> float:
        return self.hd**-0.5 if self.scale is None else self.scale

    def __str__(self) -> str:
        def pair(value: tuple[int, int]) -> str:
            return str(value[0]) if value[0] == value[1] else f"{value[0]}x{value[1]}"

        words = [f"w{pair(self.window)}-s{pair(self.shift)}-h{self.nH}-d{self.hd}-{self.H}x{self.W}"]
        for field in fields(self)[6:]:
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if field.name == "B":
                words.append(f"b{value}")
            elif isinstance(value, bool):
                words.append(field.name)
            elif isinstance(value, str):
                words.append({"bias": f"bias_{value}", "grad_layout": f"grad_{value}"}.get(field.name, value))
            elif field.name != "fixed_seed":
                words.append(f"{field.name}{value:g}")
        return "-".join(words)


@dataclass(frozen=True)
class Inputs:
    """The tensors of a case, and the options of the call."""

    case: Case
    qkv: Tensor
    bias: Tensor | None
    logit_scale: Tensor | None
    pad_value: Tensor | None
    grad_out: Tensor

    @property
    def options(self) -> dict[str, object]:
        """The keyword arguments of `swin_fast.window_attention` that are not tensors."""
        case = self.case
        return {
            "window_size": case.window,
            "shift_size": case.shift,
            "scale": None if case.cosine else case.scale,
            "pad_order": case.pad_order,
            "mask_value": case.mask_value,
        }

    def double(self) -> Inputs:
        """The same numbers in float64, contiguous."""
        tensors = {
            name: None if value is None else value.detach().double().contiguous()
            for name, value in vars(self).items()
            if name != "case"
        }
        return Inputs(case=self.case, **tensors)


def make_inputs(case: Case, dtype: torch.dtype, device: str = "cpu") -> Inputs:
    """Inputs of `case`, all rounded to `dtype` first: eager then owes its error to its arithmetic alone.

    bias and logit_scale are float32 numbers (float64 for float64) that `dtype` can represent, but for masks.
    """
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator).double()

    B, H, W, nH, hd, (Wh, Ww) = case.B, case.H, case.W, case.nH, case.hd, case.window
    qkv = normal(B, H, W, 3, nH, hd)
    bias_shape = (nH, case.N, case.N) if case.bias == "dense" else (nH, 2 * Wh - 1, 2 * Ww - 1)
    bias = normal(*bias_shape)
    if case.values == "wide":
        qkv[:, :, :, :2] *= math.sqrt(8 / (case.effective_scale * math.sqrt(hd)))
    elif case.values == "extreme":
        # Integers whose scores are exact in float32 if the scale is a power of two: q.k * scale is near +-1e4 with
        # differences of a few units, so that what is measured is the softmax and not the luck of a rounding.
        size = round(math.sqrt(1e4 / (hd * case.effective_scale)))
        pattern = integers(0, 2, hd) * 2 - 1
        side = integers(0, 2, B, H, W, 2, nH, 1) * 2 - 1
        qkv[:, :, :, :2] = size * side * pattern
        qkv[:, :, :, 1, :, 0] += integers(0, 3, B, H, W, nH) * 0.25
        bias = integers(-16, 17, *bias_shape) / 4
    elif case.values == "tiny_rows":
        qkv[:, ::2, ::3, 0] *= 1e-14 / math.sqrt(hd)
        qkv[:, ::3, 1::2, 1] = 0.0
    elif case.values not in ("normal", "shut"):
        raise ValueError(f"values {case.values!r}")

    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    bias = bias.to(dtype).to(parameter_dtype)
    if case.values == "shut":
        # Rows of nothing but the least number, or -1e30, whose softmax weighs all keys alike; and rows with one other.
        shut = bias[:, 4:6] if case.bias == "dense" else bias[:, :Wh]  # or of the first row of queries
        shut.copy_(torch.tensor([FLOAT32_MIN, -1e30, FLOAT32_MIN])[:nH, None, None])
        shut[2:, 0, Ww - 1] = 0.5
    logit_scale = torch.rand(nH, generator=generator, dtype=torch.float64) * 15 + 5
    pad_value = normal(3, nH, hd)
    grad_out = normal(B, H, W, nH * hd)
    return Inputs(
        case=case,
        qkv=lay_out(qkv.to(dtype), case.layout).to(device),
        bias=None if case.bias == "none" else bias.to(device),
        logit_scale=logit_scale.to(dtype).to(parameter_dtype).to(device) if case.cosine else None,
        pad_value=pad_value.to(dtype).to(device) if case.pad_value else None,
        grad_out=lay_out_grad(grad_out.to(dtype), case.grad_layout).to(device),
    )


def lay_out(qkv: Tensor, layout: str) -> Tensor:
    """qkv with other strides; whatever lies between the elements in memory is NaN."""
    B, H, W, _, nH, hd = qkv.shape
    if layout == "contiguous":
        return qkv
    if layout == "offset":  # odd storage offset, every stride larger than it need be, rows contiguous
        around = qkv.new_full((B, H + 1, W + 2, 3, nH + 1, hd + 1), float("nan"))
        view = around[:, 1:, 1:-1, :, :nH, 1:]
    elif layout == "permuted":  # stored as (3, nH, B, W, H, hd)
        around = qkv.new_full((3, nH, B, W, H, hd), float("nan"))
        view = around.permute(2, 4, 3, 0, 1, 5)
    elif layout == "strided_rows":  # last stride 2
        around = qkv.new_full((B, H, W, 3, nH, hd, 2), float("nan"))
        view = around[..., 1]
    elif layout == "expanded":  # batch stride 0: every image is the first
        return qkv[:1].expand(B, H, W, 3, nH, hd)
    else:
        raise ValueError(f"layout {layout!r}")
    view.copy_(qkv)
    return view


def lay_out_grad(grad_out: Tensor, layout: str) -> Tensor:
    """grad_out (B, H, W, C) with other strides; whatever lies between the elements in memory is NaN."""
    B, H, W, C = grad_out.shape
    if layout == "contiguous":
        return grad_out
    if layout == "offset":
        around = grad_out.new_full((B, H + 1, W + 1, C + 3), float("nan"))
        view = around[:, 1:, 1:, 3:]
    elif layout == "channels_first":
        view = grad_out.new_empty((B, C, H, W)).permute(0, 2, 3, 1)
    elif layout == "expanded":  # stride 0 everywhere, as out.sum().backward() gives
        return grad_out.new_full((), 0.75).expand(B, H, W, C)
    else:
        raise ValueError(f"grad_layout {layout!r}")
    view.copy_(grad_out)
    return view


# ---------------------------------------------------------------------------------------------------------- the lists


def _square(window: int, shift: int, nH: int, hd: int, size: int, **more: object) -> Case:
    return Case(size, size, (window, window), (shift, shift), nH, hd, **more)  # type: ignore[arg-type]


#: Swin's own stages, and the windows of 64, 144 and 256 tokens.
STAGES = (
    _square(7, 0, 3, 32, 56),
    _square(7, 3, 3, 32, 56),
    _square(7, 3, 6, 32, 28, B=2, bias="dense"),
    _square(7, 3, 12, 32, 14, B=2),
    _square(7, 0, 24, 32, 7),
    _square(8, 4, 2, 32, 24, B=2),
    _square(8, 4, 3, 32, 32, cosine=True),
    _square(12, 6, 2, 32, 24),
    _square(12, 6, 2, 32, 30, cosine=True, pad_value=True, bias="dense"),
    _square(16, 8, 2, 32, 32, cosine=True),
)

#: Everything else that can go wrong, each at least once.
HOSTILE = (
    # Geometry.
    _square(7, 3, 2, 32, 7, bias="dense"),  # one window, shifted: four regions in it
    _square(7, 6, 1, 32, 14, B=3),
    _square(7, 1, 1, 32, 21),
    Case(12, 21, (4, 7), (2, 3), 2, 16, B=2),
    Case(12, 21, (4, 7), (0, 3), 2, 16, bias="dense"),
    Case(12, 21, (4, 7), (2, 0), 2, 16),
    Case(13, 11, (7, 7), (3, 3), 2, 32, B=2, pad_value=True),
    Case(13, 11, (7, 7), (3, 3), 2, 32, B=2, pad_order="roll_pad"),
    Case(13, 11, (7, 7), (3, 3), 2, 32, pad_value=True, pad_order="roll_pad", bias="dense"),
    Case(15, 17, (8, 8), (4, 4), 1, 32, pad_value=True),
    Case(5, 4, (7, 7), (3, 3), 2, 32, pad_value=True),
    Case(2, 3, (7, 7), (5, 4), 2, 32, B=2, pad_value=True, pad_order="roll_pad"),
    Case(1, 1, (7, 7), (3, 3), 1, 32, pad_value=True),
    Case(1, 1, (1, 1), (0, 0), 1, 2, bias="none"),
    Case(3, 4, (1, 1), (0, 0), 2, 8, pad_value=True),
    Case(1, 40, (1, 16), (0, 8), 2, 16, pad_value=True),
    Case(9, 10, (3, 5), (1, 2), 3, 32, B=2, pad_order="roll_pad", bias="dense"),
    Case(10, 9, (3, 5), (1, 4), 3, 32),
    Case(5, 6, (2, 3), (1, 1), 1, 2, pad_value=True),
    Case(4, 1, (1, 1), (0, 0), 2, 16, B=2, cosine=True),  # weights of 1, if both passes of a backward round alike
    Case(40, 37, (32, 32), (16, 16), 1, 8, pad_value=True),
    Case(64, 16, (64, 16), (32, 8), 1, 2, bias="dense"),
    Case(530, 530, (2, 2), (1, 1), 1, 2, bias="dense"),  # 70,225 windows
    # Batches.
    _square(7, 3, 2, 32, 14, B=0, pad_value=True),
    _square(7, 3, 2, 32, 14, B=0, cosine=True, bias="dense"),
    # Head dimensions.
    _square(7, 3, 3, 2, 14),
    _square(7, 3, 3, 16, 14, pad_value=True),
    _square(7, 3, 2, 24, 12, bias="dense"),
    _square(8, 4, 6, 30, 16),
    _square(7, 3, 2, 64, 14),
    _square(7, 3, 2, 96, 12, cosine=True),
    _square(6, 3, 1, 128, 12, pad_value=True),
    _square(8, 4, 1, 126, 13, bias="none"),
    # Bias, scale, mask.
    _square(7, 3, 2, 32, 14, bias="none"),
    _square(8, 4, 2, 32, 15, bias="none", pad_value=True, cosine=True),
    _square(7, 3, 2, 32, 14, scale=0.5, mask_value=-200.0),
    _square(7, 3, 2, 32, 14, scale=-0.125),
    _square(7, 3, 2, 32, 14, mask_value=0.0),
    _square(7, 3, 2, 32, 14, mask_value=3.0),
    _square(7, 3, 2, 32, 14, mask_value=float("-inf")),
    # Masks in the bias.
    _square(7, 3, 3, 32, 14, values="shut"),
    _square(7, 3, 3, 32, 7, values="shut", bias="dense", mask_value=float("-inf")),
    _square(7, 3, 3, 32, 7, values="shut", scale=1.5, mask_value=FLOAT32_MIN),
    _square(8, 4, 3, 32, 7, values="shut", cosine=True, mask_value=FLOAT32_MIN, pad_value=True),
    Case(5, 4, (5, 4), (2, 3), 3, 32, values="shut", bias="dense", mask_value=FLOAT32_MIN),
    _square(12, 6, 3, 32, 12, values="shut", mask_value=FLOAT32_MIN),
    _square(16, 8, 3, 32, 16, values="shut", mask_value=float("-inf")),
    Case(10, 10, (10, 9), (4, 3), 3, 32, values="shut", bias="dense", cosine=True, mask_value=FLOAT32_MIN),
    # Magnitudes.
    _square(7, 3, 2, 64, 14, values="extreme"),
    _square(8, 4, 2, 16, 15, values="extreme", bias="dense", pad_value=True),
    _square(7, 3, 2, 32, 14, values="wide"),
    _square(7, 3, 2, 32, 14, values="tiny_rows", cosine=True),
    _square(8, 4, 2, 16, 13, values="tiny_rows", cosine=True, bias="dense", pad_value=True),
    # Memory.
    _square(7, 3, 2, 32, 14, B=2, layout="offset", grad_layout="offset"),
    _square(7, 3, 2, 32, 14, B=2, layout="permuted", grad_layout="channels_first"),
    _square(7, 3, 2, 32, 14, B=2, layout="strided_rows", grad_layout="expanded"),
    _square(7, 3, 2, 32, 14, B=2, layout="expanded"),
    _square(8, 4, 3, 30, 15, B=2, layout="offset", grad_layout="offset", pad_value=True, cosine=True),
    Case(9, 10, (3, 5), (1, 2), 1, 6, B=2, layout="offset", grad_layout="channels_first", pad_order="roll_pad"),
)

ALL = STAGES + HOSTILE


def _small() -> Iterable[Case]:
    """Geometries times options, small enough for pure loops over pixels and pairs."""
    geometries = (
        ((4, 4), (2, 2), (0, 0)),
        ((4, 4), (2, 2), (1, 1)),
        ((4, 6), (2, 3), (1, 2)),
        ((4, 6), (2, 3), (0, 2)),
        ((4, 6), (2, 3), (1, 0)),
        ((3, 3), (3, 3), (1, 2)),
        ((5, 7), (3, 2), (2, 1)),
        ((7, 5), (2, 4), (1, 3)),
        ((1, 7), (1, 3), (0, 1)),
        ((2, 3), (4, 4), (3, 2)),
        ((1, 1), (3, 2), (2, 1)),
        ((3, 2), (1, 1), (0, 0)),
        ((9, 9), (4, 4), (2, 2)),
        ((10, 3), (4, 2), (3, 0)),
    )
    options: tuple[dict[str, object], ...] = (
        {},
        {"bias": "dense", "pad_value": True},
        {"bias": "none", "cosine": True, "nH": 1},
        {"cosine": True, "pad_value": True, "B": 2},
        {"scale": 0.7, "mask_value": -200.0, "bias": "dense", "B": 2},
        {"mask_value": -1.5, "pad_value": True, "layout": "offset", "grad_layout": "offset"},
    )
    for size, window, shift in geometries:
        for option in options:
            for pad_order in ("pad_roll", "roll_pad"):
                yield replace(Case(*size, window, shift, 2, 4, pad_order=pad_order), **option)  # type: ignore[arg-type]


#: Cases of the float64 oracles.
SMALL = tuple(_small())
#: Cases of a few dozen numbers, for finite differences.
TINY = (
    Case(3, 4, (2, 2), (1, 1), 1, 2),
    Case(3, 3, (2, 3), (1, 2), 2, 2, bias="dense", pad_value=True, scale=0.9),
    Case(3, 3, (2, 2), (1, 0), 1, 2, cosine=True, pad_value=True, mask_value=-1.0),
    Case(3, 2, (2, 2), (1, 1), 1, 4, B=2, cosine=True, bias="none", pad_order="roll_pad", pad_value=True),
    Case(3, 4, (2, 3), (0, 2), 1, 2, pad_order="roll_pad", pad_value=True, bias="dense"),
)


# --------------------------------------------------------------------------------------------------------------- fuzz


def random_case(seed: int, index: int) -> Case:
    """The `index`-th random problem of `seed`: every option, three in four shifted, at most some 2e6 scores."""
    rng = np.random.default_rng([seed, index])

    def pick(*options: object) -> object:
        return options[int(rng.integers(len(options)))]

    while True:
        top = int(pick(3, 5, 8, 8, 12, 20))
        window = (int(rng.integers(1, top + 1)), int(rng.integers(1, top + 1)))
        if rng.random() < 0.4:
            window = (int(pick(7, 8, 12)),) * 2
        size = tuple(int(rng.integers(1, 3 * w + 2)) for w in window)
        shift = tuple(int(rng.integers(0, w)) for w in window) if rng.random() < 0.75 else (0, 0)
        B = int(pick(1, 1, 1, 2, 3, 5, 0))
        cosine = bool(rng.random() < 0.3)
        nH = int(rng.integers(1 + cosine, 5))  # the error of one number, dlogit_scale of one head, is luck
        hd = int(pick(32, 32, 32, 2 * int(rng.integers(1, 65))))
        padded = math.prod(-(-s // w) * w for s, w in zip(size, window, strict=True))
        if B * padded * nH * math.prod(window) <= 2_000_000 and B * padded * nH * hd <= 400_000:
            break
    values = "normal" if cosine else str(pick("normal", "normal", "wide", "extreme"))
    scale = float(rng.uniform(0.02, 1.0)) if not cosine and rng.random() < 0.25 else None
    if values == "extreme":
        scale = float(pick(0.25, 0.125, 0.0625))  # type: ignore[arg-type]
    return Case(
        size[0],
        size[1],
        window,
        (shift[0], shift[1]),
        nH,
        hd,
        B=B,
        bias=str(pick("relative", "relative", "dense", "none")),
        pad_value=bool(rng.random() < 0.5),
        pad_order=str(pick("pad_roll", "roll_pad")),
        mask_value=float(pick(-100.0, -100.0, -200.0, -2.5)),  # type: ignore[arg-type]
        scale=scale,
        cosine=cosine,
        values=values,
        layout=str(pick("contiguous", "contiguous", "offset", "permuted", "strided_rows", "expanded")),
        grad_layout=str(pick("contiguous", "contiguous", "offset", "channels_first", "expanded")),
        fixed_seed=int(rng.integers(2**31)),
    )
