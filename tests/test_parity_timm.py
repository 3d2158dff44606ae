# SPDX-License-Identifier: Apache-2.0
"""Our models against timm's, V1 and V2: the same weights, the same outputs, the same gradients, the same training."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import swin_fast
from cases import FORWARD_FLOAT64, epsilon
from comparison import check, compare
from conftest import KERNELS
from peer_models import (
    TINY,
    PeerCase,
    build_ours,
    build_peer,
    by_id,
    check_outputs,
    check_pair,
    copy_weights,
    import_peer,
    make_pair,
    microsoft_names,
    outputs_of,
    randomise,
    slow,
)

V1 = (
    PeerCase("timm", 224, 224),
    PeerCase("timm", 224, 224, geometry="ms"),
    PeerCase("timm", 224, 224, always_partition=True),
    PeerCase("timm", 384, 384, window=12, geometry="ms"),
    PeerCase("timm", 300, 452),
    PeerCase("timm", 480, 640),
    PeerCase("timm", 64, 64, always_partition=True),
    PeerCase("timm", 64, 64, built=224, strict=False),
    PeerCase("timm", 300, 452, built=224, strict=False),
    PeerCase("timm", 224, 96, built=224, strict=False, always_partition=True),
    PeerCase("timm", 128, 192, window=((4, 8), 7, (8, 4), 7)),
)
V2 = (
    PeerCase("timm", 256, 256, version=2, window=8, geometry="ms"),
    PeerCase("timm", 256, 256, version=2, window=16),
    PeerCase("timm", 256, 256, version=2, window=16, pretrained=(12, 12, 12, 6)),
    PeerCase("timm", 224, 96, version=2),
    PeerCase("timm", 64, 64, version=2, window=8, always_partition=True),
    PeerCase("timm", 300, 452, version=2, window=8, built=256, strict=False),
)
#: Small enough for many images and orders, see peer_models.DRAWS.
SMALL = (
    PeerCase("timm", 112, 112),
    PeerCase("timm", 64, 64, window=4, geometry="ms"),
    PeerCase("timm", 64, 64),
    PeerCase("timm", 96, 96, qkv_bias=False),
    PeerCase("timm", 64, 64, version=2, window=8),
    PeerCase("timm", 60, 76, version=2, window=8, built=256, strict=False),
    PeerCase("timm", 64, 64, version=2, window=8, qkv_bias=False),
)
FULL = (PeerCase("timm", 224, 224, **TINY), PeerCase("timm", 256, 256, version=2, window=8, **TINY))


@pytest.mark.parametrize("case", V1 + V2 + SMALL + FULL[:1] + slow(FULL[1:]), ids=by_id)
def test_float64_is_exact(case: PeerCase) -> None:
    check_pair(case, torch.float64, "reference")


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=by_id)
@pytest.mark.parametrize("case", SMALL, ids=by_id)
def test_errors_are_those_of_timm(case: PeerCase, dtype: torch.dtype, backend: str, device: str) -> None:
    check_pair(case.shallow, dtype, backend, device)


@pytest.mark.slow
@pytest.mark.parametrize("backend", KERNELS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=by_id)
@pytest.mark.parametrize("case", [V1[0], V1[3], V1[4], FULL[0]], ids=by_id)
def test_errors_of_larger_models_are_those_of_timm(
    case: PeerCase, dtype: torch.dtype, backend: str, device: str
) -> None:
    check_pair(replace(case, draws=None), dtype, backend, device)


# --------------------------------------------------------------------------------------------------------- other modes


@pytest.mark.parametrize("version", [1, 2])
def test_evaluation_is_training_without_dropout(version: int, backend: str, device: str) -> None:
    case = PeerCase("timm", 64, 64, version=version)
    ours = randomise(build_ours(case))  # some versions of timm, 1.0.29 among them, have no V2 with maps that are padded
    image = case.images(torch.float32)[0].to(device)
    ours = ours.to(device)
    with swin_fast.use_backend(backend):
        trained = outputs_of(ours, image)
        ours.eval()
        for name, value in outputs_of(ours, image).items():
            assert torch.equal(value, trained[name]), name
        assert torch.equal(ours(image), trained["logits"])


@pytest.mark.parametrize("version", [1, 2])
def test_evaluation_is_that_of_timm(version: int) -> None:
    case = PeerCase("timm", 64, 96, version=version)
    peer = randomise(build_peer(case))
    ours = build_ours(case, drop_path_rate=0.5, drop_rate=0.5, attn_drop_rate=0.5)
    copy_weights(ours, peer, case)
    check_outputs(str(case), ours.eval(), peer.eval(), case.images(torch.float32)[:1])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("always_partition", [False, True])
def test_one_dynamic_model_takes_every_size(version: int, always_partition: bool) -> None:
    case = PeerCase("timm", 128, 128, version=version, strict=False, always_partition=always_partition)
    ours, peer = make_pair(case)
    images = [torch.randn(1, 3, *size) for size in ((128, 128), (64, 64), (60, 100), (32, 224), (128, 128))]
    check_outputs(str(case), ours, peer, images)


@pytest.mark.parametrize("version", [1, 2])
def test_drop_path_drops_what_timm_drops(version: int) -> None:
    case = PeerCase("timm", 32, 32, version=version)
    ours, peer = make_pair(case)
    for model in (ours, peer):
        rates = iter(torch.linspace(0, 0.6, 8).tolist())
        for layer in model.layers:
            for block in layer.blocks:
                rate = next(rates)
                if model is ours:
                    block.drop_path.drop_prob = rate
                else:
                    from timm.layers import DropPath

                    block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
    ours, peer = ours.double(), peer.double()
    image = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    torch.manual_seed(1)
    got = outputs_of(ours, image)
    torch.manual_seed(1)
    torch.testing.assert_close(got, outputs_of(peer, image))
    assert not torch.allclose(got["logits"], outputs_of(ours, image)["logits"]), "nothing was dropped"


RESIZES: tuple[dict[str, Any], ...] = (
    {"img_size": (120, 160), "window_size": 7},
    {"img_size": (64, 64), "window_size": 7},
    {"img_size": (224, 96), "window_size": 7, "always_partition": True},
    {"img_size": (128, 128), "window_size": 8},
    {"img_size": (128, 64), "window_size": ((4, 8), (8, 8), (4, 4), (2, 2))},
)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("resize", RESIZES, ids=str)
def test_set_input_size(version: int, resize: dict[str, Any]) -> None:
    case = PeerCase("timm", 224, 224, version=version)
    ours, peer = make_pair(case)
    peer.set_input_size(**resize)
    ours.set_input_size(**resize)
    copy_weights(ours, peer, case)  # timm makes new tables with an interpolator of its own
    image = torch.randn(1, 3, *resize["img_size"])
    check_outputs(f"{case} after {resize}", ours, peer, [image])
    peer.set_input_size(img_size=(112, 112), window_size=7, always_partition=False)
    ours.set_input_size(img_size=(112, 112), window_size=7, always_partition=False)
    copy_weights(ours, peer, case)
    check_outputs(f"{case} after two resizes", ours, peer, [torch.randn(1, 3, 112, 112)])


def test_windows_stay_at_another_image_size() -> None:
    """timm's would grow with the image if they were not named."""
    case = PeerCase("timm", 112, 112)
    ours, peer = make_pair(case)
    peer.set_input_size(img_size=(224, 224), window_size=7)
    ours.set_input_size(img_size=(224, 224))
    copy_weights(ours, peer, case)
    check_outputs("windows named for timm alone", ours, peer, [torch.randn(1, 3, 224, 224)])


