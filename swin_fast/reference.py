# SPDX-License-Identifier: Apache-2.0
"""Shifted-window attention in plain PyTorch, straight from its definition: the backend that runs everywhere.

Liu et al. 2021 (Swin Transformer), section 3.2, and Liu et al. 2022 (Swin Transformer V2), section 3.2, for the cosine
scores. Every dtype, every argument, differentiable; low precision is raised to float32, computed there and rounded once
at the end; float64 stays float64. Never optimised: the other backends are measured against it.

Letters: B batch, H, W image tokens, Hp, Wp the same padded, Wh, Ww window, N = Wh*Ww, nW windows of one image, nH
heads, hd head_dim.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

COSINE_EPS = 1e-12
# Asked here, once: the question would be a node of a traced graph.
AUTOCAST_DEVICES = tuple(
    name for name in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla") if torch.amp.is_autocast_available(name)
)


def window_attention(
    qkv: Tensor,
    bias: Tensor | None,
    *,
    window_size: tuple[int, int],
    shift_size: tuple[int, int],
    scale: float,
    logit_scale: Tensor | None = None,
    pad_value: Tensor | None = None,
    pad_order: str = "pad_roll",
    mask_value: float = -100.0,
    attn_drop: float = 0.0,
) -> Tensor:
    """Attention within shifted windows of an image: `softmax(scale q kᵀ + bias + mask) v` in every window.

    Args:
        qkv: (B, H, W, 3, nH, hd), any floating dtype.
        bias: (nH, N, N) dense or (nH, 2Wh-1, 2Ww-1) relative, or None.
        window_size: (Wh, Ww).
        shift_size: (sh, sw), each below the window.
        scale: factor of the scores; unused when `logit_scale` is given.
        logit_scale: (nH,); given: scores are `logit_scale q·k / (max(‖q‖, 1e-12) max(‖k‖, 1e-12))`.
        pad_value: (3, nH, hd), the qkv row of padded positions, rounded to the dtype of qkv; None: zeros.
        pad_order: "pad_roll" pads the image, then rolls; "roll_pad" rolls the image, then pads.
        mask_value: added to the score of two tokens from different shift regions.
        attn_drop: dropout probability of the attention weights.

    Returns:
        (B, H, W, nH*hd), dtype of qkv, contiguous.
    """
    grid = _Grid((qkv.shape[1], qkv.shape[2]), window_size, shift_size, pad_order)
    with without_autocast(qkv.device.type):
        q, k, v = _windowed_qkv(qkv, pad_value, grid)
        attention = _attention(q, k, bias, logit_scale, scale, mask_value, grid)  # (B, nW, nH, N, N)
        out = F.dropout(attention, attn_drop) @ v  # (B, nW, nH, N, hd)
        return grid.image(out.transpose(2, 3).flatten(3)).to(qkv.dtype).contiguous()


def window_attention_bwd(
    grad_out: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    *,
    window_size: tuple[int, int],
    shift_size: tuple[int, int],
    scale: float,
    logit_scale: Tensor | None = None,
    pad_value: Tensor | None = None,
    pad_order: str = "pad_roll",
    mask_value: float = -100.0,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of `window_attention` as explicit formulas, everything recomputed from the inputs.

    With P the attention weights and dO the gradient of their product with v: `dV = Pᵀ dO`, `dP = dO Vᵀ` and
    `dS = P (dP - rowsum(P dP))`; the scores S are linear in the bias and, but for the norms, in q and k.

    Args:
        grad_out: (B, H, W, nH*hd); the others as in `window_attention`.

    Returns:
        dqkv (B, H, W, 3, nH, hd) in the dtype of qkv, dbias in the form of bias, dlogit_scale (nH,) and dpad_value
        (3, nH, hd), each in its argument's dtype, or None where the argument is None.
    """
    grid = _Grid((qkv.shape[1], qkv.shape[2]), window_size, shift_size, pad_order)
    with without_autocast(qkv.device.type):
        q, k, v = _windowed_qkv(qkv, pad_value, grid)
        attention = _attention(q, k, bias, logit_scale, scale, mask_value, grid)  # (B, nW, nH, N, N)
        grad = grad_out.to(q.dtype).unflatten(3, (q.shape[2], q.shape[4]))  # (B, H, W, nH, hd)
        grad = grid.windows(grad, grad.new_zeros(())).transpose(2, 3)  # (B, nW, nH, N, hd); padded queries are dropped

        dv = attention.mT @ grad
        dattention = grad @ v.mT
        dscores = attention * (dattention - (attention * dattention).sum(-1, keepdim=True))
        dscores = dscores.masked_fill((attention == 0).all(-1, keepdim=True), 0.0)  # rows of -inf, see _softmax

        dlogit_scale = None
        if logit_scale is None:
            dproduct = dscores * scale
            dq, dk = dproduct @ k, dproduct.mT @ q
        else:
            q_factor, k_factor = _inverse_norm(q), _inverse_norm(k)  # (B, nW, nH, N, 1)
            cosine = q @ k.mT * q_factor * k_factor.mT
            dlogit_scale = (dscores * cosine).sum((0, 1, 3, 4)).to(logit_scale.dtype)
            dcosine = dscores * logit_scale.to(q.dtype)[:, None, None]
            dproduct = dcosine * q_factor * k_factor.mT
            # d(1/‖q‖) = -q/‖q‖³ dq; below the clamp the factor is constant.
            q_along = (dcosine * cosine).sum(-1, keepdim=True) * q_factor.square()
            k_along = (dcosine * cosine).sum(-2, keepdim=True).mT * k_factor.square()
            dq = dproduct @ k - torch.where(_norm(q) >= COSINE_EPS, q_along, 0.0) * q
            dk = dproduct.mT @ q - torch.where(_norm(k) >= COSINE_EPS, k_along, 0.0) * k

        dbias = None
        if bias is not None:
            dbias = dscores.sum((0, 1))  # (nH, N, N)
            if bias.shape != dbias.shape:
                index = relative_position_index(window_size, qkv.device).flatten()
                dbias = torch.zeros_like(bias, dtype=q.dtype).flatten(1).index_add(1, index, dbias.flatten(1))
            dbias = dbias.reshape(bias.shape).to(bias.dtype)

        dwindows = torch.stack((dq, dk, dv)).permute(1, 2, 4, 0, 3, 5)  # (B, nW, N, 3, nH, hd)
        dqkv = grid.image(dwindows).to(qkv.dtype).contiguous()
        dpad_value = None
        if pad_value is not None:
            padding = grid.windows(q.new_zeros(1, *grid.size), q.new_ones(())).bool()  # (1, nW, N)
            dpad_value = torch.where(padding[..., None, None, None], dwindows, 0.0).sum((0, 1, 2))
            dpad_value[0] = 0.0  # padded queries are dropped, whatever their row holds
            dpad_value = dpad_value.to(pad_value.dtype)
    return dqkv, dbias, dlogit_scale, dpad_value


