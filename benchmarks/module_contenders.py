# SPDX-License-Identifier: Apache-2.0
"""Contenders that are modules: ours, timm's and torchvision's with the same weights, their inference and training step.

Everybody is timed alike: the inference in `eval` and `inference_mode`; the training step in `train`, all gradients set
to None, the forward, and `backward` from a fixed random gradient of the output to every parameter (and to the input, if
the problem says so). No dropout and no stochastic depth, so that results can be compared; no loss and no optimizer,
which would be the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import swin_fast

from .contenders import Contender
from .rows import Row
from .weights import NAMING, load, random_weights


@dataclass(frozen=True)
class ModuleContender(Contender):
    """A module, what runs it (itself, or what torch.compile made of it), and the tensors of the problem.

    `names`: our names of the parameters; `backward`: whether the training step is timed; `backend`: of swin_fast.
    """

    library: str
    module: nn.Module
    run: Callable[[Tensor], Tensor]
    x: Tensor
    grad_out: Tensor
    names: tuple[str, ...]
    backward: bool
    backend: str | None = None

    def forward(self) -> Tensor:
        with torch.inference_mode(), self.in_backend():
            return self.run(self.x)

    def step(self) -> Tensor:
        """Forward and backward; the gradients are then in `.grad`. Returns the output."""
        self.x.grad = None
        for parameter in self.module.parameters():
            parameter.grad = None
        with self.in_backend():
            out = self.run(self.x)
        out.backward(self.grad_out)
        return out

    def in_backend(self) -> AbstractContextManager[None]:
        return swin_fast.use_backend(self.backend) if self.backend else nullcontext()

    def call(self) -> Callable[[], object]:
        return self.step if self.backward else self.forward

    def results(self) -> dict[str, Tensor]:
        """The output, and each gradient under our name of its parameter."""
        if not self.backward:
            return {"out": self.forward()}
        results = {"out": self.step().detach()}
        if self.x.grad is not None:
            results[gradient_of("x")] = self.x.grad
        # None, where no gradient arrived: that is 0.
        gradients = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in self.module.named_parameters()
        }
        for name in self.names:
            results[gradient_of(name)] = NAMING[self.library].inward(gradients, name)
        for tensor in (self.x, *self.module.parameters()):
            tensor.grad = None
        return results


class ModuleProblem(ABC):
    """The weights and tensors of one row. Inputs are standard normal, never zeros.

    `libraries`: others that have the module; the first is the yardstick, and in float64 it gives the exact results.
    `input_gradient`: whether the input has one, as it has in the midst of a model.
    """

    input_gradient: bool

    def __init__(self, row: Row, libraries: tuple[str, ...], seed: int = 0) -> None:
        self.row = row
        self.libraries = libraries
        self.yardstick = libraries[0]
        generator = torch.Generator().manual_seed(seed)
        weights = random_weights(self.build("swin_fast"), generator)
        self.weights = {name: weight.to(row.dtype) for name, weight in weights.items()}
        self.sums = tuple(gradient_of(name) for name in self.weights) if row.backward else ()
        self.x, self.grad_out = (
            torch.randn(shape, generator=generator, dtype=torch.float64).to(row.dtype) for shape in self.shapes()
        )

    @abstractmethod
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the input and of the output."""

    @abstractmethod
    def build(self, library: str) -> nn.Module:
        """The module of a library, without dropout and stochastic depth, weights as they come."""

    def contender(
        self,
        name: str,
        library: str,
        *,
        dtype: torch.dtype | None = None,
        sdpa: bool = False,
        compiled: bool = False,
        backend: str | None = None,
    ) -> ModuleContender:
        """A module of its own, with the weights of the problem. `sdpa`: timm's fused attention, TIMM_FUSED_ATTN=2."""
        dtype = dtype or self.row.dtype
        module = self.build(library)
        load(module, NAMING[library].outward(self.weights))
        module.to(dtype).train(self.row.backward)
        for part in with_fused_attention(module):
            part.fused_attn = sdpa
        return ModuleContender(
            name,
            name,
            library,
            module,
            torch.compile(module, dynamic=False) if compiled else module,
            self.x.to(dtype, copy=True).requires_grad_(self.row.backward and self.input_gradient),
            self.grad_out.to(dtype),
            tuple(self.weights),
            self.row.backward,
            backend,
        )

    def exact(self) -> dict[str, Tensor]:
        return self.contender("exact", self.yardstick, dtype=torch.float64).results()

    def ours(self, backend: str | None) -> ModuleContender:
        return self.contender("swin_fast", "swin_fast", backend=backend)

    def peers(self, families: tuple[str, ...]) -> list[Contender]:
        """Each library as it comes, timm with its fused attention (V1 alone has one), and timm compiled."""
        torch._dynamo.reset()
        found: list[Contender] = []
        for library in self.libraries:
            if library in families:
                found.append(self.contender(library, library))
        if "timm" in self.libraries:
            if "timm_sdpa" in families and with_fused_attention(self.build("timm")):
                found.append(self.contender("timm_sdpa", "timm", sdpa=True))
            if "timm_compile" in families:
                found.append(self.contender("timm_compile", "timm", compiled=True))
        return found


def gradient_of(name: str) -> str:
    return f"d {name}"


def with_fused_attention(module: nn.Module) -> list[nn.Module]:
    """The parts of a timm module that have the choice between plain PyTorch and `scaled_dot_product_attention`."""
    return [part for part in module.modules() if hasattr(part, "fused_attn")]
