# SPDX-License-Identifier: Apache-2.0
"""The report says what the results say, and its check finds whatever does not: `pytest benchmarks/test_report.py`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .plots import COLOURS, MARKERS, RIVALS, plots
from .report import BEGIN, END, ROOT, main, outputs
from .report_text import FAMILIES, ceiling, merged, number
from .suites import SUITES

DEVICE = "made-up-cpu"
#: Fields that may be null.
NULLABLE = ("peak_mb", "graph", "held_against", "held_ratio", "bar", "met", "percent_of_roof", "ratio", "best_peer")


def row(suite: str, **changes: Any) -> dict[str, Any]:
    """A row of a result, with numbers that stand nowhere else in it."""
    op = suite in ("op", "block")
    peer = RIVALS[suite][0]
    info = {
        "case": "swin_t_s1" if op else "swin_t-512x512",
        **({"shift": 3} if op else {}),
        **{"version": 1, "window": 7, "heads": 3, "size": 56 if op else [512, 512], "batch": 1, "threads": 1},
        **{"dtype": "bf16", "direction": "fwd", "backend": "cpu", "rounds": 9},
        **{"ms": 5.31, "median_ms": 5.62, "p20_ms": 5.43, "p80_ms": 6.14, "images_per_s": 188.3, "peak_mb": 61.7},
        **{"gflop": 0.75, "mbytes": 39.0, "gflops": 141.2, "gb_per_s": 7.34},
        **{"ceiling_gflops": 234.0, "ceiling_gb_per_s": 19.2, "percent_of_roof": 58.4, "bound": "compute"},
        **{"family_ms": {peer: 23.27}, "family_ratio": {peer: 4.38}, "best_peer": peer, "ratio": 4.38},
        **{"best_published_peer": peer, "ratio_published": 4.38},
        **{"held_against": peer, "held_ratio": 4.38, "bar": 4.0, "met": True, "error": {"out": 0.006}, "graph": None},
        "peers": {peer: {"family": peer, "published": True, "ms": 23.27, "ratio": 4.38, "peak_mb": 129.6}},
        "left_out": {},
        **changes,
    }
    return {"param": f"{info['case']}-{info['dtype']}-{info['direction']}", "extra_info": info}


def result(suite: str, *rows: dict[str, Any], **machine: Any) -> dict[str, Any]:
    facts = {
        **{"device": DEVICE, "kind": "cpu", "gpu": None, "python": "3.11.7", "clock": "One sentence on the clock."},
        "cpu": {"name": "Made Up 9000", "microarchitecture": "mu9", "cores": 6},
        "torch": {"version": "2.99.1"},
        "peers": {"timm": "1.0.77"},
        "ceilings": {"fma_bf16_gflops": 234.0, "copy_gb_per_s_2t": 23.4},
        "load_average": [0.15, 0.45],
        **machine,
    }
    stamp = {"datetime": "2026-11-27T05:06:00+00:00", "commit_info": {"id": "c0ffee" * 6, "dirty": False}}
    return {"suite": suite, **stamp, "machine_info": facts, "not_measured": [], "benchmarks": [*rows]}


def put(root: Path, *results: dict[str, Any]) -> Path:
    """A tree that holds these results and a README."""
    for found in results:
        path = root / "benchmarks" / "results" / DEVICE / f"{found['suite']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    (root / "README.md").write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    return root


def texts(root: Path) -> tuple[str, str]:
    """REPORT.md and README.md as they should be; nothing is drawn."""
    wanted = outputs(root)
    return wanted[root / "benchmarks" / "REPORT.md"], wanted[root / "README.md"]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree whose report is written; copied for each test."""
    pytest.importorskip("matplotlib", reason="plots are drawn with matplotlib")
    root = put(tmp_path_factory.mktemp("drawn"), result("op", row("op")), result("dense", row("dense")))
    assert main([], root) == 0
    return root


@pytest.fixture
def written(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "tree"))


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---- what it says


def test_the_report_holds_each_number(tmp_path: Path) -> None:
    report, readme = texts(put(tmp_path, result("op", row("op")), result("dense", row("dense"))))
    machine = (
        "Made Up 9000, mu9, 6 cores",
        "torch 2.99.1",
        "timm 1.0.77",
        "0.15 to 0.45",
        "One sentence on the clock.",
    )
    for text in (*machine, "2026-11-27 05:06", "c0ffeec0ffee", "234", "fma bf16, GFLOP/s", "copy, GB/s, 2 threads"):
        assert text in report
    line = "| swin_t_s1 | 3 | 1 | bf16 | fwd | 5.31 | eager | 23.3 | 4.38 | 4.38 | 58 compute | 4 over eager | yes |"
    assert line in report
    assert "| op | bf16 | fwd | 1 | 4.38 | 0 | 58 | 1 of 1 |" in report
    assert "| 61.7 / 130 |" in report  # peak memory
    backbone = report[report.index("### The backbone of UperNet alone") :]
    assert "| swin_t-512x512 | 1 | bf16 | **swin_fast** | 61.7 | 188 | 1.00 | 1.00 |" in backbone
    assert "| swin_t-512x512 | 1 | bf16 | eager | 130 | 43.0 | 2.10 | 4.38 |" in backbone
    assert f"| {DEVICE}, 1 thread | op | 4.38 |" in readme
    assert readme.startswith("before\n") and readme.endswith("\nafter\n") and "old" not in readme


