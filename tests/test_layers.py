# SPDX-License-Identifier: Apache-2.0
"""Patch embedding and patch merging against their definitions, in every geometry and both layouts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_fast import PatchEmbed, PatchMerging, PatchMergingV2
from swin_fast.layers import as_image


def merge_by_hand(x: Tensor) -> Tensor:
    """Token by token: (row, column) = (0, 0), (1, 0), (0, 1), (1, 1) of each 2 x 2 neighbourhood, zeros outside."""
    B, H, W, C = x.shape
    out = x.new_zeros(B, -(-H // 2), -(-W // 2), 4 * C)
    for y in range(H):
        for column in range(W):
            group = (column % 2) * 2 + y % 2
            out[:, y // 2, column // 2, group * C : (group + 1) * C] = x[:, y, column]
    return out


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (3, 1), (1, 1)])
def test_merging_puts_rows_before_columns(size: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 8)
    v1, v2 = PatchMerging(None, 8), PatchMergingV2(None, 8)
    for module in (v1, v2):
        nn.init.normal_(module.norm.weight)
        nn.init.normal_(module.norm.bias)
    merged = merge_by_hand(x)
    torch.testing.assert_close(v1(x), F.linear(v1.norm(merged), v1.reduction.weight))
    torch.testing.assert_close(v2(x), v2.norm(F.linear(merged, v2.reduction.weight)))
    assert v1.norm.normalized_shape == (32,)
    assert v2.norm.normalized_shape == (16,)


@pytest.mark.parametrize("merging", [PatchMerging, PatchMergingV2])
def test_merging_takes_flat_tokens_and_gives_them_back(merging: type[PatchMerging]) -> None:
    module = merging((5, 6), 8)
    x = torch.randn(2, 5, 6, 8)
    flat = module(x.flatten(1, 2))
    assert torch.equal(flat, module(x).flatten(1, 2))
    assert flat.shape == (2, 9, 16)


def test_merging_refuses_what_it_cannot_read() -> None:
    for x, message in (
        (torch.randn(2, 30, 8), "L = 30 tokens"),
        (torch.randn(2, 4, 4, 9), "9 channels"),
        (torch.randn(4, 8), "2 dimensions"),
    ):
        with pytest.raises(ValueError, match=f"x: got {message}"):
            PatchMerging((4, 4), 8)(x)


def test_flat_tokens_need_a_resolution() -> None:
    with pytest.raises(ValueError, match="x: got 3 dimensions, want 4"):
        as_image(torch.randn(1, 16, 8), 8, None)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_patch_embedding_is_one_linear_on_each_patch(memory_format: torch.memory_format) -> None:
    embed = PatchEmbed((12, 20), (4, 5), 3, 16, nn.LayerNorm)
    x = torch.randn(2, 3, 12, 20)
    patches = x.unfold(2, 4, 4).unfold(3, 5, 5).permute(0, 2, 3, 1, 4, 5).flatten(3)  # (B, 3, 4, 3 * 4 * 5)
    expected = embed.norm(F.linear(patches, embed.proj.weight.flatten(1), embed.proj.bias))
    got = embed(x.contiguous(memory_format=memory_format))
    assert got.shape == (2, 12, 16)
    torch.testing.assert_close(got, expected.flatten(1, 2))
    embed.flatten = False
    torch.testing.assert_close(embed(x), expected)


def test_torchvision_cuts_and_dense_pads() -> None:
    x = torch.randn(1, 3, 10, 15)
    cut, padded = (PatchEmbed(224, 4, geometry=g, flatten=False) for g in ("torchvision", "dense"))
    padded.load_state_dict(cut.state_dict())
    assert torch.equal(cut(x), cut(x[:, :, :8, :12]))
    assert torch.equal(padded(x), padded(F.pad(x, (0, 1, 0, 2))))
    assert cut(x).shape == (1, 2, 3, 96)
    assert padded(x).shape == (1, 3, 4, 96)
    assert torch.equal(padded(x)[:, :2, :3], cut(x))


@pytest.mark.parametrize("geometry", ["ms", "timm"])
def test_fixed_geometries_take_their_size_only(geometry: str) -> None:
    embed = PatchEmbed((32, 40), geometry=geometry)
    with pytest.raises(ValueError, match=r"x: got an image of \(40, 32\), want img_size = \(32, 40\).*set_input_size"):
        embed(torch.randn(1, 3, 40, 32))
    embed.set_input_size((40, 32))
    assert embed(torch.randn(1, 3, 40, 32)).shape == (1, 80, 96)
    with pytest.raises(ValueError, match=r"img_size: got \(41, 32\), want multiples of patch_size"):
        embed.set_input_size((41, 32))
    assert embed.img_size == (40, 32)


def test_timm_not_strict_takes_multiples_of_the_patch() -> None:
    embed = PatchEmbed(224, geometry="timm", strict_img_size=False)
    assert embed(torch.randn(1, 3, 40, 32)).shape == (1, 80, 96)
    with pytest.raises(ValueError, match=r"x: got an image of \(41, 32\), want multiples of patch_size"):
        embed(torch.randn(1, 3, 41, 32))


def test_patch_embedding_refuses_other_channels() -> None:
    with pytest.raises(ValueError, match=r"x: got shape \(1, 1, 224, 224\), want \(B, 3, height, width\)"):
        PatchEmbed()(torch.randn(1, 1, 224, 224))
