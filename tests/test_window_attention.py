# SPDX-License-Identifier: Apache-2.0
"""Every backend and every native path on every case: out and all gradients within the tolerance rule; what NaN, Inf,
rows of -inf and an empty batch do; what is written, what is read, and how much memory it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

import oracles
from cases import ALL, DTYPE_IDS, DTYPES, Case, Inputs, make_inputs, peak_memory_bound
from comparison import check, compare

if TYPE_CHECKING:
    from conftest import KernelPath

per_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS.get)


@pytest.mark.parametrize("case", ALL, ids=str)
@per_dtype
def test_out_and_gradients(path: KernelPath, case: Case, dtype: torch.dtype) -> None:
    path.require(case, dtype)
    inputs, truth = oracles.problem(case, dtype, path.device)
    got = oracles.run_op(inputs, path.backend)
    check(f"{path} {DTYPE_IDS[dtype]} {case} seed {case.seed}", truth.comparisons(got, dtype))
    if inputs.pad_value is not None:
        assert not got["dpad_q"].any(), "the q part of dpad_value must be exactly 0: padded queries are dropped"


@per_dtype
@pytest.mark.parametrize("cosine", [False, True], ids=["dot", "cosine"])
def test_bias_and_logit_scale_are_not_rounded(path: KernelPath, dtype: torch.dtype, cosine: bool) -> None:
    """Scores live in float32: a bias of 64 plus small differences, which bfloat16 and float16 cannot hold."""
    case = Case(14, 14, (7, 7), (3, 3), 2, 32, cosine=cosine)
    inputs = make_inputs(case, dtype, path.device)
    assert inputs.bias is not None
    inputs = replace(inputs, bias=64 + 0.02 * inputs.bias)
    if inputs.logit_scale is not None:
        inputs = replace(inputs, logit_scale=inputs.logit_scale + 0.01)
    double = inputs.double()
    exact = oracles.run_reference(double)["out"]
    float32 = replace(inputs, qkv=inputs.qkv.float(), grad_out=inputs.grad_out.float())
    eager = oracles.run_eager(float32)["out"]  # in float32 for every dtype: the yardstick of scores of this size
    got = oracles.run_op_forward(inputs, path.backend)
    check(f"{path} {DTYPE_IDS[dtype]} {case} seed {case.seed}", [compare("out", got, exact, [eager], dtype=dtype)])


@pytest.mark.parametrize("parameter_dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_gradients_have_the_dtype_of_their_argument(path: KernelPath, parameter_dtype: torch.dtype) -> None:
    case = Case(13, 9, (7, 7), (3, 3), 2, 16, pad_value=True, cosine=True)
    inputs = make_inputs(case, torch.float32, path.device)
    assert inputs.bias is not None and inputs.logit_scale is not None and inputs.pad_value is not None
    narrow = replace(
        inputs,
        bias=inputs.bias.to(parameter_dtype),
        logit_scale=inputs.logit_scale.to(parameter_dtype),
        pad_value=inputs.pad_value.to(parameter_dtype),
    )
    wide = replace(
        inputs, bias=narrow.bias.float(), logit_scale=narrow.logit_scale.float(), pad_value=narrow.pad_value.float()
    )
    got, wanted = oracles.run_op(narrow, path.backend), oracles.run_op(wide, path.backend)
    for name, value in wanted.items():
        dtype = torch.float32 if name in ("out", "dq", "dk", "dv") else parameter_dtype
        assert got[name].dtype == dtype, name
        assert torch.equal(got[name], value.to(dtype)), name


def test_results_are_contiguous(path: KernelPath) -> None:
    case = Case(13, 9, (7, 7), (3, 3), 2, 16, B=2, pad_value=True, cosine=True, layout="permuted")
    inputs = make_inputs(case, torch.float32, path.device)
    names = ("qkv", "bias", "logit_scale", "pad_value")
    leaves = [getattr(inputs, name).detach().requires_grad_() for name in names]
    out = oracles.run_op_forward(replace(inputs, **dict(zip(names, leaves, strict=True))), path.backend)
    assert out.is_contiguous() and out.shape == (2, 13, 9, 32)
    for name, leaf, gradient in zip(names, leaves, torch.autograd.grad(out, leaves, inputs.grad_out), strict=True):
        assert gradient.is_contiguous() and gradient.shape == leaf.shape, name


# --------------------------------------------------------------------------------------------------------- NaN and Inf

NON_FINITE = pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=["nan", "inf", "-inf"])
PATTERN_CASES = (
    Case(14, 21, (7, 7), (3, 3), 2, 32, B=2, pad_value=True),
    Case(13, 11, (4, 5), (2, 3), 2, 6, B=2, pad_value=True, bias="dense"),
    Case(16, 16, (8, 8), (4, 4), 2, 32, cosine=True, pad_order="roll_pad"),
)
per_pattern_case = pytest.mark.parametrize("case", PATTERN_CASES, ids=str)


def _check_pattern(where: str, got: oracles.Results, poisoned: Inputs) -> None:
    """NaN and Inf stand exactly where eager has them in float64, padded queries left out.

    Those are dropped in the end, and what they do to dbias on the way (0 * NaN) is left open.
    """
    case = poisoned.case
    padded = case.H % case.window[0] != 0 or case.W % case.window[1] != 0
    wanted = oracles.run_eager(poisoned.double(), oracles.softmax_of_real_queries(case))
    for name, value in wanted.items():
        if name == "dpad_q":
            assert not got[name].any(), f"{where}: {name} is 0, whatever happens"
            continue
        bad, wanted_bad = ~torch.isfinite(got[name]), ~torch.isfinite(value)
        if name == "dbias" and padded:
            bad = bad & wanted_bad
        assert torch.equal(bad, wanted_bad), f"{where} {name}: {bad.sum()} are not finite, eager has {wanted_bad.sum()}"


@per_pattern_case
@pytest.mark.parametrize("place", ["q", "k", "v", "grad_out"])
@NON_FINITE
@per_dtype
def test_non_finite_value_stays_in_its_window(
    path: KernelPath, case: Case, place: str, value: float, dtype: torch.dtype
) -> None:
    """One bad number in one head of one pixel: its window and head show it as eager does, and every other window's
    results have not changed by a bit."""
    path.require(case, dtype)
    inputs = make_inputs(case, dtype, path.device)
    y, x, head, channel = case.H - 1, 2, 1, 3
    if place == "grad_out":
        poisoned = replace(inputs, grad_out=inputs.grad_out.clone())
        poisoned.grad_out[-1, y, x, head * case.hd + channel] = value
    else:
        poisoned = replace(inputs, qkv=inputs.qkv.clone())
        poisoned.qkv[-1, y, x, "qkv".index(place), head, channel] = value
    got, clean = oracles.run_op(poisoned, path.backend), oracles.run_op(inputs, path.backend)
    where = f"{path} {DTYPE_IDS[dtype]} {case} seed {case.seed} {value} in {place}"
    _check_pattern(where, got, poisoned)

    windows = torch.from_numpy(oracles.windows_of_pixels(case)).to(path.device)
    elsewhere = (windows != windows[y, x]).expand(case.B, -1, -1).clone()
    elsewhere[:-1] = True
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(got[name][elsewhere], clean[name][elsewhere]), f"{where}: {name} of another window changed"


@pytest.mark.parametrize("bias_form", ["dense", "relative"])
@NON_FINITE
def test_non_finite_bias(path: KernelPath, bias_form: str, value: float) -> None:
    case = Case(14, 13, (7, 7), (3, 3), 3, 32, bias=bias_form)
    inputs = make_inputs(case, torch.float32, path.device)
    assert inputs.bias is not None
    poisoned = replace(inputs, bias=inputs.bias.clone())
    poisoned.bias[1, 5, 7] = value
    got, clean = oracles.run_op(poisoned, path.backend), oracles.run_op(inputs, path.backend)
    where = f"{path} {case} seed {case.seed} {value} in the bias"
    _check_pattern(where, got, poisoned)
    for name in ("out", "dq", "dk", "dv"):
        heads = got[name].view(1, 14, 13, 3, 32)[..., ::2, :], clean[name].view(1, 14, 13, 3, 32)[..., ::2, :]
        assert torch.equal(*heads), f"{where}: {name} of another head changed"
    assert torch.equal(got["dbias"][::2], clean["dbias"][::2]), f"{where}: dbias of another head changed"


@pytest.mark.parametrize("place", ["k", "v"])
@NON_FINITE
def test_non_finite_pad_value(path: KernelPath, place: str, value: float) -> None:
    """Reaches the windows that hold padding, and no other."""
    case = Case(18, 16, (7, 7), (3, 3), 2, 32, pad_value=True)
    inputs = make_inputs(case, torch.float32, path.device)
    assert inputs.pad_value is not None
    poisoned = replace(inputs, pad_value=inputs.pad_value.clone())
    poisoned.pad_value["qkv".index(place), 1, 3] = value
    got, clean = oracles.run_op(poisoned, path.backend), oracles.run_op(inputs, path.backend)
    where = f"{path} {case} seed {case.seed} {value} in {place} of pad_value"
    _check_pattern(where, got, poisoned)
    windows = torch.from_numpy(oracles.windows_of_pixels(case)).to(path.device)
    full = (torch.bincount(windows.flatten())[windows] == case.N).unsqueeze(0)
    assert full.any() and not full.all()
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(got[name][full], clean[name][full]), f"{where}: {name} of a window without padding changed"


@pytest.mark.parametrize(
    "case",
    [
        Case(14, 14, (7, 7), (3, 3), 2, 32, B=2, bias="dense"),
        Case(9, 10, (3, 5), (1, 2), 2, 6, bias="dense", pad_value=True),
        Case(16, 13, (8, 8), (4, 4), 2, 32, bias="dense", cosine=True, pad_value=True),
    ],
    ids=str,
)
@per_dtype
def test_rows_of_minus_infinity(path: KernelPath, case: Case, dtype: torch.dtype) -> None:
    """A row of scores that is wholly -inf: output 0 and gradients 0, as if its gradient never arrived."""
    path.require(case, dtype)
    inputs = make_inputs(case, dtype, path.device)
    assert inputs.bias is not None
    inputs.bias[:, :, 1] = float("-inf")  # single entries, in passing: exp(-inf) = 0
    inputs.bias[:, 1, 1] = 0.5
    finite = replace(inputs, bias=inputs.bias.clone(), grad_out=inputs.grad_out.clone())
    lost = torch.from_numpy(oracles.tokens_of_pixels(case) == 4).to(path.device)
    inputs.bias[1, 4] = float("-inf")
    finite.bias[1, 4] = 0.25
    finite.grad_out.view(*finite.grad_out.shape[:3], case.nH, case.hd)[:, lost, 1] = 0.0
    truth = oracles.find_truth(finite)
    for results in (truth.exact, *truth.eager):
        results["out"].view(*results["out"].shape[:3], case.nH, case.hd)[:, lost, 1] = 0.0
    got = oracles.run_op(inputs, path.backend)
    assert lost.any()
    assert not got["out"].view(*got["out"].shape[:3], case.nH, case.hd)[:, lost, 1].any()
    assert not got["dq"][:, lost, 1].any()
    assert not got["dbias"][1, 4].any()
    check(f"{path} {DTYPE_IDS[dtype]} {case} seed {case.seed}", truth.comparisons(got, dtype))


def test_everything_minus_infinity(path: KernelPath) -> None:
    case = Case(15, 13, (7, 7), (3, 3), 2, 32, pad_value=True)
    inputs = make_inputs(case, torch.float32, path.device)
    assert inputs.bias is not None
    inputs.bias.fill_(float("-inf"))
    for name, value in oracles.run_op(inputs, path.backend).items():
        assert not value.any(), name


# ------------------------------------------------------------------------------------------- empty, written and read


@per_dtype
@pytest.mark.parametrize("bias_form", ["dense", "relative", "none"])
def test_empty_batch(path: KernelPath, bias_form: str, dtype: torch.dtype) -> None:
    case = Case(9, 10, (7, 7), (3, 3), 2, 32, B=0, bias=bias_form, pad_value=True, cosine=bias_form == "dense")
    inputs = make_inputs(case, dtype, path.device)
    results = oracles.run_op(inputs, path.backend)
    assert results["out"].shape == (0, 9, 10, 64) and results["out"].dtype == dtype
    assert results["dq"].shape == (0, 9, 10, 2, 32) and results["dq"].dtype == dtype
    for name in results.keys() - {"out", "dq", "dk", "dv"}:
        assert not results[name].any(), name


@pytest.mark.parametrize(
    "case",
    [
        Case(14, 14, (7, 7), (3, 3), 2, 32, B=2),
        Case(13, 9, (7, 7), (3, 3), 2, 30, pad_value=True, cosine=True, bias="dense"),
        Case(5, 4, (8, 8), (4, 4), 1, 32, pad_order="roll_pad"),
        Case(30, 25, (12, 12), (6, 6), 1, 32, pad_value=True),
        Case(9, 8, (3, 5), (1, 2), 2, 6, bias="none"),
        Case(6, 6, (3, 3), (1, 1), 2, 16, B=0, bias="dense", pad_value=True),
    ],
    ids=str,
)
@per_dtype
def test_poisoned_memory(path: KernelPath, case: Case, dtype: torch.dtype) -> None:
    """Every tensor that the op allocates starts as NaN: an element that is not written, or workspace that is read
    before it is written, shows."""
    path.require(case, dtype)
    inputs = make_inputs(case, dtype, path.device)
    clean = oracles.run_op(inputs, path.backend)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(8).isnan().all()
    got = oracles.run_op(inputs, path.backend)
    for name, value in got.items():
        assert torch.isfinite(value).all(), f"{path} {case} {name} is not finite"
        assert torch.equal(value, clean[name]), f"{path} {case} {name} differs"


@per_dtype
def test_arguments_are_not_changed(path: KernelPath, dtype: torch.dtype) -> None:
    case = Case(13, 9, (7, 7), (3, 3), 2, 32, B=2, pad_value=True, cosine=True, bias="dense")
    inputs = make_inputs(case, dtype, path.device)
    before = inputs.double()
    oracles.run_op(inputs, path.backend)
    for name in ("qkv", "bias", "logit_scale", "pad_value", "grad_out"):
        assert torch.equal(getattr(inputs, name).double(), getattr(before, name)), name


# --------------------------------------------------------------------------------------------------------------- memory

_PEAK = """
import json, resource, sys
import torch
import swin_fast

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(2)
dtype = getattr(torch, sys.argv[1])
H, window, nH, hd = (int(argument) for argument in sys.argv[2:])

