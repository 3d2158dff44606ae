# SPDX-License-Identifier: Apache-2.0
"""Where Swin's descendants differ, one test for each trap, and tests that the comparison notices who falls into it.

Every test of a difference shows both sides: that the models do differ, by far more than rounding, and that ours is
equal to the peer whose geometry it was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swin_fast
from cases import FORWARD_FLOAT64
from peer_models import (
    PeerCase,
    build_ours,
    build_peer,
    check_outputs,
    check_pair,
    copy_weights,
    import_peer,
    make_pair,
    outputs_of,
    randomise,
    run,
)
from swin_fast import SwinBlock, SwinTransformerV2Block, blocks, layers, models, window_attention
from swin_fast.attention import WindowAttention, WindowAttentionV2
from swin_fast.geometry import fit_window

TIMM_ODD = PeerCase("timm", 60, 76)
SMALL: dict[str, Any] = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.0}
#: Features have size 1: what differs by this much does not differ by rounding.
VISIBLE = 1e-2


def stages(model: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        outputs = outputs_of(model.double(), image.double())
    return [x for name, x in outputs.items() if name != "logits"]


def apart(one: nn.Module, other: nn.Module, image: Tensor) -> list[float]:
    """The largest difference of each stage."""
    pairs = zip(stages(one, image), stages(other, image), strict=True)
    return [(a - b).abs().max().item() for a, b in pairs]


def with_geometry(ours: nn.Module, geometry: str, img_size: Any, version: int = 1, **more: Any) -> nn.Module:
    """A small model of another geometry with the weights of `ours`."""
    kind = swin_fast.SwinTransformer if version == 1 else swin_fast.SwinTransformerV2
    model = kind(img_size=img_size, num_classes=40, geometry=geometry, **{**SMALL, **more})
    model.load_state_dict(ours.state_dict())
    return model


# ------------------------------------------------------------------------------------------------ windows and shifts


@pytest.mark.parametrize("version", [1, 2])
def test_timm_rolls_before_it_pads(version: int) -> None:
    case = PeerCase("timm", 96, 120, version=version, always_partition=True)
    ours, peer = make_pair(case)
    image = case.images(torch.float32)[0]
    check_outputs(str(case), ours, peer, [image])
    assert apart(ours, with_geometry(ours, "dense", (96, 120), version), image)[0] > VISIBLE


def test_dense_never_drops_the_shift() -> None:
    """At 224 the last stage is one window: Microsoft's does not shift it, the backbones of dense prediction do."""
    case = PeerCase("transformers", 224, 224)
    ours, peer = make_pair(case)
    image = case.images(torch.float32)[0]
    check_outputs(str(case), ours, peer, [image])
    dense = randomise(swin_fast.SwinTransformer(img_size=224, num_classes=40, geometry="dense", **SMALL))
    differences = apart(dense, with_geometry(dense, "ms", 224), image)
    assert max(differences[:3]) < 1e-12 and differences[3] > VISIBLE


def test_ms_fits_both_axes_at_once_and_timm_each_by_itself() -> None:
    case = PeerCase("timm", 224, 448)
    ours, peer = make_pair(case)
    image = case.images(torch.float32)[0]
    check_outputs(str(case), ours, peer, [image])
    ms = with_geometry(ours, "ms", (224, 448))
    assert [model.layers[3].blocks[1].shift_size for model in (ours, ms)] == [(0, 3), (0, 0)]
    assert peer.layers[3].blocks[1].shift_size == (0, 3)
    differences = apart(ours, ms, image)
    assert max(differences[:3]) < 1e-12 and differences[3] > VISIBLE


