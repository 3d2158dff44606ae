# SPDX-License-Identifier: Apache-2.0
"""The benchmark checks its contenders; these tests check the benchmark: `pytest benchmarks/test_benchmarks.py`."""

from __future__ import annotations

import json
import math
import platform
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from . import conftest
from .additions import added, obstacles
from .admission import Admitted, some
from .cases import Model, ModelRow, Row, toy_rows
from .ceilings import roof
from .clocks import Clocked, CpuClock
from .conftest import measured_on, outcome, time_left
from .contenders import Candidate
from .equality import relative_error, unequal
from .machine import ROOT, commit, device_slug, environment, machine_info
from .run import arguments, command_of, compact, target_of
from .suites import SUITES, Suite
from .summary import graph_summary, rounded, summary
from .table import columns, show

CEILINGS = {
    **{"fma_fp32_gflops": 100.0, "fma_bf16_gflops": 200.0, "matmul_fp32_gflops": 90.0, "copy_gb_per_s": 10.0},
    **{"fma_fp32_gflops_2t": 200.0, "fma_bf16_gflops_2t": 400.0, "copy_gb_per_s_2t": 15.0},
}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_equal(bad: float) -> None:
    exact = torch.ones(3, dtype=torch.float64)
    assert relative_error(torch.tensor([1.0, bad, 1.0]), exact) == math.inf
    assert relative_error(torch.ones(3), torch.tensor([1.0, bad, 1.0], dtype=torch.float64)) == math.inf
    assert unequal({"out": math.nan}, {"out": 1.0})


def test_a_gradient_of_another_shape_is_not_equal() -> None:
    assert relative_error(torch.ones(1), torch.ones(3, dtype=torch.float64)) == math.inf


def row_of(suite: str, name: str, device: str = "cpu") -> Row:
    (row,) = (row for row in SUITES[suite].rows(device) if row.id == name)
    return row


@pytest.mark.parametrize(
    ("suite", "rows", "barred", "quick", "on_gpu"),
    [("op", 52, 16, 12, 144), ("block", 52, 48, 16, 96), ("model", 42, 0, 4, 128), ("dense", 16, 0, 8, 32)],
)
def test_rows(suite: str, rows: int, barred: int, quick: int, on_gpu: int) -> None:
    found = SUITES[suite].rows("cpu")
    assert len({row.id for row in found}) == len(found) == rows
    assert sum(row.bar is not None for row in found) == barred
    assert sum(row.quick for row in found) == quick
    found = SUITES[suite].rows("cuda")
    assert len({row.id for row in found}) == len(found) == on_gpu
    assert {row.threads for row in found} == {1}


def test_the_rows_that_matter_most_come_first() -> None:
    names = [row.id for row in SUITES["model"].rows("cpu")]
    assert names[0] == "swin_t-224x224-b1-fp32-fwd"
    assert [name for name in names if name.endswith("-t2")] == names[8:12]
    assert SUITES["model"].rows("cuda")[0].id == "swin_t-224x224-b128-bf16-fwd"


def test_a_cpu_is_spared_the_largest_models() -> None:
    names = [row.id for row in SUITES["model"].rows("cpu")]
    assert "swin_l-384x384-b1-bf16-fwd" in names and "swin_l-384x384-b8-bf16-fwd" not in names


@pytest.mark.parametrize("suite", SUITES)
def test_toy_rows_take_every_path(suite: str) -> None:
    rows = toy_rows(suite)
    assert {row.direction for row in rows} == {"fwd", "fwd+bwd"}
    assert {row.dtype_name for row in rows} == {"fp32", "bf16"}
    assert {row.threads for row in rows} == {1, 2}
    assert max(row.flops for row in rows) < 1e9
    assert {row.threads for row in SUITES[suite].rows("cuda", toy=True)} == {1}


def test_flops_and_bytes_of_the_op() -> None:
    row = row_of("op", "swin_t_s1-shift3-b1-fp32-fwd+bwd")
    assert row.flops == 3.5 * 64 * 3 * 2 * (2 * 49 * 49 * 32)
    assert row.bytes == 11 * 56 * 56 * 96 * 4
    assert row_of("op", "swin_t_s1-shift3-b128-bf16-fwd", "cuda").bytes == pytest.approx(308e6, rel=0.01)