def attend(qkv, bias, window):
    sizes = {"window_size": (window, window), "shift_size": (window // 2, window // 2)}
    return swin_fast.window_attention(qkv, bias, backend="cpu", **sizes)

# Libraries, autograd's thread state and the threads themselves are not the op's: a problem too small to leave a peak
# of its own brings them in.
qkv = torch.zeros(1, 16, 16, 3, 1, 8, dtype=dtype, requires_grad=True)
bias = torch.zeros(1, 4, 4, requires_grad=True)
out = attend(qkv, bias, 2)
torch.autograd.grad(out, (qkv, bias), out.detach())
del qkv, bias, out

qkv = torch.empty(1, H, H, 3, nH, hd, dtype=dtype).fill_(0.5).requires_grad_()
bias = torch.empty(nH, window**2, window**2).fill_(0.25).requires_grad_()
grad_out = torch.empty(1, H, H, nH * hd, dtype=dtype).fill_(1.0)
ballast = torch.ones(2**25)  # 128 MiB that stay: whatever importing took for a moment is below the peak from here on
before = peak()
out = attend(qkv, bias, window)
forward = peak()
torch.autograd.grad(out, (qkv, bias), grad_out)
print(json.dumps([forward - before, peak() - forward]))
"""


per_memory_case = pytest.mark.parametrize(("size", "window", "nH", "hd"), [(256, 16, 8, 8), (392, 7, 8, 8)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@per_memory_case
def test_peak_memory(
    backend: str, run_script: Callable[..., str], size: int, window: int, nH: int, hd: int, dtype: str
) -> None:
    """What a call takes beyond its arguments is O(B*H*W*C + nH*N^2).

    The bound is `cases.peak_memory_bound`: forward the size of out and backward that of dqkv, each with a quarter on
    top, plus copies of the bias, plus what threads take.
    """
    if backend != "cpu":
        pytest.skip("the peak of the process says what the CPU kernels take; the reference promises nothing")
    forward, backward = json.loads(run_script(_PEAK, dtype, str(size), str(window), str(nH), str(hd), timeout=120))
    out = size * size * nH * hd * getattr(torch, dtype).itemsize
    for name, taken, result in (("forward", forward, out), ("backward", backward, 3 * out)):
        bound = peak_memory_bound(result, nH, window**2)
        sentence = f"{name} took {taken / 2**20:.1f} MiB, the bound is {bound / 2**20:.1f} MiB"
        print(sentence)
        assert taken <= bound, sentence


@per_memory_case
@per_dtype
def test_all_scores_would_break_the_bound(size: int, window: int, nH: int, hd: int, dtype: torch.dtype) -> None:
    """The memory test can fail: the scores of all windows, kept once, are more than its bound."""
    scores = size * size * nH * window**2 * dtype.itemsize
    assert scores > peak_memory_bound(3 * size * size * nH * hd * dtype.itemsize, nH, window**2)
