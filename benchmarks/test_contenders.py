# SPDX-License-Identifier: Apache-2.0
"""Does the benchmark notice contenders that are wrong? And are those that it has right, in every suite?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from . import block_contenders, model_contenders, op_contenders
from .admission import bounds, checked
from .cases import DIRECTIONS, BlockRow, Model, ModelRow, OpRow, Stage
from .clocks import CpuClock
from .conftest import Options
from .contenders import Candidate, Contender, Problem
from .equality import errors
from .module_contenders import ModuleContender, gradient_of
from .op_contenders import OpContender
from .suites import SUITES
from .weights import NAMING, load

SHIFTED = Stage("toy", 12, 2, 4, 2, head_dim=8)
UNSHIFTED = Stage("toy", 8, 2, 4, 0, head_dim=8)
ONE_WINDOW = Stage("toy", 4, 2, 4, 0, head_dim=8)
V2 = Stage("toy", 12, 2, 4, 2, head_dim=8, version=2)
SMALL = {"dim": 16, "depths": (2, 2), "heads": (2, 4)}
LIBRARIES = ("torchvision", "transformers")
MODELS = {
    "v1": Model("toy", 1, (32, 32), 4, **SMALL),
    "v2": Model("toy", 2, (32, 32), 4, **SMALL),
    "dense": Model("toy", 1, (40, 56), 4, geometry="dense", features=True, libraries=LIBRARIES, **SMALL),
}
DTYPES = ("fp32", "bf16")
OPTIONS = Options("cpu", "reference", (), budget=0.0, least_rounds=1, toy=True, deadline=math.inf)
#: What takes seconds to build; tests of their own try some of it.
COMPILED = ("compile", "autotune", "flex", "onnxruntime", "openvino")


pytestmark = pytest.mark.usefixtures("one_thread")


def op(stage: Stage, dtype: str, direction: str = "fwd+bwd") -> op_contenders.Problem:
    return op_contenders.Problem(OpRow(stage, 2, dtype, direction))


def block(stage: Stage, dtype: str, direction: str = "fwd+bwd") -> block_contenders.Problem:
    return block_contenders.Problem(BlockRow(stage, 2, dtype, direction))


def model(name: str, dtype: str, direction: str = "fwd+bwd") -> model_contenders.Problem:
    return model_contenders.Problem(ModelRow(MODELS[name], 2, dtype, direction))


def plain(problem: Problem) -> list[Candidate]:
    return [peer for peer in problem.peers() if not any(word in peer.name for word in COMPILED)]


def left_out(problem: Problem, suite: str, *others: Contender | Candidate) -> dict[str, str]:
    """Whom the benchmark leaves out of the row, and why: of all plain peers or, if given, of `others`."""
    candidates = plain(problem)
    if others:
        candidates = [peer for peer in candidates if peer.name == problem.yardstick]
        for other in others:
            here = (
                Candidate(other.name, "other", partial(lambda it: it, other)) if isinstance(other, Contender) else other
            )
            candidates.append(here)
    _, peers, reasons = checked(problem, SUITES[suite], OPTIONS, candidates, CpuClock())
    assert {peer.candidate.name for peer in peers} | set(reasons) == {candidate.name for candidate in candidates}
    return {name: entry["reason"] for name, entry in reasons.items()}


# ----------------------------------------------------------------------------------------------------- all are equal


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("stage", [SHIFTED, UNSHIFTED], ids=["shifted", "unshifted"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_op_is_equal(stage: Stage, dtype: str, direction: str) -> None:
    assert left_out(op(stage, dtype, direction), "op") == {}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("stage", [SHIFTED, UNSHIFTED, ONE_WINDOW, V2], ids=["shifted", "unshifted", "one", "v2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_block_is_equal(stage: Stage, dtype: str, direction: str) -> None:
    problem = block(stage, dtype, direction)
    names = [peer.name for peer in plain(problem)]
    assert names == ["eager", "timm", "torchvision", "transformers", "timm_sdpa"][: 4 if stage.version == 2 else 5]
    assert left_out(problem, "block") == {}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_model_is_equal(name: str, dtype: str, direction: str) -> None:
    assert left_out(model(name, dtype, direction), "dense" if name == "dense" else "model") == {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compiled_op_is_equal(dtype: str) -> None:
    problem = op(SHIFTED, dtype)
    (candidate,) = (peer for peer in problem.peers() if peer.name == "compile_eager_packed")
    assert left_out(problem, "op", candidate) == {}


@pytest.mark.parametrize("stage", [SHIFTED, UNSHIFTED], ids=["shifted", "unshifted"])
def test_flex_attention_is_equal(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    problem = op(stage, "bf16", "fwd")
    candidates = [peer for peer in problem.peers() if peer.family == "flex"]
    names = ["flex", "flex_dense_bias", "flex_block_mask", "flex_block_mask_dense_bias"]
    assert [peer.name for peer in candidates] == names[: 4 if stage.shift else 2]
    assert left_out(problem, "op", *candidates) == {}


def test_a_peer_that_does_not_run_is_left_out_with_its_reason() -> None:
    problem = op(SHIFTED, "fp32")
    (candidate,) = (peer for peer in problem.peers() if peer.name == "flex")
    reason = "NotImplementedError: FlexAttention has no backward on a CPU"
    assert left_out(problem, "op", candidate) == {"flex": reason}


def test_a_yardstick_that_does_not_run_fails_the_row() -> None:
    problem = op(SHIFTED, "fp32")

    def broken() -> Contender:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        checked(problem, SUITES["op"], OPTIONS, [Candidate("eager", "eager", broken)], CpuClock())


def test_after_the_time_of_a_run_no_peer_is_built() -> None:
    problem = op(SHIFTED, "fp32")
    late = replace(OPTIONS, deadline=0.0)
    _, peers, reasons = checked(problem, SUITES["op"], late, plain(problem), CpuClock())
    assert [peer.candidate.name for peer in peers] == ["eager"]
    assert reasons["sdpa"] == {"family": "sdpa", "reason": "the time of the run was over"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exported_model_is_equal(dtype: str) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    problem = model("v1", dtype, "fwd")
    candidates = [peer for peer in problem.peers() if peer.family in ("onnxruntime", "openvino")]
    found = left_out(problem, "model", *candidates)
    if dtype == "bf16":  # OpenVINO has it on some processors
        assert found.pop("onnxruntime") == "NotImplementedError: ONNX Runtime's CPU provider has no bfloat16 kernels"
        assert found.pop("openvino", "NotImplementedError").startswith("NotImplementedError")
    assert found == {}


def test_a_compiled_block_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # a second instead of twenty
    problem = block(SHIFTED, "fp32")
    candidates = [peer for peer in problem.peers() if peer.family == "timm_compile"]
    assert [peer.name for peer in candidates] == ["timm_compile", "timm_compile_sdpa"]
    assert left_out(problem, "block", *candidates) == {}


# --------------------------------------------------------------------------------------------------- wrong operators


def without_mask(p: op_contenders.Problem, qkv: Tensor, table: Tensor) -> Tensor:
    q, k, v = p.split(qkv)
    return p.merge(((q * p.hd**-0.5) @ k.mT + p.bias(table)).softmax(-1) @ v)


def with_transposed_bias(p: op_contenders.Problem, qkv: Tensor, table: Tensor) -> Tensor:
    return p.eager(qkv, table.flip(0))[0]


def without_roll_back(p: op_contenders.Problem, qkv: Tensor, table: Tensor) -> Tensor:
    return torch.roll(p.eager(qkv, table)[0], (-p.s, -p.s), (1, 2))


def with_one_nan(p: op_contenders.Problem, qkv: Tensor, table: Tensor) -> Tensor:
    out = p.eager(qkv, table)[0].clone()
    out[-1, -1, -1, -1] = math.nan
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", [without_mask, with_transposed_bias, without_roll_back, with_one_nan])
def test_a_wrong_op_is_found(dtype: str, fault: Callable[[op_contenders.Problem, Tensor, Tensor], Tensor]) -> None:
    problem = op(SHIFTED, dtype)
    wrong = OpContender("wrong", lambda qkv, table: (fault(problem, qkv, table),), problem)
    assert left_out(problem, "op", wrong)["wrong"].startswith("not equal: out differs")


@pytest.mark.parametrize("dtype", DTYPES)
def test_our_own_mistake_fails_the_row(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    problem = op(SHIFTED, dtype)
    wrong = OpContender("swin_fast", lambda qkv, table: (without_mask(problem, qkv, table),), problem)
    monkeypatch.setattr(problem, "ours", lambda backend: wrong)
    with pytest.raises(AssertionError, match="swin_fast is not equal: out differs"):
        left_out(problem, "op")


# ----------------------------------------------------------------------------------------------------- wrong modules


def no_mask(block: nn.Module) -> None:
    block.attn_mask = None


def transposed_table(block: nn.Module) -> None:
    block.attn.relative_position_bias_table.data = block.attn.relative_position_bias_table.flip(0)


def no_norm(block: nn.Module) -> None:
    block.norm1.forward = lambda x: x


def other_shift(block: nn.Module) -> None:
    block.shift_size = (block.shift_size[0] - 1, block.shift_size[1])


def tanh_instead_of_erf(block: nn.Module) -> None:
    block.mlp.act = nn.GELU("tanh")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", [no_mask, transposed_table, no_norm, other_shift])
def test_a_wrong_block_is_found(dtype: str, fault: Callable[[nn.Module], None]) -> None:
    problem = block(SHIFTED, dtype)
    wrong = problem.contender("wrong", "timm")
    fault(wrong.module)
    assert left_out(problem, "block", wrong)["wrong"].startswith("not equal: out differs")


def test_another_gelu_is_found() -> None:
    """Off by 5e-4: float32 tells them apart, bfloat16 cannot."""
    problem = block(SHIFTED, "fp32", "fwd")
    wrong = problem.contender("wrong", "timm")
    tanh_instead_of_erf(wrong.module)
    assert left_out(problem, "block", wrong)["wrong"].startswith("not equal: out differs")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", [no_mask, transposed_table])
def test_a_wrong_block_in_a_model_is_found(dtype: str, fault: Callable[[nn.Module], None]) -> None:
    problem = model("v1", dtype, "fwd")
    wrong = problem.contender("wrong", "timm")
    fault(wrong.module.layers[0].blocks[1])
    assert left_out(problem, "model", wrong)["wrong"].startswith("not equal: out differs")


def only(problem: block_contenders.Problem, wrong: ModuleContender) -> list[str]:
    """The names of the results that are found wrong."""
    reason = left_out(problem, "block", wrong)["wrong"].removeprefix("not equal: ")
    return [sentence.partition(" differs")[0] for sentence in reason.split("; ")]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_gradient_is_found(dtype: str) -> None:
    problem = block(SHIFTED, dtype)
    wrong = problem.contender("wrong", "timm")
    assert only(problem, replace(wrong, run=lambda x: wrong.module(2 * x - x.detach()))) == [gradient_of("x")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parameter", ["attn.relative_position_bias_table", "attn.qkv.weight", "mlp.fc2.bias"])
def test_a_gradient_that_is_left_out_is_found(dtype: str, parameter: str) -> None:
    problem = block(SHIFTED, dtype)
    wrong = problem.contender("wrong", "timm")
    wrong.module.get_parameter(parameter).requires_grad_(False)
    assert only(problem, wrong) == [gradient_of(parameter)]


def test_gradients_do_not_add_up_over_steps() -> None:
    problem = block(V2, "fp32")
    contender = problem.contender("timm", "timm")
    call = contender.call()
    call(), call()
    assert torch.equal(contender.x.grad, (call(), contender.x.grad)[1])
    exact = problem.exact()
    found = errors(contender, exact)
    assert all(found[name] <= bound for name, bound in bounds(problem, SUITES["block"], "peer", found).items())


def test_a_step_reaches_every_parameter_and_the_image_of_no_model() -> None:
    for problem, has_input_gradient in ((block(SHIFTED, "bf16"), True), (model("v2", "bf16"), False)):
        for library in ("swin_fast", "eager", *problem.libraries):
            contender = problem.contender(library, library)
            contender.call()()
            assert all(parameter.grad is not None for parameter in contender.module.parameters()), library
            assert (contender.x.grad is not None) == has_input_gradient


def test_ours_runs_on_the_backend_that_was_asked_for() -> None:
    ours = block(SHIFTED, "fp32").ours("triton")
    with pytest.raises(NotImplementedError, match="triton"):
        ours.call()()


# ------------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("library", ["timm", "torchvision"])  # transformers: test_peers.py
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_names_lead_there_and_back(name: str, library: str) -> None:
    problem = model(name, "fp32", "fwd")
    theirs = NAMING[library].outward(problem.weights)
    module = problem.build(library)
    assert sorted(theirs) == sorted(name for name, _ in module.named_parameters())
    for ours, weight in problem.weights.items():
        assert torch.equal(NAMING[library].inward(theirs, ours), weight), ours


def test_a_weight_that_is_missing_or_has_no_place_is_refused() -> None:
    linear = nn.Linear(2, 2)
    with pytest.raises(KeyError, match="bias"):
        load(linear, {"weight": torch.ones(2, 2)})
    with pytest.raises(KeyError, match="scale"):
        load(linear, {"weight": torch.ones(2, 2), "bias": torch.ones(2), "scale": torch.ones(1)})


def test_no_weight_is_what_a_fresh_module_has() -> None:
    for weight in model("v2", "fp32", "fwd").weights.values():
        assert weight.abs().max() > 0 and weight.unique().numel() > 0.99 * weight.numel()
