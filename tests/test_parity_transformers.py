# SPDX-License-Identifier: Apache-2.0
"""Our models of geometry "dense" against the backbone of Hugging Face's transformers."""

from __future__ import annotations

import pytest
import torch

from conftest import KERNELS
from peer_models import TINY, PeerCase, by_id, check_outputs, check_pair, make_pair, slow

CASES = (
    PeerCase("transformers", 224, 224),
    PeerCase("transformers", 480, 640),
    PeerCase("transformers", 300, 451),  # not whole patches
    PeerCase("transformers", 384, 384, window=12),
)
SMALL = (
    PeerCase("transformers", 64, 64),
    PeerCase("transformers", 97, 50),
    PeerCase("transformers", 64, 64, window=4, qkv_bias=False),
)
FULL = (PeerCase("transformers", 224, 224, **TINY),)


@pytest.mark.parametrize("case", CASES + SMALL + slow(FULL), ids=by_id)
def test_float64_is_exact(case: PeerCase) -> None:
    check_pair(case, torch.float64, "reference")


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=by_id)
@pytest.mark.parametrize("case", SMALL, ids=by_id)
def test_errors_are_those_of_transformers(case: PeerCase, dtype: torch.dtype, backend: str, device: str) -> None:
    check_pair(case.shallow, dtype, backend, device)


def test_one_model_takes_every_size() -> None:
    case = PeerCase("transformers", 224, 224)
    ours, peer = make_pair(case)
    images = [torch.randn(1, 3, *size) for size in ((64, 64), (224, 224), (224, 96), (30, 33), (64, 64))]
    check_outputs(str(case), ours.eval(), peer.eval(), images)