@pytest.mark.parametrize("geometry", ["torchvision", "dense"])
def test_no_size_leaves_a_trace_in_the_next(geometry: str) -> None:
    """Hugging Face's model shrinks its window for a small image and keeps it shrunk."""
    used = randomise(swin_fast.SwinTransformer(img_size=224, num_classes=40, geometry=geometry, **SMALL))
    state = {name: value.clone() for name, value in used.state_dict().items()}
    for size in ((64, 64), (224, 224), (224, 96), (32, 32), (224, 224)):
        image = torch.randn(1, 3, *size)
        assert torch.equal(used(image), with_geometry(used, geometry, size)(image)), size
    for name, value in used.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert {block.window_size for layer in used.layers for block in layer.blocks} == {(7, 7)}


def test_torchvision_drops_the_shift_of_each_axis_by_itself() -> None:
    case = PeerCase("torchvision", 64, 224)
    ours, peer = make_pair(case)
    image = case.images(torch.float32)[0]
    check_outputs(str(case), ours, peer, [image])
    assert apart(ours, with_geometry(ours, "dense", 64), image)[2] > VISIBLE


@pytest.mark.parametrize("size", [(63, 67), (61, 64), (64, 66)])
def test_torchvision_cuts_images_and_dense_pads_them(size: tuple[int, int]) -> None:
    height, width = size
    image = torch.randn(1, 3, height, width)
    padded = nn.functional.pad(image, (0, -width % 4, 0, -height % 4))
    for peer, same in (("torchvision", image[:, :, : height // 4 * 4, : width // 4 * 4]), ("transformers", padded)):
        ours, theirs = make_pair(PeerCase(peer, height, width))
        check_outputs(f"{peer} {size}", ours, theirs, [image])
        assert max(apart(ours, ours, image)) == 0.0
        for a, b in zip(stages(ours, image), stages(ours, same), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("version", [1, 2])
def test_a_window_of_one_token(version: int) -> None:
    """The coordinates of V2 are 0 / 0 there; torchvision and Microsoft's give NaN."""
    case = PeerCase("timm", 32, 32, version=version, window=4)  # the last map is one token
    ours, peer = make_pair(case)
    assert ours.layers[3].blocks[1].window_size == (1, 1)
    image = case.images(torch.float32)[0]
    check_outputs(str(case), ours, peer, [image])
    assert all(value.isfinite().all() for value in run(ours.float(), image).values())


# -------------------------------------------------------------------------------------------------- padding and masks


@pytest.mark.parametrize("version", [1, 2])
def test_padded_tokens_carry_the_biases(version: int) -> None:
    """They take part in the softmax, unmasked: V1 pads after norm1, V2 pads x.

    So a constant on all values is one on all outputs, which the projection's bias takes back. (Zeros for padded values
    fail below, under the mistakes, as do keys of V2 with a bias.)
    """
    case = PeerCase("torchvision", 40, 40, version=version)  # maps of 10, 5, 3 and 2
    ours, peer = make_pair(case)
    image = case.images(torch.float32)[0]
    check_outputs(str(case), ours, peer, [image])
    before = stages(ours, image)
    with torch.no_grad():
        for layer in ours.layers:
            for attn in (block.attn for block in layer.blocks):
                (attn.qkv.bias[2 * attn.dim :] if version == 1 else attn.v_bias).add_(1.0)
                attn.proj.bias.sub_(attn.proj.weight.sum(1))
    torch.testing.assert_close(stages(ours, image), before, rtol=0, atol=FORWARD_FLOAT64 * 100)


def test_the_mask_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """-100 is no cut: a score that is larger by 200 looks through it, in ours as in timm's."""
    case = PeerCase("timm", 64, 64, window=4)
    peer = randomise(build_peer(case))
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.mul_(200.0)
    ours = build_ours(case)
    copy_weights(ours, peer, case)
    image = case.images(torch.float32)[0]
    check_outputs(str(case), ours, peer, [image])
    seen = stages(ours, image)
    monkeypatch.setattr(swin_fast.attention, "window_attention", partial(window_attention, mask_value=float("-inf")))
    assert (seen[0] - stages(ours, image)[0]).abs().max() > VISIBLE


# ------------------------------------------------------------------------------------------------------- arithmetic


def test_merging_takes_rows_before_columns() -> None:
    case = PeerCase("timm", 64, 64)
    ours, peer = make_pair(case)
    image = case.images(torch.float32)[0]
    before = stages(ours, image)
    with torch.no_grad():
        for layer in ours.layers[:3]:  # what loading OpenMMLab's order unchanged amounts to
            for parameter in layer.downsample.parameters():
                parameter.copy_(parameter.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].flatten(-2))
    after = stages(ours, image)
    assert torch.equal(before[0], after[0]) and (before[1] - after[1]).abs().max() > VISIBLE
    copy_weights(ours, peer, case)
    check_outputs(str(case), ours, peer, [image])


def test_v2_has_no_gradient_above_the_clamp() -> None:
    ours, peer = make_pair(PeerCase("timm", 32, 32, version=2, window=4))
    case = PeerCase("timm", 32, 32, version=2, window=4)
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    got, exact = run(ours.double(), image), run(peer.double(), image, case)
    sharp = 0
    for name, value in ours.named_parameters():
        if name.endswith("logit_scale"):
            above = value > math.log(100.0)
            assert not got[name][above].any() and not exact[name][above].any(), name
            assert got[name][~above].any() or name.startswith("layers.3"), name  # one token has one weight
            sharp += int(above.sum())
    assert sharp >= 8


def test_v2_keys_have_no_bias() -> None:
    ours, peer = make_pair(PeerCase("torchvision", 48, 48, version=2))
    image = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        for name, value in peer.named_parameters():
            if name.endswith("qkv.bias"):
                value.unflatten(0, (3, -1))[1].fill_(5.0)  # trained files hold whatever; each call zeroes a copy
    check_outputs("a key's bias in the file", ours, peer, [image])
    assert not any("k_bias" in name or name.endswith("qkv.bias") for name in ours.state_dict())


def test_a_fresh_v2_block_is_the_identity() -> None:
    """So that a fresh V2 passes any test: what parity is tested with is drawn at random."""
    x = torch.randn(1, 9, 9, 64)
    fresh = build_ours(PeerCase("timm", 64, 64, version=2))
    for layer in fresh.layers:
        for block in layer.blocks:
            assert not any(p.any() for norm in (block.norm1, block.norm2) for p in norm.parameters())
    block = SwinTransformerV2Block(64, None, 2)
    assert not torch.equal(block(x), x)  # the block alone has torch's norms; the model sets them
    model_block = swin_fast.SwinTransformerV2(img_size=64, geometry="timm", **SMALL).layers[0].blocks[1]
    y = torch.randn(1, 16, 16, 32)
    assert torch.equal(model_block(y), y)


@pytest.mark.parametrize(
    ("peer", "version"), [("timm", 1), ("timm", 2), ("torchvision", 1), ("torchvision", 2), ("transformers", 1)]
)
def test_no_weight_is_left_at_its_initial_value(peer: str, version: int) -> None:
    case = PeerCase(peer, 64, 64, version=version)
    fresh = dict(build_peer(case).named_parameters())
    for name, value in randomise(build_peer(case)).named_parameters():
        assert (value != fresh[name]).all(), name
        assert value.numel() == 1 or value.unique().numel() > 1, name


def test_drop_path_of_transformers_spares_the_mlp() -> None:
    """Its V1 drops the attention's branch alone; timm, torchvision and ours both, each sample by itself."""
    case = PeerCase("transformers", 32, 32)
    _, peer = make_pair(case)
    theirs = peer.swin.encoder.layers[0].blocks[0]
    ours, reference = make_pair(replace(case, peer="timm"))
    block, timm_block = ours.layers[0].blocks[0], reference.layers[0].blocks[0]
    drops = import_peer("timm").layers.DropPath(1.0)
    import_peer("transformers")
    from transformers.models.swin.modeling_swin import SwinDropPath

    theirs.drop_path = SwinDropPath(1.0)
    block.drop_path.drop_prob = 1.0
    timm_block.drop_path1 = timm_block.drop_path2 = drops
    x = torch.randn(2, 8, 8, 32)
    assert torch.equal(block(x), x) and torch.equal(timm_block(x), x)
    assert not torch.equal(theirs(x.flatten(1, 2), (8, 8))[0].view_as(x), x)


# ------------------------------------------------------------------------------------------------------- interfaces


def test_eval_and_train_return_the_model() -> None:
    """Those of OpenMMLab's backbones return None."""
    for model in (
        build_ours(PeerCase("timm", 64, 64)),
        build_ours(PeerCase("timm", 64, 64, version=2)),
        build_ours(PeerCase("transformers", 64, 64)),
        SwinBlock(32, None, 2),
    ):
        assert model.eval() is model and not model.training
        assert model.train() is model and model.training


#: Ours, timm's name where it is another, parameters as published. The 22k models have 21,841 classes in ours.
PUBLISHED: tuple[tuple[str, str | None, int | None], ...] = (
    ("swin_tiny_patch4_window7_224", None, 28_288_354),
    ("swin_small_patch4_window7_224", None, 49_606_258),
    ("swin_base_patch4_window7_224", None, 87_768_224),
    ("swin_large_patch4_window7_224", None, 196_532_476),
    ("swin_base_patch4_window12_384", None, 87_903_584),
    ("swin_large_patch4_window12_384", None, None),
    ("swinv2_tiny_window8_256", None, 28_347_154),
    ("swinv2_tiny_window16_256", None, 28_347_154),
    ("swinv2_small_window8_256", None, None),
    ("swinv2_small_window16_256", None, None),
    ("swinv2_base_window8_256", None, 87_918_816),
    ("swinv2_base_window16_256", None, 87_918_816),
    ("swinv2_base_window12_192", None, None),
    ("swinv2_large_window12_192", None, None),
    ("swinv2_base_window12to16_256", "swinv2_base_window12to16_192to256", 87_918_816),
    ("swinv2_large_window12to16_256", "swinv2_large_window12to16_192to256", None),
    ("swinv2_base_window12to24_384", "swinv2_base_window12to24_192to384", 87_918_816),
    ("swinv2_large_window12to24_384", "swinv2_large_window12to24_192to384", None),
)


def test_every_factory_is_counted() -> None:
    factories = {name for name in models.__all__ if name.startswith("swin")}
    assert factories == {name for name, _, _ in PUBLISHED}


@pytest.mark.parametrize(("name", "timm_name", "published"), PUBLISHED, ids=lambda v: v if isinstance(v, str) else "")
def test_parameters_are_counted_as_published(name: str, timm_name: str | None, published: int | None) -> None:
    timm = import_peer("timm")
    with torch.device("meta"):
        ours: nn.Module = getattr(swin_fast, name)()
        peer = timm.create_model(timm_name or name, num_classes=ours.num_classes)
    shapes = [sorted(tuple(p.shape) for p in model.parameters()) for model in (ours, peer)]
    assert shapes[0] == shapes[1]
    count = sum(p.numel() for p in ours.parameters())
    assert published is None or count == published
    assert [info["num_chs"] for info in ours.feature_info] == [info["num_chs"] for info in peer.feature_info]
    windows = [[b.window_size for s in m.layers for b in s.blocks] for m in (ours, peer)]
    assert windows[0] == windows[1]
    shifts = [[b.shift_size for s in m.layers for b in s.blocks] for m in (ours, peer)]
    assert shifts[0] == shifts[1]


def test_state_dicts_have_as_many_keys_as_those_of_the_peers() -> None:
    """Microsoft's Swin-T has 190 keys, 17 of them buffers that the window determines; its V2-T 221 without buffers."""
    timm = import_peer("timm")
    with torch.device("meta"):
        for name, keys in (("swin_tiny_patch4_window7_224", 173), ("swinv2_tiny_window8_256", 221)):
            ours, peer = getattr(swin_fast, name)(), timm.create_model(name)
            assert len(ours.state_dict()) == len(peer.state_dict()) == keys


# ------------------------------------------------------------------------------------- the comparison notices mistakes


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _keep_the_shift(geometry: str, size: Any, window: Any, shift: Any, always: bool) -> tuple[Any, Any]:
    return fit_window(geometry, size, window, shift, always)[0], shift


def _drop_the_shift(geometry: str, size: Any, window: Any, shift: Any) -> tuple[int, ...]:
    return tuple(0 if n <= w else s for n, w, s in zip(size, window, shift, strict=True))


def _columns_first(x: Tensor) -> Tensor:
    return torch.cat((x[:, 0::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 0::2], x[:, 1::2, 1::2]), dim=-1)


def _no_bias_for_pads(attention: WindowAttention, x: Tensor) -> tuple[Tensor, None]:
    return attention.qkv(x), None


def _biased_keys(attention: WindowAttentionV2, x: Tensor) -> tuple[Tensor, Tensor]:
    bias = torch.cat((attention.q_bias, attention.q_bias, attention.v_bias))
    return nn.functional.linear(x, attention.qkv.weight, bias), bias


def _unclamped(attention: WindowAttentionV2) -> Tensor:
    return attention.logit_scale.exp().flatten()


#: What is replaced by what, and the peer that must then look wrong.
MISTAKES: tuple[tuple[Any, str, Any, PeerCase], ...] = (
    (blocks, "pad_order", _always("pad_roll"), TIMM_ODD),
    (blocks, "fit_window", _keep_the_shift, PeerCase("timm", 112, 112)),
    (blocks, "shift_at", lambda *arguments: arguments[-1], PeerCase("torchvision", 64, 64)),
    (blocks, "shift_at", _drop_the_shift, PeerCase("transformers", 64, 64)),
    (layers, "_four_neighbours", _columns_first, PeerCase("timm", 64, 64)),
    (WindowAttention, "_qkv", _no_bias_for_pads, PeerCase("torchvision", 64, 64)),
    (WindowAttentionV2, "_qkv", _biased_keys, PeerCase("timm", 64, 64, version=2)),
    (WindowAttentionV2, "_logit_scale", _unclamped, PeerCase("timm", 64, 64, version=2)),
)


@pytest.mark.parametrize(
    ("owner", "name", "wrong", "case"), MISTAKES, ids=lambda v: str(v) if isinstance(v, str) else ""
)
def test_a_mistake_is_noticed(
    owner: Any, name: str, wrong: Any, case: PeerCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError, match="FAIL stage"):
        check_pair(case, torch.float64, "reference")


def test_a_wrong_gradient_alone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward of a straight-through clamp is right; only logit scales above it tell."""

    def straight_through(attention: WindowAttentionV2) -> Tensor:
        scale = attention.logit_scale
        return (scale + (scale.clamp(max=math.log(100.0)) - scale).detach()).exp().flatten()

    monkeypatch.setattr(WindowAttentionV2, "_logit_scale", straight_through)
    with pytest.raises(AssertionError, match=r"FAIL .*logit_scale") as failure:
        check_pair(PeerCase("timm", 64, 64, version=2), torch.float64, "reference")
    assert "FAIL stage" not in str(failure.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_slightly_wrong_is_noticed(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def nudged(ours: nn.Module, peer: nn.Module, case: PeerCase) -> None:
        copy_weights(ours, peer, case)
        with torch.no_grad():
            ours.layers[1].blocks[1].attn.relative_position_bias_table.mul_(1.001 if dtype == torch.float32 else 2.0)

    monkeypatch.setattr("peer_models.copy_weights", nudged)
    with pytest.raises(AssertionError, match="FAIL stage 1"):
        check_pair(PeerCase("timm", 64, 64), dtype, "cpu")
