# SPDX-License-Identifier: Apache-2.0
"""Our models of geometry "torchvision" against torchvision's, V1 and V2."""

from __future__ import annotations

import pytest
import torch

from conftest import KERNELS
from peer_models import TINY, PeerCase, build_ours, build_peer, by_id, check_outputs, check_pair, make_pair, slow

CASES = (
    PeerCase("torchvision", 224, 224),
    PeerCase("torchvision", 300, 452),
    PeerCase("torchvision", 224, 96),
    PeerCase("torchvision", 128, 192, window=(4, 8)),
    PeerCase("torchvision", 256, 256, version=2, window=8),
    PeerCase("torchvision", 224, 96, version=2, window=8),
    PeerCase("torchvision", 301, 451, version=2, window=8),  # cuts pixels off
)
SMALL = (
    PeerCase("torchvision", 64, 64),
    PeerCase("torchvision", 63, 101),
    PeerCase("torchvision", 64, 64, version=2, window=8),
    PeerCase("torchvision", 63, 77, version=2),
)
FULL = (
    PeerCase("torchvision", 224, 224, **TINY),
    PeerCase("torchvision", 256, 256, version=2, window=8, **TINY),
)


@pytest.mark.parametrize("case", CASES + SMALL + slow(FULL), ids=by_id)
def test_float64_is_exact(case: PeerCase) -> None:
    check_pair(case, torch.float64, "reference")


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=by_id)
@pytest.mark.parametrize("case", SMALL, ids=by_id)
def test_errors_are_those_of_torchvision(case: PeerCase, dtype: torch.dtype, backend: str, device: str) -> None:
    check_pair(case.shallow, dtype, backend, device)


@pytest.mark.parametrize("version", [1, 2])
def test_one_model_takes_every_size(version: int) -> None:
    """Zero shifts are found per call and per axis: no size leaves a trace in the next."""
    case = PeerCase("torchvision", 224, 224, version=version)
    ours, peer = make_pair(case)
    images = [torch.randn(1, 3, *size) for size in ((64, 64), (112, 112), (224, 32), (32, 224), (57, 99), (64, 64))]
    check_outputs(str(case), ours.eval(), peer.eval(), images)


@pytest.mark.parametrize("version", [1, 2])
def test_img_size_means_nothing(version: int) -> None:
    case = PeerCase("torchvision", 64, 96, version=version)
    ours, peer = make_pair(case)
    other = build_ours(case, img_size=224)
    other.load_state_dict(ours.state_dict())
    image = case.images(torch.float32)[0]
    assert torch.equal(other(image), ours(image))
    check_outputs(str(case), other, peer, [image])


def test_names_of_the_published_builders_load() -> None:
    from torchvision.models import swin_t, swin_v2_t

    for builder, version in ((swin_t, 1), (swin_v2_t, 2)):
        case = PeerCase("torchvision", 224, 224, version=version, window=7 if version == 1 else 8, **TINY)
        assert builder().state_dict().keys() == build_peer(case).state_dict().keys()