def test_bytes_of_a_block() -> None:
    """Two maps and the weights; in training five maps, and the weights thrice."""
    tensor, weights = 8 * 56 * 56 * 96, 12 * 96 * 96
    assert row_of("block", "swin_t_s1-shift3-b8-bf16-fwd").bytes == 2 * (2 * tensor + weights)
    assert row_of("block", "swin_t_s1-shift3-b8-fp32-fwd+bwd").bytes == 4 * (5 * tensor + 3 * weights)


def test_bytes_of_a_model() -> None:
    """By hand: one stage of one block on a map of 2 x 2, the image, the embedding and the head."""
    model = Model("one", 1, (8, 8), 2, dim=4, depths=(1,), heads=(1,))
    image, tokens = 3 * 8 * 8, 4 * 4
    maps = 2 * (image + tokens + 2 * tokens + tokens + 1000)
    weights = 48 * 4 + 12 * 16 + 4 * 1000
    assert ModelRow(model, 2, "bf16", "fwd").bytes == 2 * (maps + weights)
    assert ModelRow(model, 2, "bf16", "fwd+bwd").bytes == 2 * (2.5 * maps + 3 * weights)


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
    ("row", "gflop"),
    [
        ("swin_s-224x224-b1-fp32-fwd", 17.5),
        ("swin_b-224x224-b1-fp32-fwd", 30.9),
        ("swin_l-224x224-b1-fp32-fwd", 68.9),
        ("swin_b-384x384-b1-fp32-fwd", 94.2),
        ("swin_l-384x384-b1-fp32-fwd", 207.8),
    ],
)
def test_flops_of_larger_models(row: str, gflop: float) -> None:
    """Microsoft's multiply-adds (8.7, 15.4, 34.5, 47.1 and 103.9 G), twice."""
    assert row_of("model", row).flops == pytest.approx(1e9 * gflop, rel=0.01)


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


def peer(family: str, ms: float) -> Admitted:
    clocked = Clocked(family, family, lambda: None, CpuClock(), [2e-3 * ms, 1e-3 * ms])
    candidate = Candidate(family, family, lambda: pytest.fail("built"))
    return Admitted(candidate, None, {"out": 0.1}, 1.0, clocked)  # type: ignore[arg-type]


@pytest.mark.parametrize(("timm", "met"), [(1.19, False), (1.2, True)])
def test_the_bar_of_a_block_means_timm_as_it_comes(timm: float, met: bool) -> None:
    row = row_of("block", "swin_t_s1-shift3-b8-fp32-fwd")
    info = summary(row, SUITES["block"], 1e-3, [peer("timm", timm), peer("timm_compile", 1.1)], CEILINGS)
    assert (info["held_against"], info["held_ratio"], info["met"]) == ("timm", timm, met)
    assert (info["best_peer"], info["ratio"]) == ("timm_compile", 1.1)
    assert info["percent_of_roof"] == round(100 * row.flops / 100e9 / 1e-3, 1)
    said = outcome({**info, "ms": 1.0, "left_out": {}})
    assert said == f"1.000 ms, 1.10x over timm_compile, {timm:.2f}x over timm, bar 1.2 {'met' if met else 'MISSED'}"


def test_the_bar_of_the_op_means_the_best_peer() -> None:
    row = row_of("op", "swin_t_s1-shift3-b8-fp32-fwd")
    info = summary(row, SUITES["op"], 1e-3, [peer("eager", 4.0), peer("sdpa", 2.9), peer("cached", 2.0)], CEILINGS)
    assert (info["best_peer"], info["held_against"], info["met"]) == ("sdpa", "sdpa", False)
    assert info["family_ratio"] == {"eager": 4.0, "sdpa": 2.9, "cached": 2.0}
    said = outcome({**info, "ms": 1.0, "left_out": {"flex": {}}})
    assert said == "1.000 ms, 2.90x over sdpa, bar 3 MISSED, left out: flex"


def test_a_row_without_the_peer_that_others_are_held_against() -> None:
    row = row_of("model", "swin_t-224x224-b1-fp32-fwd")
    info = summary(row, SUITES["model"], 1.0, [peer("torchvision", 1500.0)], CEILINGS)
    assert (info["held_against"], info["met"], info["ratio"]) == (None, None, 1.5)
    assert outcome({**info, "ms": 1000.0, "left_out": {}}) == "1000.000 ms, 1.50x over torchvision"