def test_means_over_rows(tmp_path: Path) -> None:
    rows = [row("op", ratio=ratio, case=f"case{ratio}") for ratio in (0.5, 8.0)]
    report, readme = texts(put(tmp_path, result("op", *rows)))
    assert "| 2 | 2.00 (0.50 to 8.00) | 1 |" in report  # and one row where a peer is faster
    assert "2.00 (0.50 to 8.00)" in readme


def test_a_missed_bar_is_listed(tmp_path: Path) -> None:
    report, readme = texts(
        put(tmp_path, result("op", row("op", met=False, held_ratio=3.997), row("op", case="swin_b")))
    )
    assert "**Fell short** of their bar: 1 row." in report
    assert "| `swin_t_s1-bf16-fwd` | 4 | eager | 3.997 |" in report
    assert "| **no** |" in report
    assert f"{DEVICE}: 1 of 2 bars met." in readme
    assert "Fell short" not in texts(put(tmp_path, result("op", row("op"))))[0]


def test_what_was_left_out_is_listed_with_its_reason(tmp_path: Path) -> None:
    reasons = ["out is off by 3e-1, allowed 1e-1", "out is off by 0.25, allowed 1e-1", "no | at\n/home/me/lib/x.py"]
    rows = [row("op", left_out={"flex_score": {"family": "flex", "reason": reason}}) for reason in reasons]
    found = result("op", *rows)
    found["not_measured"] = ["swin_l_s4-b64"]
    report, _ = texts(put(tmp_path, found))
    assert f"| {DEVICE} | op | flex_score | out is off by 0.25 to 3e-1, allowed 1e-1 | 2 |" in report
    assert f"| {DEVICE} | op | flex_score | no \\| at x.py | 1 |" in report
    assert "1 row of 4 not measured" in report
    assert "* `swin_l_s4-b64`" in report


def test_the_reference_on_a_gpu_is_not_called_ours(tmp_path: Path) -> None:
    gpu = {"kind": "cuda", "gpu": {"name": "Made Up GPU"}}
    graph = {"ms": 0.31, "best_peer": "eager", "peer_ms": 0.65, "ratio": 2.13}
    root = put(tmp_path, result("op", row("op", backend="reference"), row("op", backend="triton", graph=graph), **gpu))
    for text in texts(root):
        assert "1 of 2 rows of swin_fast ran its backend `reference`" in text
        assert "these are not our kernels" in text
    assert "5.31 (5.43 to 6.14)" in texts(root)[0]
    assert "0.310, 2.13 over eager" in texts(root)[0]
    alone = row("op", backend="triton", graph={"ms": 0.42, "best_peer": None, "peer_ms": None, "ratio": None})
    report, _ = texts(put(tmp_path, result("op", alone, **gpu)))
    assert "| 0.420 |" in report and "not our kernels" not in report
    assert "not our kernels" not in texts(put(tmp_path, result("op", row("op", backend="reference"))))[0]


@pytest.mark.parametrize("suite", RIVALS)
def test_missing_fields_do_not_matter(suite: str, tmp_path: Path) -> None:
    whole = row(suite)
    names = ("case", "dtype", "direction", "batch")
    bare = {"param": "bare", "extra_info": {name: whole["extra_info"][name] for name in names}}
    report, _ = texts(put(tmp_path, {"benchmarks": [bare], "suite": suite}))
    assert "| - |" in report
    assert not plots(DEVICE, {suite: [bare["extra_info"]]})
    for name in whole["extra_info"].keys() - names:
        info = {key: value for key, value in whole["extra_info"].items() if key != name}
        texts(put(tmp_path, result(suite, {**whole, "extra_info": info})))
        if name in NULLABLE:
            texts(put(tmp_path, result(suite, {**whole, "extra_info": {**info, name: None}})))


