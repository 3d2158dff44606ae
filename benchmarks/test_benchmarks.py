# SPDX-License-Identifier: Apache-2.0
"""The benchmark checks its contenders; these tests check the benchmark: `pytest benchmarks/test_benchmarks.py`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from .cases import DTYPES, ROWS, Row, Stage
from .conftest import measured_on, time_left
from .machine import ROOT, commit, device_slug
from .measure import Clocked, champions, errors, exact_results, our_bound, peer_bound, relative_error, unequal
from .peers import FAMILIES, Contender, Problem, ours, peers
from .run import arguments, compact, target_of
from .table import HEADINGS, cells, show

TOY = Stage("toy", 12, 2, 4, 2, head_dim=8)
UNSHIFTED = Stage("toy", 8, 2, 4, 0, head_dim=8)


@pytest.fixture(params=DTYPES)
def problem(request: pytest.FixtureRequest) -> Problem:
    return Problem(Row(TOY, 2, request.param, "fwd+bwd"))


def faults(contender: Contender) -> list[str]:
    row = contender.problem.row
    found = errors(contender, exact_results(contender.problem))
    return unequal(contender.name, found, peer_bound(row.dtype_name, found))


def uncompiled(problem: Problem) -> list[Contender]:
    return [contender for contender in peers(problem) if not contender.name.startswith("compile")]


@pytest.mark.parametrize("direction", ["fwd", "fwd+bwd"])
@pytest.mark.parametrize("stage", [TOY, UNSHIFTED], ids=["shifted", "unshifted"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_peer_is_equal(stage: Stage, dtype: str, direction: str) -> None:
    problem = Problem(Row(stage, 2, dtype, direction))
    for contender in uncompiled(problem):
        assert not faults(contender), contender.name


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compiled_peer_is_equal(dtype: str) -> None:
    problem = Problem(Row(TOY, 1, dtype, "fwd+bwd"))
    (contender,) = (contender for contender in peers(problem) if contender.name == "compile_eager_packed")
    assert not faults(contender)


def test_ours_is_within_the_tolerance_rule(problem: Problem) -> None:
    exact = exact_results(problem)
    eager = errors(uncompiled(problem)[0], exact)
    assert not unequal("ours", errors(ours(problem, "reference"), exact), our_bound(problem.row.dtype_name, eager))


def without_mask(p: Problem, qkv: Tensor, table: Tensor) -> Tensor:
    q, k, v = p.split(qkv)
    return p.merge(((q * p.hd**-0.5) @ k.mT + p.bias(table)).softmax(-1) @ v)


def with_transposed_bias(p: Problem, qkv: Tensor, table: Tensor) -> Tensor:
    return p.eager(qkv, table.flip(0))[0]


def without_roll_back(p: Problem, qkv: Tensor, table: Tensor) -> Tensor:
    return torch.roll(p.eager(qkv, table)[0], (-p.s, -p.s), (1, 2))


def with_one_nan(p: Problem, qkv: Tensor, table: Tensor) -> Tensor:
    out = p.eager(qkv, table)[0].clone()
    out[-1, -1, -1, -1] = math.nan
    return out


@pytest.mark.parametrize("fault", [without_mask, with_transposed_bias, without_roll_back, with_one_nan])
def test_a_wrong_peer_is_found(problem: Problem, fault: Callable[[Problem, Tensor, Tensor], Tensor]) -> None:
    wrong = Contender("wrong", "eager", lambda qkv, table: (fault(problem, qkv, table),), problem)
    assert any("out" in sentence for sentence in faults(wrong))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_equal(bad: float) -> None:
    exact = torch.ones(3, dtype=torch.float64)
    assert relative_error(torch.tensor([1.0, bad, 1.0]), exact) == math.inf
    assert relative_error(torch.ones(3), torch.tensor([1.0, bad, 1.0], dtype=torch.float64)) == math.inf
    assert unequal("peer", {"out": math.nan}, {"out": 1.0})


def test_a_gradient_of_another_shape_is_not_equal() -> None:
    assert relative_error(torch.ones(1), torch.ones(3, dtype=torch.float64)) == math.inf


def test_rows() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS) == 48
    assert sum(row.bar is not None for row in ROWS) == 16
    assert sum(row.quick for row in ROWS) == 12
    row = next(row for row in ROWS if row.id == "swin_t_s1-shift3-b1-fp32-fwd+bwd")
    assert row.flops == 3.5 * 64 * 3 * 2 * (2 * 49 * 49 * 32)
    assert row.bytes == 11 * 56 * 56 * 96 * 4


def test_champions_are_the_fastest_of_each_group() -> None:
    def clocked(name: str, group: str, seconds: float) -> Clocked:
        return Clocked(name, group, lambda: None, [2 * seconds, seconds])

    contenders = [clocked("a", "x", 1.0), clocked("b", "x", 1.05), clocked("c", "x", 2.0), clocked("d", "y", 9.0)]
    assert [contender.name for contender in champions(contenders)] == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("facts", "slug"),
    [
        (("AuthenticAMD", 25, 17, "AMD EPYC"), "amd-epyc-zen4"),
        (("AuthenticAMD", 25, 17, "AMD EPYC 9654 96-Core Processor"), "amd-epyc-zen4"),
        (("AuthenticAMD", 25, 1, "AMD EPYC 7763 64-Core Processor"), "amd-epyc-zen3"),
        (
            ("GenuineIntel", 6, 143, "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"),
            "intel-xeon-platinum-sapphirerapids",
        ),
        (("GenuineIntel", 6, 1, "Intel(R) Mystery(TM) CPU 99 @ 1.00GHz"), "intel-mystery-cpu-99"),
    ],
)
def test_device_slug(facts: tuple[str, int, int, str], slug: str) -> None:
    vendor, family, model, name = facts
    told = {"vendor_id": vendor, "cpu family": str(family), "model": str(model), "model name": name}
    assert device_slug("cpu", told) == slug


def test_commit_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIN_FAST_COMMIT", "abc")
    assert commit() == {"id": "abc", "dirty": True}
    monkeypatch.setenv("SWIN_FAST_DIRTY", "0")
    assert commit() == {"id": "abc", "dirty": False}


@pytest.mark.parametrize("given", ["", "--budget 2", "--allow-dirty"])
def test_all_rows_and_peers_write_the_result_of_the_device(given: str) -> None:
    target = target_of(arguments(given.split()))
    assert target is not None
    assert target.relative_to(ROOT).parts[:2] == ("benchmarks", "results")


@pytest.mark.parametrize("given", ["--quick", "--rows b1", "--peers eager,sdpa", "--quick --budget 2"])
def test_a_part_is_written_only_where_asked(given: str) -> None:
    assert target_of(arguments(given.split())) is None
    assert target_of(arguments([*given.split(), "--json", "part.json"])) == Path("part.json")


def test_the_result_tells_its_budget(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytestconfig.option, "budget", 2.0)
    assert measured_on(pytestconfig)["budget_s"] == 2.0


def test_time_left() -> None:
    assert time_left(0, 48, 5.0) == ""
    assert time_left(12, 48, 600.0) == ", 30 min left"
    assert time_left(47, 48, 940.0) == ", less than a minute left"


def test_compact_json_says_the_same() -> None:
    value = {"long": ["x" * 50, {"y": [1, 2.5, None, True]}], "empty": [[], {}], "text": 'a "b" [c] {d}'}
    for width in (1, 40, 1000):
        assert json.loads(compact(value, width=width)) == value


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    info = {
        "case": "toy",
        "shift": 2,
        "batch": 1,
        "dtype": "fp32",
        "direction": "fwd",
        "ms": 1.0,
        "family_ms": {"eager": 2.0},
        "family_ratio": dict.fromkeys(FAMILIES, 2.0),
        "best_peer": "eager",
        "ratio": 2.0,
        "bar": 3.0,
        "met": False,
        "ratio_published": 2.0,
        "gflops": 1.0,
        "percent_of_roof": 50.0,
    }
    assert len(cells(info)) == len(HEADINGS)
    result = {
        "datetime": "2000-01-01",
        "commit_info": {"id": "abc", "dirty": False},
        "machine_info": {
            "device": "toy",
            "cpu": {"cores": 1, "name": "toy"},
            "torch": {"version": "2", "cpu_capability": "x", "threads": 1},
            "swin_fast": {"version": "0", "isa": ""},
            "allocator": {"as_stated": True, "keeps_memory": True},
            "ceilings": {"copy_gb_per_s": 1.0},
            "budget_s": 2.0,
            "load_average": [1.0, 1.0],
        },
        "benchmarks": [{"extra_info": info}],
    }
    show(result)
    text = capsys.readouterr().out
    assert "bars met: 0 of 1" in text
    assert "budget 2 s per row" in text
