# SPDX-License-Identifier: Apache-2.0
"""The benchmark checks its contenders; these tests check the benchmark: `pytest benchmarks/test_benchmarks.py`."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from . import conftest
from .bench import rounded, summary
from .conftest import measured_on, outcome, time_left
from .machine import ROOT, commit, device_slug
from .measure import Clocked, champions, relative_error, unequal
from .rows import Row
from .run import arguments, compact, target_of
from .suites import SUITES, Suite
from .table import columns, show

CEILINGS = {"matmul_fp32_gflops": 100.0, "matmul_bf16_gflops": 200.0, "copy_gb_per_s": 10.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_equal(bad: float) -> None:
    exact = torch.ones(3, dtype=torch.float64)
    assert relative_error(torch.tensor([1.0, bad, 1.0]), exact) == math.inf
    assert relative_error(torch.ones(3), torch.tensor([1.0, bad, 1.0], dtype=torch.float64)) == math.inf
    assert unequal("peer", {"out": math.nan}, {"out": 1.0})


def test_a_gradient_of_another_shape_is_not_equal() -> None:
    assert relative_error(torch.ones(1), torch.ones(3, dtype=torch.float64)) == math.inf


def row_of(suite: str, name: str) -> Row:
    (row,) = (row for row in SUITES[suite].rows if row.id == name)
    return row


@pytest.mark.parametrize(
    ("suite", "rows", "barred", "quick"), [("op", 48, 16, 12), ("block", 48, 48, 16), ("model", 18, 0, 4)]
)
def test_rows(suite: str, rows: int, barred: int, quick: int) -> None:
    found = SUITES[suite].rows
    assert len({row.id for row in found}) == len(found) == rows
    assert sum(row.bar is not None for row in found) == barred
    assert sum(row.quick for row in found) == quick


def test_flops_and_bytes_of_the_op() -> None:
    row = row_of("op", "swin_t_s1-shift3-b1-fp32-fwd+bwd")
    assert row.flops == 3.5 * 64 * 3 * 2 * (2 * 49 * 49 * 32)
    assert row.bytes == 11 * 56 * 56 * 96 * 4


def test_flops_of_a_block() -> None:
    linears = 56 * 56 * 2 * (96 * 288 + 96 * 96 + 96 * 384 + 384 * 96)
    attention = 64 * 3 * 2 * (2 * 49 * 49 * 32)
    assert row_of("block", "swin_t_s1-shift3-b1-fp32-fwd").flops == linears + attention
    assert row_of("block", "swin_t_s1-shift3-b8-bf16-fwd+bwd").flops == 8 * (3 * linears + 3.5 * attention)


def test_flops_of_a_model() -> None:
    """torchvision's documentation states 4.491 G multiply-adds for Swin-T, 5.94 for V2-T."""
    assert row_of("model", "swin_t-224x224-b1-fp32-fwd").flops == pytest.approx(2 * 4.491e9, rel=0.01)
    assert row_of("model", "swinv2_t-256x256-b8-fp32-fwd").flops == pytest.approx(8 * 2 * 5.94e9, rel=0.01)


@pytest.mark.parametrize(
    ("row", "bar"),
    [
        ("swin_t_s1-shift3-b8-fp32-fwd", 1.2),
        ("swin_t_s1-shift3-b8-bf16-fwd", 1.3),
        ("swin_t_s1-shift3-b8-fp32-fwd+bwd", 1.2),
        ("swin_t_s1-shift3-b8-bf16-fwd+bwd", 1.2),
        ("swin_t_s1-shift3-b1-bf16-fwd", 1.0),
        ("swin_t_s1-shift0-b8-bf16-fwd", 1.0),
        ("swin_t_s4-shift0-b8-fp32-fwd+bwd", 1.0),
        ("swinv2_t_s1-shift4-b8-fp32-fwd", 1.0),
    ],
)
def test_bars_of_blocks(row: str, bar: float) -> None:
    assert row_of("block", row).bar == bar


def peer(family: str, ms: float, ours: float) -> dict[str, Any]:
    return {"family": family, "published": True, "ms": ms, "ratio": round(ms / ours, 3)}


@pytest.mark.parametrize(("timm", "met"), [(1.19, False), (1.2, True)])
def test_the_bar_of_a_block_means_timm_as_it_comes(timm: float, met: bool) -> None:
    row = row_of("block", "swin_t_s1-shift3-b8-fp32-fwd")
    per_peer = {"timm": peer("timm", timm, 1.0), "timm_compile": peer("timm_compile", 1.1, 1.0)}
    info = summary(row, SUITES["block"], 1e-3, per_peer, CEILINGS)
    assert (info["held_against"], info["held_ratio"], info["met"]) == ("timm", timm, met)
    assert (info["best_peer"], info["ratio"]) == ("timm_compile", 1.1)
    assert info["percent_of_roof"] == info["percent_of_matmul"] == round(100 * row.flops / 100e9 / 1e-3, 1)
    said = outcome({**info, "ms": 1.0})
    assert said == f"1.000 ms, 1.10x over timm_compile, {timm:.2f}x over timm, bar 1.2 {'met' if met else 'MISSED'}"


