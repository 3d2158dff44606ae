# SPDX-License-Identifier: Apache-2.0
"""Measures launch parameters of the Triton kernels, and writes the best: `python -m benchmarks.tune`.

For each direction, dtype, N and hd every candidate is first compared with float64, then timed against the others: CUDA
events, L2 cache flushed, launches hidden. It writes `swin_fast/backends/configs/<device>.json`, or --json. What is not
begun after --minutes keeps the rule. On a GPU all cores fill Triton's cache beforehand, since compiling takes longer
than measuring. On a CPU, for tests, kernels run in Triton's interpreter.

Then, where the backend cuda takes the problem, it and Triton with the best parameters are timed in turns, for
`dispatch.py` to choose between the two. --compare does only that, some seconds a problem: after CUDA kernels changed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from swin_fast.backends.configs import Parameters

    from .clocks import Clock, Clocked
    from .op_contenders import Problem

#: Of those that are timed, how many run on, and for how many rounds.
SCREENED, FINALISTS, ROUNDS = 3, 4, 20
#: Tiles and warps to choose from. More in one go than registers hold spills, and loses the race.
WARPS = (1, 2, 4, 8)
TILES = (16, 32, 64, 128)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--json", type=Path, help="where to write; default: where the kernels look")
    parser.add_argument("--minutes", type=float, default=6.0, help="no other problem is begun later")
    parser.add_argument("--add", action="store_true", help="keep what the file or the package has, measure the rest")
    parser.add_argument("--compare", action="store_true", help="measure no parameters, but cuda against what is kept")
    parser.add_argument("--allow-dirty", action="store_true", help="also of a tree with uncommitted changes")
    parser.add_argument("--toy", action="store_true", help="one small problem: does the tuner itself work?")
    options = parser.parse_args()
    if options.device == "cpu":
        interpret()
    import torch

    from swin_fast.backends import configs

    from .machine import commit, device_slug, machine_info

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device")
    if commit()["dirty"] and not options.allow_dirty:
        parser.error("the tree has uncommitted changes, so nobody could repeat this: commit, or pass --allow-dirty")
    device = device_slug(options.device)
    path = options.json or configs.FOLDER / f"{device}.json"
    machine = machine_info(options.device)
    versions = {"device": device, "torch": machine["torch"]["version"], "triton": machine["triton"]}
    result: dict[str, Any] = {**versions, "parameters": {}, "measured": {}}
    kept = path if path.exists() else configs.FOLDER / f"{device}.json"
    if (options.add or options.compare) and kept.exists():
        earlier = json.loads(kept.read_text())
        if {name: earlier[name] for name in versions} != versions:
            parser.error(f"--add, --compare: {kept} was measured with other versions than {versions}")
        result = earlier
    compared: dict[str, Any] = result.setdefault("compared", {})

    def write() -> None:  # after each problem, so that nothing is lost
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")

    evidence = {"datetime": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit()}
    deadline = time.monotonic() + 60 * options.minutes
    problems = {
        configs.key(direction, row.dtype, row.case.tokens, row.case.head_dim): (direction, row)
        for direction, row in all_problems(options.toy)
    }
    parameters = result["parameters"]
    untuned = [] if options.compare else [name for name in problems if name not in parameters]
    if options.device == "cuda" and untuned:
        compile_all([problems[name] for name in untuned], deadline)
    for name, (direction, row) in problems.items():
        if time.monotonic() > deadline:
            print(f"{name}: {options.minutes:g} minutes are over, it stays as it is", flush=True)
            continue
        if name in untuned:
            print(f"[{untuned.index(name) + 1}/{len(untuned)}] {name}:", end=" ", flush=True)
            best, told = tuned(direction, row, options.device)
            parameters[name] = asdict(best)
            result["measured"][name] = {**told, **evidence}
            print(f"{best}: {told}", flush=True)
            write()
        if name in parameters and (options.compare or name in untuned or name not in compared):
            times = against_cuda(direction, row, options.device, configs.Parameters(**parameters[name]))
            if times:
                compared[name] = {**times, **evidence}
                print(f"{name}: {times}", flush=True)
                write()
    return 0


def interpret() -> None:
    """Triton reads the variable when kernels are imported. What tests mend of its interpreter is needed here, too."""
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import triton_interpreter

    triton_interpreter.install()


def all_problems(toy: bool) -> Iterator[tuple[str, Any]]:
    """(direction, row), those that Swin has most first."""
    from .cases import OpRow, Stage

    if toy:
        row = OpRow(Stage("toy", 4, 1, 4, 2, head_dim=16), 1, "fp16", "fwd+bwd")
        yield from (("fwd", row), ("bwd", row))
        return
    shapes = {"N49": (56, 3, 7, 3), "N144": (96, 4, 12, 6), "N64": (64, 3, 8, 4), "N256": (64, 3, 16, 8)}
    stages = [Stage(name, *shape) for name, shape in shapes.items()]
    for dtype, stage, direction in itertools.product(("bf16", "fp16", "fp32"), stages, ("fwd", "bwd")):
        yield direction, OpRow(stage, 64, dtype, "fwd+bwd")


def compile_all(problems: list[tuple[str, Any]], deadline: float) -> None:
    """Every candidate is called once, on an image: by as many processes as there are cores."""
    builds = {}
    for direction, row in problems:
        for chosen in candidates(direction, row.dtype, row.case.tokens, row.case.head_dim):
            alike = replace(chosen, units=1)  # units are told at run time
            builds[direction, row.id, alike] = (direction, replace(row, batch=1), chosen)
    print(f"{len(builds)} builds:", end=" ", flush=True)
    begun = time.monotonic()
    # Not by fork: CUDA does not come along.
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        results = pool.imap_unordered(compile_one, builds.values())
        for done in range(len(builds)):
            try:
                results.next(timeout=max(0.1, deadline - time.monotonic()))
            except multiprocessing.TimeoutError:
                print(f"only {done} in time,", end=" ")
                break
    print(f"{time.monotonic() - begun:.0f} s", flush=True)


def compile_one(build: tuple[str, Any, Parameters]) -> None:
    """What does not compile, or does not run, is told when its turn to be measured comes."""
    import torch

    from .op_contenders import Problem

    direction, row, chosen = build
    with contextlib.suppress(Exception):
        call_of(Problem(row, "cuda"), direction, chosen)()
        torch.cuda.synchronize()


def candidates(direction: str, dtype: torch.dtype, N: int, hd: int) -> list[Parameters]:
    """The rule first."""
    from swin_fast.backends.configs import WHOLE_SCORES, Parameters, power_of_two, rule, two_powers

    found = [rule(direction, dtype, N, hd)]
    most = found[0].registers
    if N <= WHOLE_SCORES:
        tile = max(16, power_of_two(N))
        units = (1, 2, 4, 8, 16) if direction == "fwd" else (1, 2, 4)
        found += [Parameters(tile, tile, 0, warps, each, most) for warps in WARPS for each in units]
    else:
        units = (1, 2, 4) if direction == "fwd" else (1, 2)
        keys, more = two_powers(N)
        if N <= 4 * WHOLE_SCORES + 16:
            whole = itertools.product(TILES[:3], WARPS, units)
            found += [Parameters(rows, keys, more, warps, each, most) for rows, warps, each in whole]
        blocks = itertools.product(TILES, TILES[1:], WARPS[2:])
        found += [Parameters(rows, tile, 0, warps, 2, most) for rows, tile, warps in blocks]
    return list(dict.fromkeys(found))


def tuned(direction: str, row: Any, device: str) -> tuple[Parameters, dict[str, Any]]:
    """The best of all candidates, and what a reader wants to know of it.

    Raises:
        AssertionError: not even the rule is right.
    """
    from .clocks import interleave

    problem, exact, clock = setting(row, device)
    found = candidates(direction, row.dtype, row.case.tokens, row.case.head_dim)
    if device == "cpu":
        found = found[:2]
    admitted = {chosen: one for chosen in found if (one := admit(problem, direction, chosen, exact, clock))}
    if found[0] not in admitted:
        raise AssertionError(f"{direction} {row.id}: the rule is not right, or does not run")
    everybody = list(admitted.values())
    interleave(everybody, SCREENED)
    everybody.sort(key=lambda one: one.best)
    finalists = list({id(one): one for one in (*everybody[:FINALISTS], admitted[found[0]])}.values())
    interleave(finalists, ROUNDS if device == "cuda" else 1)
    best = min(finalists, key=lambda one: one.best)
    told = {
        "ms": round(1e3 * best.best, 4),
        "rule_ms": round(1e3 * admitted[found[0]].best, 4),
        "candidates": len(found),
        "not_right": len(found) - len(admitted),
    }
    return next(chosen for chosen, one in admitted.items() if one is best), told


def against_cuda(direction: str, row: Any, device: str, chosen: Parameters) -> dict[str, float] | None:
    """Milliseconds of Triton with these parameters and of the backend cuda; None where that does not take the problem.

    Raises:
        AssertionError: one of them is not right, or does not run.
    """
    import torch

    from swin_fast import dispatch

    from .clocks import interleave

    if dispatch.why_not(
        "cuda", dispatch.problem_of(row.dtype, torch.device(device), row.case.tokens, row.case.head_dim)
    ):
        return None
    problem, exact, clock = setting(row, device)
    both = {name: admit(problem, direction, how, exact, clock) for name, how in (("triton", chosen), ("cuda", None))}
    right = {name: one for name, one in both.items() if one}
    if right.keys() != both.keys():
        raise AssertionError(f"{direction} {row.id}: only {[*right]} of {[*both]} is right, and runs")
    interleave([*right.values()], ROUNDS if device == "cuda" else 1)
    return {f"{name}_ms": round(1e3 * one.best, 4) for name, one in right.items()}


@functools.lru_cache(maxsize=1)
def setting(row: Any, device: str) -> tuple[Problem, dict[str, torch.Tensor], Clock]:
    """The tensors of a row, what is right, and the clock; both directions have them in common."""
    from .clocks import CpuClock, CudaClock
    from .op_contenders import Problem

    problem = Problem(row, device)
    return problem, problem.exact(), CpuClock() if device == "cpu" else CudaClock(flush=True, hidden=True)


def admit(
    problem: Problem, direction: str, chosen: Parameters | None, exact: dict[str, torch.Tensor], clock: Clock
) -> Clocked | None:
    """The call with these parameters, ready to be timed; None where it does not run, or is not right."""
    from .clocks import Clocked
    from .equality import relative_error
    from .suites import SUITES

    try:
        call = call_of(problem, direction, chosen)
        got = call()
        names = ("out",) if direction == "fwd" else ("dqkv", "dtable")
        error = max(relative_error(tensor, exact[name]) for name, tensor in zip(names, got, strict=True))
    except Exception as fault:  # more shared memory or registers than there are
        print(f"({chosen}: {type(fault).__name__})", end=" ", flush=True)
        return None
    if not error <= SUITES["op"].equal[problem.row.dtype_name]:
        print(f"({chosen}: off by {error:.1e})", end=" ", flush=True)
        return None
    return Clocked(str(chosen), "", call, clock)


def call_of(problem: Problem, direction: str, chosen: Parameters | None) -> Callable[[], tuple[torch.Tensor, ...]]:
    """The op below autograd: (out,), or (dqkv, dtable). Without parameters the backend cuda's."""
    from swin_fast import ops
    from swin_fast.backends import triton_launch

    fwd, bwd = ops.WINDOW_ATTENTION_FWD["cuda"], ops.WINDOW_ATTENTION_BWD["cuda"]
    if chosen:
        fwd = functools.partial(triton_launch.window_attention_fwd, chosen=chosen)
        bwd = functools.partial(triton_launch.window_attention_bwd, chosen=chosen)
    w, s, nH = problem.w, problem.s, problem.nH
    bias = problem.table.float().t().reshape(nH, 2 * w - 1, 2 * w - 1)
    options = (bias, None, None, (w, w), (s, s), problem.hd**-0.5, "pad_roll", -100.0)
    turns = itertools.cycle([qkv.detach() for qkv, _table in problem.turns("image")])
    if direction == "fwd":
        return lambda: (fwd(next(turns), *options),)

    def gradients() -> tuple[torch.Tensor, ...]:
        dqkv, dbias, *_ = bwd(problem.grad_out, next(turns), *options)
        return dqkv, dbias.flatten(1).t()

    return gradients


if __name__ == "__main__":
    sys.exit(main())
