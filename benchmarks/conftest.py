# SPDX-License-Identifier: Apache-2.0
"""Options, ceilings, progress, and what the JSON says about the machine. `benchmarks/run.py` passes the options."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from .cases import Row
from .ceilings import Ceilings, ceilings
from .machine import commit, environment, machine_info
from .suites import SUITES, Suite

CEILINGS = pytest.StashKey[Ceilings]()
LOAD = pytest.StashKey[tuple[float, ...]]()
START = pytest.StashKey[float]()


@dataclass(frozen=True)
class Options:
    """How a run was asked for, see `python -m benchmarks.run --help`."""

    device: str
    backend: str | None
    families: tuple[str, ...]
    budget: float
    least_rounds: int
    toy: bool
    deadline: float  # of time.monotonic()

    @property
    def in_time(self) -> bool:
        return time.monotonic() < self.deadline


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("swin_fast benchmarks")
    group.addoption("--suite", default="op", choices=SUITES, help="what is measured")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where")
    group.addoption("--backend", help="backend of swin_fast that is measured")
    group.addoption("--peers", help="families of peers, by comma")
    group.addoption("--budget", type=float, help="seconds of timed rounds per row")
    group.addoption("--minutes", type=float, default=math.inf, help="no row and no peer starts later")
    group.addoption("--add", help="a result whose rows are not measured again")
    group.addoption("--quick", action="store_true", help="some rows alone")
    group.addoption("--toy", action="store_true", help="toy-sized rows")


class Rewritten:
    """A file that is opened, and so written anew, at each `with`. pytest-benchmark 5.1 keeps one open, to be closed by
    the first.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> BinaryIO:
        self.file = open(self.path, "wb")
        return self.file

    def __exit__(self, *_: object) -> None:
        self.file.close()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[START] = time.monotonic()
    if config.getoption("benchmark_json"):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # who stops a run still gets the rows that are done


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    earlier = config.getoption("--add")
    done = {it["param"] for it in json.loads(Path(earlier).read_text())["benchmarks"]} if earlier else set()

    def kept(item: pytest.Item) -> bool:
        row = item.callspec.params.get("row") if hasattr(item, "callspec") else None
        return not isinstance(row, Row) or (row.id not in done and (row.quick or not config.getoption("--quick")))

    dropped = [item for item in items if not kept(item)]
    if dropped:
        items[:] = [item for item in items if item not in dropped]
        config.hook.pytest_deselected(items=dropped)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """The result is written after each row: whatever ends the process later, this row is not lost."""
    session = item.config._benchmarksession  # type: ignore[attr-defined]
    if hasattr(session.json, "write"):
        session.json = Rewritten(session.json.name)
    if session.json:
        session.handle_saving()


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Suite:
    return SUITES[request.config.getoption("--suite")]


@pytest.fixture(scope="session")
def options(request: pytest.FixtureRequest, suite: Suite) -> Options:
    config = request.config
    peers = config.getoption("--peers")
    few = config.getoption("--quick") or config.getoption("--toy")
    return Options(
        device=config.getoption("--device"),
        backend=config.getoption("--backend"),
        families=tuple(peers.split(",")) if peers else suite.families,
        budget=config.getoption("--budget") or suite.budget,
        least_rounds=min(3, suite.least_rounds) if few else suite.least_rounds,
        toy=config.getoption("--toy"),
        deadline=config.stash[START] + 60 * config.getoption("--minutes"),
    )


