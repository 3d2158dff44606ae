# SPDX-License-Identifier: Apache-2.0
"""Random problems over every option of the op, every backend, and an instruction set drawn for each.

SWIN_FAST_FUZZ_CASES sets how many (default 60). SWIN_FAST_FUZZ_SEED sets the seed: a number, or `random` for another
one every time; the default is fixed so that one commit has one verdict. The seed is in every test's id, and
`SWIN_FAST_FUZZ_SEED=5 SWIN_FAST_FUZZ_CASES=18 pytest tests/test_fuzz.py -k seed5-17-` runs problem 17 of seed 5 again.
"""

from __future__ import annotations

import os
import secrets

import numpy as np
import pytest

import oracles
from cases import DTYPE_IDS, DTYPES, random_case
from comparison import check
from swin_fast.backends import native


def _seed() -> int:
    text = os.environ.get("SWIN_FAST_FUZZ_SEED", "0")
    return secrets.randbelow(2**31) if text == "random" else int(text)


SEED = _seed()
COUNT = int(os.environ.get("SWIN_FAST_FUZZ_CASES", "60"))


@pytest.mark.parametrize("index", range(COUNT), ids=lambda index: f"seed{SEED}-{index}-")
def test_random_problem(backend: str, device: str, index: int, restore_isa: None) -> None:
    case = random_case(SEED, index)
    rng = np.random.default_rng([SEED, index, 1])
    dtype = DTYPES[int(rng.integers(len(DTYPES)))]
    inputs, truth = oracles.problem(case, dtype, device)
    where = f"fuzz seed {SEED}, problem {index}: {backend} {DTYPE_IDS[dtype]} {case}"
    if backend == "cpu":
        isas = native.cpu_isas()
        native.select_cpu_isa(isas[int(rng.integers(len(isas)))])
        where += f" on {native.cpu_isa()}"
    check(where, truth.comparisons(oracles.run_op(inputs, backend), dtype))
