# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels in Triton's interpreter, on a CPU. Collected only with TRITON_INTERPRET=1, which Triton reads when
kernels are imported: `test_triton.py` runs this file, and the tests of all backends, in a process of their own.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import oracles
import triton_interpreter
from cases import ALL, DTYPE_IDS, DTYPES, Case, make_inputs
from comparison import check
from swin_fast.backends import triton_bwd, triton_fwd, triton_launch, triton_plan, triton_window
from swin_fast.backends.configs import Parameters, two_powers

per_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS.get)
GRADIENTS = ("dq", "dk", "dv", "dbias", "dlogit_scale", "dpad_k", "dpad_v")
SHIFTED = Case(13, 11, (7, 7), (3, 3), 1, 16, pad_value=True)
COSINE = Case(9, 10, (5, 4), (2, 3), 2, 16, cosine=True, pad_value=True, bias="dense")
SECOND_LAST = Case(16, 7, (7, 7), (3, 0), 1, 16, pad_value=True)  # a window that is not the last one has padding, too
MIDDLE = Case(12, 13, (12, 12), (6, 6), 1, 32, pad_value=True)


def verdict(case: Case, dtype: torch.dtype = torch.float32) -> None:
    inputs, truth = oracles.problem(case, dtype, "cpu")
    check(f"triton {DTYPE_IDS[dtype]} {case}", truth.comparisons(oracles.run_op(inputs, "triton"), dtype))


# ----------------------------------------------------------------------------------------------------- the interpreter


@triton.jit
def product(a, b, out, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def rounded(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i).to(tl.bfloat16))


@triton.jit
def counted(out, first, last):
    count = 0
    for _i in range(first, first + last):
        count += 1
    tl.store(out, count)


@triton.jit
def summed(a, b, total, N: tl.constexpr, ADDED: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    if ADDED:
        found = triton_window.add_product(tl.load(total + at), tl.load(a + at), tl.load(b + at), "ieee")
    else:
        found = tl.dot(tl.load(a + at), tl.load(b + at), tl.load(total + at), input_precision="ieee")
    tl.store(total + at, found)


def sums_in_a_chain(added: bool = False) -> bool:
    """2^24 + 16 ones, one by one, is 2^24 in float32."""
    total = torch.full((16, 16), 2.0**24)
    summed[(1,)](torch.ones(16, 16), torch.ones(16, 16), total, N=16, ADDED=added)
    return bool((total == 2.0**24).all())


def multiplies() -> bool:
    a, b = torch.randn(2, 16, 16).bfloat16()
    out = torch.empty(16, 16)
    product[(1,)](a, b, out, N=16)
    return torch.allclose(out, a.float() @ b.float(), atol=1e-4)


def rounds() -> bool:
    x = torch.tensor([1.00390625, 1.01171875, 3.3e38, 4e-42, -3e-39, 0.1, float("inf"), 0.0])
    out = torch.empty(8, dtype=torch.bfloat16)
    rounded[(1,)](x, out, N=8)
    return torch.equal(out, x.bfloat16())


def counts() -> bool:
    out = torch.zeros(1, dtype=torch.int32)
    try:
        counted[(1,)](out, 2, 3)
    except Exception:
        return False
    return out.item() == 3


@pytest.mark.parametrize("works", [multiplies, rounds, counts, sums_in_a_chain])
def test_a_mend_of_the_interpreter_works_and_is_needed(works: Callable[[], bool]) -> None:
    assert works()
    triton_interpreter.uninstall()
    try:
        assert not works(), "the interpreter does this by itself now: the mend can go"
    finally:
        triton_interpreter.install()


def test_products_of_blocks_are_summed_by_themselves() -> None:
    assert not sums_in_a_chain(added=True)


# ------------------------------------------------------------------------------------------------ the largest problems


#: Windows of 1,024 tokens, at 300 to 500 s of CPU time for four of them, and 70,225 windows at 40 ms: too much for CI.
LARGEST = [case for case in ALL if case.N == 1024 or case.H > 500]


@pytest.mark.hours
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=DTYPE_IDS.get)
@pytest.mark.parametrize("case", LARGEST, ids=str)
def test_the_largest_problems(case: Case, dtype: torch.dtype) -> None:
    """What conftest leaves out of the tests of all backends, as it takes hours."""
    verdict(case, dtype)


