# SPDX-License-Identifier: Apache-2.0
"""Whole models in torch.compile and torch.export: one graph, every batch, and every size where the geometry has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import swin_fast
from swin_fast import SwinTransformer, SwinTransformerV2
from test_models import small

VERSIONS = (SwinTransformer, SwinTransformerV2)
DYNAMIC = torch.export.Dim.DYNAMIC


def check_gradients(model: SwinTransformer, compiled: Any, x: Tensor) -> None:
    """Output and gradients of the input and of every parameter, compiled and not."""
    results = []
    for call in (model, compiled):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(2)  # drop_path
        out = call(leaf)
        results.append([out, *torch.autograd.grad(out.square().sum(), (leaf, *model.parameters()))])
    for got, wanted in zip(*results, strict=True):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * scale + 1e-12)


@pytest.mark.parametrize("version", VERSIONS)
def test_compile_makes_one_graph_for_training(version: type[SwinTransformer], backend: str, device: str) -> None:
    torch._dynamo.reset()
    model = small(version, drop_path_rate=0.2).to(device)
    images = torch.randn(4, 3, 64, 64, device=device)
    with swin_fast.use_backend(backend):
        check_gradients(model, torch.compile(model, fullgraph=True, backend="aot_eager"), images)


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_inductor_compiles_inference_and_training(version: type[SwinTransformer]) -> None:
    torch._dynamo.reset()
    model = small(version, depths=(2,), num_heads=(1,))
    check_gradients(model, torch.compile(model, fullgraph=True), torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("geometry", ["torchvision", pytest.param("dense", marks=pytest.mark.slow)])
def test_one_graph_serves_every_batch_and_size(geometry: str) -> None:
    """Also across the point where torchvision drops a shift: 33 rows are two windows of 4, 16 are one."""
    torch._dynamo.reset()
    model = small(geometry=geometry, depths=(1, 2))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for B, H, W in ((2, 50, 70), (4, 33, 128), (2, 16, 90), (5, 16, 16)):
            check_gradients(model, compiled, torch.randn(B, 3, H, W))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("geometry", ["ms", "timm"])
def test_export_takes_every_batch(version: type[SwinTransformer], geometry: str) -> None:
    model = small(version, geometry=geometry).eval()
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: DYNAMIC},))
    for B in (1, 2, 7):
        x = torch.randn(B, 3, 64, 64)
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("geometry", ["torchvision", "dense"])
def test_export_takes_every_batch_and_size(version: type[SwinTransformer], geometry: str) -> None:
    model = small(version, geometry=geometry).eval()
    sizes = {0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC}
    program = torch.export.export(model, (torch.randn(2, 3, 50, 70),), dynamic_shapes=(sizes,))
    call = program.module()
    for B, H, W in ((2, 50, 70), (1, 64, 64), (3, 33, 128), (2, 16, 90), (5, 16, 16), (1, 201, 99)):
        x = torch.randn(B, 3, H, W)
        torch.testing.assert_close(call(x), model(x))


def test_export_of_feature_maps_takes_every_size() -> None:
    model = small(geometry="dense", out_indices=(0, 1)).eval()
    sizes = {0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC}
    call = torch.export.export(model, (torch.randn(2, 3, 50, 70),), dynamic_shapes=(sizes,)).module()
    x = torch.randn(1, 3, 99, 41)
    for got, wanted in zip(call(x), model(x), strict=True):
        torch.testing.assert_close(got, wanted)


class OneDevice(TorchDispatchMode):
    """Fails where an operator reads a number back, or meets or makes a tensor on another device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, out)):
            assert not isinstance(value, Tensor) or value.device.type == self.device, f"{func} on {value.device}"
        return out


@pytest.mark.parametrize("geometry", swin_fast.geometry.GEOMETRIES)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_step_neither_reads_numbers_back_nor_leaves_its_device(version: type[SwinTransformer], geometry: str) -> None:
    """What a CUDA graph needs; asked on the meta device, where any other tensor shows."""
    model = small(version, geometry=geometry, ape=True, drop_path_rate=0.2).to("meta")
    x = torch.randn(2, 3, 64, 64, device="meta", requires_grad=True)
    with OneDevice("meta"):
        model(x).sum().backward()
    with pytest.raises(AssertionError, match="on cpu"), OneDevice("meta"):
        torch.ones(1)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), OneDevice("cpu"):
        torch.ones(1).item()
