# SPDX-License-Identifier: Apache-2.0
"""Two independent definitions of shifted-window attention, and the runs that the tests compare.

`brute_force` follows the paper's words pixel by pixel in float64; `eager` is what model code runs today, every step in
the input dtype. Neither shares a line with the package.

Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021, sections 3.2 and
3.3; for cosine attention Liu et al., "Swin Transformer V2", 2022, section 3.2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import swin_fast
from cases import EAGER_ORDERS, Case, Inputs, epsilon, make_inputs
from comparison import Comparison, compare
from swin_fast import reference

# -------------------------------------------------------------------------------------------------------- brute force


class Place(NamedTuple):
    """Where a token stands on one axis of the padded image."""

    pixel: int | None  # None: padding
    window: int  # the batched window that computes it
    inside: int  # its coordinate in that window
    sub_window: int  # tokens of one window attend to each other only within one of these


def places(size: int, window: int, shift: int, pad_order: str) -> list[Place]:
    """Every token of one axis.

    Shifted windows cut the axis at shift, shift + window, ...: what lies before the first cut is a sub-window of its
    own, as is what lies after the last, and cyclic shifting makes one batched window of the two.
    """
    padded = window * math.ceil(size / window)
    windows = padded // window
    found = []
    if pad_order == "pad_roll":
        for token in range(padded):
            sub_window = math.floor((token - shift) / window)  # -1 before the first cut
            found.append(
                Place(token if token < size else None, sub_window % windows, (token - shift) % window, sub_window)
            )
        return found
    # Rolled first: pixel y moves shift places towards the front, within the image. Then the padding follows, and the
    # last `shift` places of all are what the mask takes for the part before the first cut.
    moved: list[tuple[int, int | None]] = [((pixel - shift) % size, pixel) for pixel in range(size)]
    moved += [(place, None) for place in range(size, padded)]
    for place, pixel in moved:
        front = place >= padded - shift
        found.append(Place(pixel, place // window, place % window, -1 if front else place // window))
    return found


def windows_of_pixels(case: Case) -> np.ndarray:
    """The number of the window of every pixel, (H, W)."""
    numbers = np.full((case.H, case.W), -1)
    columns = places(case.W, case.window[1], case.shift[1], case.pad_order)
    for row in places(case.H, case.window[0], case.shift[0], case.pad_order):
        for column in columns:
            if row.pixel is not None and column.pixel is not None:
                numbers[row.pixel, column.pixel] = row.window * (len(columns) // case.window[1]) + column.window
    return numbers


def tokens_of_pixels(case: Case) -> np.ndarray:
    """The number, 0 to N-1, of every pixel in its window, (H, W)."""
    numbers = np.full((case.H, case.W), -1)
    for row in places(case.H, case.window[0], case.shift[0], case.pad_order):
        for column in places(case.W, case.window[1], case.shift[1], case.pad_order):
            if row.pixel is not None and column.pixel is not None:
                numbers[row.pixel, column.pixel] = row.inside * case.window[1] + column.inside
    return numbers


def brute_force(inputs: Inputs) -> np.ndarray:
    """out (B, H, W, nH*hd) in float64, by loops over pixels and over the tokens that each may see."""
    case = inputs.case
    qkv = inputs.qkv.detach().double().numpy()
    bias = None if inputs.bias is None else inputs.bias.detach().double().numpy()
    pad = np.zeros((3, case.nH, case.hd)) if inputs.pad_value is None else inputs.pad_value.detach().double().numpy()
    logit_scale = None if inputs.logit_scale is None else inputs.logit_scale.detach().double().numpy()
    Wh, Ww = case.window
    rows = places(case.H, Wh, case.shift[0], case.pad_order)
    columns = places(case.W, Ww, case.shift[1], case.pad_order)
    out = np.zeros((case.B, case.H, case.W, case.nH, case.hd))
    for b in range(case.B):
        for qy in rows:
            for qx in columns:
                if qy.pixel is None or qx.pixel is None:
                    continue
                scores, values = [], []
                q = qkv[b, qy.pixel, qx.pixel, 0]
                for ky in rows:
                    for kx in columns:
                        if (ky.window, kx.window) != (qy.window, qx.window):
                            continue
                        real = ky.pixel is not None and kx.pixel is not None
                        _, k, v = qkv[b, ky.pixel, kx.pixel] if real else pad
                        score = (q * k).sum(-1)
                        if logit_scale is None:
                            score = score * case.effective_scale
                        else:
                            q_norm = np.maximum(np.sqrt((q * q).sum(-1)), 1e-12)
                            k_norm = np.maximum(np.sqrt((k * k).sum(-1)), 1e-12)
                            score = logit_scale * score / (q_norm * k_norm)
                        if bias is not None and bias.shape[1:] == (Wh * Ww, Wh * Ww):
                            score = score + bias[:, qy.inside * Ww + qx.inside, ky.inside * Ww + kx.inside]
                        elif bias is not None:
                            score = score + bias[:, qy.inside - ky.inside + Wh - 1, qx.inside - kx.inside + Ww - 1]
                        if (ky.sub_window, kx.sub_window) != (qy.sub_window, qx.sub_window):
                            score = score + case.mask_value
                        scores.append(score)
                        values.append(v)
                out[b, qy.pixel, qx.pixel] = _softmax_average(np.array(scores), np.array(values))
    return out.reshape(case.B, case.H, case.W, case.nH * case.hd)


def _softmax_average(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Averages values (keys, nH, hd) by the softmax of scores (keys, nH); a row of -inf alone averages to zero."""
    top = scores.max(axis=0)
    weights = np.exp(scores - np.where(top == -np.inf, 0.0, top))
    total = weights.sum(axis=0)
    weights = weights / np.where(total == 0.0, 1.0, total)
    return (weights[:, :, None] * values).sum(axis=0)


