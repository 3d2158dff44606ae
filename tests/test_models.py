# SPDX-License-Identifier: Apache-2.0
"""Stages and whole models without a peer: checkpoints, sizes, features, habits, dtypes, initial weights."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swin_fast
from swin_fast import (
    BasicLayer,
    BasicLayerV2,
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerV2,
    SwinTransformerV2Block,
    models,
)

V1: dict[str, Any] = {"embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4, "img_size": 64}
VERSIONS = (SwinTransformer, SwinTransformerV2)


def small(version: type[SwinTransformer] = SwinTransformer, **options: Any) -> SwinTransformer:
    """A model of two stages with every parameter away from its initial value."""
    model = version(**{**V1, "drop_path_rate": 0.0, "num_classes": 10, **options})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


# ---------------------------------------------------------------------------------------------------- blocks, stages


@pytest.mark.parametrize("geometry", swin_fast.geometry.GEOMETRIES)
@pytest.mark.parametrize("kind", [SwinTransformerBlock, SwinTransformerV2Block])
def test_a_block_takes_flat_tokens_and_gives_them_back(kind: type[SwinTransformerBlock], geometry: str) -> None:
    block = kind(32, (8, 12), 2, 4, 2, geometry=geometry)
    x = torch.randn(2, 8, 12, 32)
    assert torch.equal(block(x.flatten(1, 2)), block(x).flatten(1, 2))
    with pytest.raises(ValueError, match="x: got L = 95 tokens, want L = 96, the input_resolution"):
        block(torch.randn(2, 95, 32))


@pytest.mark.parametrize("geometry", ["torchvision", "dense"])
def test_a_block_of_an_open_geometry_takes_any_size(geometry: str) -> None:
    block = SwinTransformerBlock(32, (8, 8), 1, 4, 2, geometry=geometry)
    assert block(torch.randn(1, 5, 13, 32)).shape == (1, 5, 13, 32)


def test_a_block_that_is_not_strict_keeps_window_and_shift_of_its_resolution() -> None:
    fixed = SwinTransformerBlock(32, (2, 8), 1, 4, 2, geometry="timm", strict_img_size=False)
    assert (fixed.window_size, fixed.shift_size) == ((2, 4), (0, 2))
    assert fixed(torch.randn(1, 9, 7, 32)).shape == (1, 9, 7, 32)


@pytest.mark.parametrize(
    ("layer", "block"), [(BasicLayer, SwinTransformerBlock), (BasicLayerV2, SwinTransformerV2Block)]
)
def test_a_stage_is_its_blocks_then_its_downsampling(layer: Any, block: type[SwinTransformerBlock]) -> None:
    stage = layer(32, (8, 12), 3, 2, 4, drop_path=[0.0, 0.1, 0.2], downsample=PatchMerging)
    assert [type(b) for b in stage.blocks] == [block] * 3
    assert [b.shift_size for b in stage.blocks] == [(0, 0), (2, 2), (0, 0)]
    assert [b.drop_path.drop_prob for b in stage.blocks] == [0.0, 0.1, 0.2]
    stage.eval()
    x = torch.randn(2, 8, 12, 32)
    expected = x
    for one in stage.blocks:
        expected = one(expected)
    assert torch.equal(stage.forward_blocks(x), expected)
    assert torch.equal(stage(x), stage.downsample(expected))
    assert torch.equal(stage(x.flatten(1, 2)), stage(x).flatten(1, 2))
    assert stage(x).shape == (2, 4, 6, 64)


def test_a_stage_wants_one_drop_path_for_each_block() -> None:
    with pytest.raises(ValueError, match="drop_path: got 2 probabilities, want one for each of depth = 3 blocks"):
        BasicLayer(32, None, 3, 1, 4, drop_path=[0.0, 0.1])


def test_the_shift_of_an_odd_window_is_half_rounded_down() -> None:
    assert BasicLayer(32, None, 2, 1, (7, 5)).blocks[1].shift_size == (3, 2)


# ------------------------------------------------------------------------------------------------------- checkpoints


def microsoft_buffers(model: SwinTransformer) -> dict[str, Tensor]:
    """The derived entries that Microsoft's checkpoint of this model has beside the parameters."""
    buffers = {}
    for name, module in model.named_modules():
        if isinstance(module, SwinTransformerBlock):
            N = module.window_size[0] * module.window_size[1]
            if any(module.shift_size):
                buffers[f"{name}.attn_mask"] = torch.zeros(4, N, N)
            buffers[f"{name}.attn.relative_position_index"] = torch.zeros(N, N, dtype=torch.long)
            if isinstance(module, SwinTransformerV2Block):
                buffers[f"{name}.attn.relative_coords_table"] = torch.zeros(1, 1, 1, 2)
    return buffers


