# SPDX-License-Identifier: Apache-2.0
"""The attention modules: images against windows cut by hand, windows that change size, the parameters of V2."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracles import shift_regions
from swin_fast import WindowAttention, WindowAttentionV2, relative_position_bias, relative_position_index
from swin_fast.attention import MAX_LOGIT_SCALE, log_coordinates

CPU = torch.device("cpu")
KINDS = (WindowAttention, WindowAttentionV2)


def randomised(module: nn.Module) -> nn.Module:
    """Every parameter away from its initial value; some logit scales beyond the clamp."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter.shape[1] if parameter.dim() == 2 and "table" not in name else 1
            parameter.copy_(noise * fan_in**-0.5 + (4.0 if name.endswith("logit_scale") else 0.0))
    return module


def cut(x: Tensor, window: tuple[int, int]) -> Tensor:  # (B, H, W, C) -> (B * nW, N, C)
    B, H, W, C = x.shape
    Wh, Ww = window
    return x.view(B, H // Wh, Wh, W // Ww, Ww, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, Wh * Ww, C)


def join(windows: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    (Wh, Ww), (H, W) = window, size
    x = windows.view(-1, H // Wh, W // Ww, Wh, Ww, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, windows.shape[-1])


@pytest.mark.parametrize("shift", [(0, 0), (2, 1), (0, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_equals_windows_cut_by_hand(kind: type[WindowAttention], shift: tuple[int, int]) -> None:
    """The fused path on an image, against upstream's way: roll, cut, mask, attend, join, roll back."""
    window, size = (4, 5), (12, 15)
    module = randomised(kind(24, window, 4)).double()
    image = torch.randn(2, *size, 24, dtype=torch.float64, requires_grad=True)
    mask = None
    if any(shift):
        regions = cut(shift_regions(size, window, shift, "cpu")[None, :, :, None], window).squeeze(-1)
        differ = regions[:, None, :] != regions[:, :, None]
        mask = torch.zeros(differ.shape, dtype=torch.float64).masked_fill(differ, -100.0)
    windows = module(cut(image.roll((-shift[0], -shift[1]), (1, 2)), window), mask)
    expected = join(windows, window, size).roll(shift, (1, 2))
    got = module(image, shift_size=shift)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)

    grad_out = torch.randn_like(got)
    parameters = [image, *module.parameters()]
    wanted = torch.autograd.grad(expected, parameters, grad_out)
    for mine, theirs in zip(torch.autograd.grad(got, parameters, grad_out), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_windows_without_a_mask_run_the_fused_op(monkeypatch: pytest.MonkeyPatch) -> None:
    module = WindowAttention(64, 7, 2)
    monkeypatch.setattr(module, "_masked", None)
    assert module(torch.randn(6, 49, 64)).shape == (6, 49, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_masked_windows_drops_probabilities(kind: type[WindowAttention]) -> None:
    module = kind(32, 4, 1, attn_drop=0.5)
    x, mask = torch.randn(4, 16, 32), torch.zeros(2, 16, 16)
    assert not torch.equal(module(x, mask), module(x, mask))
    module.eval()
    torch.testing.assert_close(module(x, mask), module(x))


def test_a_mask_in_float32_serves_a_module_in_bfloat16() -> None:
    module = WindowAttention(32, 4, 1).bfloat16()
    assert module(torch.randn(4, 16, 32).bfloat16(), torch.zeros(4, 16, 16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "mask", "options", "message"),
    [
        ((4, 15, 32), None, {}, r"x: got windows of 15 tokens .* want N = 16"),
        ((4, 16, 32), None, {"shift_size": (2, 2)}, r"x: got windows of 16 tokens and shift_size = \(2, 2\)"),
        (
            (4, 16, 32),
            (3, 16, 16),
            {},
            r"mask: got shape \(3, 16, 16\), want \(nW, 16, 16\) with nW a divisor of B_ = 4",
        ),
        ((4, 16, 32), (2, 16, 15), {}, r"mask: got shape \(2, 16, 15\)"),
        ((4, 16, 32), (16, 16), {}, r"mask: got shape \(16, 16\)"),
        ((1, 8, 8, 32), (4, 16, 16), {}, r"mask: got one with an image \(B, H, W, C\), want shift_size instead"),
        ((1, 8, 8, 33), None, {}, r"x: got 33 channels"),
        ((8, 32), None, {}, r"x: got 2 dimensions, want 4: \(B, H, W, C\), or 3: \(B_, N, C\)"),
    ],
)
def test_wrong_inputs_are_named(shape: Any, mask: Any, options: dict[str, Any], message: str) -> None:
    module = WindowAttention(32, 4, 1)
    with pytest.raises(ValueError, match=message):
        module(torch.randn(shape), None if mask is None else torch.zeros(mask), **options)


# ---------------------------------------------------------------------------------------------------- another window


def test_a_new_window_resizes_the_table_as_microsoft_does() -> None:
    module = randomised(WindowAttention(64, 7, 2))
    before = module.relative_position_bias_table.detach().clone()
    module.set_window_size(12)
    image = before.t().reshape(1, 2, 13, 13)
    expected = F.interpolate(image, (23, 23), mode="bicubic").flatten(2)[0].t()
    assert torch.equal(module.relative_position_bias_table, expected)
    assert module.relative_position_bias_table.is_contiguous()
    assert module(torch.randn(1, 24, 24, 64)).shape == (1, 24, 24, 64)


def test_the_same_window_keeps_the_parameter() -> None:
    module = WindowAttention(64, 7, 2)
    table = module.relative_position_bias_table
    module.set_window_size((7, 7))
    assert module.relative_position_bias_table is table


def test_a_frozen_table_stays_frozen_and_keeps_its_dtype() -> None:
    module = WindowAttention(64, 7, 2).bfloat16()
    module.relative_position_bias_table.requires_grad_(False)
    module.set_window_size((5, 6))
    assert module.relative_position_bias_table.dtype == torch.bfloat16
    assert not module.relative_position_bias_table.requires_grad
    assert module.relative_position_bias_table.shape == (9 * 11, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_too_large_changes_nothing(kind: type[WindowAttention]) -> None:
    module = kind(64, 7, 2)
    with pytest.raises(ValueError, match="window_size: got"):
        module.set_window_size(33)
    assert module.window_size == (7, 7)
    assert module(torch.randn(1, 7, 7, 64)).shape == (1, 7, 7, 64)


def test_v2_makes_its_bias_for_the_new_window() -> None:
    module = randomised(WindowAttentionV2(64, 8, 2, pretrained_window_size=8)).double()
    fresh = WindowAttentionV2(64, 12, 2, pretrained_window_size=8).double()
    fresh.load_state_dict(module.state_dict())
    module.set_window_size(12)
    x = torch.randn(1, 24, 24, 64, dtype=torch.float64)
    torch.testing.assert_close(module(x), fresh(x))
    assert module.relative_coords_table.dtype == torch.float64


# ---------------------------------------------------------------------------------------------------------------- V2


def test_v2_scores_are_scaled_cosines_with_a_bias_from_zero_to_sixteen() -> None:
    module = randomised(WindowAttentionV2(32, 3, 2)).double()
    x = torch.randn(1, 3, 3, 32, dtype=torch.float64)
    q, k, v = x.view(9, 32) @ module.qkv.weight.view(3, 32, 32).mT + torch.stack(
        (module.q_bias, torch.zeros(32), module.v_bias)
    ).view(3, 1, 32)
    table = 16 / (1 + torch.exp(-module.cpb_mlp(module.relative_coords_table)))
    bias = relative_position_bias(table, 3)
    out = []
    for head in range(2):
        part = slice(16 * head, 16 * head + 16)
        cosine = F.cosine_similarity(q[:, None, part], k[None, :, part], dim=-1)
        scale = min(100.0, math.exp(module.logit_scale[head].item()))
        out.append((scale * cosine + bias[head]).softmax(-1) @ v[:, part])
    expected = F.linear(torch.cat(out, -1), module.proj.weight, module.proj.bias).view(1, 3, 3, 32)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_v2_coordinates_are_the_log_scale_of_the_paper() -> None:
    window, pretrained = (3, 4), (5, 0)
    table = log_coordinates(window, pretrained, CPU).view(5, 7, 2)
    for i, dy in enumerate(range(-2, 3)):
        for j, dx in enumerate(range(-3, 4)):
            for axis, (offset, span) in enumerate(((dy, 4), (dx, 3))):
                expected = math.copysign(math.log2(1 + 8 * abs(offset) / span) / 3, offset)
                assert table[i, j, axis].item() == pytest.approx(expected, abs=1e-6)


def test_a_window_of_one_token_has_no_nan() -> None:
    module = WindowAttentionV2(32, 1, 1)
    assert module(torch.randn(1, 2, 2, 32)).isfinite().all()
    assert log_coordinates((1, 1), (0, 0), CPU).abs().max() == 0


def test_the_logit_scale_has_no_gradient_above_its_clamp() -> None:
    module = WindowAttentionV2(64, 4, 2)
    with torch.no_grad():
        module.logit_scale[0] = MAX_LOGIT_SCALE + 1
    module(torch.randn(1, 8, 8, 64)).square().sum().backward()
    assert module.logit_scale.grad[0].item() == 0.0
    assert module.logit_scale.grad[1].item() != 0.0


def test_v2_without_qkv_bias_has_none() -> None:
    module = WindowAttentionV2(64, 4, 2, qkv_bias=False)
    assert not {"q_bias", "v_bias"} & module.state_dict().keys()
    assert module(torch.randn(1, 5, 6, 64)).shape == (1, 5, 6, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_of_the_module_alone_loads_with_its_buffers(kind: type[WindowAttention]) -> None:
    module = kind(64, 4, 2)
    state = {**module.state_dict(), "relative_position_index": relative_position_index(4)}
    if kind is WindowAttentionV2:
        state |= {"relative_coords_table": torch.zeros(1, 7, 7, 2), "k_bias": torch.zeros(64)}
    kind(64, 4, 2).load_state_dict(state, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict({**state, "attn_mask": torch.zeros(1)})


def test_the_order_of_parameters_is_microsofts() -> None:
    """An optimizer's state goes by position."""
    assert [name for name, _ in WindowAttention(32, 4, 1).named_parameters()] == [
        "relative_position_bias_table",
        "qkv.weight",
        "qkv.bias",
        "proj.weight",
        "proj.bias",
    ]
    assert [name for name, _ in WindowAttentionV2(32, 4, 1).named_parameters()] == [
        "logit_scale",
        "q_bias",
        "v_bias",
        "cpb_mlp.0.weight",
        "cpb_mlp.0.bias",
        "cpb_mlp.2.weight",
        "qkv.weight",
        "proj.weight",
        "proj.bias",
    ]