def test_where_time_ran_out_nobody_is_the_best_peer() -> None:
    row, suite = row_of("block", "swin_t_s1-shift3-b8-fp32-fwd"), SUITES["block"]
    info = summary(row, suite, 1e-3, [peer("timm", 1.3)], CEILINGS, {"timm_compile"})
    assert (info["best_peer"], info["ratio"], info["ratio_published"]) == (None, None, None)
    assert (info["held_ratio"], info["met"], info["family_ratio"]) == (1.3, True, {"timm": 1.3})
    assert outcome({**info, "ms": 1.0, "left_out": {}}) == "1.000 ms, 1.30x over timm, bar 1.2 met"
    row, suite = row_of("op", "swin_t_s1-shift3-b8-fp32-fwd"), SUITES["op"]
    info = summary(row, suite, 1e-3, [peer("eager", 4.0)], CEILINGS, {"compile"})
    assert (info["best_peer"], info["held_ratio"], info["met"]) == (None, None, None)
    assert summary(row, suite, 1e-3, [peer("eager", 4.0)], CEILINGS, {"cached"})["ratio"] == 4.0


@pytest.mark.parametrize(("copy", "bound"), [(1000.0, "compute"), (1.0, "memory")])
def test_the_roof_is_the_lower_one(copy: float, bound: str) -> None:
    row = row_of("op", "swin_t_s1-shift3-b8-fp32-fwd")
    info = summary(row, SUITES["op"], 0.01, [peer("eager", 4.0)], {**CEILINGS, "copy_gb_per_s": copy})
    seconds = {"compute": row.flops / 100e9, "memory": row.bytes / 1e9}[bound]
    assert (info["bound"], info["percent_of_roof"]) == (bound, round(100 * seconds / 0.01, 1))
    assert info["gflops"] == pytest.approx(1e-9 * row.flops / 0.01, rel=1e-3)
    assert info["gb_per_s"] == pytest.approx(1e-9 * row.bytes / 0.01, rel=1e-3)


def test_a_row_is_held_against_its_own_threads() -> None:
    one, two = (row_of("op", f"swin_t_s1-shift3-b8-bf16-fwd{threads}") for threads in ("", "-t2"))
    assert (roof(one, CEILINGS), roof(two, CEILINGS)) == ((200.0, 10.0), (400.0, 15.0))
    assert roof(one, {"matmul_bf16_gflops": 150.0, "copy_gb_per_s": 10.0}) == (150.0, 10.0)


def test_graphs_are_held_against_graphs() -> None:
    with_graph, without, of_inductor = peer("timm", 3.0), peer("torchvision", 0.1), peer("timm_cudagraphs", 2.5)
    with_graph.graph = peer("timm", 2.0).clocked
    ours = peer("swin_fast", 0.7)
    assert graph_summary(SUITES["model"], ours, [with_graph]) is None
    ours.graph = peer("swin_fast", 0.5).clocked
    found = graph_summary(SUITES["model"], ours, [with_graph, without, of_inductor])
    assert found == {"ms": 0.5, "best_peer": "timm", "peer_ms": 2.0, "ratio": 4.0}
    found = graph_summary(SUITES["model"], ours, [without, of_inductor])
    assert found == {"ms": 0.5, "best_peer": "timm_cudagraphs", "peer_ms": 2.5, "ratio": 5.0}
    assert graph_summary(SUITES["model"], ours, [without])["ratio"] is None
    other_work = peer("cached", 0.6)
    other_work.graph = peer("cached", 0.1).clocked
    assert graph_summary(SUITES["op"], ours, [other_work])["ratio"] is None


def test_some_of_many_sentences() -> None:
    assert some(["a", "b"]) == "a; b"
    assert some(list("abcde")) == "a; b; c; and 2 more"


def test_the_result_keeps_the_largest_errors() -> None:
    errors = {"a": 0.1, "out": 1e-6, "b": 0.34567, "c": 0.2}
    assert rounded(errors) == {"out": 1e-6, "b": 0.35, "c": 0.2}


# ------------------------------------------------------------------------------------------------ machine, run, table