@pytest.mark.parametrize(
    ("factory", "total", "derived"), [("swin_tiny_patch4_window7_224", 190, 17), ("swinv2_tiny_window8_256", 250, 29)]
)
def test_a_microsoft_checkpoint_loads_strictly(factory: str, total: int, derived: int) -> None:
    """190 entries of which 17 are derived, 250 and 29: counted in Microsoft's own models."""
    with torch.device("meta"):
        model = getattr(swin_fast, factory)()
    buffers = microsoft_buffers(model)
    assert len(buffers) == derived
    checkpoint = {**{k: torch.empty_like(v) for k, v in model.state_dict().items()}, **buffers}
    assert len(checkpoint) == total
    assert not any(model.load_state_dict(checkpoint, strict=True, assign=True))
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"layers\.0\.attn_mask"'):
        model.load_state_dict({**checkpoint, "layers.0.attn_mask": torch.zeros(1)}, strict=True, assign=True)


def test_names_of_a_v1_model_are_microsofts() -> None:
    names = set(SwinTransformer(**V1, ape=True).state_dict())
    attention = {"relative_position_bias_table", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    block = {f"attn.{name}" for name in attention} | {
        f"{layer}.{kind}" for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")
    }
    outside = {"patch_embed.proj", "patch_embed.norm", "layers.0.downsample.norm", "norm", "head"}
    expected = {f"{name}.{kind}" for name in outside for kind in ("weight", "bias")}
    expected |= {"absolute_pos_embed", "layers.0.downsample.reduction.weight"}
    expected |= {f"layers.{i}.blocks.{j}.{name}" for i in range(2) for j in range(2) for name in block}
    assert names == expected


@pytest.mark.parametrize("num_classes", [1000, 21841, 0])
def test_the_classifier_has_the_classes_asked_for(num_classes: int) -> None:
    model = SwinTransformer(**V1, num_classes=num_classes).eval()
    out = model(torch.randn(2, 3, 64, 64))
    assert out.shape == (2, num_classes or 64)
    assert ("head.weight" in model.state_dict()) == (num_classes > 0)


# --------------------------------------------------------------------------------------------------- features, heads


@pytest.mark.parametrize("version", VERSIONS)
def test_features_intermediates_and_logits_agree(version: type[SwinTransformer]) -> None:
    model, x = small(version).eval(), torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape == (2, 8, 8, 64)
    assert torch.equal(model.forward_head(features), model(x))
    assert torch.equal(model.forward_head(features, pre_logits=True), features.mean((1, 2)))

    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, features)
    assert [tuple(m.shape) for m in maps] == [(2, 32, 16, 16), (2, 64, 8, 8)]
    assert all(m.is_contiguous() for m in maps)
    assert torch.equal(model.norm(maps[-1].permute(0, 2, 3, 1)), features)
    _, normed = model.forward_intermediates(x, norm=True)
    assert torch.equal(normed[0], maps[0])
    assert torch.equal(normed[1].permute(0, 2, 3, 1), features)
    for indices in (1, [1], [-1], (-1,)):
        (only,) = model.forward_intermediates(x, indices, intermediates_only=True)
        assert torch.equal(only, maps[1])
    early, first = model.forward_intermediates(x, [0], stop_early=True)
    assert torch.equal(early.permute(0, 3, 1, 2), maps[0])
    assert torch.equal(first[0], maps[0])
    full, _ = model.forward_intermediates(x, [0])
    assert torch.equal(full, features)


