# SPDX-License-Identifier: Apache-2.0
"""Contenders that are modules: ours and others' with the same weights, their inference and their training step.

Everybody is timed alike: the inference in `eval` and `inference_mode`; the training step in `train`, all gradients set
to None, the forward, and `backward` from fixed random gradients of the outputs to every parameter (and to the input, if
the problem says so). No dropout and no stochastic depth, so that results can be compared; no loss and no optimizer,
which would be the same for all.
"""

from __future__ import annotations

import copy
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import swin_fast
from swin_fast.eager import eager_twin

from .cases import Row
from .clocks import Call
from .contenders import Candidate, Contender
from .weights import NAMING, load, random_weights

#: Images that are computed at once in float64.
CHUNK = 8
#: torch.compile as its documentation has it: its default, with the weights frozen (inference on a CPU), with every
#: choice measured, and replaying CUDA graphs.
COMPILED: dict[str, dict[str, Any]] = {
    "compile": {},
    "compile_freezing": {"options": {"freezing": True}},
    "autotune": {"mode": "max-autotune"},
    "autotune_freezing": {"options": {"freezing": True, "max_autotune": True}},
    "cudagraphs": {"mode": "reduce-overhead"},
}
#: Those that on a GPU replay graphs of their own.
OWN_GRAPHS = ("autotune", "cudagraphs")


@dataclass(frozen=True)
class ModuleContender(Contender):
    """A module, what runs it (itself, or what a compiler made of it), and the tensors of the problem.

    `names`: our names of the parameters; `backward`: whether the training step is timed; `backend`: of swin_fast.
    """

    library: str
    module: nn.Module
    run: Callable[[Tensor], Tensor | tuple[Tensor, ...]]
    x: Tensor
    grads: tuple[Tensor, ...]
    names: tuple[str, ...]
    backward: bool
    backend: str | None = None

    def forward(self) -> tuple[Tensor, ...]:
        with torch.inference_mode(), self.in_backend():
            return as_tuple(self.run(self.x))

    def step(self) -> tuple[Tensor, ...]:
        """Forward and backward; the gradients are then in `.grad`. Returns the outputs."""
        self.x.grad = None
        for parameter in self.module.parameters():
            parameter.grad = None
        with self.in_backend():
            outs = as_tuple(self.run(self.x))
        torch.autograd.backward(outs, self.grads)
        return outs

    def in_backend(self) -> AbstractContextManager[None]:
        return swin_fast.use_backend(self.backend) if self.backend else nullcontext()

    def call(self) -> Call:
        return self.step if self.backward else self.forward

    def results(self) -> dict[str, Tensor]:
        """The outputs, and each gradient under our name of its parameter."""
        if not self.backward:
            return named_outputs(self.forward())
        results = {name: out.detach() for name, out in named_outputs(self.step()).items()}
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

    def held(self) -> Iterable[Tensor]:
        return self.x, *self.grads, *self.module.parameters(), *self.module.buffers()


