# SPDX-License-Identifier: Apache-2.0
"""The four geometry rules as arithmetic: windows, shifts, maps, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from swin_fast.geometry import (
    GEOMETRIES,
    check_geometry,
    fit_window,
    pad_order,
    pair,
    shift_at,
    stage_maps,
    window_per_stage,
)

# (map, window, shift) -> (window, shift), or None where the geometry refuses the map
FITS: tuple[tuple[str, tuple[int, int], int, int, Any], ...] = (
    ("ms", (56, 56), 7, 3, ((7, 7), (3, 3))),
    ("ms", (7, 7), 7, 3, ((7, 7), (0, 0))),
    ("ms", (7, 14), 7, 3, ((7, 7), (0, 0))),  # the shorter axis fits: neither is shifted
    ("ms", (4, 12), 7, 3, ((4, 4), (0, 0))),
    ("ms", (4, 14), 7, 3, None),
    ("ms", (14, 15), 7, 3, None),
    ("timm", (7, 14), 7, 3, ((7, 7), (0, 3))),  # each axis by itself
    ("timm", (4, 14), 7, 3, ((4, 7), (0, 3))),
    ("timm", (14, 15), 7, 3, ((7, 7), (3, 3))),
    ("timm", (2, 2), 7, 3, ((2, 2), (0, 0))),
    ("torchvision", (2, 2), 7, 3, ((7, 7), (3, 3))),
    ("dense", (2, 2), 7, 3, ((7, 7), (3, 3))),
)


@pytest.mark.parametrize(("geometry", "resolution", "window", "shift", "expected"), FITS)
def test_fit_window(geometry: str, resolution: tuple[int, int], window: int, shift: int, expected: Any) -> None:
    def fit() -> Any:
        return fit_window(geometry, resolution, (window, window), (shift, shift), always_partition=False)

    if expected is None:
        with pytest.raises(
            ValueError, match=r"input_resolution: got .* want multiples .*'timm', 'torchvision' or 'dense'"
        ):
            fit()
    else:
        assert fit() == expected


def test_always_partition_keeps_window_and_shift() -> None:
    assert fit_window("timm", (4, 14), (7, 7), (3, 3), always_partition=True) == ((7, 7), (3, 3))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((56, 56), (3, 2)), ((7, 8), (0, 2)), ((8, 4), (3, 0)), ((1, 1), (0, 0)), ((7, 7), (0, 2))],
)
def test_torchvision_drops_the_shift_of_an_axis_with_one_window(size: tuple[int, int], expected: Any) -> None:
    assert shift_at("torchvision", size, (7, 5), (3, 2)) == expected
    for other in ("ms", "timm", "dense"):
        assert shift_at(other, size, (7, 5), (3, 2)) == (3, 2)


def test_only_timm_rolls_before_it_pads() -> None:
    assert {geometry: pad_order(geometry) for geometry in GEOMETRIES} == {
        "ms": "pad_roll",
        "timm": "roll_pad",
        "torchvision": "pad_roll",
        "dense": "pad_roll",
    }


MAPS: tuple[tuple[str, tuple[int, int], Any], ...] = (
    ("ms", (224, 448), [(56, 112), (28, 56), (14, 28), (7, 14)]),
    ("ms", (300, 452), None),  # 75 x 113: odd
    ("ms", (225, 224), None),
    ("timm", (300, 452), [(75, 113), (38, 57), (19, 29), (10, 15)]),
    ("timm", (300, 451), None),
    ("timm", (32, 32), [(8, 8), (4, 4), (2, 2), (1, 1)]),
    ("torchvision", (303, 451), [(75, 112), (38, 56), (19, 28), (10, 14)]),
    ("torchvision", (3, 224), None),
    ("dense", (301, 451), [(76, 113), (38, 57), (19, 29), (10, 15)]),
    ("dense", (1, 1), [(1, 1), (1, 1), (1, 1), (1, 1)]),
)


@pytest.mark.parametrize(("geometry", "size", "expected"), MAPS)
def test_stage_maps(geometry: str, size: tuple[int, int], expected: Any) -> None:
    if expected is None:
        with pytest.raises(ValueError, match=r"img_size: got .* geometry="):
            stage_maps(geometry, size, (4, 4), 4)
    else:
        assert stage_maps(geometry, size, (4, 4), 4) == expected


@pytest.mark.parametrize(
    ("window_size", "stages", "expected"),
    [
        (7, 3, [(7, 7)] * 3),
        ((7, 5), 3, [(7, 5)] * 3),
        ((7, 5), 2, [(7, 5)] * 2),  # two ints are one window, as in timm
        (((7, 7), 5), 2, [(7, 7), (5, 5)]),
        ((7, 7, 14, 7), 4, [(7, 7), (7, 7), (14, 14), (7, 7)]),
        ([(7, 5), 3, 4], 3, [(7, 5), (3, 3), (4, 4)]),
    ],
)
def test_window_per_stage(window_size: Any, stages: int, expected: Any) -> None:
    assert window_per_stage(window_size, stages) == expected


@pytest.mark.parametrize("window_size", [(7, 7, 7), (0, 7), 7.0, "7", ((7, 7), (7, 7))])
def test_bad_windows_are_refused(window_size: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="window_size: got"):
        window_per_stage(window_size, 4)


def test_switches_of_timm_go_with_timm() -> None:
    check_geometry("timm", True, False)
    with pytest.raises(ValueError, match="geometry: got 'mmseg', want one of ms, timm, torchvision, dense"):
        check_geometry("mmseg", False, True)
    with pytest.raises(ValueError, match="always_partition: got True with geometry='dense', want geometry='timm'"):
        check_geometry("dense", True, True)
    with pytest.raises(ValueError, match="strict_img_size: got False with geometry='ms', want geometry='timm'"):
        check_geometry("ms", False, False)
    with pytest.raises(ValueError, match=r"strict_img_size: .*geometry='torchvision' takes any size"):
        check_geometry("torchvision", False, False)


def test_pair_takes_what_a_torch_size_is() -> None:
    assert pair(torch.Size((4, 5)), "x", minimum=1) == (4, 5)