def test_a_feature_extractor_has_what_it_needs_and_no_more() -> None:
    whole = small().eval()
    for indices, stages in (((0, 1), 2), ((0,), 1), ((-2,), 1), ((1,), 2)):
        model = small(out_indices=indices).eval()
        assert "norm.weight" not in model.state_dict()
        assert len(model.layers) == stages
        model.load_state_dict({name: value for name, value in whole.state_dict().items() if name in model.state_dict()})
        x = torch.randn(1, 3, 64, 64)
        maps = model(x)
        expected = whole.forward_intermediates(x, indices, intermediates_only=True)
        assert len(maps) == len(expected) == len(model.feature_info)
        for got, wanted, info in zip(maps, expected, model.feature_info, strict=True):
            assert torch.equal(got.permute(0, 3, 1, 2), wanted)
            assert info["num_chs"] == got.shape[-1]
            assert info["reduction"] == 64 // got.shape[1]
        for parameter in model.parameters():
            parameter.grad = None
        sum(m.sum() for m in maps).backward()
        assert all(parameter.grad is not None for parameter in model.parameters()), "a parameter that nothing uses"


def test_without_pooling_every_token_is_classified() -> None:
    model, x = small(global_pool="").eval(), torch.randn(1, 3, 64, 64)
    assert model(x).shape == (1, 8, 8, 10)
    model.reset_classifier(10, "avg")
    assert model(x).shape == (1, 10)


def test_the_classifier_can_be_replaced() -> None:
    model = small().bfloat16()
    model.reset_classifier(7)
    assert (model.num_classes, model.head.out_features, model.head.weight.dtype) == (7, 7, torch.bfloat16)
    assert not model.head.bias.any()
    assert model.get_classifier() is model.head
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 64, 64).bfloat16()).shape == (1, 64)
    with pytest.raises(ValueError, match="global_pool: got 'max'"):
        model.reset_classifier(5, "max")
    with pytest.raises(ValueError, match="reset_classifier: this model was built with out_indices"):
        small(out_indices=(0,)).reset_classifier(5)


# ------------------------------------------------------------------------------------------------------------- sizes


def test_a_refused_image_names_the_geometry_that_takes_it() -> None:
    for options, message in (
        ({"img_size": (66, 64)}, r"img_size: got \(66, 64\), want multiples of patch_size .*'torchvision' .*'dense'"),
        (
            {"img_size": (72, 64)},
            r"img_size: got \(72, 64\); its stage 0 says: .*'timm', 'torchvision' or 'dense' pads",
        ),
        ({"img_size": 36, "window_size": 3}, r"img_size: got \(36, 36\), which gives stage 0 a map of \(9, 9\)"),
    ):
        with pytest.raises(ValueError, match=message):
            SwinTransformer(**{**V1, **options})
    with pytest.raises(ValueError, match=r"x: got an image of \(32, 64\), want img_size = \(64, 64\)"):
        small()(torch.randn(1, 3, 32, 64))


@pytest.mark.parametrize("version", VERSIONS)
def test_another_input_size_is_another_model_of_the_same_weights(version: type[SwinTransformer]) -> None:
    model, fresh = small(version, geometry="timm"), small(version, geometry="timm", img_size=(96, 72))
    model.set_input_size((96, 72))
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 96, 72)
    assert torch.equal(model(x), fresh(x))


