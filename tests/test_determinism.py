# SPDX-License-Identifier: Apache-2.0
"""Equal bits: from call to call, for any number of threads, alone or in a batch, for any strides."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

import oracles
from cases import DTYPE_IDS, DTYPES, Case, Inputs, lay_out, lay_out_grad, make_inputs

if TYPE_CHECKING:
    from conftest import KernelPath

CASES = (
    Case(28, 28, (7, 7), (3, 3), 3, 32, B=3),
    Case(29, 26, (7, 7), (3, 3), 3, 32, B=3, bias="dense", pad_value=True),
    Case(31, 17, (8, 8), (4, 4), 2, 32, B=3, cosine=True, pad_value=True, pad_order="roll_pad"),
    Case(24, 24, (12, 12), (6, 6), 2, 32, B=3, pad_value=True),
    Case(13, 21, (3, 5), (1, 2), 3, 30, B=3, cosine=True, pad_value=True, bias="dense"),
    Case(11, 9, (5, 4), (2, 2), 2, 6, B=3, bias="none"),
)
per_case = pytest.mark.parametrize("case", CASES, ids=str)
per_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS.get)
PER_IMAGE = ("out", "dq", "dk", "dv")


def _bits(tensor: Tensor) -> Tensor:
    """The bits as integers: 0.0 and -0.0 differ, and NaN equals itself."""
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def _assert_same_bits(where: str, got: oracles.Results, wanted: oracles.Results) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        differing = int((_bits(got[name]) != _bits(value)).sum())
        assert differing == 0, f"{where} {name}: {differing} of {value.numel()} elements differ"


@per_case
@per_dtype
def test_repeats_and_threads(native_path: KernelPath, case: Case, dtype: torch.dtype) -> None:
    native_path.require(case, dtype)
    inputs = make_inputs(case, dtype, native_path.device)
    torch.set_num_threads(1)
    wanted = oracles.run_op(inputs, native_path.backend)
    for threads in (1, 2, 4, 3):
        torch.set_num_threads(threads)
        for repeat in range(3):
            where = f"{native_path} {DTYPE_IDS[dtype]} {case} seed {case.seed}, {threads} threads, repeat {repeat}:"
            _assert_same_bits(where, oracles.run_op(inputs, native_path.backend), wanted)


@per_case
@per_dtype
def test_image_alone_and_in_a_batch(native_path: KernelPath, case: Case, dtype: torch.dtype) -> None:
    native_path.require(case, dtype)
    inputs = make_inputs(case, dtype, native_path.device)
    batch = oracles.run_op(inputs, native_path.backend)
    for image in range(case.B):
        one = slice(image, image + 1)
        alone = replace(inputs, case=replace(case, B=1), qkv=inputs.qkv[one], grad_out=inputs.grad_out[one])
        results = oracles.run_op(alone, native_path.backend)
        _assert_same_bits(
            f"{native_path} {DTYPE_IDS[dtype]} {case} seed {case.seed}, image {image} alone:",
            {name: results[name] for name in PER_IMAGE},
            {name: batch[name][one] for name in PER_IMAGE},
        )


@per_case
@per_dtype
def test_strides_and_storage_offsets(native_path: KernelPath, case: Case, dtype: torch.dtype) -> None:
    native_path.require(case, dtype)
    inputs = make_inputs(case, dtype, native_path.device)
    wanted = oracles.run_op(inputs, native_path.backend)

    def assert_same(where: str, qkv: Tensor, grad_out: Tensor) -> None:
        got = oracles.run_op(replace(inputs, qkv=qkv, grad_out=grad_out), native_path.backend)
        _assert_same_bits(f"{native_path} {DTYPE_IDS[dtype]} {case} seed {case.seed}, {where}:", got, wanted)

    for layout, grad_layout in (("offset", "offset"), ("permuted", "channels_first"), ("strided_rows", "contiguous")):
        qkv, grad_out = lay_out(inputs.qkv, layout), lay_out_grad(inputs.grad_out, grad_layout)
        assert layout == "contiguous" or not qkv.is_contiguous()
        assert_same(f"{layout} qkv, {grad_layout} grad_out", qkv, grad_out)
    for offset in (1, 2, 3, 5, 8, 15):
        assert_same(f"storage offset {offset}", _shifted(inputs.qkv, offset), _shifted(inputs.grad_out, 16 - offset))


def _shifted(tensor: Tensor, offset: int) -> Tensor:
    """A contiguous copy that begins `offset` elements into its storage, between NaNs."""
    storage = tensor.new_full((tensor.numel() + 2 * offset,), float("nan"))
    view = storage[offset : offset + tensor.numel()].view(tensor.shape)
    view.copy_(tensor)
    assert view.storage_offset() == offset
    return view


@pytest.mark.parametrize("form", ["bias", "pad_value", "logit_scale"])
def test_strides_of_the_parameters(native_path: KernelPath, form: str) -> None:
    case = Case(13, 9, (4, 5), (1, 2), 3, 8, B=2, bias="dense", pad_value=True, cosine=True)
    inputs = make_inputs(case, torch.float32, native_path.device)
    wanted = oracles.run_op(inputs, native_path.backend)
    tensor: Tensor = getattr(inputs, form)
    spread = tensor.new_full((*tensor.shape, 2), float("nan"))
    spread[..., 1] = tensor
    reverse = list(range(tensor.dim()))[::-1]
    transposed = tensor.permute(reverse).contiguous().permute(reverse)
    for strided in (spread[..., 1], transposed):
        got = oracles.run_op(replace(inputs, **{form: strided}), native_path.backend)
        _assert_same_bits(f"{native_path} {case} strides {strided.stride()} of {form}:", got, wanted)


@per_dtype
def test_calls_from_eight_threads(native_path: KernelPath, dtype: torch.dtype) -> None:
    torch.set_num_threads(2)  # the kernels' threads, within each of the eight
    problems = [make_inputs(case, dtype, native_path.device) for case in CASES]
    wanted = [oracles.run_op(inputs, native_path.backend) for inputs in problems]

    def call(index: int) -> tuple[int, oracles.Results]:
        which = index % len(problems)
        return which, oracles.run_op(problems[which], native_path.backend)

    with ThreadPoolExecutor(8) as pool:
        for which, got in pool.map(call, range(10 * len(problems))):
            _assert_same_bits(f"{native_path} {CASES[which]} among 8 threads:", got, wanted[which])


def test_results_are_fresh_memory(native_path: KernelPath) -> None:
    """Two calls never hand out the same memory."""
    inputs: Inputs = make_inputs(CASES[0], torch.float32, native_path.device)
    first, second = (oracles.run_op(inputs, native_path.backend) for _ in range(2))
    assert {value.data_ptr() for value in first.values()}.isdisjoint(value.data_ptr() for value in second.values())
