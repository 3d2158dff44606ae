# SPDX-License-Identifier: Apache-2.0
"""A result that is measured in parts: the rows of an earlier one and those of a new one, in one file."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]

#: What may differ between runs whose rows stand side by side: what the run found, and what it does not measure.
OF_A_RUN = ("budget_s", "ceilings", "load_average", "clock", "nvcc", "swin_fast", "allocator")


def obstacles(earlier: Result, suite: str, machine: dict[str, Any], dirty_is_fine: bool = False) -> list[str]:
    """Why rows of an earlier result cannot stand beside new ones, which `machine` measures: one sentence each."""
    told, commit = earlier["machine_info"], earlier["commit_info"]
    found = [f"it is of suite {earlier['suite']}, not {suite}"] if earlier["suite"] != suite else []
    if commit["dirty"] and not dirty_is_fine:
        found.append("it was measured in a tree with uncommitted changes, so nobody could repeat it")
    names = sorted({*told, *machine} - {*OF_A_RUN})
    found += [
        f"{name}: it has {told.get(name)}, here it is {machine.get(name)}"
        for name in names
        if told.get(name) != machine.get(name)
    ]
    return found


def added(earlier: Result, new: Result, order: list[str]) -> Result:
    """The rows of both in `order`, which are all rows of the suite; a row of both is the new one's.

    A row of the earlier result says when and of which commit it was measured, and so whether it still tells anything.
    """
    rows = {}
    for benchmark in earlier["benchmarks"]:
        stamp = {"commit": earlier["commit_info"]["id"], "datetime": earlier["datetime"]}
        info = {**stamp, **benchmark["extra_info"]}
        rows[benchmark["param"]] = {**benchmark, "extra_info": info}
    rows |= {benchmark["param"]: benchmark for benchmark in new["benchmarks"]}
    loads = [load for result in (earlier, new) for load in result["machine_info"]["load_average"]]
    return {
        **new,
        "machine_info": {**new["machine_info"], "load_average": loads},
        "not_measured": [name for name in order if name not in rows],
        "benchmarks": [rows[name] for name in order if name in rows],
    }
