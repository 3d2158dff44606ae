# SPDX-License-Identifier: Apache-2.0
"""The doctor's models: the table's shapes are those of the models as built, and a model that is wrong is found."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from swin_fast import SwinTransformer, WindowAttention, dispatch, doctor, models

FACTORIES = [name for name in models.__all__ if not isinstance(getattr(models, name), type)]


def test_the_shapes_are_those_of_every_published_model() -> None:
    told: dict[str, dict[int, tuple[int, int, int]]] = {name: {} for name in FACTORIES}
    for shape in doctor._shapes():
        for name, stages in shape["models"].items():
            for stage in stages:
                assert stage not in told[name], "one shape for each stage"
                told[name][stage] = (*shape["window_size"], shape["head_dim"])
    for name in FACTORIES:
        with torch.device("meta"):
            model = getattr(models, name)()
        for stage, layer in enumerate(model.layers, 1):
            for block in layer.blocks:
                assert (*block.attn.window_size, block.attn.head_dim) == told[name][stage], (name, stage)
        assert len(told[name]) == model.num_layers


def test_the_table_has_a_row_for_each_shape_dtype_and_device() -> None:
    table = doctor._dispatch_table()
    areas = {math.prod(row["window_size"]) for row in table}
    assert areas == {36, 49, 64, 144, 256, 576}
    assert len(table) == len(areas) * len(doctor.DTYPES) * len(doctor._devices())


def test_every_model_is_listed_below_the_table() -> None:
    text = "\n".join(doctor._shape_lines(doctor._shapes()))
    for line in ("N=36 hd=32: window 6x6", "    swinv2_{base,large}_window12_192, stage 4"):
        assert line in text.splitlines()
    for name in FACTORIES:
        family, _, rest = name.split("_", 2)
        assert f"{family}_" in text and f"_{rest}" in text, name


def test_the_models_run_and_leave_things_as_they_were() -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    begin = time.perf_counter()
    rows = doctor._check_models()
    assert time.perf_counter() - begin < 30
    assert {row["verdict"] for row in rows} == {"ok"}
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda out: out * 1.1, "logits: error"),
        (lambda out: out * float("nan"), "logits: not finite"),
        (lambda out: out + 0.2 * (out - out.detach()), "image gradient: error"),
        (lambda out: out.unknown, "AttributeError"),
    ],
    ids=["output", "nan", "gradient", "raises"],
)
@pytest.mark.parametrize("kind", ["SwinTransformer", "SwinTransformerV2"])
def test_a_model_that_is_wrong_is_found(wrong: Any, told: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = WindowAttention.forward

    def forward(*arguments: Any, **options: Any) -> Tensor:
        result: Tensor = wrong(right(*arguments, **options))
        return result

    monkeypatch.setattr(WindowAttention, "forward", forward)
    monkeypatch.setattr(doctor, "CHECKED_DTYPES", (torch.float32,))
    rows = [row for row in doctor._check_models() if row["model"] == kind]
    assert {row["backend"] for row in rows} == {
        name
        for name in dispatch.BACKENDS
        if not dispatch.why_not(name, dispatch.Problem(torch.float32, "cpu", None, 49, 32))
    }
    assert rows and all(told in row["verdict"] for row in rows)
    assert all(told in text for _, text in doctor._model_rows(rows))
    assert issubclass(getattr(models, kind), SwinTransformer)
