# SPDX-License-Identifier: Apache-2.0
"""Processes and threads around the CPU kernels: a child forked after a threaded region works and ends, data-loading
workers work, and torch.set_num_threads is obeyed. Each runs in a fresh process, for what a fork meets depends on
everything that the process did before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from cases import FORK_SECONDS

_COMMON = """
import json, os, sys, time, traceback
import numpy as np
import torch
import swin_fast

def make(B, nH, seed):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(B, 56, 56, 3, nH, 32, generator=generator)
    bias = torch.randn(nH, 13, 13, generator=generator)
    grad_out = torch.randn(B, 56, 56, nH * 32, generator=generator)
    return qkv.requires_grad_(), bias.requires_grad_(), grad_out

def work(qkv, bias, grad_out):
    out = swin_fast.window_attention(qkv, bias, window_size=(7, 7), shift_size=(3, 3), backend="cpu")
    gradients = torch.autograd.grad(out, (qkv, bias), grad_out)
    return [tensor.detach().numpy() for tensor in (out, *gradients)]

# NumPy compares: PyTorch's own operators on large tensors may hang in a forked child, and are not what is tested.
def same(first, second):
    return all(np.array_equal(one, other) for one, other in zip(first, second))
"""

_FORK = (
    _COMMON
    + """
torch.set_num_threads(2)
problem = make(2, 3, 0)
wanted = work(*problem)          # the parent's threads exist from here on
seconds = float(sys.argv[1])
for generation in range(2):      # fork, work in the parent, fork again
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for _ in range(2):
                if not same(work(*problem), wanted):
                    raise AssertionError("the forked child computed something else")
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    deadline = time.monotonic() + seconds
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            sys.exit(f"the forked child hung for {seconds} s")
        time.sleep(0.01)
    if done[1] != 0:
        sys.exit(f"the forked child ended with status {done[1]}")
    if not same(work(*problem), wanted):
        sys.exit("the parent computed something else after the fork")
"""
)

_LOADER = (
    _COMMON
    + """
class Problems(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return [torch.from_numpy(array) for array in work(*make(1, 3, index))]

torch.set_num_threads(2)
problems = Problems()
wanted = [[tensor.numpy() for tensor in problems[index]] for index in range(len(problems))]
loader = torch.utils.data.DataLoader(
    problems, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=float(sys.argv[1])
)
for index, results in enumerate(loader):
    if not same([tensor.numpy() for tensor in results], wanted[index]):
        sys.exit(f"a worker computed something else for problem {index}")
"""
)

_THREADS = (
    _COMMON
    + """
problem = make(8, 3, 0)
shares = []
for threads in (1, 2):
    torch.set_num_threads(threads)
    work(*problem)
    whole, mine = time.process_time(), time.thread_time()
    while time.process_time() - whole < 0.5:
        out = swin_fast.window_attention(
            problem[0].detach(), problem[1].detach(), window_size=(7, 7), shift_size=(3, 3), backend="cpu"
        )
    whole, mine = time.process_time() - whole, time.thread_time() - mine
    shares.append(1 - mine / whole)
print(json.dumps(shares))
"""
)


@pytest.fixture
def cpu(backend: str) -> None:
    """Only backend cpu; the others have no threads of their own."""
    if backend != "cpu":
        pytest.skip(f"{backend} brings no CPU threads of its own")


@pytest.mark.usefixtures("cpu")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_child_forked_after_a_threaded_region(run_script: Callable[..., str]) -> None:
    run_script(_FORK, str(FORK_SECONDS), timeout=3 * FORK_SECONDS)


@pytest.mark.usefixtures("cpu")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_workers_of_a_data_loader(run_script: Callable[..., str]) -> None:
    run_script(_LOADER, str(FORK_SECONDS), timeout=3 * FORK_SECONDS)


@pytest.mark.usefixtures("cpu")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one CPU shows no second thread")
def test_set_num_threads_is_obeyed(run_script: Callable[..., str]) -> None:
    """With one thread only the caller computes; with two, another one takes its share of the processor time."""
    alone, together = json.loads(run_script(_THREADS, timeout=60))
    assert alone < 0.05, f"with one thread, others took {alone:.0%} of the processor time"
    assert together > 0.2, f"with two threads, the second took {together:.0%} of the processor time"
