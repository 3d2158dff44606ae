# SPDX-License-Identifier: Apache-2.0
"""backend `reference` against the brute-force definition, and its explicit backward against autograd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
from cases import (
    DIFFERENCE_ERROR,
    DIFFERENCE_STEP,
    FORWARD_FLOAT64,
    GRADIENT_FLOAT64,
    HOSTILE,
    SMALL,
    STAGES,
    TINY,
    Case,
    Inputs,
    make_inputs,
)
from swin_fast import reference

per_small = pytest.mark.parametrize("case", SMALL, ids=str)
per_tiny = pytest.mark.parametrize("case", TINY, ids=str)


def _assert_close(where: str, got: oracles.Results, wanted: oracles.Results, tolerance: float) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].shape == value.shape and got[name].dtype == torch.float64, f"{where} {name}"
        if value.numel() == 0:
            continue
        error = (got[name] - value).abs().max().item() / max(1.0, value.abs().max().item())
        assert error <= tolerance, f"{where} {name}: error {error:.3e}, tolerance {tolerance:.0e}"


@per_small
def test_forward_is_the_paper(case: Case) -> None:
    inputs = make_inputs(case, torch.float64)
    wanted = {"out": torch.from_numpy(oracles.brute_force(inputs))}
    reference_out = {"out": oracles.run_reference(inputs)["out"]}
    eager_out = {"out": oracles.run_eager(inputs)["out"]}
    _assert_close(f"reference {case} seed {case.seed}", reference_out, wanted, FORWARD_FLOAT64)
    _assert_close(f"eager {case} seed {case.seed}", eager_out, wanted, FORWARD_FLOAT64)


@per_small
def test_backward_formula_is_autograd(case: Case) -> None:
    """The op's explicit formulas, autograd of the reference, and autograd of eager agree."""
    inputs = make_inputs(case, torch.float64)
    wanted = oracles.run_reference(inputs)
    _assert_close(f"op {case} seed {case.seed}", oracles.run_op(inputs, "reference"), wanted, GRADIENT_FLOAT64)
    _assert_close(f"eager {case} seed {case.seed}", oracles.run_eager(inputs), wanted, GRADIENT_FLOAT64)


@pytest.mark.parametrize("case", [case for case in STAGES + HOSTILE if case.values != "tiny_rows"], ids=str)
def test_large_cases_in_float64(case: Case) -> None:
    """The cases of the kernels: the op in float64 is autograd of the reference."""
    inputs = make_inputs(case, torch.float32).double()
    wanted = oracles.run_reference(inputs)
    got = oracles.run_op(inputs, "reference")
    _assert_close(f"{case} seed {case.seed}", got, wanted, GRADIENT_FLOAT64)


@per_tiny
def test_gradients_are_differences_of_the_paper(case: Case) -> None:
    """Central differences of the brute-force definition, of every number of every argument."""
    inputs = make_inputs(case, torch.float64)
    results = oracles.run_op(inputs, "reference")
    gradients = {"qkv": torch.stack([results[name] for name in ("dq", "dk", "dv")], 3)}
    if inputs.bias is not None:
        gradients["bias"] = results["dbias"]
    if inputs.logit_scale is not None:
        gradients["logit_scale"] = results["dlogit_scale"]
    if inputs.pad_value is not None:
        gradients["pad_value"] = torch.stack([results[name] for name in ("dpad_q", "dpad_k", "dpad_v")])
        assert not results["dpad_q"].any()

    weights = inputs.grad_out.numpy()
    for name, gradient in gradients.items():
        argument: Tensor = getattr(inputs, name)
        wanted = np.zeros(argument.numel())
        for index in range(argument.numel()):
            sides = []
            for step in (DIFFERENCE_STEP, -DIFFERENCE_STEP):
                moved = argument.clone()
                moved.view(-1)[index] += step
                sides.append((oracles.brute_force(replace(inputs, **{name: moved})) * weights).sum())
            wanted[index] = (sides[0] - sides[1]) / (2 * DIFFERENCE_STEP)
        error = np.abs(gradient.flatten().numpy() - wanted).max()
        assert error <= DIFFERENCE_ERROR, f"{case} seed {case.seed} d{name}: error {error:.3e}"


@per_tiny
def test_gradcheck(case: Case) -> None:
    inputs = make_inputs(case, torch.float64)
    names = ("qkv", "bias", "logit_scale", "pad_value")
    present = [name for name in names if getattr(inputs, name) is not None]

    def out(*tensors: Tensor) -> Tensor:
        moved = replace(inputs, **dict(zip(present, tensors, strict=True)))
        return oracles.run_op_forward(moved, "reference")

    leaves = [getattr(inputs, name).requires_grad_() for name in present]
    assert torch.autograd.gradcheck(out, leaves)


@pytest.mark.parametrize("bias_form", ["dense", "relative"])
def test_rows_of_minus_infinity_average_to_zero(bias_form: str) -> None:
    case = Case(7, 6, (3, 4), (1, 2), 2, 4, bias=bias_form, pad_value=True)
    inputs = make_inputs(case, torch.float64)
    assert inputs.bias is not None
    inputs.bias[1, 2 if bias_form == "dense" else slice(None)] = float("-inf")
    wanted = torch.from_numpy(oracles.brute_force(inputs))
    results = oracles.run_op(inputs, "reference")
    assert torch.isfinite(wanted).all() and (wanted == 0).any()
    assert torch.equal(results["out"] == 0, wanted == 0)
    _assert_close(f"{case} seed {case.seed}", {"out": results["out"]}, {"out": wanted}, FORWARD_FLOAT64)
    _assert_close(f"{case} seed {case.seed}", results, oracles.run_reference(inputs), GRADIENT_FLOAT64)
    for name, gradient in results.items():
        assert torch.isfinite(gradient).all(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("cosine", [False, True], ids=["dot", "cosine"])
def test_low_precision_is_float32_rounded_once(dtype: torch.dtype, cosine: bool) -> None:
    case = Case(9, 11, (4, 5), (1, 2), 2, 16, B=2, pad_value=True, cosine=cosine)
    low = make_inputs(case, dtype)
    high = Inputs(case, low.qkv.float(), low.bias, low.logit_scale, low.pad_value.float(), low.grad_out.float())
    got, wanted = oracles.run_op(low, "reference"), oracles.run_op(high, "reference")
    for name, value in wanted.items():
        parameter = name in ("dbias", "dlogit_scale")
        assert got[name].dtype == (torch.float32 if parameter else dtype)
        assert torch.equal(got[name], value.to(got[name].dtype)), name


@pytest.mark.parametrize("pad_order", ["pad_roll", "roll_pad"])
def test_attention_dropout(pad_order: str) -> None:
    """Keeps the mean, follows the seed, and is absent at 0."""
    case = Case(6, 7, (4, 4), (2, 1), 2, 4, pad_order=pad_order)
    inputs = make_inputs(case, torch.float64)
    options = {**inputs.options, "scale": case.effective_scale}

    def attend(probability: float, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return reference.window_attention(inputs.qkv, inputs.bias, attn_drop=probability, **options)

    plain = attend(0.0, 0)
    assert torch.equal(attend(0.5, 1), attend(0.5, 1))
    assert not torch.equal(attend(0.5, 1), attend(0.5, 2))
    samples = torch.stack([attend(0.25, seed) for seed in range(100)])
    standard_error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - plain).abs() <= 6 * standard_error + 1e-9).all()
    assert torch.equal(attend(1.0, 0), torch.zeros_like(plain))