def relative_position_index(
    window_size: tuple[int, int], device: torch.device | str | None = None
) -> Tensor:  # (N, N) int64
    """The row of the relative bias table that belongs to each (query, key) pair of a window.

    `index[i, j] = (y_i - y_j + Wh - 1) (2Ww - 1) + (x_i - x_j + Ww - 1)`, tokens in row-major order.
    """
    Wh, Ww = window_size
    y = torch.arange(Wh, device=device).repeat_interleave(Ww)  # (N,)
    x = torch.arange(Ww, device=device).repeat(Wh)  # (N,)
    return (y[:, None] - y + Wh - 1) * (2 * Ww - 1) + (x[:, None] - x + Ww - 1)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Keeps the matmuls in the dtype that is written, also in a backward that runs inside an autocast region."""
    return torch.autocast(device_type, enabled=False) if device_type in AUTOCAST_DEVICES else nullcontext()


@dataclass(frozen=True)
class _Grid:
    """The image as the windows see it: padded to a multiple of the window, cyclically shifted, cut into windows."""

    size: tuple[int, int]  # (H, W)
    window: tuple[int, int]
    shift: tuple[int, int]
    pad_order: str

    @property
    def num_windows(self) -> tuple[int, int]:
        (H, W), (Wh, Ww) = self.size, self.window
        return (H + Wh - 1) // Wh, (W + Ww - 1) // Ww

    def windows(self, image: Tensor, fill: Tensor) -> Tensor:
        """(B, H, W, ...) -> (B, nW, N, ...), padded positions hold `fill`, which broadcasts to (...)."""
        shift = (-self.shift[0], -self.shift[1])
        if self.pad_order == "pad_roll":
            return self._partition(torch.roll(self._pad(image, fill), shift, (1, 2)))
        return self._partition(self._pad(torch.roll(image, shift, (1, 2)), fill))

    def image(self, windows: Tensor) -> Tensor:
        """(B, nW, N, ...) -> (B, H, W, ...), padded positions are dropped."""
        grid = windows.unflatten(2, self.window).unflatten(1, self.num_windows)
        grid = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, Hp, Wp, ...)
        H, W = self.size
        if self.pad_order == "pad_roll":
            return torch.roll(grid, self.shift, (1, 2))[:, :H, :W]
        return torch.roll(grid[:, :H, :W], self.shift, (1, 2))

    def masked(self, device: torch.device) -> Tensor:
        """(nW, N, N) bool: whether query and key lie in different shift regions of the padded grid."""
        region = []
        for count, window, shift in zip(self.num_windows, self.window, self.shift, strict=True):
            position = torch.arange(count * window, device=device)
            last, rolled_in = count * window - window, count * window - shift
            # An unshifted axis is one region: nothing was rolled in from the other side.
            region.append((position >= last).long() + (position >= rolled_in).long() if shift else position * 0)
        regions = region[0][:, None] * 3 + region[1]  # (Hp, Wp)
        regions = self._partition(regions[None])[0]  # (nW, N)
        return regions[:, :, None] != regions[:, None, :]

    def _pad(self, image: Tensor, fill: Tensor) -> Tensor:
        (H, W), (Wh, Ww) = self.size, self.window
        B, rest = image.shape[0], image.shape[3:]
        right = fill.expand(B, H, -W % Ww, *rest)
        bottom = fill.expand(B, -H % Wh, W + -W % Ww, *rest)
        return torch.cat((torch.cat((image, right), 2), bottom), 1)  # (B, Hp, Wp, ...)

    def _partition(self, grid: Tensor) -> Tensor:
        rows, columns = self.num_windows
        grid = grid.unflatten(2, (columns, self.window[1])).unflatten(1, (rows, self.window[0]))
        return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _windowed_qkv(qkv: Tensor, pad_value: Tensor | None, grid: _Grid) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    if pad_value is None:
        fill = qkv.new_zeros((), dtype=dtype)
    else:
        # Padded queries are dropped, so their q counts for nothing, in the gradient either.
        fill = torch.cat((torch.zeros_like(pad_value[:1]), pad_value[1:])).to(qkv.dtype).to(dtype)
    windows = grid.windows(qkv.to(dtype), fill)  # (B, nW, N, 3, nH, hd)
    q, k, v = windows.permute(3, 0, 1, 4, 2, 5)  # each (B, nW, nH, N, hd)
    return q, k, v


def _attention(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    scale: float,
    mask_value: float,
    grid: _Grid,
) -> Tensor:
    scores = q @ k.mT  # (B, nW, nH, N, N)
    if logit_scale is None:
        scores = scores * scale
    else:
        scores = scores * _inverse_norm(q) * _inverse_norm(k).mT * logit_scale.to(q.dtype)[:, None, None]
    if bias is not None:
        N = q.shape[3]
        if bias.shape[1:] != (N, N):
            bias = bias.flatten(1)[:, relative_position_index(grid.window, q.device)]
        scores = scores + bias.to(q.dtype)
    scores = torch.where(grid.masked(q.device)[:, None], scores + mask_value, scores)
    return _softmax(scores)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the keys, and zeros, with zero gradients, for a query that may attend to nothing."""
    nothing = (scores == float("-inf")).all(-1, keepdim=True)
    return scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm


def _inverse_norm(x: Tensor) -> Tensor:
    return 1.0 / _norm(x).clamp_min(COSINE_EPS)
