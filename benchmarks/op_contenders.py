# SPDX-License-Identifier: Apache-2.0
"""The contenders of the window attention benchmark: swin_fast, and window attention as others run it.

Every contender of the order "image" starts from the tensor that the QKV linear returns, (B, H, W, 3, nH, hd), and from
the bias table in the dtype of the model, and ends with (B, H, W, nH*hd). What a model keeps in buffers (index of the
bias table, shift mask) is made beforehand; what it computes in each call is computed in each call.

The order "window" is what a timm model does around its core: roll and partition move the nH*hd channels of x *before*
the QKV linear, which then works in window order. That moves less memory than starting from qkv in image order. Its time
is what swin_fast would replace in a timm model. As its inputs differ, it is measured and shown, but it is not part of
"the best of eager, SDPA and compile".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import swin_fast

from .cases import OpRow
from .clocks import Call
from .contenders import Candidate, Contender

#: On a GPU inputs rotate among copies of that many bytes together, so that no call finds those of the call before.
ROTATED = 2**28
#: SDPA by one implementation, where it takes bias and mask; on a CPU torch's own choice is its flash attention.
PINNED = {
    "cpu": {"math": SDPBackend.MATH},
    "cuda": {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    },
}

Function = Callable[..., tuple[Tensor, ...]]


class Problem:
    """The tensors of one row. Inputs are standard normal, never zeros."""

    yardstick = "eager"
    sums: tuple[str, ...] = ()  # the table's gradient is one, and is held to the same as all others

    def __init__(self, row: OpRow, device: str = "cpu", seed: int = 0) -> None:
        stage = row.case
        self.row = row
        self.device = device
        self.B, self.H, self.w, self.s = row.batch, stage.size, stage.window, stage.shift
        self.nH, self.hd, self.N, self.nW = stage.heads, stage.head_dim, stage.tokens, stage.windows
        self.C = self.nH * self.hd

        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(row.dtype)

        self.qkv = normal(self.B, self.H, self.H, 3, self.nH, self.hd)
        self.table = normal((2 * self.w - 1) ** 2, self.nH)
        self.grad_out = normal(self.B, self.H, self.H, self.C)
        # Of the order "window": x before the linear, the linear's result, and the gradient that comes back through it.
        self.x = normal(self.B, self.H, self.H, self.C)
        self.qkv_windows = self.to_windows(self.qkv.view(self.B, self.H, self.H, 3 * self.C)).contiguous()
        self.grad_x_windows = normal(self.B * self.nW, self.N, self.C)

        self.index = relative_position_index(self.w).to(device)
        self.regions = shift_regions(self.H, self.w, self.s).to(device) if self.s else None
        self.mask = None if self.regions is None else shift_mask(self.regions).to(row.dtype)
        self._turns: dict[str, list[tuple[Tensor, ...]]] = {}

    @cached_property
    def cached_bias(self) -> Tensor:
        with torch.no_grad():
            return self.add_mask(self.bias(self.table)).contiguous()

    def turns(self, order: str) -> list[tuple[Tensor, ...]]:
        """Sets of inputs, with autograd where the row has a backward, that all contenders share: a GPU's calls take
        them in turns, so that none finds in a cache what the call before has read.
        """
        if order not in self._turns:
            inputs = (self.qkv, self.table) if order == "image" else (self.x, self.qkv_windows, self.table)
            size = sum(tensor.nbytes for tensor in inputs)
            copies = 0 if self.device == "cpu" else max(2, min(8, -(-ROTATED // size))) - 1
            sets = [inputs, *(tuple(tensor.clone() for tensor in inputs) for _ in range(copies))]
            backward = self.row.backward
            self._turns[order] = [tuple(tensor.detach().requires_grad_(backward) for tensor in some) for some in sets]
        return self._turns[order]

    # ------------------------------------------------------------------------------------------ what every suite has

    def exact(self) -> dict[str, Tensor]:
        """Output and gradients in float64 from swin_fast's reference, image by image to keep the scores small."""
        table = self.table.double().requires_grad_()
        results: dict[str, list[Tensor]] = {"out": [], "dqkv": [], "dtable": []}
        for qkv, grad_out in zip(self.qkv.double().split(1), self.grad_out.double().split(1), strict=True):
            qkv = qkv.clone().requires_grad_()
            (out,) = self.swin_fast(qkv, table, "reference")
            results["out"].append(out.detach())
            if self.row.backward:
                dqkv, dtable = torch.autograd.grad(out, (qkv, table), grad_out)
                results["dqkv"].append(dqkv)
                results["dtable"].append(dtable)
        exact = {"out": torch.cat(results["out"])}
        if self.row.backward:
            exact["dqkv"] = torch.cat(results["dqkv"])
            exact["dtable"] = torch.stack(results["dtable"]).sum(0)
        return exact

    def ours(self, backend: str | None) -> OpContender:
        def function(qkv: Tensor, table: Tensor) -> tuple[Tensor, ...]:
            return self.swin_fast(qkv, table, backend)

        return OpContender("swin_fast", function, self)

    def peers(self) -> list[Candidate]:
        """Several to a family: which is the fastest changes with shape, dtype and direction."""

        def candidate(name: str, family: str, function: Function, **how: Any) -> Candidate:
            published = how.pop("published", True)
            return Candidate(name, family, partial(OpContender, name, function, self, **how), published)

        plain = {"eager": self.eager, "sdpa": self.sdpa}
        rearranged = {"eager_packed": self.eager_packed, "sdpa_shared_mask": self.sdpa_shared_mask}
        found = [candidate(name, name, function) for name, function in plain.items()]
        for name, function in rearranged.items():
            found.append(candidate(name, name.partition("_")[0], function, published=False))
        for name, function in {**plain, **rearranged}.items():
            found.append(candidate(f"compile_{name}", "compile", compiled(function), published=name in plain))
            if self.device == "cuda":
                tuned = compiled(function, mode="max-autotune-no-cudagraphs")
                found.append(candidate(f"autotune_{name}", "autotune", tuned, published=name in plain))
        found += [
            candidate("timm_eager", "timm_order", self.timm_eager, order="window"),
            candidate("timm_sdpa", "timm_order", self.timm_sdpa, order="window"),
            candidate("compile_timm_sdpa", "timm_order", compiled(self.timm_sdpa), order="window"),
        ]
        if not self.row.backward:  # in training the bias changes with each step: nothing to cache
            found.append(candidate("sdpa_cached", "cached", self.sdpa_cached))
            found.append(candidate("compile_sdpa_cached", "cached", compiled(self.sdpa_cached)))
        # Last those that might leave a GPU in a state in which nobody else runs.
        for name, backend in PINNED[self.device].items():
            found.append(candidate(f"sdpa_{name}", "sdpa", partial(pinned, backend, self.sdpa)))
        found += [
            Candidate(name, "flex", partial(self.flex, name, **how))
            for name, how in FLEX.items()
            if (self.regions is not None or not how.get("block_mask"))
            and (not how.get("forced") or (self.device == "cuda" and self.N < FLEX_DECODES))
        ]
        return found

    def flex(self, name: str, *, block_mask: bool = False, forced: bool = False, dense: bool = False) -> OpContender:
        """FlexAttention: the bias by score_mod, the shift mask too.

        `block_mask`: the mask by mask_mod, made beforehand; `forced`: its kernel for long sequences; `dense`: the bias
        is expanded before the kernel, which then reads it at (head, i, j), and not the table through its index.
        """
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        if self.row.backward and self.device == "cpu":
            raise NotImplementedError("FlexAttention has no backward on a CPU")
        index, regions, nW = self.index, self.regions, self.nW
        mask = None
        if block_mask:
            assert regions is not None

            def same_region(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return regions[b % nW, i] == regions[b % nW, j]

            mask = create_block_mask(same_region, self.B * nW, None, self.N, self.N, device=self.device)
        options = {"FORCE_USE_FLEX_ATTENTION": True} if forced else None

        def function(qkv: Tensor, table: Tensor) -> tuple[Tensor, ...]:
            bias = self.bias(table).squeeze(0) if dense else None

            def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                s = s + (table[index[i, j], h] if bias is None else bias[h, i, j])
                if regions is None or block_mask:
                    return s
                return torch.where(regions[b % nW, i] == regions[b % nW, j], s, s - 100.0)

            o = flex_attention(*self.split(qkv), score_mod=score, block_mask=mask, kernel_options=options)
            return (self.merge(o),)

        return OpContender(name, compiled(function), self)

    # ----------------------------------------------------------------------------------------- steps, as timm has them

    def bias(self, table: Tensor) -> Tensor:  # (1, nH, N, N)
        dense = table[self.index.view(-1)].view(self.N, self.N, -1)
        return dense.permute(2, 0, 1).contiguous().unsqueeze(0)

    def add_mask(self, bias: Tensor) -> Tensor:  # (B*nW, nH, N, N), or the bias as it is
        if self.mask is None:
            return bias
        mask = self.mask.view(1, self.nW, 1, self.N, self.N).expand(self.B, -1, self.nH, -1, -1)
        return bias + mask.reshape(-1, self.nH, self.N, self.N)

    def bias_of_windows(self, table: Tensor) -> Tensor:  # (nW, nH, N, N), or (1, nH, N, N) without a mask
        bias = self.bias(table)
        return bias if self.mask is None else bias + self.mask.unsqueeze(1)

    def to_windows(self, x: Tensor) -> Tensor:  # (B, H, H, c) -> (B*nW, N, c)
        if self.s:
            x = torch.roll(x, (-self.s, -self.s), (1, 2))
        return window_partition(x, self.w)

    def heads(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (B*nW, N, 3*C) -> 3 x (B*nW, nH, N, hd)
        q, k, v = windows.reshape(-1, self.N, 3, self.nH, self.hd).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.heads(self.to_windows(qkv.view(self.B, self.H, self.H, 3 * self.C)))

    def split_packed(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Partition and split in one copy that leaves q, k and v contiguous: better operands for the products."""
        x = torch.roll(qkv, (-self.s, -self.s), (1, 2)) if self.s else qkv
        n = self.H // self.w
        x = x.view(self.B, n, self.w, n, self.w, 3, self.nH, self.hd).permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = x.reshape(3, -1, self.nH, self.N, self.hd).unbind(0)
        return q, k, v

    def merge(self, o: Tensor) -> Tensor:  # (B*nW, nH, N, hd) -> (B, H, H, C)
        out = window_reverse(o.transpose(1, 2).reshape(-1, self.N, self.C), self.w, self.H)
        return torch.roll(out, (self.s, self.s), (1, 2)) if self.s else out

    def eager_core(self, q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        scores = (q * self.hd**-0.5) @ k.transpose(-2, -1)
        scores = scores + self.bias(table)
        if self.mask is not None:
            scores = scores.view(-1, self.nW, self.nH, self.N, self.N) + self.mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.nH, self.N, self.N)
        out: Tensor = scores.softmax(dim=-1) @ v
        return out

    def sdpa_core(self, q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.add_mask(self.bias(table)))

    # ---------------------------------------------------------------------------------------------- whole functions

    def eager(self, qkv: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        return (self.merge(self.eager_core(*self.split(qkv), table)),)

    def eager_packed(self, qkv: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        """Contiguous operands, and one addition to the scores instead of two."""
        q, k, v = self.split_packed(qkv)
        scores = ((q * self.hd**-0.5) @ k.transpose(-2, -1)).view(self.B, self.nW, self.nH, self.N, self.N)
        scores = scores + self.bias_of_windows(table)
        return (self.merge(scores.view(-1, self.nH, self.N, self.N).softmax(dim=-1) @ v),)

    def sdpa(self, qkv: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        return (self.merge(self.sdpa_core(*self.split(qkv), table)),)

    def sdpa_shared_mask(self, qkv: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        """The windows of an image as heads, so that the expanded mask has no batch dimension."""
        q, k, v = (x.reshape(self.B, -1, self.N, self.hd) for x in self.split_packed(qkv))
        bias = self.bias_of_windows(table).expand(self.nW, -1, -1, -1).reshape(1, -1, self.N, self.N)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return (self.merge(o.view(-1, self.nH, self.N, self.hd)),)

    def sdpa_cached(self, qkv: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        """Bias and mask expanded once, outside: less work per call than everyone else has."""
        o = F.scaled_dot_product_attention(*self.split(qkv), attn_mask=self.cached_bias)
        return (self.merge(o),)

    def timm_eager(self, x: Tensor, qkv_windows: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        return self.to_windows(x), self.merge(self.eager_core(*self.heads(qkv_windows), table))

    def timm_sdpa(self, x: Tensor, qkv_windows: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        return self.to_windows(x), self.merge(self.sdpa_core(*self.heads(qkv_windows), table))

    def swin_fast(self, qkv: Tensor, table: Tensor, backend: str | None) -> tuple[Tensor, ...]:
        """The public function, with the table in the relative form: its expansion is part of our time."""
        bias = table.t().reshape(self.nH, 2 * self.w - 1, 2 * self.w - 1)
        window, shift = (self.w, self.w), (self.s, self.s)
        return (swin_fast.window_attention(qkv, bias, window_size=window, shift_size=shift, backend=backend),)


def relative_position_index(w: int) -> Tensor:  # (N, N)
    coords = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(w), indexing="ij")).flatten(1)
    relative = coords[:, :, None] - coords[:, None, :] + (w - 1)
    return relative[0] * (2 * w - 1) + relative[1]


def shift_regions(size: int, w: int, s: int) -> Tensor:  # (nW, N)
    regions = torch.zeros(1, size, size, 1)
    bands = (slice(0, -w), slice(-w, -s), slice(-s, None))
    for i, rows in enumerate(bands):
        for j, columns in enumerate(bands):
            regions[:, rows, columns] = 3 * i + j
    return window_partition(regions, w).squeeze(-1)


def shift_mask(regions: Tensor) -> Tensor:  # (nW, N) -> (nW, N, N)
    difference = regions.unsqueeze(1) - regions.unsqueeze(2)
    return torch.zeros_like(difference).masked_fill(difference != 0, -100.0)


def window_partition(x: Tensor, w: int) -> Tensor:  # (B, H, W, c) -> (B*nW, N, c)
    B, H, W, c = x.shape
    x = x.view(B, H // w, w, W // w, w, c).permute(0, 1, 3, 2, 4, 5)
    return x.contiguous().view(-1, w * w, c)


def window_reverse(windows: Tensor, w: int, size: int) -> Tensor:  # (B*nW, N, c) -> (B, size, size, c)
    n, c = size // w, windows.shape[-1]
    x = windows.view(-1, n, n, w, w, c).permute(0, 1, 3, 2, 4, 5)
    return x.contiguous().view(-1, size, size, c)


def compiled(function: Function, **how: Any) -> Function:
    return torch.compile(function, dynamic=False, **how)


def pinned(backend: SDPBackend, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
    with sdpa_kernel(backend):
        return function(*inputs)


@dataclass(frozen=True)
class OpContender(Contender):
    """One function and its inputs; `order` tells what the inputs and outputs are, see the top of this file."""

    function: Function
    problem: Problem
    order: str = field(default="image", kw_only=True)

    @property
    def turns(self) -> list[tuple[Tensor, ...]]:
        return self.problem.turns(self.order)

    @property
    def grads(self) -> tuple[Tensor, ...]:
        problem = self.problem
        return (problem.grad_out,) if self.order == "image" else (problem.grad_x_windows, problem.grad_out)

    def held(self) -> Iterable[Tensor]:
        return *self.turns[0], *(self.grads if self.problem.row.backward else ())

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return self.function(*inputs)

    def call(self) -> Call:
        """What is timed: the forward, or the forward and the gradients of all inputs."""
        turns = itertools.cycle(self.turns)
        if not self.problem.row.backward:
            return lambda: self.forward(next(turns))

        def step() -> object:
            inputs = next(turns)
            return torch.autograd.grad(self.function(*inputs), inputs, self.grads)

        return step

    def results(self) -> dict[str, Tensor]:
        """Output and gradients under the names and in the layout that all contenders share."""
        if not self.problem.row.backward:
            return {"out": self.forward(self.turns[0])[-1]}
        outputs = self.function(*self.turns[0])
        *_, dqkv, dtable = torch.autograd.grad(outputs, self.turns[0], self.grads)
        if self.order == "window":
            problem = self.problem
            dqkv = window_reverse(dqkv, problem.w, problem.H)
            dqkv = torch.roll(dqkv, (problem.s, problem.s), (1, 2)).view_as(problem.qkv)
        return {"out": outputs[-1].detach(), "dqkv": dqkv, "dtable": dtable}


#: Ways to run FlexAttention; "forced" means something on a GPU alone.
FLEX = {
    "flex": {},
    "flex_dense_bias": {"dense": True},
    "flex_block_mask": {"block_mask": True},
    "flex_block_mask_dense_bias": {"block_mask": True, "dense": True},
    "flex_forced": {"forced": True},
    "flex_block_mask_dense_bias_forced": {"block_mask": True, "dense": True, "forced": True},
}
#: Below so many queries it takes its kernel for decoding, unless it is told to take the other.
FLEX_DECODES = 128