def test_a_refused_size_changes_nothing() -> None:
    model = small(ape=True)
    x = torch.randn(1, 3, 64, 64)
    before, state = model(x), {name: value.clone() for name, value in model.state_dict().items()}
    for options in ({"img_size": (64, 72)}, {"img_size": 62}, {"window_size": 5}, {"always_partition": True}):
        with pytest.raises(ValueError, match="got"):
            model.set_input_size(**options)
        with pytest.raises(ValueError, match="got"):
            model.set_input_size(img_size=(256, 256), window_size=64)
    assert torch.equal(model(x), before)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_small_map_shrinks_the_window_and_a_large_one_gives_it_back() -> None:
    model = small(geometry="timm")
    model.set_input_size(16)  # maps of 4 x 4 and 2 x 2
    assert [(b.window_size, b.shift_size) for layer in model.layers for b in layer.blocks] == [
        ((4, 4), (0, 0)),
        ((4, 4), (0, 0)),
        ((2, 2), (0, 0)),
        ((2, 2), (0, 0)),
    ]
    assert model.layers[1].blocks[0].attn.relative_position_bias_table.shape == (9, 2)
    model.set_input_size(64)
    assert model.layers[1].blocks[1].window_size == (4, 4)
    assert model.layers[1].blocks[1].shift_size == (2, 2)
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_new_windows_move_the_shift() -> None:
    model = small()
    model.set_input_size(window_size=8)
    assert [b.shift_size for b in model.layers[0].blocks] == [(0, 0), (4, 4)]
    assert model.layers[0].blocks[1].attn.window_size == (8, 8)
    model = small(geometry="timm")
    model.set_input_size(window_size=((8, 4), 2), always_partition=True)
    assert [layer.blocks[1].shift_size for layer in model.layers] == [(4, 2), (1, 1)]


def test_the_absolute_position_embedding_follows_the_size() -> None:
    model = small(ape=True)
    assert model.absolute_pos_embed.shape == (1, 256, 32)
    model.set_input_size(96)
    assert model.absolute_pos_embed.shape == (1, 576, 32)
    assert isinstance(model.absolute_pos_embed, nn.Parameter)
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 10)


def test_an_open_geometry_interpolates_the_absolute_position_embedding() -> None:
    fixed, open_ = small(ape=True).eval(), small(ape=True, geometry="dense").eval()
    open_.load_state_dict(fixed.state_dict())
    x = torch.randn(1, 3, 64, 64)
    # At the size of the pretraining the interpolation is the identity; the maps are multiples of the window.
    torch.testing.assert_close(open_(x), fixed(x))
    assert open_(torch.randn(1, 3, 50, 70)).shape == (1, 10)
    with torch.no_grad():
        without = open_(torch.ones(1, 3, 50, 70))
        open_.absolute_pos_embed.zero_()
        assert not torch.allclose(open_(torch.ones(1, 3, 50, 70)), without)


def test_nothing_of_a_call_stays_in_the_model() -> None:
    for geometry in ("torchvision", "dense"):
        model = small(geometry=geometry).eval()
        x = torch.randn(1, 3, 64, 64)
        before = model(x)
        for size in ((8, 8), (33, 97), (128, 16)):
            model(torch.randn(1, 3, *size))
        assert torch.equal(model(x), before)


def test_a_window_for_every_stage() -> None:
    model = SwinTransformer(**{**V1, "window_size": ((4, 8), 2)})
    assert [layer.blocks[0].window_size for layer in model.layers] == [(4, 8), (2, 2)]


# --------------------------------------------------------------------------------------------------- a good citizen


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_equal_and_independent(version: type[SwinTransformer], copied: Callable[..., Any]) -> None:
    model, x = small(version, ape=True, geometry="dense").eval(), torch.randn(1, 3, 40, 72)
    expected, twin = model(x), copied(model)
    assert torch.equal(twin(x), expected)
    twin.load_state_dict({**model.state_dict(), **microsoft_buffers(model)})  # the hooks came along
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("convert", ["half", "bfloat16", "double"])
def test_converted_models_stay_in_their_dtype(version: type[SwinTransformer], convert: str) -> None:
    model = getattr(small(version, ape=True), convert)()
    dtype = model.head.weight.dtype
    x = torch.randn(2, 3, 64, 64, dtype=dtype, requires_grad=True)
    out = model(x)
    out.float().square().mean().backward()
    assert out.dtype == dtype
    assert {parameter.grad.dtype for parameter in model.parameters()} == {dtype}
    assert out.isfinite().all()


