# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a call: the tensors that exist at the same time, weights and inputs included.

On a GPU from torch's allocator, on a CPU from the profiler's record of every allocation and release of torch's. So
what a runtime allocates beside torch (ONNX Runtime, OpenVINO) is not seen, nor are scratch buffers of MKL and oneDNN.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .clocks import Call


def peak_mb(call: Call, held: Iterable[Tensor], device: str) -> float:
    """MB (10^6 bytes) of `held`, which lives before and after the call, and the most that the call adds to it."""
    call()  # what is made once, at the first call, is no part of later ones
    held = list(held)
    for tensor in held:
        tensor.grad = None  # of the call before: a training step makes its own
    added = _added_on_gpu(call) if device == "cuda" else _added_on_cpu(call)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return round(1e-6 * (added + sum(storages.values())), 3)


def _added_on_gpu(call: Call) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _added_on_cpu(call: Call) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    now = most = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
