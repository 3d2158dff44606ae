# SPDX-License-Identifier: Apache-2.0
"""What the demo measures with: the eager twin of a model, the rule, and the whole Swin-T; test_cli.py runs it whole."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import swin_fast
from cases import EAGER_FACTOR, FORWARD_FLOAT64, epsilon
from swin_fast import SwinTransformer, SwinTransformerV2, WindowAttention, demo_measure, eager

SMALL: dict[str, Any] = {"embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 10}


def small(kind: type[SwinTransformer], **options: Any) -> SwinTransformer:
    model = kind(**{**SMALL, "window_size": 7, **options}).eval()
    eager.randomize(model, 0)
    return model


@pytest.mark.parametrize("kind", [SwinTransformer, SwinTransformerV2])
@pytest.mark.parametrize(
    ("geometry", "size"), [("ms", (56, 56)), ("dense", (61, 38)), ("dense", (5, 3)), ("torchvision", (60, 20))], ids=str
)
def test_the_eager_twin_is_the_model(kind: type[SwinTransformer], geometry: str, size: tuple[int, int]) -> None:
    model = small(kind, img_size=size, geometry=geometry).double()
    twin = eager.eager_twin(model)
    assert not any(isinstance(m, eager.EagerAttention) for m in model.modules())
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    exact = model(image)
    for _ in range(2):  # with masks made, and with masks kept
        assert (twin(image) - exact).abs().max() <= FORWARD_FLOAT64 * max(1.0, exact.abs().max().item())


def test_the_twin_has_the_models_own_parameters_and_no_others() -> None:
    model = small(SwinTransformer)
    assert {id(p) for p in eager.eager_twin(model).parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("kind", [SwinTransformer, SwinTransformerV2])
def test_the_twin_is_plain_pytorch(kind: type[SwinTransformer], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("not plain PyTorch")

    model = small(kind)
    twin = eager.eager_twin(model)
    monkeypatch.setattr("swin_fast.linear.functional_linear", refuse)
    monkeypatch.setattr("swin_fast.attention.functional_linear", refuse)
    monkeypatch.setattr("swin_fast.linear._product", refuse)
    monkeypatch.setattr("swin_fast.attention.window_attention", refuse)
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        twin(image)
        with pytest.raises(AssertionError, match="not plain"):
            model(image)


def test_the_twin_refuses_the_order_of_padding_that_it_does_not_know() -> None:
    twin = eager.eager_twin(small(SwinTransformer, geometry="timm"))
    with pytest.raises(ValueError, match="pad_order: got 'roll_pad'"):
        twin(torch.randn(1, 3, 224, 224))


@pytest.mark.parametrize("kind", [SwinTransformer, SwinTransformerV2])
def test_every_random_parameter_matters(kind: type[SwinTransformer]) -> None:
    model = small(kind, img_size=(61, 38), geometry="dense", drop_path_rate=0.0)
    state = torch.random.get_rng_state()
    eager.randomize(model, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    out = model(torch.randn(1, 3, 61, 38))
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        assert parameter.abs().max() > 0, name


def test_the_rule_is_that_of_the_tests() -> None:
    eps = epsilon(torch.bfloat16)
    assert demo_measure.within_rule([EAGER_FACTOR * 0.1 + eps], [0.1], eps)
    assert not demo_measure.within_rule([EAGER_FACTOR * 0.1 + 1.01 * eps], [0.1], eps)
    assert not demo_measure.within_rule([0.0, math.inf], [0.1, 0.1], eps)
    assert not demo_measure.within_rule([0.1], [math.inf], eps), "an eager that overflows is no yardstick"
    truth = torch.tensor([4.0, -8.0], dtype=torch.float64)
    assert demo_measure.max_errors([torch.tensor([4.0, -7.0])], [truth]) == [0.125]
    assert demo_measure.rms_errors([torch.tensor([4.0, -7.0])], [truth]) == pytest.approx([80**-0.5])
    for errors in (demo_measure.max_errors, demo_measure.rms_errors):
        assert errors([torch.tensor([math.nan, -8.0])], [truth]) == [math.inf]
        assert errors([torch.zeros(2)], [torch.zeros(2, dtype=torch.float64)]) == [0.0]


def measure(monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[list[demo_measure.Row], int, int]:
    monkeypatch.setattr(demo_measure, "OPTIONS", {**SMALL, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)})
    crop_model, photo_model = demo_measure.build_models(0)
    subjects = demo_measure.Subjects(crop_model, torch.randn(1, 3, 224, 224), photo_model, torch.randn(1, 3, 37, 59))
    backends = [b for b in swin_fast.backends() if not demo_measure.why_not(b, name)]
    ticks = 0

    def tick(advance: int = 1, **_: Any) -> None:
        nonlocal ticks
        ticks += advance

    with torch.inference_mode():
        rows = demo_measure.measure(subjects, name, backends, 2, tick)
    return rows, ticks, demo_measure.steps(backends, 2)


@pytest.mark.parametrize("name", demo_measure.DTYPES)
def test_every_backend_keeps_the_rule_on_a_whole_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, ticks, steps = measure(monkeypatch, name)
    assert ticks == steps
    assert [row for row in rows if not row.within_rule] == []
    assert {row.subject for row in rows} == set(demo_measure.SUBJECTS)
    assert all(row.ms > 0 and row.speed > 0 for row in rows)


def test_no_subject_is_timed_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_measure, "SECONDS", 0.0)
    rows, ticks, steps = measure(monkeypatch, "fp32")
    assert ticks == steps
    assert all(row.ms > 0 for row in rows)


@pytest.mark.parametrize("name", demo_measure.DTYPES)
def test_a_planted_error_breaks_the_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias table one row off, in every attention: small, and nowhere but in ours."""
    right = WindowAttention._fused

    def wrong(self: WindowAttention, x: Tensor, *rest: Any) -> Tensor:
        table = self.relative_position_bias_table
        self.relative_position_bias_table = torch.nn.Parameter(table.roll(1, 0), requires_grad=False)
        try:
            return right(self, x, *rest)
        finally:
            self.relative_position_bias_table = table

    monkeypatch.setattr(WindowAttention, "_fused", wrong)
    for row in measure(monkeypatch, name)[0]:
        assert row.within_rule == (row.path == "eager" or row.subject == "core"), row


def test_the_demo_runs_the_whole_swin_t() -> None:
    crop_model, photo_model = demo_measure.build_models(0)
    assert sum(p.numel() for p in crop_model.parameters()) == 28_288_354
    names = {name for name, _ in photo_model.named_parameters()}
    weights = dict(crop_model.named_parameters())
    assert weights.keys() - names == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    for name, parameter in photo_model.named_parameters():
        assert torch.equal(parameter, weights[name])
    assert (crop_model.geometry, photo_model.geometry) == ("ms", "dense")


def test_the_crop_is_the_middle_as_imagenet_takes_it() -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    image = pytest.importorskip("PIL.Image")
    from swin_fast import demo

    ramp = torch.arange(320).clamp(max=255).to(torch.uint8)
    photo = image.fromarray(ramp.expand(256, 320).contiguous().numpy()).convert("RGB")
    crop = torch.from_numpy(np.array(demo._center_crop(photo)))
    assert torch.equal(crop[..., 0], ramp[48 : 48 + 224].expand(224, 224)), "no scaling: the shorter side is 256"
    assert demo._center_crop(photo.resize((3, 20_000))).size == (224, 224)