@pytest.mark.parametrize("version", VERSIONS)
def test_autocast_runs_and_keeps_float32_parameters(version: type[SwinTransformer]) -> None:
    model, x = small(version), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(out.float(), model(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_built_on_meta_needs_its_checkpoint_alone(version: type[SwinTransformer]) -> None:
    model, x = small(version).eval(), torch.randn(1, 3, 64, 64)
    with torch.device("meta"):
        empty = version(**{**V1, "drop_path_rate": 0.0, "num_classes": 10}).eval()
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(x), model(x))


def test_buffers_come_back_after_to_empty() -> None:
    model, x = small(SwinTransformerV2).eval(), torch.randn(1, 3, 64, 64)
    emptied = copy.deepcopy(model).to_empty(device="cpu")
    for module in emptied.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    emptied.load_state_dict(model.state_dict())
    assert torch.equal(emptied(x), model(x))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_default_dtype_makes_the_whole_model(version: type[SwinTransformer]) -> None:
    torch.set_default_dtype(torch.float64)
    assert small(version)(torch.randn(1, 3, 64, 64)).dtype == torch.float64


def test_channels_last_changes_nothing() -> None:
    model, x = small(geometry="dense").eval(), torch.randn(2, 3, 50, 70)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), model(x))
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(x), model(x))


@pytest.mark.parametrize("version", VERSIONS)
def test_gradient_checkpointing_changes_no_gradient(version: type[SwinTransformer]) -> None:
    model, x = small(version, drop_path_rate=0.3), torch.randn(4, 3, 64, 64)

    def gradients() -> list[Tensor]:
        torch.manual_seed(1)
        return list(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))

    expected = gradients()
    model.set_grad_checkpointing()
    assert all(layer.use_checkpoint for layer in model.layers)
    for got, wanted in zip(gradients(), expected, strict=True):
        assert torch.equal(got, wanted)
    model.set_grad_checkpointing(False)
    assert not any(layer.use_checkpoint for layer in model.layers)


def test_checkpointing_keeps_fewer_bytes() -> None:
    kept = {}
    for enable in (False, True):
        model = small()
        model.set_grad_checkpointing(enable)
        total = [0]

        def pack(x: Tensor, total: list[int] = total) -> Tensor:
            total[0] += x.numel() * x.element_size()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(torch.randn(2, 3, 64, 64))
        kept[enable] = total[0]
    assert kept[True] < 0.6 * kept[False]


def test_drop_path_grows_over_the_blocks() -> None:
    model = SwinTransformer(**{**V1, "depths": (2, 3)}, drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for layer in model.layers for block in layer.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_an_empty_batch_gives_no_scores() -> None:
    assert small()(torch.randn(0, 3, 64, 64)).shape == (0, 10)


def test_eval_and_train_return_the_model() -> None:
    model = small()
    assert model.eval() is model
    assert model.train() is model


# ----------------------------------------------------------------------------------------------------- timm's habits


def test_what_upstream_does_not_decay() -> None:
    v1, v2 = small(ape=True).no_weight_decay(), small(SwinTransformerV2).no_weight_decay()
    tables = {f"layers.{i}.blocks.{j}.attn.relative_position_bias_table" for i in range(2) for j in range(2)}
    assert v1 == tables | {"absolute_pos_embed"}
    names = ("logit_scale", "cpb_mlp.0.weight", "cpb_mlp.0.bias", "cpb_mlp.2.weight")
    assert v2 == {f"layers.{i}.blocks.{j}.attn.{name}" for i in range(2) for j in range(2) for name in names}


def test_the_matcher_groups_parameters_by_depth() -> None:
    pytest.importorskip("benchmarks.peer_imports", reason="timm needs torchvision, which is missing")
    group_parameters = pytest.importorskip("timm.models", reason="timm is not installed").group_parameters

    model = small(ape=True)
    groups = [set(names) for names in group_parameters(model, model.group_matcher(), reverse=False).values()]
    assert sum(map(len, groups)) == len(dict(model.named_parameters()))
    first_words = [
        sorted({".".join(name.split(".")[:4]) if "blocks" in name else name.split(".")[0] for name in group})
        for group in groups
    ]
    assert first_words == [
        ["absolute_pos_embed", "patch_embed"],
        ["layers.0.blocks.0"],
        ["layers", "layers.0.blocks.1"],  # with the merging
        ["layers.1.blocks.0"],
        ["layers.1.blocks.1", "norm"],
        ["head"],
    ]
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=False)
    assert len(coarse) == 4  # stem, two stages, head