# -------------------------------------------------------------------------------------------------------------- eager


def shift_regions(padded: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: object) -> Tensor:
    """The region map of the released code, by slices: (Ph, Pw), one number per region."""
    regions = torch.zeros(padded, device=device)
    count = 0
    for rows in (slice(0, -window[0]), slice(-window[0], -shift[0]), slice(-shift[0], None)):
        for columns in (slice(0, -window[1]), slice(-window[1], -shift[1]), slice(-shift[1], None)):
            regions[rows, columns] = count
            count += 1
    return regions


def relative_index(window: tuple[int, int]) -> Tensor:
    """The entry of the flattened relative bias for every pair of tokens, (N, N), as the released code has it."""
    axes = torch.meshgrid(torch.arange(window[0]), torch.arange(window[1]), indexing="ij")
    coordinates = torch.stack(axes).flatten(1)
    relative = coordinates[:, :, None] - coordinates[:, None, :]
    return (relative[0] + window[0] - 1) * (2 * window[1] - 1) + relative[1] + window[1] - 1


def _narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype`. What is too large for it is its largest number, as libraries mask with the least one of a dtype."""
    narrow = values.to(dtype)
    lost = torch.isinf(narrow) & torch.isfinite(values)
    narrow.detach()[lost] = values.detach()[lost].sign().to(dtype) * torch.finfo(dtype).max
    return narrow


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


def softmax_without_cancellation(scores: Tensor) -> Tensor:
    """A softmax whose gradient is P * dP instead of P * (dP - sum(P * dP)): the size before the two cancel."""
    return (scores - scores.logsumexp(-1, keepdim=True).detach()).exp()


def softmax_of_real_queries(case: Case) -> Callable[[Tensor], Tensor]:
    """A softmax for `eager` that lets nothing of a padded query through, NaN neither: its row is dropped in the end."""
    rows = places(case.H, case.window[0], case.shift[0], case.pad_order)
    columns = places(case.W, case.window[1], case.shift[1], case.pad_order)
    across = len(columns) // case.window[1]
    padded = torch.zeros(len(rows) // case.window[0] * across, case.N, dtype=torch.bool)
    for row in rows:
        for column in columns:
            if row.pixel is None or column.pixel is None:
                padded[row.window * across + column.window, row.inside * case.window[1] + column.inside] = True

    def softmax(scores: Tensor) -> Tensor:
        by_window = scores.unflatten(0, (-1, len(padded)))
        dropped = padded.to(scores.device)[:, None, :, None]
        return by_window.masked_fill(dropped, 0.0).softmax(-1).flatten(0, 1)

    return softmax


def eager(
    inputs: Inputs,
    qkv: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    pad_value: Tensor | None,
    softmax: Callable[[Tensor], Tensor] = _softmax,
) -> Tensor:
    """out (B, H, W, nH*hd), every step in qkv's dtype, as timm and Microsoft's code run it. Differentiable."""
    case = inputs.case
    (Wh, Ww), (sh, sw), dtype = case.window, case.shift, qkv.dtype
    B, H, W, _, nH, hd = qkv.shape
    Ph, Pw = Wh * math.ceil(H / Wh), Ww * math.ceil(W / Ww)
    shifted = (sh, sw) != (0, 0)

    x = qkv
    if shifted and case.pad_order == "roll_pad":
        x = torch.roll(x, (-sh, -sw), (1, 2))
    if (Ph, Pw) != (H, W):
        pad = x.new_zeros(3, nH, hd) if pad_value is None else pad_value.to(dtype)
        x = torch.cat([x, pad.expand(B, H, Pw - W, 3, nH, hd)], dim=2)
        x = torch.cat([x, pad.expand(B, Ph - H, Pw, 3, nH, hd)], dim=1)
    if shifted and case.pad_order == "pad_roll":
        x = torch.roll(x, (-sh, -sw), (1, 2))

    windows = (Ph // Wh) * (Pw // Ww)
    x = x.view(B, Ph // Wh, Wh, Pw // Ww, Ww, 3, nH, hd).permute(0, 1, 3, 2, 4, 5, 6, 7)
    q, k, v = x.reshape(B * windows, Wh * Ww, 3, nH, hd).permute(2, 0, 3, 1, 4).unbind(0)
    if logit_scale is None:
        scores = (q * case.effective_scale) @ k.transpose(-2, -1)
    else:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * logit_scale.to(dtype).view(nH, 1, 1)
    if bias is not None:
        dense = _narrowed(bias, dtype)
        if case.bias == "relative":
            index = relative_index(case.window).to(bias.device)
            dense = dense.flatten(1).t()[index.view(-1)].view(case.N, case.N, nH).permute(2, 0, 1).contiguous()
        scores = scores + dense.unsqueeze(0)
    if shifted:
        regions = shift_regions((Ph, Pw), case.window, case.shift, qkv.device)
        regions = regions.view(Ph // Wh, Wh, Pw // Ww, Ww).permute(0, 2, 1, 3).reshape(windows, Wh * Ww)
        differ = regions[:, None, :] != regions[:, :, None]
        mask_value = _narrowed(torch.tensor(case.mask_value, dtype=torch.float64, device=qkv.device), dtype)
        mask = torch.where(differ, mask_value, torch.zeros_like(mask_value))
        scores = scores.view(B, windows, nH, case.N, case.N) + mask.unsqueeze(1).unsqueeze(0)
        scores = scores.view(B * windows, nH, case.N, case.N)
    x = softmax(scores) @ v

    x = x.transpose(1, 2).reshape(B, Ph // Wh, Pw // Ww, Wh, Ww, nH * hd)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(B, Ph, Pw, nH * hd)
    if shifted and case.pad_order == "pad_roll":
        x = torch.roll(x, (sh, sw), (1, 2))
    x = x[:, :H, :W]
    if shifted and case.pad_order == "roll_pad":
        x = torch.roll(x, (sh, sw), (1, 2))
    return x.contiguous()


# --------------------------------------------------------------------------------------------------------------- runs


#: (qkv, bias, logit_scale, pad_value) -> out
Attention = Callable[[Tensor, "Tensor | None", "Tensor | None", "Tensor | None"], Tensor]
Results = dict[str, Tensor]


def run(attention: Attention, inputs: Inputs) -> Results:
    """out and the gradient of every argument; q, k and v of dqkv apart, for their sizes differ."""
    arguments = (inputs.qkv, inputs.bias, inputs.logit_scale, inputs.pad_value)
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in arguments]
    out = attention(*leaves)
    present = [leaf for leaf in leaves if leaf is not None]
    found = torch.autograd.grad(out, present, inputs.grad_out, allow_unused=True, materialize_grads=True)
    gradients = iter(found)
    results = {"out": out.detach()}
    results["dq"], results["dk"], results["dv"] = next(gradients).unbind(3)
    if inputs.bias is not None:
        results["dbias"] = next(gradients)
    if inputs.logit_scale is not None:
        results["dlogit_scale"] = next(gradients)
    if inputs.pad_value is not None:
        results["dpad_q"], results["dpad_k"], results["dpad_v"] = next(gradients).unbind(0)
    return results


def run_op_forward(inputs: Inputs, backend: str) -> Tensor:
    """The public function, forced to `backend`."""
    return swin_fast.window_attention(
        inputs.qkv,
        inputs.bias,
        logit_scale=inputs.logit_scale,
        pad_value=inputs.pad_value,
        backend=backend,
        **inputs.options,
    )


def run_op(inputs: Inputs, backend: str) -> Results:
    """The public function, forced to `backend`, and its gradients."""

    def attention(qkv: Tensor, bias: Tensor | None, logit_scale: Tensor | None, pad_value: Tensor | None) -> Tensor:
        moved = replace(inputs, qkv=qkv, bias=bias, logit_scale=logit_scale, pad_value=pad_value)
        return run_op_forward(moved, backend)

    return run(attention, inputs)


def run_eager(inputs: Inputs, softmax: Callable[[Tensor], Tensor] = _softmax) -> Results:
    return run(functools.partial(eager, inputs, softmax=softmax), inputs)


def _run_eager_reordered(inputs: Inputs, order: int) -> Results:
    """`run_eager` with the channels of every head in another order: equal but for the rounding of its sums."""
    hd = inputs.case.hd
    channels = torch.randperm(hd, generator=torch.Generator().manual_seed(order)).to(inputs.qkv.device)

    def reorder(tensor: Tensor, channels: Tensor) -> Tensor:
        return tensor.unflatten(-1, (-1, hd))[..., channels].flatten(-2)

    moved = replace(
        inputs,
        qkv=inputs.qkv[..., channels],
        pad_value=None if inputs.pad_value is None else inputs.pad_value[..., channels],
        grad_out=reorder(inputs.grad_out, channels),
    )
    back = channels.argsort()
    return {
        name: value if name in ("dbias", "dlogit_scale") else reorder(value, back)
        for name, value in run_eager(moved).items()
    }


def run_reference(inputs: Inputs) -> Results:
    """The differentiable reference, below the op and its explicit backward."""

    def attention(qkv: Tensor, bias: Tensor | None, logit_scale: Tensor | None, pad_value: Tensor | None) -> Tensor:
        options = {**inputs.options, "scale": inputs.case.effective_scale}
        return reference.window_attention(qkv, bias, logit_scale=logit_scale, pad_value=pad_value, **options)

    return run(attention, inputs)


@dataclass(frozen=True)
class Truth:
    """What a kernel's results are compared with."""

    exact: Results  # float64
    scale: Results  # float64, the sizes before cancellation
    eager: Sequence[Results]  # in the dtype of the inputs, in several orders of the channels
    tiny: dict[str, Tensor]  # for dq, dk: the rows below the 1e-12 of cosine attention, whose gradients are vast

    def comparisons(self, got: Results, dtype: torch.dtype) -> list[Comparison]:
        """One comparison per tensor of a problem in `dtype`. A missing or an additional tensor is a failure."""
        if got.keys() != self.exact.keys():
            raise AssertionError(f"got the tensors {sorted(got)}, wanted {sorted(self.exact)}")
        lines = []
        for name, exact in self.exact.items():
            eager_results = [results[name] for results in self.eager]
            scale = torch.maximum(exact.abs(), self.scale[name].abs())
            judge = functools.partial(compare, dtype=eager_results[0].dtype, eps=epsilon(dtype))
            tiny = self.tiny.get(name)
            if tiny is None or got[name].shape != exact.shape:
                lines.append(judge(name, got[name], exact, eager_results, scale=scale))
                continue
            for part, rows in ((name, ~tiny), (f"{name} of tiny", tiny)):
                eager_rows = [result[rows] for result in eager_results]
                lines.append(judge(part, got[name][rows], exact[rows], eager_rows, scale=scale[rows]))
        return lines


def find_truth(inputs: Inputs) -> Truth:
    """float64 autograd of the reference (which test_reference.py holds against `brute_force`), and eager's results."""
    double, orders = inputs.double(), EAGER_ORDERS[inputs.qkv.dtype]
    norms = double.qkv.norm(dim=-1).unbind(3)
    tiny = {name: norm < 1e-12 for name, norm in zip(("dq", "dk"), norms, strict=False)}
    return Truth(
        exact=run_reference(double),
        scale=run_eager(double, softmax_without_cancellation),
        eager=[run_eager(inputs), *(_run_eager_reordered(inputs, order) for order in range(1, orders))],
        tiny={name: rows for name, rows in tiny.items() if inputs.case.cosine and rows.any()},
    )


@functools.lru_cache(maxsize=4)
def problem(case: Case, dtype: torch.dtype, device: str) -> tuple[Inputs, Truth]:
    """Inputs and truth of a case; kept for the next backend that runs the same case."""
    inputs = make_inputs(case, dtype, device)
    return inputs, find_truth(inputs)