# -------------------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("case", [SHIFTED, COSINE, MIDDLE], ids=str)
def test_owners_and_programs_do_not_change_what_is_of_one_window(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """Another number of multiprocessors cuts the work into other programs."""
    inputs = make_inputs(case, torch.bfloat16)
    results = []
    for multiprocessors in (1, 2, 100):
        monkeypatch.setattr(triton_launch, "INTERPRETED_MULTIPROCESSORS", multiprocessors)
        results.append(oracles.run_op(inputs, "triton"))
    for name in ("out", "dq", "dk", "dv"):
        assert all(torch.equal(result[name], results[0][name]) for result in results), name
    for name in set(GRADIENTS) & results[0].keys():
        assert all(torch.allclose(r[name], results[0][name], rtol=1e-2, atol=1e-2) for r in results), name


@triton.jit
def mapped(heads, numbers, span, nH):
    program = tl.program_id(0)
    head, number = triton_window.head_of(program, span, nH)
    tl.store(heads + program, head)
    tl.store(numbers + program, number)


@pytest.mark.parametrize(("span", "nH"), [(3, 3), (132, 4), (132, 8), (17, 2), (5, 5)])
def test_programs_of_one_multiprocessor_share_a_head(span: int, nH: int) -> None:
    """And none of the numbers of a head is left out."""
    heads, numbers = torch.empty(2, 3 * span, dtype=torch.int32)
    mapped[(3 * span,)](heads, numbers, span, nH)
    assert torch.equal(heads[span:], heads[:-span])
    for head in range(nH):
        found = numbers[heads == head]
        assert torch.equal(found.sort().values, torch.arange(len(found), dtype=torch.int32))
        assert len(found) >= 3 * (span // nH)


@pytest.mark.parametrize("case", [SHIFTED, COSINE], ids=str)
def test_offsets_of_64_bits_are_the_same(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    inputs = make_inputs(case, torch.float32)
    narrow = oracles.run_op(inputs, "triton")
    monkeypatch.setattr(triton_plan, "WIDE_FROM", 0)
    triton_plan.plan.cache_clear()
    wide = oracles.run_op(inputs, "triton")
    triton_plan.plan.cache_clear()
    assert all(torch.equal(wide[name], narrow[name]) for name in narrow)


@per_dtype
@pytest.mark.parametrize("case", [SHIFTED, COSINE, Case(9, 9, (9, 9), (4, 4), 1, 32)], ids=str)
def test_every_kernel_takes_every_window(monkeypatch: pytest.MonkeyPatch, case: Case, dtype: torch.dtype) -> None:
    """What a window is computed by is a matter of speed alone: here by blocks of keys, and by two powers of two."""
    for keys, more_keys in ((16, 0), (max(16, two_powers(case.N)[0]), two_powers(case.N)[1])):
        chosen = Parameters(rows=16, keys=keys, more_keys=more_keys, warps=4, units=2)
        monkeypatch.setattr(triton_launch, "plan", lambda *of, chosen=chosen: triton_plan.plan(*of[:4], chosen))
        verdict(case, dtype)


@pytest.mark.parametrize("switch", ["allow_tf32", "fp32_precision"])
def test_tf32_only_where_pytorch_was_told_so(monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    """By either of its switches, and only for float32."""
    planned: list[tuple[str, triton_plan.Plan]] = []

    def plan(*of: Any) -> triton_plan.Plan:
        planned.append((DTYPE_IDS[of[1].qkv.dtype], triton_plan.plan(*of)))
        return planned[-1][1]

    monkeypatch.setattr(triton_launch, "plan", plan)
    matmul = torch.backends.cuda.matmul
    before = getattr(matmul, switch)
    oracles.run_op_forward(make_inputs(SHIFTED, torch.float32), "triton")
    try:
        setattr(matmul, switch, True if switch == "allow_tf32" else "tf32")
        for dtype in (torch.float32, torch.float16):
            oracles.run_op_forward(make_inputs(SHIFTED, dtype), "triton")
    finally:
        setattr(matmul, switch, before)
    assert [(dtype, of.constants["PRECISION"]) for dtype, of in planned] == [
        ("fp32", "ieee"),
        ("fp32", "tf32"),
        ("fp16", "ieee"),
    ]


# -------------------------------------------------------------------------------------------------------- planted bugs


@triton.jit
def region_of_one_size(position, padded, window, shift):
    return tl.where(shift == 0, 0, (position >= padded - window).to(tl.int32))


@triton.jit
def pixel_not_rolled_over(position, size, padded, shift, ROLL_PAD: tl.constexpr):
    pixel = position + shift
    return tl.where(pixel < size, pixel, -1)


@triton.jit
def rows_without_padding(
    base, rows, real, pad, pad_value, padded, d, HD: tl.constexpr, PADDED: tl.constexpr, AGAIN: tl.constexpr = False
):
    return triton_window.load_rows(base, rows, real, d, HD)


@triton.jit
def no_padding(window, grid, WH: tl.constexpr, WW: tl.constexpr, ROLL_PAD: tl.constexpr):
    return (window < 0) | False


@triton.jit
def padding_before_the_shift(first, size, padded, window, shift, ROLL_PAD: tl.constexpr):
    return (padded > size) & (first + window > size)


@triton.jit
def border_of_rows_alone(window, grid):
    nWh, nWw, _H, _W, _Hp, _Wp, sh, _sw = grid
    return (sh != 0) & (window // nWw == nWh - 1)


@triton.jit
def bias_transposed(bias, head, rows, keys, ALL_ROWS: tl.constexpr, ALL_KEYS: tl.constexpr, HAS_BIAS: tl.constexpr):
    return tl.load(bias + head * (ALL_ROWS * ALL_KEYS) + rows[:, None] + keys[None, :] * ALL_KEYS)


@triton.jit
def top_of_nothing(top):
    return top


@triton.jit
def radial_part_forgotten(summed, rows, inverse, factor, COSINE: tl.constexpr):
    return summed * (factor * inverse)[:, None], tl.sum(rows.to(tl.float32) * summed, 1) * inverse


@pytest.mark.parametrize(
    ("module", "name", "wrong", "case"),
    [
        (triton_window, "axis_region", region_of_one_size, SHIFTED),
        (triton_window, "axis_pixel", pixel_not_rolled_over, Case(14, 14, (7, 7), (3, 3), 1, 16)),
        (triton_fwd, "load_padded", rows_without_padding, SHIFTED),
        (triton_bwd, "load_padded", rows_without_padding, SHIFTED),
        (triton_bwd, "has_padding", no_padding, SHIFTED),
        (
            triton_window,
            "axis_has_padding",
            padding_before_the_shift,
            Case(16, 7, (7, 7), (3, 0), 1, 16, pad_value=True),
        ),
        (triton_fwd, "has_border", border_of_rows_alone, SHIFTED),
        (triton_bwd, "load_bias", bias_transposed, SHIFTED),
        (triton_bwd, "row_gradient", radial_part_forgotten, COSINE),
        (triton_fwd, "finite_top", top_of_nothing, replace(SHIFTED, mask_value=float("-inf"))),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_bug_is_found(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, wrong: object, case: Case
) -> None:
    if wrong is top_of_nothing:
        inputs = make_inputs(case, torch.float32)
        assert inputs.bias is not None
        dead = replace(inputs, bias=torch.full_like(inputs.bias, float("-inf")))
        assert not oracles.run_op_forward(dead, "triton").any()
        monkeypatch.setattr(module, name, wrong)
        assert oracles.run_op_forward(dead, "triton").isnan().any()
        return
    verdict(case)
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError, match="FAIL"):
        verdict(case)


# ------------------------------------------------------------------------------------------------------------- memory


def guarded(tensor: Tensor, at_end: bool) -> Tensor:
    """A copy whose memory ends, or begins, at a page that must not be touched."""
    page = mmap.PAGESIZE
    pages = -(-tensor.nbytes // page)
    area = mmap.mmap(-1, (pages + 2) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (start, start + (pages + 1) * page):
        if libc.mprotect(ctypes.c_void_p(guard), page, mmap.PROT_READ & 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    first = page + (pages * page - tensor.nbytes if at_end else 0)
    data = np.frombuffer(area, dtype=np.uint8, count=tensor.nbytes, offset=first)
    copy = torch.from_numpy(data).view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)


def run_guarded(case: Case, at_end: bool, wrong: bool) -> None:
    """In a child process: a touch of a guard page ends it."""
    faulthandler.disable()
    if wrong:
        triton_fwd.load_rows = triton_window.load_rows = past_the_end
    inputs = make_inputs(case, torch.float32)
    tensors = (inputs.qkv, inputs.bias, inputs.logit_scale, inputs.pad_value)
    options = (case.window, case.shift, case.effective_scale, case.pad_order, case.mask_value)
    given = [None if tensor is None else guarded(tensor, at_end) for tensor in tensors]
    triton_launch.window_attention_fwd(*given, *options)
    triton_launch.window_attention_bwd(guarded(inputs.grad_out, at_end), *given, *options)


@triton.jit
def past_the_end(base, rows, real, d, HD: tl.constexpr, AGAIN: tl.constexpr = False):
    return tl.load(base + rows[:, None] + d[None, :] + 4096, mask=real[:, None] & (d < HD)[None, :], other=0.0)


def exit_status(case: Case, at_end: bool, wrong: bool = False) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=run_guarded, args=(case, at_end, wrong))
    child.start()
    child.join()
    return child.exitcode


@pytest.mark.parametrize("at_end", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("case", [SHIFTED, COSINE, Case(9, 9, (9, 9), (4, 4), 1, 30)], ids=str)
def test_nothing_is_touched_outside_of_the_tensors(case: Case, at_end: bool) -> None:
    assert exit_status(case, at_end) == 0


def test_a_load_past_the_end_is_found() -> None:
    assert exit_status(SHIFTED, at_end=True, wrong=True) == -11
