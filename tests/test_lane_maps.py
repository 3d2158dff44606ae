# SPDX-License-Identifier: Apache-2.0
"""The emulator's primitives against those of a GPU, by what each has answered to tests/cusim/lane_maps.cu."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from benchmarks import lane_maps
from test_cusim import call, emulator_flags, find_nvcc

#: What was not asked yet when a GPU last answered: its next answers have it.
AWAITED = {"float32"}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> lane_maps.Maps:
    emulator_flags(tmp_path_factory.mktemp("probe"))  # skips where there is no emulator
    return lane_maps.ask(None)


def test_the_emulator_is_as_a_gpu(emulated: lane_maps.Maps) -> None:
    golden = json.loads(lane_maps.GOLDEN.read_text())
    assert golden["device"] != "emulator", "the file is to be a GPU's"
    assert AWAITED.isdisjoint(golden), "a GPU has answered"
    asked = {name: maps for name, maps in emulated.items() if name not in AWAITED}
    assert list(lane_maps.differences(golden, asked)) == []


def test_the_questions_find_every_element(emulated: lane_maps.Maps) -> None:
    """Whatever the maps: each element comes to one lane, and each product of a row and a column has one place."""
    for name, matrices in (("ldmatrix_x4", 4), ("ldmatrix_x2", 2)):
        for kind in (name, f"{name}_trans"):
            halves = [half for word in emulated[kind] for half in (word & 0xFFFF, word >> 16)]
            assert sorted(halves) == list(range(64 * matrices))
    for name in ("float16", "bfloat16"):
        assert emulated[name]["kept"] == list(range(128))
        numbers = emulated[name]["products"]
        products = list(zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=True))
        assert len(products) == 16 * 8 * 16
        assert {slot for *_, slot in products} == set(range(128))
        rows = {frozenset(d for a, _, d in products if a == slot) for slot in range(256)}
        assert len(rows) == 16 and all(len(row) == 8 for row in rows)
    numbers = emulated["float32"]["products"]
    assert emulated["float32"]["kept"] == list(range(128))
    assert len(numbers) == 3 * 16 * 8 * 8
    rows = {frozenset(d for a, d in zip(numbers[0::3], numbers[2::3], strict=True) if a == slot) for slot in range(128)}
    assert len(rows) == 16 and all(len(row) == 8 for row in rows)
    assert emulated["float32"]["taken"][:4] == [0, 0, 0x3F800000, 0xBF800000]
    assert emulated["float32"]["taken"][7] == 0x3F802000, "of 0x3f802fff, whose last 13 bits nobody looks at"
    assert emulated["any_lane"] == [0] * 32 + [1] * 64


def test_a_difference_is_named(emulated: lane_maps.Maps) -> None:
    assert list(lane_maps.differences(emulated, {**emulated, "device": "another"})) == []
    other = copy.deepcopy(emulated)
    other["bfloat16"]["rounded"][5] += 1
    other["shuffle"] = []
    assert list(lane_maps.differences(emulated, other)) == [
        "bfloat16.rounded, from number 5 on",
        "shuffle, from number 0 on",
    ]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_it_compiles_for_a_gpu(architecture: str, tmp_path: Path) -> None:
    if find_nvcc() is None:
        pytest.skip("no nvcc")
    call([*lane_maps.compile_command(architecture, tmp_path / "lane_maps"), "--Werror", "all-warnings"])


def test_the_command_line(
    emulated: lane_maps.Maps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "maps.json"
    wrong = {**emulated, "device": "a GPU", "shuffle": []}
    monkeypatch.setattr(lane_maps, "ask", lambda architecture: wrong if architecture else emulated)
    monkeypatch.setattr("sys.argv", ["lane_maps", "--json", str(target)])
    assert lane_maps.main() == 0
    assert capsys.readouterr().out == "emulator: as the emulator\n"
    monkeypatch.setattr("sys.argv", ["lane_maps", "--device", "cuda", "--json", str(target)])
    assert lane_maps.main() == 1
    assert capsys.readouterr().out == "a GPU: unlike the emulator: shuffle, from number 0 on\n"
    assert json.loads(target.read_text()) == wrong
