# SPDX-License-Identifier: Apache-2.0
"""Options, ceilings, progress, and what the JSON says about the machine. `benchmarks/run.py` passes the options."""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from typing import Any

import pytest
import torch

from .machine import commit, machine_info
from .measure import ENVIRONMENT, Options, ceilings
from .suites import SUITES, Suite

CEILINGS = pytest.StashKey[dict[str, float]]()
LOAD = pytest.StashKey[tuple[float, ...]]()
START = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("swin_fast benchmarks")
    group.addoption("--suite", default="op", choices=SUITES, help="what is measured")
    group.addoption("--backend", default="cpu", help="backend of swin_fast that is measured")
    group.addoption("--peers", help="families of peers, by comma")
    group.addoption("--budget", type=float, help="CPU seconds of timed rounds per row")
    group.addoption("--quick", action="store_true", help="some rows alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        dropped = [item for item in items if not is_quick(item)]
        items[:] = [item for item in items if item not in dropped]
        config.hook.pytest_deselected(items=dropped)


def is_quick(item: pytest.Item) -> bool:
    row = item.callspec.params.get("row") if hasattr(item, "callspec") else None
    return row is None or row.quick


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Suite:
    return SUITES[request.config.getoption("--suite")]


@pytest.fixture(scope="session")
def options(request: pytest.FixtureRequest, suite: Suite) -> Options:
    config = request.config
    peers = config.getoption("--peers")
    return Options(
        backend=config.getoption("--backend"),
        families=tuple(peers.split(",")) if peers else suite.families,
        budget=config.getoption("--budget") or suite.budget,
        least_rounds=min(3, suite.least_rounds) if config.getoption("--quick") else suite.least_rounds,
    )


@pytest.fixture(scope="session", name="ceilings")
def ceilings_fixture(request: pytest.FixtureRequest) -> dict[str, float]:
    """Measured once per run. Refuses an environment in which the numbers would mean something else."""
    wrong = {name: os.environ.get(name) for name, value in ENVIRONMENT.items() if os.environ.get(name) != value}
    if wrong:
        pytest.fail(f"the environment is not the measuring one: {wrong}; start with `python -m benchmarks.run`")
    torch.set_num_threads(1)
    request.config.stash[LOAD] = os.getloadavg()[:1]
    found = ceilings()
    request.config.stash[CEILINGS] = found
    request.config.stash[START] = time.monotonic()
    print("\nceilings:", ", ".join(f"{name} {value:g}" for name, value in found.items()), flush=True)
    return found


class Progress:
    """One line per row on the screen, written as the row advances."""

    def __init__(self, title: str) -> None:
        print(f"\n{title} ", end="", flush=True)

    def __call__(self, step: str) -> None:
        print(f"{step}.. ", end="", flush=True)

    def done(self, info: dict[str, Any]) -> None:
        print(outcome(info), end=" ", flush=True)


def outcome(info: dict[str, Any]) -> str:
    """Time and ratio to the best peer; to the one that the bar means, if it is another; and the bar."""
    said = [f"{info['ms']:.3f} ms", f"{info['ratio']:.2f}x over {info['best_peer']}"]
    if info["held_against"] not in (None, info["best_peer"]):
        said.append(f"{info['held_ratio']:.2f}x over {info['held_against']}")
    if info["met"] is not None:
        said.append(f"bar {info['bar']:g} {'met' if info['met'] else 'MISSED'}")
    return ", ".join(said)


def time_left(done: int, rows: int, seconds: float) -> str:
    """A guess: the rows to come take as long, on average, as those that are done."""
    if not done:
        return ""
    minutes = seconds / done * (rows - done) / 60
    return f", {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"


@pytest.fixture
def progress(request: pytest.FixtureRequest, ceilings: dict[str, float]) -> Progress:
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
        **machine_info(),
        "budget_s": config.getoption("--budget") or SUITES[config.getoption("--suite")].budget,
        "ceilings": config.stash.get(CEILINGS, {}),
        "load_average": [round(load, 1) for load in (*config.stash.get(LOAD, ()), os.getloadavg()[0])],
    }


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Says which suite it is; raw rounds are dropped and the statistics rounded, so that a rerun changes few bytes."""
    output_json["suite"] = config.getoption("--suite")
    output_json["datetime"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for benchmark in output_json["benchmarks"]:
        del benchmark["params"], benchmark["options"]
        stats = benchmark["stats"]
        benchmark["stats"] = {
            name: float(f"{stats[name]:.5g}") for name in ("min", "median", "mean", "max", "stddev", "rounds")
        }