class ModuleProblem(ABC):
    """The weights and tensors of one row. Inputs are standard normal, never zeros.

    `libraries`: others that have the module; the first that is installed is the yardstick, and in float64 it gives the
    exact results; without any, our own module in plain PyTorch does. `input_gradient`: whether the input has one, as it
    has in the midst of a model.
    """

    input_gradient: bool

    def __init__(self, row: Row, libraries: tuple[str, ...], device: str = "cpu", seed: int = 0) -> None:
        self.row = row
        self.device = device
        self.libraries = libraries
        self._modules: dict[str, nn.Module] = {}
        self.yardstick = next((library for library in libraries if find_spec(library)), "eager")
        generator = torch.Generator().manual_seed(seed)
        weights = random_weights(self.built("swin_fast"), generator)
        self.weights = {name: weight.to(row.dtype) for name, weight in weights.items()}
        self.sums = tuple(gradient_of(name) for name in self.weights) if row.backward else ()
        x_shape, *out_shapes = self.shapes()
        normal = partial(torch.randn, generator=torch.Generator(device).manual_seed(seed), device=device)
        self.x = normal(x_shape).to(row.dtype)
        self.grads = tuple(normal(shape).to(row.dtype) for shape in out_shapes) if row.backward else ()

    @abstractmethod
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the input and of the outputs."""

    @abstractmethod
    def build(self, library: str) -> nn.Module:
        """The module of a library, without dropout and stochastic depth, weights as they come."""

    def built(self, library: str) -> nn.Module:
        """A copy: that takes a tenth of a second, where a library may draw its initial weights for seconds."""
        if library not in self._modules:
            self._modules[library] = self.build(library)
        return copy.deepcopy(self._modules[library])

    def contender(
        self,
        name: str,
        library: str,
        *,
        dtype: torch.dtype | None = None,
        sdpa: bool = False,
        compiled: str | None = None,
        backend: str | None = None,
    ) -> ModuleContender:
        """A module of its own, with the weights of the problem.

        `sdpa`: timm's fused attention, TIMM_FUSED_ATTN=2; `compiled`: one of COMPILED.
        """
        dtype = dtype or self.row.dtype
        module = self.built("swin_fast" if library == "eager" else library)
        if library == "eager":
            module = eager_twin(module)
        load(module, NAMING[library].outward(self.weights))
        module.to(self.device, dtype).train(self.row.backward)
        for part in with_fused_attention(module):
            part.fused_attn = sdpa
        return ModuleContender(
            name,
            library,
            module,
            torch.compile(module, dynamic=False, **COMPILED[compiled]) if compiled else module,
            self.x.to(dtype, copy=True).requires_grad_(self.row.backward and self.input_gradient),
            tuple(grad.to(dtype) for grad in self.grads),
            tuple(self.weights),
            self.row.backward,
            backend,
            capturable=compiled not in OWN_GRAPHS,
            weighable=self.device == "cpu" or compiled not in OWN_GRAPHS,  # their memory is a pool that lives on
        )

    def exact(self) -> dict[str, Tensor]:
        """In float64, some images at a time: what a batch of 128 keeps for its backward fits no GPU in float64."""
        whole = self.contender("exact", self.yardstick, dtype=torch.float64)
        sums: dict[str, Tensor] = {}
        pieces: dict[str, list[Tensor]] = {}
        for x, *grads in zip(*(tensor.detach().split(CHUNK) for tensor in (whole.x, *whole.grads)), strict=True):
            part = replace(whole, x=x.requires_grad_(whole.x.requires_grad), grads=tuple(grads))
            for name, result in part.results().items():
                if name in self.sums:
                    sums[name] = sums[name] + result if name in sums else result
                else:
                    pieces.setdefault(name, []).append(result)
        return {**{name: torch.cat(found) for name, found in pieces.items()}, **sums}

    def ours(self, backend: str | None) -> ModuleContender:
        return self.contender("swin_fast", "swin_fast", backend=backend)

    def peers(self) -> list[Candidate]:
        """Each library as it comes and, of timm, what it and torch.compile and other runtimes offer beyond."""

        def candidate(name: str, family: str, library: str, **how: Any) -> Candidate:
            return Candidate(name, family, partial(self.contender, name, library, **how))

        found = [candidate(library, library, library) for library in ("eager", *self.libraries)]
        if "timm" not in self.libraries:
            return found
        fused = bool(find_spec("timm")) and bool(with_fused_attention(self.built("timm")))  # V1 alone has the choice
        attentions = {"": False, "_sdpa": True} if fused else {"": False}
        if fused:
            found.append(candidate("timm_sdpa", "timm_sdpa", "timm", sdpa=True))
        for how, family in self.compilers().items():
            for suffix, sdpa in attentions.items():
                found.append(candidate(f"timm_{how}{suffix}", family, "timm", compiled=how, sdpa=sdpa))
        if self.device == "cpu" and not self.row.backward:
            found += [Candidate(name, name, partial(self.exported, name)) for name in ("onnxruntime", "openvino")]
        return found

    def compilers(self) -> dict[str, str]:
        """Ways to compile -> their families."""
        if self.device == "cuda":
            return {"compile": "timm_compile", "cudagraphs": "timm_cudagraphs", "autotune": "timm_autotune"}
        if self.row.backward:
            return {"compile": "timm_compile", "autotune": "timm_autotune"}
        return {"compile": "timm_compile", "compile_freezing": "timm_compile", "autotune_freezing": "timm_autotune"}

    def exported(self, name: str) -> ModuleContender:
        """timm's module as ONNX, in another runtime: computed in the row's dtype, but input and output are fp32."""
        from .exported import OnnxRuntime, OpenVino

        plain = self.contender(name, "timm", dtype=torch.float32)
        run = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}[name](self.onnx, self.row.threads, self.row.dtype_name)
        return ModuleContender(
            name, "timm", plain.module, run, plain.x, (), plain.names, False, capturable=False, weighable=False
        )

    @cached_property
    def onnx(self) -> Path:
        """One file for all runtimes; it lives as long as the problem."""
        from .exported import onnx_file

        plain = self.contender("onnx", "timm", dtype=torch.float32)
        self._folder = tempfile.TemporaryDirectory()
        return onnx_file(plain.module, plain.x, Path(self._folder.name))


def as_tuple(outs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outs,) if isinstance(outs, Tensor) else tuple(outs)


def named_outputs(outs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {"out": outs[0]} if len(outs) == 1 else {f"out of stage {i + 1}": out for i, out in enumerate(outs)}


def gradient_of(name: str) -> str:
    return f"d {name}"


def with_fused_attention(module: nn.Module) -> list[nn.Module]:
    """The parts of a timm module that have the choice between plain PyTorch and `scaled_dot_product_attention`."""
    return [part for part in module.modules() if hasattr(part, "fused_attn")]
