# SPDX-License-Identifier: Apache-2.0
"""Are the modules of transformers, and those that ONNX Runtime and OpenVINO run, the ones we want to compare with?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swin_fast

from . import huggingface
from .block_contenders import our_block
from .cases import Model, Stage
from .equality import relative_error
from .exported import OnnxRuntime, OpenVino, onnx_file
from .model_contenders import OurBackbone, our_model, timm_model
from .weights import NAMING, load, random_weights

BLOCKS = {f"block-v{version}": Stage("toy", 12, 2, 4, 2, head_dim=8, version=version) for version in (1, 2)}
SMALL = {"dim": 16, "depths": (2, 2), "heads": (2, 4)}
MODELS = {f"model-v{version}": Model("toy", version, (32, 32), 4, **SMALL) for version in (1, 2)}
#: Padding in every stage, and maps smaller than a window.
BACKBONE = Model("toy", 1, (36, 52), 4, dim=16, depths=(2, 2, 2, 2), heads=(2, 4, 8, 16), geometry="dense")


pytestmark = pytest.mark.usefixtures("one_thread")


# -------------------------------------------------------------------------------------------------------- transformers


def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Ours and transformers' with the same weights, and an input, in float64."""
    pytest.importorskip("benchmarks.peer_imports", reason="timm or torchvision is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed; `pip install .[test]` brings it")
    generator = torch.Generator().manual_seed(0)
    if name in BLOCKS:
        stage = BLOCKS[name]
        ours, theirs = our_block(stage), huggingface.block(stage)
        shape: tuple[int, ...] = (2, stage.size, stage.size, stage.dim)
    elif name in MODELS:
        ours, theirs = our_model(MODELS[name]), huggingface.model(MODELS[name])
        shape = (2, 3, *MODELS[name].image)
    else:
        ours, theirs = OurBackbone(BACKBONE), huggingface.backbone(BACKBONE)
        shape = (2, 3, *BACKBONE.image)
    weights = random_weights(ours, generator)
    load(ours.double(), weights)
    load(theirs.double(), NAMING["transformers"].outward(weights))
    return ours, theirs, torch.randn(shape, generator=generator, dtype=torch.float64)


def run(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The output, or all of them; afterwards each parameter has its gradient."""
    with swin_fast.use_backend("reference"):
        out = module(x)
    outs = (out,) if isinstance(out, Tensor) else out
    generator = torch.Generator().manual_seed(1)
    torch.autograd.backward(outs, [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outs])
    return outs


@pytest.mark.parametrize("name", [*BLOCKS, *MODELS, "backbone"])
def test_transformers_is_equal(name: str) -> None:
    """In float64, which its eager attention of V1 is not: this one is SDPA."""
    ours, theirs, x = pair(name)
    for found, expected in zip(run(theirs, x), run(ours, x), strict=True):
        assert relative_error(found, expected) < 1e-10
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for parameter_name, parameter in ours.named_parameters():
        assert relative_error(NAMING["transformers"].inward(gradients, parameter_name), parameter.grad) < 1e-10, (
            parameter_name
        )


@pytest.mark.parametrize("name", BLOCKS)
def test_transformers_without_its_mask_is_not_equal(name: str) -> None:
    ours, theirs, x = pair(name)
    theirs.module.get_attn_mask = lambda *args, **options: None
    assert 1e-2 < relative_error(*run(theirs, x), *run(ours, x)) < float("inf")


# ------------------------------------------------------------------------------------------- ONNX Runtime and OpenVINO


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tensor, Tensor]:
    """A file, an input and the output that it should have."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed; `pip install .[bench]` brings it")
    pytest.importorskip("benchmarks.peer_imports", reason="timm or torchvision is not installed")
    module = timm_model(MODELS[request.param])
    generator = torch.Generator().manual_seed(0)
    load(module, random_weights(module, generator))
    x = torch.randn((2, 3, *MODELS[request.param].image), generator=generator)
    path = onnx_file(module, x, tmp_path_factory.mktemp(request.param))
    with torch.inference_mode():
        return path, x, module(x)


@pytest.mark.parametrize(
    ("package", "runtime", "dtype", "bound"),
    [
        ("onnxruntime", OnnxRuntime, "fp32", 1e-4),
        ("openvino", OpenVino, "fp32", 1e-4),
        ("openvino", OpenVino, "bf16", 3e-2),
    ],
)
def test_an_exported_model_is_equal(
    exported: tuple[Any, Tensor, Tensor], package: str, runtime: Any, dtype: str, bound: float
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed; `pip install .[bench]` brings it")
    path, x, expected = exported
    try:
        run = runtime(path, 1, dtype)
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    for factor in (-1, 1):  # what is reused between two calls does not mix them up
        found = run(factor * x)
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < bound
    assert bound < relative_error(run(-x), expected) < float("inf")


def test_onnx_runtime_has_no_bf16() -> None:
    with pytest.raises(NotImplementedError, match="no bfloat16"):
        OnnxRuntime("unused.onnx", 1, "bf16")