def test_features_only_gives_our_out_indices() -> None:
    timm = import_peer("timm")
    peer = randomise(timm.create_model("swin_tiny_patch4_window7_224", features_only=True, drop_path_rate=0.0))
    ours = swin_fast.swin_tiny_patch4_window7_224(geometry="timm", out_indices=(0, 1, 2, 3), drop_path_rate=0.0)
    state = {name.replace("layers_", "layers."): value for name, value in peer.state_dict().items()}
    ours.load_state_dict(microsoft_names(state, PeerCase("timm", 224, 224)))
    assert [info["num_chs"] for info in ours.feature_info] == peer.feature_info.channels()
    assert [info["reduction"] for info in ours.feature_info] == peer.feature_info.reduction()
    image = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        got, exact = ours.double()(image), peer.double()(image)
    assert [x.shape for x in got] == [(1, 224 // 2**i, 224 // 2**i, 96 * 2 ** (i - 2)) for i in range(2, 6)]
    for i, (ours_, theirs) in enumerate(zip(got, exact, strict=True)):
        check("features_only", [compare(f"{i}", ours_, theirs, [], dtype=torch.float64, eps=FORWARD_FLOAT64)])


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((480, 640), "torchvision' or 'dense"),
        ((224, 96), "torchvision' or 'dense"),
        ((64, 64), "torchvision' or 'dense"),
        ((300, 452), "torchvision' or 'dense"),
        ((300, 451), "'dense' pads"),
    ],
)
def test_ms_names_the_geometry_that_takes_what_it_refuses(size: tuple[int, int], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        swin_fast.SwinTransformer(img_size=size, window_size=7, geometry="ms")


@pytest.mark.parametrize("size", [(30, 64), (64, 30)])
def test_timm_takes_whole_patches_only_and_so_do_we(size: tuple[int, int]) -> None:
    case = PeerCase("timm", 64, 64, strict=False)
    ours, peer = make_pair(case)
    image = torch.randn(1, 3, *size)
    with pytest.raises(AssertionError):
        peer(image)
    with pytest.raises(ValueError, match="want multiples of patch_size"):
        ours(image)


# ------------------------------------------------------------------------------------------------------------- training

STEPS = 50
LEARNT = 0.25  # what must be left of the first loss, at most


def train(model: nn.Module, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """The loss before each of STEPS steps of SGD on two alternating batches, (STEPS,)."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(2, 4, 3, 64, 64, generator=generator).to(device, dtype)
    labels = torch.arange(8, device=device).view(2, 4)
    model = model.to(device, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    losses = []
    for step in range(STEPS):
        loss = F.cross_entropy(model(images[step % 2]), labels[step % 2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().cpu())
    return torch.stack(losses)


@functools.lru_cache
def timm_training(version: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """timm's initial weights, and its losses in float32 and in float64."""
    torch.manual_seed(2)
    peer = build_peer(PeerCase("timm", 64, 64, version=version, window=4))
    weights = copy.deepcopy(peer.state_dict())
    return weights, train(copy.deepcopy(peer), torch.float32), train(peer, torch.float64)


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
@pytest.mark.parametrize("version", [1, 2])
def test_training_follows_timm(version: int, backend: str, device: str) -> None:
    """50 steps from the same weights on the same images: ours leaves timm's float64 curve as slowly as timm's float32.

    The bound is the rule's, over the largest difference of a curve and over its root mean square: what rounding does to
    a loss after many steps depends on the task, and timm's own float32 tells how much it is.
    """
    weights, theirs, exact = timm_training(version)
    case = PeerCase("timm", 64, 64, version=version, window=4)
    ours = build_ours(case)
    ours.load_state_dict(microsoft_names(weights, case))
    with swin_fast.use_backend(backend):
        got = train(ours, torch.float32, device)
    check(f"training, V{version}", [compare("loss", got, exact, [theirs], dtype=torch.float32)])
    assert exact[-1] < LEARNT * exact[0], "nothing was learnt"
    assert (theirs - exact).abs().max() > epsilon(torch.float32), "the curves never part: nothing was measured"
