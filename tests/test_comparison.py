# SPDX-License-Identifier: Apache-2.0
"""The comparison itself is tested: what must fail, fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import oracles
from cases import DTYPE_IDS, DTYPES, Case, Inputs
from comparison import check, compare

EXACT = torch.linspace(-2.0, 2.0, 60, dtype=torch.float64).view(3, 20)

per_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS.get)


def _changed(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[1, 7] = value
    return tensor


@per_dtype
def test_rounded_truth_passes(dtype: torch.dtype) -> None:
    rounded = EXACT.to(dtype)
    assert compare("out", rounded, EXACT, [rounded], dtype=dtype).ok
    assert compare("out", rounded, EXACT, [], dtype=dtype).ok


@per_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e4, -0.5])
def test_one_wrong_value_fails(dtype: torch.dtype, value: float) -> None:
    rounded = EXACT.to(dtype)
    line = compare("out", _changed(rounded, value), EXACT, [rounded], dtype=dtype)
    assert not line.ok
    assert "FAIL out" in str(line)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_difference_is_infinite(value: float) -> None:
    line = compare("out", _changed(EXACT.float(), value), EXACT, [EXACT.float()], dtype=torch.float32)
    assert line.max_error == float("inf") and line.max_ratio == float("inf") and line.rms_ratio == float("inf")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_truth_must_be_met(value: float) -> None:
    exact = _changed(EXACT, value)
    assert compare("out", exact.float(), exact, [exact.float()], dtype=torch.float32).ok
    assert not compare("out", EXACT.float(), exact, [exact.float()], dtype=torch.float32).ok
    assert not compare("out", _changed(EXACT.float(), 3e38), exact, [exact.float()], dtype=torch.float32).ok


def test_overflow_of_the_dtype_must_be_met() -> None:
    exact = _changed(EXACT, 1e6)
    assert compare("out", exact.half(), exact, [exact.half()], dtype=torch.float16).ok
    assert not compare("out", _changed(exact.half(), 65504.0), exact, [exact.half()], dtype=torch.float16).ok


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_eager_that_is_not_finite_forgives_nothing(value: float) -> None:
    eager = _changed(EXACT.float(), value)
    close = _changed(EXACT.float(), EXACT[1, 7].item() * (1 + 1e-7))
    assert compare("out", close, EXACT, [eager], dtype=torch.float32).ok
    assert not compare(
        "out", _changed(EXACT.float(), EXACT[1, 7].item() + 1e-3), EXACT, [eager], dtype=torch.float32
    ).ok
    assert not compare("out", eager, EXACT, [eager], dtype=torch.float32).ok
    wholly = torch.full_like(eager, value)
    assert compare("out", EXACT.float(), EXACT, [wholly], dtype=torch.float32).ok
    assert not compare("out", EXACT.float() + 1e-5, EXACT, [wholly], dtype=torch.float32).ok


def test_twice_the_error_of_eager_is_the_limit() -> None:
    eager = (EXACT + 1e-4).float()
    assert compare("out", (EXACT - 1.9e-4).float(), EXACT, [eager], dtype=torch.float32).ok
    assert not compare("out", (EXACT - 2.1e-4).float(), EXACT, [eager], dtype=torch.float32).ok


def test_largest_error_of_eager_counts() -> None:
    orders = [(EXACT + error).float() for error in (0.0, 1e-4, 1e-6)]
    assert compare("out", (EXACT - 1.9e-4).float(), EXACT, orders, dtype=torch.float32).ok
    assert not compare("out", (EXACT - 2.1e-4).float(), EXACT, orders, dtype=torch.float32).ok
    broken = [*orders, torch.full_like(orders[0], float("nan"))]  # one order that is not finite: no yardstick at all
    assert not compare("out", (EXACT - 1.9e-4).float(), EXACT, broken, dtype=torch.float32).ok


def test_root_mean_square_counts_too() -> None:
    eager = _changed(EXACT.float(), 1.0)  # one large error must not license many smaller ones
    line = compare("out", (EXACT + 0.5).float(), EXACT, [eager], dtype=torch.float32)
    assert line.max_ratio < 1.0 < line.rms_ratio
    assert not line.ok


@pytest.mark.parametrize(
    ("got", "note"),
    [
        (EXACT.float()[:2], "shape (2, 20), wanted (3, 20)"),
        (EXACT.float().view(20, 3), "shape (20, 3), wanted (3, 20)"),
        (EXACT.float()[:1], "shape (1, 20), wanted (3, 20)"),  # would broadcast
        (EXACT, "dtype torch.float64, wanted torch.float32"),
        (EXACT.half(), "dtype torch.float16, wanted torch.float32"),
    ],
)
def test_other_shape_or_dtype_fails(got: Tensor, note: str) -> None:
    line = compare("dq", got, EXACT, [EXACT.float()], dtype=torch.float32)
    assert not line.ok and line.note == note


def test_empty_tensors() -> None:
    empty = torch.empty(0, 4, dtype=torch.float64)
    assert compare("out", empty.float(), empty, [empty.float()], dtype=torch.float32).ok
    assert not compare("out", torch.empty(0, 3), empty, [empty.float()], dtype=torch.float32).ok


def test_check_names_the_place_and_every_tensor() -> None:
    good = compare("out", EXACT.float(), EXACT, [EXACT.float()], dtype=torch.float32)
    bad = compare("dq", _changed(EXACT.float(), float("nan")), EXACT, [EXACT.float()], dtype=torch.float32)
    check("w7 cpu", [good])
    with pytest.raises(AssertionError, match=r"(?s)w7 cpu.*ok   out.*FAIL dq.*inf x bound"):
        check("w7 cpu", [good, bad])


def test_missing_tensor_fails() -> None:
    inputs, truth = oracles.problem(CASE, torch.float32, "cpu")
    got = oracles.run_eager(inputs)
    del got["dbias"]
    with pytest.raises(AssertionError, match="dbias"):
        truth.comparisons(got, torch.float32)


# ------------------------------------------------------------------- wrong results that a real mistake would give

CASE = Case(13, 11, (4, 5), (2, 3), 2, 16, B=2, bias="dense", pad_value=True)
COSINE = replace(CASE, cosine=True)
Results = dict[str, Tensor]


def _with_case(inputs: Inputs, **changes: object) -> Results:
    return oracles.run_eager(replace(inputs, case=replace(inputs.case, **changes)))  # type: ignore[arg-type]


def _with_tensor(inputs: Inputs, name: str, change: Callable[[Tensor], Tensor]) -> Results:
    return oracles.run_eager(replace(inputs, **{name: change(getattr(inputs, name))}))


def _gradient(inputs: Inputs, name: str, change: Callable[[Tensor], Tensor]) -> Results:
    results = oracles.run_eager(inputs)
    return {**results, name: change(results[name])}


def _last_row_unmasked(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> Results:
    regions = oracles.shift_regions

    def off_by_one(padded: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: object) -> Tensor:
        return regions(padded, window, (shift[0] - 1, shift[1]), device)

    monkeypatch.setattr(oracles, "shift_regions", off_by_one)
    return oracles.run_eager(inputs)


def _bias_index_off_by_one(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> Results:
    index = oracles.relative_index
    relative = replace(inputs, case=replace(inputs.case, bias="relative"))
    size = (inputs.case.nH, 2 * CASE.window[0] - 1, 2 * CASE.window[1] - 1)
    relative = replace(relative, bias=torch.randn(size))
    right = oracles.run_eager(relative)
    monkeypatch.setattr(oracles, "relative_index", lambda window: (index(window) + 1) % (size[1] * size[2]))
    wrong = oracles.run_eager(relative)
    # As the difference of the two on top of the true results, for these are of the dense form.
    true = oracles.run_eager(inputs)
    return {**true, "out": true["out"] + wrong["out"] - right["out"]}


WRONG: dict[str, Callable[[Inputs, pytest.MonkeyPatch], Results]] = {
    "mask off by one row": _last_row_unmasked,
    "bias index off by one": _bias_index_off_by_one,
    "no mask": lambda inputs, _: _with_case(inputs, mask_value=0.0),
    "shift off by one": lambda inputs, _: _with_case(inputs, shift=(2, 2)),
    "no shift": lambda inputs, _: _with_case(inputs, shift=(0, 0)),
    "other pad order": lambda inputs, _: _with_case(inputs, pad_order="roll_pad"),
    "zeros for pads": lambda inputs, _: _with_tensor(inputs, "pad_value", torch.zeros_like),
    "scale of another head_dim": lambda inputs, _: _with_case(inputs, scale=32**-0.5),
    "bias transposed": lambda inputs, _: _with_tensor(inputs, "bias", lambda bias: bias.transpose(1, 2)),
    "bias of the next head": lambda inputs, _: _with_tensor(inputs, "bias", lambda bias: bias.roll(1, 0)),
    "k and v exchanged": lambda inputs, _: _with_tensor(inputs, "qkv", lambda qkv: qkv[:, :, :, [0, 2, 1]]),
    "heads exchanged": lambda inputs, _: _gradient(inputs, "out", lambda out: out.roll(16, -1)),
    "dq without scale": lambda inputs, _: _gradient(inputs, "dq", lambda dq: dq * 4),
    "dk and dv exchanged": lambda inputs, _: _gradient(inputs, "dk", lambda dk: dk.roll(1, 2)),
    "last pixel not written": lambda inputs, _: _gradient(inputs, "dv", lambda dv: _zero_last(dv)),
    "dbias of one image": lambda inputs, _: _gradient(inputs, "dbias", lambda dbias: dbias / 2),
    "dbias transposed": lambda inputs, _: _gradient(inputs, "dbias", lambda dbias: dbias.transpose(1, 2).contiguous()),
    "gradient of pads missing": lambda inputs, _: _gradient(inputs, "dpad_v", torch.zeros_like),
    "gradient of padded queries": lambda inputs, _: _gradient(inputs, "dpad_q", torch.ones_like),
}


def _zero_last(gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    gradient[-1, -1, -1] = 0.0
    return gradient


@per_dtype
@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_results_fail(dtype: torch.dtype, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, truth = oracles.problem(CASE, dtype, "cpu")
    check("right", truth.comparisons(oracles.run_eager(inputs), dtype))
    lines = truth.comparisons(WRONG[mistake](inputs, monkeypatch), dtype)
    assert any(not line.ok for line in lines), "\n".join(map(str, lines))


@per_dtype
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dlogit_scale", lambda gradient: gradient / 2),
        ("dlogit_scale", torch.zeros_like),
        ("out", lambda out: out.roll(1, 1)),
        ("dk", lambda dk: dk * 1.5),
    ],
)
def test_wrong_results_of_cosine_attention_fail(
    dtype: torch.dtype, name: str, change: Callable[[Tensor], Tensor]
) -> None:
    inputs, truth = oracles.problem(COSINE, dtype, "cpu")
    check("right", truth.comparisons(oracles.run_eager(inputs), dtype))
    lines = truth.comparisons(_gradient(inputs, name, change), dtype)
    assert [line.name for line in lines if not line.ok] == [name]