# --------------------------------------------------------------------------------------------------- initial weights


def test_initial_weights_are_microsofts() -> None:
    model = SwinTransformer(**{**V1, "embed_dim": 128, "num_heads": (4, 8)}, ape=True)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.bias is None or not module.bias.any(), name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
    assert model.absolute_pos_embed.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_fresh_v2_block_is_the_identity() -> None:
    model = SwinTransformerV2(**V1)
    x = torch.randn(1, 16, 16, 32)
    assert torch.equal(model.layers[0].blocks[1](x), x)
    assert model.patch_embed.norm.weight.min() == 1
    assert model.layers[0].downsample.norm.weight.min() == 1
    assert model.norm.weight.min() == 1


# ------------------------------------------------------------------------------------------------------ wrong inputs


BAD: tuple[tuple[type[Exception], str, dict[str, Any]], ...] = (
    (ValueError, "num_heads: got .1,., want one for each of depths", {"num_heads": (1,)}),
    (ValueError, "geometry: got 'swin'", {"geometry": "swin"}),
    (ValueError, "always_partition: got True", {"always_partition": True}),
    (ValueError, "drop_path_rate: got 1.5", {"drop_path_rate": 1.5}),
    (ValueError, "drop_rate: got -1", {"drop_rate": -1}),
    (ValueError, "global_pool: got 'max', want 'avg' or ''", {"global_pool": "max"}),
    (ValueError, r"out_indices: got \(2,\), want stages from -2 to 1", {"out_indices": (2,)}),
    (ValueError, r"out_indices: got \(\), want", {"out_indices": ()}),
    (TypeError, "img_size: got 64.0", {"img_size": 64.0}),
    (ValueError, "num_classes: got -1", {"num_classes": -1}),
)


@pytest.mark.parametrize(("error", "message", "options"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_arguments_are_named(error: type[Exception], message: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        SwinTransformer(**{**V1, **options})


def test_v2_wants_a_pretrained_window_for_every_stage() -> None:
    with pytest.raises(ValueError, match=r"pretrained_window_sizes: got \(8,\), want one for each of depths"):
        SwinTransformerV2(**V1, pretrained_window_sizes=(8,))


def test_bad_requests_for_intermediates_are_named() -> None:
    model, x = small(), torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match="output_fmt: got 'NHWC', want 'NCHW'"):
        model.forward_intermediates(x, output_fmt="NHWC")
    with pytest.raises(ValueError, match="indices: got 3, want stages from -2 to 1"):
        model.forward_intermediates(x, 3)
    with pytest.raises(ValueError, match="norm: got True, want False"):
        small(out_indices=(0,)).forward_intermediates(x, norm=True)


def test_every_published_model_is_exported_by_name() -> None:
    for name in models.__all__:
        assert getattr(swin_fast, name) is getattr(models, name)
        assert name in swin_fast.__all__


@pytest.mark.parametrize("name", [name for name in models.__all__ if name.startswith("swin")])
def test_every_published_model_has_the_parameters_that_its_docstring_states(name: str) -> None:
    factory = getattr(models, name)
    stated = re.search(r"([\d,]+) parameters", factory.__doc__)
    with torch.device("meta"):
        built = sum(parameter.numel() for parameter in factory().parameters())
    assert stated
    assert int(stated[1].replace(",", "")) == built