def test_the_bar_of_the_op_means_the_best_peer() -> None:
    row = row_of("op", "swin_t_s1-shift3-b8-fp32-fwd")
    per_peer = {"eager": peer("eager", 4.0, 1.0), "sdpa": peer("sdpa", 2.9, 1.0), "cached": peer("cached", 2.0, 1.0)}
    info = summary(row, SUITES["op"], 1e-3, per_peer, CEILINGS)
    assert (info["best_peer"], info["held_against"], info["met"]) == ("sdpa", "sdpa", False)
    assert outcome({**info, "ms": 1.0}) == "1.000 ms, 2.90x over sdpa, bar 3 MISSED"


def test_a_row_without_the_peer_that_others_are_held_against() -> None:
    row = row_of("model", "swin_t_dense-480x640-b1-fp32-fwd")
    info = summary(row, SUITES["model"], 1.0, {"torchvision": peer("torchvision", 1500.0, 1000.0)}, CEILINGS)
    assert (info["held_against"], info["met"], info["ratio"]) == (None, None, 1.5)
    assert outcome({**info, "ms": 1000.0}) == "1000.000 ms, 1.50x over torchvision"


def test_the_result_keeps_the_largest_errors() -> None:
    errors = {"a": 0.1, "out": 1e-6, "b": 0.34567, "c": 0.2}
    assert rounded(errors) == {"out": 1e-6, "b": 0.35, "c": 0.2}


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


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("", "window_attention.json"),
        ("--budget 2", "window_attention.json"),
        ("--allow-dirty", "window_attention.json"),
        ("--suite op", "window_attention.json"),
        ("--suite block", "block.json"),
        ("--suite model", "model.json"),
    ],
)
def test_all_rows_and_peers_write_the_result_of_the_device(given: str, file: str) -> None:
    target = target_of(arguments(given.split()))
    assert target is not None
    assert target.relative_to(ROOT).parts[:2] == ("benchmarks", "results")
    assert target.name == file


@pytest.mark.parametrize(
    "given", ["--quick", "--rows b1", "--peers eager,sdpa", "--quick --budget 2", "--suite block --peers timm"]
)
def test_a_part_is_written_only_where_asked(given: str) -> None:
    assert target_of(arguments(given.split())) is None
    assert target_of(arguments([*given.split(), "--json", "part.json"])) == Path("part.json")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("--peers sdpa", "eager must be among them"),
        ("--peers eager,timm", "got timm, want some of eager"),
        ("--suite block --peers torchvision", "timm must be among them"),
        ("--suite model --peers timm,eager", "got eager, want some of timm"),
    ],
)
def test_peers_of_another_suite_are_refused(given: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(given.split())
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(("suite", "budget"), [("op", 10.0), ("block", 10.0), ("model", 20.0)])
def test_the_result_tells_its_budget(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, suite: str, budget: float
) -> None:
    monkeypatch.setattr(conftest, "machine_info", dict)
    monkeypatch.setattr(pytestconfig.option, "suite", suite)
    assert measured_on(pytestconfig)["budget_s"] == budget
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


def result_of(infos: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
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
        "benchmarks": [{"extra_info": info} for info in infos],
        **more,
    }


def headings(suite: Suite) -> list[str]:
    return [column.name for column in columns(suite)]


def test_headings() -> None:
    start, end = ["case", "B", "dtype", "direction", "swin_fast ms"], ["GFLOP/s", "% roof"]
    op = ["eager", "sdpa", "compile", "best peer", "ratio", "bar", "met", "published", "cached", "timm order"]
    assert headings(SUITES["op"]) == [*start, *op, *end]
    peers = ["timm", "timm sdpa", "timm compile", "torchvision", "best peer", "ratio", "over timm"]
    assert headings(SUITES["block"]) == [*start, *peers, "bar", "met", *end]
    assert headings(SUITES["model"]) == [*start, *peers, *end]


@pytest.mark.parametrize("plain", [False, True], ids=["rich", "plain"])
@pytest.mark.parametrize("name", SUITES)
def test_table(name: str, plain: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if plain:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    suite = SUITES[name]
    per_peer = {suite.yardstick: peer(suite.yardstick, 1.1, 1.0)}
    infos = [{**summary(row, suite, 1e-3, per_peer, CEILINGS), "ms": 1.0} for row in suite.rows if row.batch == 8]
    show(result_of(infos, suite=name))
    text = capsys.readouterr().out
    assert all(heading in text for heading in headings(suite))
    assert "budget 2 s per row" in text
    bars = [info["bar"] for info in infos if info["bar"] is not None]
    assert ("bars met" in text) == bool(bars)
    if bars:
        assert f"bars met: {sum(bar <= 1.1 for bar in bars)} of {len(bars)}" in text


def test_the_table_of_a_result_that_does_not_name_its_suite(capsys: pytest.CaptureFixture[str]) -> None:
    info = summary(SUITES["op"].rows[0], SUITES["op"], 1e-3, {"eager": peer("eager", 2.0, 1.0)}, CEILINGS)
    show(result_of([{**info, "ms": 1.0}]))
    assert "timm order" in capsys.readouterr().out


def test_the_tables_of_the_results_in_this_repository(capsys: pytest.CaptureFixture[str]) -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*/*.json"):
        result = json.loads(path.read_text())
        assert SUITES[result.get("suite", "op")].results == path.name
        show(result)
        assert result["benchmarks"][0]["extra_info"]["case"] in capsys.readouterr().out


def test_every_suite_has_its_own_file() -> None:
    files = [suite.results for suite in SUITES.values()]
    assert len(set(files)) == len(files)