def test_a_result_names_its_machine_and_no_host() -> None:
    told = machine_info("cpu")
    assert told["kind"] == "cpu" and told["gpu"] is None and told["peers"]["timm"]
    assert platform.node() not in json.dumps(told)
    assert {"OMP_WAIT_POLICY", "GLIBC_TUNABLES"} <= environment("cpu").keys()
    assert "GLIBC_TUNABLES" not in environment("cuda")


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
        ("", "op.json"),
        ("--budget 2", "op.json"),
        ("--allow-dirty", "op.json"),
        ("--suite op", "op.json"),
        ("--suite block", "block.json"),
        ("--suite model", "model.json"),
        ("--suite dense --backend reference", "dense.json"),
    ],
)
def test_all_rows_and_peers_write_the_result_of_the_device(given: str, file: str) -> None:
    target = target_of(arguments(given.split()))
    assert target is not None
    assert target.relative_to(ROOT).parts[:2] == ("benchmarks", "results")
    assert target.name == file


@pytest.mark.parametrize(
    "given", ["--quick", "--toy", "--rows b1", "--peers eager,sdpa", "--minutes 8", "--suite block --peers timm"]
)
def test_a_part_is_written_only_where_asked(given: str) -> None:
    assert target_of(arguments(given.split())) is None
    assert target_of(arguments([*given.split(), "--json", "part.json"])) == Path("part.json")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("--peers eager,timm", "got timm, want some of eager"),
        ("--suite model --peers timm,sdpa", "got sdpa, want some of eager, timm"),
    ],
)
def test_peers_of_another_suite_are_refused(given: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(given.split())
    assert complaint in capsys.readouterr().err


def test_no_minutes_are_a_limit() -> None:
    assert "--minutes=0.0" in command_of(arguments(["--minutes=0"]), Path("x.json"))
    assert target_of(arguments(["--minutes=0"])) is None


def test_the_command_of_a_run() -> None:
    given = ["--suite=model", "--device=cuda", "--rows=b1", "--minutes=8", "--peers=timm", "--backend=cpu", "--toy"]
    command = command_of(arguments(given), Path("x.json"))
    wanted = ("--device=cuda", "--suite=model", "--minutes=8.0", "--peers=timm", "--backend=cpu", "--toy", "-k", "b1")
    assert set(wanted) <= set(command)
    families = next(word for word in command_of(arguments(["--toy"]), Path("x.json")) if word.startswith("--peers="))
    assert "compile" in families
    families = command_of(arguments(["--toy", "--suite", "model"]), Path("x.json"))
    assert not any("timm_autotune" in word for word in families)


@pytest.mark.parametrize(("suite", "budget"), [("op", 10.0), ("block", 10.0), ("model", 20.0)])
def test_the_result_tells_its_budget(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, suite: str, budget: float
) -> None:
    monkeypatch.setattr(conftest, "machine_info", lambda device: {})
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


def result_of(infos: list[dict[str, Any]], suite: str) -> dict[str, Any]:
    return {
        "suite": suite,
        "datetime": "2000-01-01",
        "commit_info": {"id": "abc", "dirty": False},
        "machine_info": {
            "device": "toy",
            "kind": "cpu",
            "clock": "by hand",
            "cpu": {"cores": 1, "name": "toy"},
            "gpu": None,
            "torch": {"version": "2", "cpu_capability": "x", "threads": 1},
            "swin_fast": {"version": "0", "isa": ""},
            "allocator": {"as_stated": True, "keeps_memory": True},
            "ceilings": {"copy_gb_per_s": 1.0},
            "budget_s": 2.0,
            "load_average": [1.0, 1.0],
        },
        "not_measured": ["a row"],
        "benchmarks": [{"extra_info": info} for info in infos],
    }


def info_of(row: Row, suite: Suite, *peers: Admitted) -> dict[str, Any]:
    left_out = {"flex": {"family": "flex", "reason": "because"}}
    info = summary(row, suite, 1e-3, list(peers), CEILINGS)
    return {**info, "ms": 1.0, "graph": None, "peak_mb": 12.0, "left_out": left_out}


def headings(suite: str, *peers: str) -> list[str]:
    row = SUITES[suite].rows("cpu")[0]
    return [
        column.name for column in columns(SUITES[suite], [info_of(row, SUITES[suite], *(peer(p, 2.0) for p in peers))])
    ]


def test_headings() -> None:
    start, end = ["case", "B", "dtype", "direction", "swin_fast ms"], ["peak MB", "GFLOP/s", "GB/s", "% roof"]
    op = [
        "eager",
        "sdpa",
        "best peer",
        "ratio",
        "over eager or sdpa or compile or autotune",
        "bar",
        "met",
        "published",
        "cached",
    ]
    assert headings("op", "eager", "sdpa", "cached") == [*start, *op, *end]
    peers = ["timm", "timm sdpa", "torchvision", "best peer", "ratio", "over timm"]
    assert headings("block", "timm", "timm_sdpa", "torchvision") == [*start, *peers, "bar", "met", *end]
    assert headings("model", "timm", "timm_sdpa", "torchvision") == [*start, *peers, *end]


@pytest.mark.parametrize("plain", [False, True], ids=["rich", "plain"])
@pytest.mark.parametrize("name", SUITES)
def test_table(name: str, plain: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if plain:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    suite = SUITES[name]
    rows = [row for row in suite.rows("cpu") if row.dtype_name == "fp32"]
    infos = [info_of(row, suite, peer(suite.held_against[0], 1.1)) for row in rows]
    show(result_of(infos, name))
    text = capsys.readouterr().out
    assert all(column.name in text for column in columns(suite, infos))
    assert "budget 2 s per row" in text
    assert "left out: flex: because" in text
    assert "not measured: 1 rows" in text
    bars = [info["bar"] for info in infos if info["bar"] is not None]
    assert ("bars met" in text) == bool(bars)
    if bars:
        assert f"bars met: {sum(bar <= 1.1 for bar in bars)} of {len(bars)}" in text


def part(names: str, ms: float, **changes: Any) -> dict[str, Any]:
    result = result_of([], "op")
    rows = [{"param": name, "extra_info": {"ms": ms}} for name in names]
    return {**result, "benchmarks": rows, "not_measured": sorted({*"abcd"} - {*names}), **changes}


def test_rows_of_an_earlier_run_are_taken_over_with_their_origin() -> None:
    earlier = part("db", 1.0, datetime="1999-12-31", commit_info={"id": "old", "dirty": False})
    found = added(earlier, part("ba", 2.0), list("abcd"))
    rows = {row["param"]: row["extra_info"] for row in found["benchmarks"]}
    assert list(rows) == ["a", "b", "d"]
    assert rows == {"a": {"ms": 2.0}, "b": {"ms": 2.0}, "d": {"commit": "old", "datetime": "1999-12-31", "ms": 1.0}}
    assert found["not_measured"] == ["c"]
    assert (found["commit_info"]["id"], found["datetime"]) == ("abc", "2000-01-01")
    assert found["machine_info"]["load_average"] == [1.0, 1.0, 1.0, 1.0]
    later = added(found, part("c", 3.0), list("abcd"))
    assert [row["extra_info"].get("commit") for row in later["benchmarks"]] == ["abc", "abc", None, "old"]


def test_a_result_of_something_else_is_not_added_to() -> None:
    told = machine_info("cpu")

    def why(suite: str = "op", dirty: bool = False, **facts: Any) -> list[str]:
        earlier = {"suite": suite, "commit_info": {"dirty": dirty}, "machine_info": {**told, **facts}}
        return obstacles(earlier, "op", told)

    assert why(ceilings={"copy_gb_per_s": 1.0}, load_average=[0.1, 0.2], budget_s=3.0) == []
    assert why(suite="block") == ["it is of suite block, not op"]
    assert why(dirty=True) == ["it was measured in a tree with uncommitted changes, so nobody could repeat it"]
    assert why(torch={"version": "1.0"}) == [f"torch: it has {{'version': '1.0'}}, here it is {told['torch']}"]
    assert why(peers={})[0].startswith("peers: it has {}, here it is {'timm': ")


def test_add_writes_where_the_earlier_result_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert target_of(arguments(["--add", "part.json", "--rows", "b1"])) == Path("part.json")
    assert target_of(arguments(["--add", "part.json", "--json", "whole.json"])) == Path("whole.json")
    assert f"--add={Path('part.json').resolve()}" in command_of(arguments(["--add", "part.json"]), Path("x.json"))


def test_the_tables_of_the_results_in_this_repository(capsys: pytest.CaptureFixture[str]) -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*/*.json"):
        result = json.loads(path.read_text())
        if "suite" not in result:  # facts.json
            continue
        assert SUITES[result["suite"]].results == path.name
        show(result)
        assert result["benchmarks"][0]["extra_info"]["case"] in capsys.readouterr().out