@pytest.mark.parametrize("name", SUITES)
def test_every_family_is_known(name: str) -> None:
    """The report does not import the suites, which import torch: so both have to say the same."""
    suite = SUITES[name]
    assert set(suite.rivals) == set(RIVALS[name])
    assert set(suite.families) <= set(FAMILIES)
    assert set(suite.rivals) <= set(COLOURS)
    assert name == "op" or set(suite.rivals) <= set(MARKERS)


def test_no_results_and_no_rows(tmp_path: Path) -> None:
    assert all("There are no results yet." in text for text in texts(put(tmp_path)))
    assert "All 0 rows" not in texts(put(tmp_path, result("op")))[0]


def test_numbers_and_names() -> None:
    values = (None, 0.0, 0.01234, 5.3149, 99.96, 1234.5)
    assert [number(value) for value in values] == ["-", "0.00", "0.0123", "5.31", "100.0", "1234"]
    assert ceiling("fma_fp32_gflops_2t") == "fma fp32, GFLOP/s, 2 threads"
    assert merged(["float64 by 1", "float64 by 1", "float32 by 1"]) == {"float64 by 1": 2, "float32 by 1": 1}


# ---- what is refused


def test_a_result_of_a_changed_tree_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result("op", row("op"))
    found["commit_info"]["dirty"] = True
    put(tmp_path, found)
    before = contents(tmp_path)
    for given in ([], ["--check"]):
        assert main(given, tmp_path) == 2
        assert "op.json: measured in a tree with uncommitted changes" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_result_under_the_name_of_another_suite_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put(tmp_path, result("op", row("op"))) / "benchmarks" / "results" / DEVICE
    (folder / "op.json").rename(folder / "block.json")
    assert main(["--check"], tmp_path) == 2
    assert "holds suite 'op'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_a_readme_without_its_markers_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, result("op", row("op")))
    (tmp_path / "README.md").write_text(text)
    assert main([], tmp_path) == 2
    assert BEGIN in capsys.readouterr().err


# ---- what the check finds


def edit(path: str, old: str, new: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))

    return apply


RESULT = f"benchmarks/results/{DEVICE}/op.json"
PLOT = f"benchmarks/plots/{DEVICE}/speedup-op.svg"
REPORT = "benchmarks/REPORT.md"


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (edit(REPORT, "5.31", "3.15"), [f"stale: {REPORT}"]),
        (edit("README.md", "4.38", "8.34"), ["stale: README.md"]),
        (edit(RESULT, "4.38", "4.83"), [f"stale: {REPORT}", "stale: README.md", f"stale: {PLOT}"]),
        (edit(PLOT, "drawing ", "drawing 0"), [f"stale: {PLOT}"]),
        (lambda root: (root / REPORT).unlink(), [f"missing: {REPORT}"]),
        (lambda root: (root / PLOT).unlink(), [f"missing: {PLOT}"]),
        (lambda root: (root / RESULT).unlink(), [f"stale: {REPORT}", "stale: README.md", f"surplus: {PLOT}"]),
        (
            lambda root: shutil.copy(root / PLOT, root / "benchmarks/plots/old.svg"),
            ["surplus: benchmarks/plots/old.svg"],
        ),
    ],
)
def test_check_names_what_is_wrong(
    spoil: Callable[[Path], object], named: list[str], written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--check"], written) == 0
    spoil(written)
    before = contents(written)
    capsys.readouterr()
    assert main(["--check"], written) == 1
    said = capsys.readouterr().err.splitlines()
    assert set(named) <= set(said)
    assert contents(written) == before
    assert main([], written) == 0
    assert main(["--check"], written) == 0


def test_text_outside_of_the_block_stays_and_is_not_checked(written: Path) -> None:
    edit("README.md", "before", "something else")(written)
    assert main(["--check"], written) == 0


def test_the_same_results_give_the_same_bytes(written: Path) -> None:
    before = contents(written)
    assert main([], written) == 0
    assert contents(written) == before  # nothing was drawn again
    shutil.rmtree(written / "benchmarks" / "plots")
    (written / REPORT).unlink()
    assert main([], written) == 0
    assert contents(written) == before


def test_every_plot_is_shown_and_every_shown_plot_is_there(written: Path) -> None:
    report = (written / REPORT).read_text()
    found = {path.stem for path in (written / "benchmarks" / "plots").rglob("*.svg")}
    assert found == {"latency-b1", "speedup-op", "speedup-dense", "memory-dense", "roofline"}
    assert all(f"(plots/{DEVICE}/{name}.svg)" in report for name in found)


def test_check_needs_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    put(tmp_path, *(result(suite, row(suite)) for suite in RIVALS))
    program = (
        "import sys; from pathlib import Path; from benchmarks.report import main; "
        "main(['--check'], Path(sys.argv[1])); sys.exit(bool({'torch', 'matplotlib'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert f"missing: {PLOT}" in done.stderr.decode()