@pytest.fixture(scope="session", name="ceilings")
def ceilings_fixture(request: pytest.FixtureRequest, suite: Suite, options: Options) -> Ceilings:
    """Measured once per run. Refuses an environment in which the numbers would mean something else."""
    wanted = environment(options.device)
    wrong = {name: os.environ.get(name) for name, value in wanted.items() if os.environ.get(name) != value}
    if wrong:
        pytest.fail(f"the environment is not the measuring one: {wrong}; start with `python -m benchmarks.run`")
    request.config.stash[LOAD] = os.getloadavg()[:1]
    threads = {item.callspec.params["row"].threads for item in request.session.items}
    found: Ceilings = {}
    for number in sorted(threads):
        found |= ceilings(options.device, number)
    request.config.stash[CEILINGS] = found
    print("\nceilings:", ", ".join(f"{name} {value:g}" for name, value in found.items()), flush=True)
    return found


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests: as in the benchmarks; and more threads than cores take tens of times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_time(request: pytest.FixtureRequest, options: Options) -> None:
    """Skips a row that would start after --minutes."""
    if not options.in_time:
        pytest.skip(f"--minutes {request.config.getoption('--minutes'):g} are over")


class Progress:
    """One line per row on the screen, written as the row advances."""

    def __init__(self, title: str) -> None:
        print(f"\n{title} ", end="", flush=True)

    def __call__(self, step: str) -> None:
        print(f"{step}.. ", end="", flush=True)

    def done(self, info: dict[str, Any]) -> None:
        print(outcome(info), end=" ", flush=True)


def outcome(info: dict[str, Any]) -> str:
    """Time and ratio to the best peer; to the one that the bar means, if it is another; the bar; who was left out."""
    said = [f"{info['ms']:.3f} ms"]
    if info["best_peer"] is not None:
        said.append(f"{info['ratio']:.2f}x over {info['best_peer']}")
    if info["held_against"] not in (None, info["best_peer"]):
        said.append(f"{info['held_ratio']:.2f}x over {info['held_against']}")
    if info["met"] is not None:
        said.append(f"bar {info['bar']:g} {'met' if info['met'] else 'MISSED'}")
    if info["left_out"]:
        said.append(f"left out: {', '.join(info['left_out'])}")
    return ", ".join(said)


def time_left(done: int, rows: int, seconds: float) -> str:
    """A guess: the rows to come take as long, on average, as those that are done."""
    if not done:
        return ""
    minutes = seconds / done * (rows - done) / 60
    return f", {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"


@pytest.fixture
def progress(request: pytest.FixtureRequest, ceilings: Ceilings) -> Progress:
    items = request.session.items
    done, seconds = items.index(request.node), time.monotonic() - request.config.stash[START]
    return Progress(f"[{done + 1}/{len(items)}{time_left(done, len(items), seconds)}] {request.node.callspec.id}:")


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    return commit()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()  # it holds the name of the host
    machine_info.update(measured_on(config))


def measured_on(config: pytest.Config) -> dict[str, Any]:
    return {
        **this_machine(config.getoption("--device")),
        "budget_s": config.getoption("--budget") or SUITES[config.getoption("--suite")].budget,
        "ceilings": config.stash.get(CEILINGS, {}),
        "load_average": [round(load, 1) for load in (*config.stash.get(LOAD, ()), os.getloadavg()[0])],
    }


@cache
def this_machine(device: str) -> dict[str, Any]:
    return machine_info(device)


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Says which suite it is, and which of its rows are not there: not selected, out of time, stopped or failed.

    Raw rounds are dropped and the statistics rounded, so that a rerun changes few bytes.
    """
    suite = SUITES[config.getoption("--suite")]
    output_json["suite"] = suite.name
    output_json["datetime"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    whole = {benchmark["param"]: benchmark for benchmark in output_json["benchmarks"] if benchmark["extra_info"]}
    rows = suite.rows(config.getoption("--device"), config.getoption("--toy"))
    output_json["not_measured"] = [row.id for row in rows if row.id not in whole]
    output_json["benchmarks"] = list(whole.values())
    for benchmark in whole.values():
        del benchmark["params"], benchmark["options"]
        stats = benchmark["stats"]
        benchmark["stats"] = {
            name: float(f"{stats[name]:.5g}") for name in ("min", "median", "mean", "max", "stddev", "rounds")
        }
