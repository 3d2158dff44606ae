# SPDX-License-Identifier: Apache-2.0
"""Whole models of timm, torchvision and transformers, ours with the same weights, and the comparison of the two.

A `PeerCase` is one pair of models and one image size. Every parameter of the peer is drawn away from its initial value,
and its state dict, brought to Microsoft's names, must load into ours strictly. Both are then run alike: every stage's
map, the logits, and the gradients of the image and of every parameter, from random gradients of all these outputs.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swin_fast
from cases import DTYPE_IDS, FORWARD_FLOAT64, GRADIENT_FLOAT64, epsilon
from comparison import Comparison, check, compare

Results = dict[str, Tensor]
Pair = tuple[int, int]

CLASSES = 40
#: Images that are compared together, and orders of the channels of an image in which a float32 peer is run; its error
#: is the largest of them. What a whole V2 makes of its roundings is luck: from image to image the ratio of two errors
#: in float32, ours and timm's, varies by factors of 1.5 to 4 (one standard deviation) around 1.05. With one image and
#: one order 2 to 6 tensors of 100 break the bound. In V1 it varies by 10 to 25 %. In bfloat16 sums are float32, and
#: their order matters to few results.
DRAWS = {1: 4, 2: 10}  # of V1 and V2, as the orders
ORDERS = {1: {torch.float32: 3, torch.bfloat16: 1}, 2: {torch.float32: 6, torch.bfloat16: 1}}
#: Logit scales of every fourth head; ln 100 = 4.6 is their clamp. A score carries exp of it times the rounding of a
#: cosine: above the clamp it is luck that would be measured in 16 and 32 bits, and from 3.5 on in bfloat16.
SHARP = {torch.float64: 5.0, torch.float32: 3.5, torch.bfloat16: 2.5}
#: Where geometries of ours are those of a peer whatever the size.
GEOMETRY = {"timm": "timm", "torchvision": "torchvision", "transformers": "dense"}


@dataclass(frozen=True)
class PeerCase:
    """A pair of models and the size of the image; the small ones have heads of 16 channels."""

    peer: str
    height: int
    width: int
    version: int = 1
    window: Any = 7
    built: Any = None  # img_size of the construction where it is another
    geometry: str | None = None
    embed_dim: int = 32
    heads: tuple[int, ...] = (2, 4, 8, 16)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    always_partition: bool = False
    strict: bool = True
    qkv_bias: bool = True
    pretrained: tuple[int, ...] | None = None
    draws: int | None = None

    def __str__(self) -> str:
        words = [f"{self.peer}-v{self.version}-w{str(self.window).replace(' ', '')}-{self.height}x{self.width}"]
        words += [f"c{self.embed_dim}"] if self.embed_dim != 32 else []
        words += [f"built{self.built}".replace(" ", "")] if self.built is not None else []
        words += [self.geometry] if self.geometry is not None else []
        words += ["always"] if self.always_partition else []
        words += ["dynamic"] if not self.strict else []
        words += ["nobias"] if not self.qkv_bias else []
        words += ["pretrained"] if self.pretrained else []
        words += [f"{len(self.depths)}stages"] if len(self.depths) != 4 else []
        return "-".join(words)

    @property
    def shallow(self) -> PeerCase:
        """The first three stages, for comparisons of rounding errors: a fourth adds time, and no rule of its own."""
        return replace(self, depths=self.depths[:3], heads=self.heads[:3])

    @property
    def img_size(self) -> Any:
        return (self.height, self.width) if self.built is None else self.built

    def images(self, dtype: torch.dtype) -> list[Tensor]:
        seed = zlib.crc32(str(self).encode())
        shape = (1, 3, self.height, self.width)
        draws = 1 if dtype == torch.float64 else self.draws or DRAWS[self.version]
        return [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)).to(dtype) for i in range(draws)]


#: What makes a case the full Swin-T, V1 or V2.
TINY: dict[str, Any] = {"embed_dim": 96, "heads": (3, 6, 12, 24), "depths": (2, 2, 6, 2), "draws": 1}


def by_id(value: object) -> str | None:
    return DTYPE_IDS[value] if isinstance(value, torch.dtype) else str(value) if isinstance(value, PeerCase) else None


def slow(cases: tuple[PeerCase, ...]) -> tuple[Any, ...]:
    """The same, left to `make check`."""
    return tuple(pytest.param(case, marks=pytest.mark.slow) for case in cases)


# --------------------------------------------------------------------------------------------------------- the models


def import_peer(peer: str) -> Any:
    """The module, or a skip where it is not installed: an environment without peers is a supported one."""
    pytest.importorskip("benchmarks.peer_imports", reason="torchvision is not installed, and timm needs it")
    return pytest.importorskip(peer, reason=f"{peer} is not installed; `pip install .[test]` brings it")


def build_peer(case: PeerCase) -> nn.Module:
    """The peer as it initialises itself, in training mode, without any dropout."""
    import_peer(case.peer)
    return {"timm": _build_timm, "torchvision": _build_torchvision, "transformers": _build_transformers}[case.peer](
        case
    )


def _build_timm(case: PeerCase) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    model: Callable[..., nn.Module] = SwinTransformer if case.version == 1 else SwinTransformerV2
    more = {"pretrained_window_sizes": case.pretrained} if case.pretrained else {}
    return model(
        img_size=case.img_size,
        num_classes=CLASSES,
        embed_dim=case.embed_dim,
        depths=case.depths,
        num_heads=case.heads,
        window_size=case.window,
        always_partition=case.always_partition,
        strict_img_size=case.strict,
        qkv_bias=case.qkv_bias,
        drop_path_rate=0.0,
        **more,
    )


def _build_torchvision(case: PeerCase) -> nn.Module:
    from torchvision.models import swin_transformer as theirs

    more = {"block": theirs.SwinTransformerBlockV2, "downsample_layer": theirs.PatchMergingV2}
    return theirs.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=case.embed_dim,
        depths=list(case.depths),
        num_heads=list(case.heads),
        window_size=[case.window, case.window] if isinstance(case.window, int) else list(case.window),
        stochastic_depth_prob=0.0,
        num_classes=CLASSES,
        **(more if case.version == 2 else {}),
    )


def _build_transformers(case: PeerCase) -> nn.Module:
    from transformers import SwinBackbone, SwinConfig

    config = SwinConfig(
        embed_dim=case.embed_dim,
        depths=list(case.depths),
        num_heads=list(case.heads),
        window_size=case.window,
        qkv_bias=case.qkv_bias,
        drop_path_rate=0.0,
        attn_implementation="eager",
        out_features=[f"stage{i + 1}" for i in range(len(case.depths))],
    )
    return SwinBackbone(config).train()


class NormedBackbone(swin_fast.SwinTransformer):
    """Feature maps (B, C, H, W) of all stages with a norm for each, as dense prediction takes them; its names too."""

    def __init__(self, **options: Any) -> None:
        stages = range(len(options["depths"]))
        super().__init__(out_indices=tuple(stages), **options)
        for i in stages:
            self.add_module(f"norm{i}", nn.LayerNorm(self.embed_dim * 2**i))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.get_submodule(f"norm{i}")(x) for i, x in enumerate(super().forward(x))]
        return [x.permute(0, 3, 1, 2) for x in maps]


def build_ours(case: PeerCase, **more: Any) -> nn.Module:
    """Our model for the same configuration, as it initialises itself."""
    options: dict[str, Any] = {
        "img_size": case.img_size,
        "embed_dim": case.embed_dim,
        "depths": case.depths,
        "num_heads": case.heads,
        "window_size": case.window,
        "geometry": case.geometry or GEOMETRY[case.peer],
        "always_partition": case.always_partition,
        "strict_img_size": case.strict,
        "qkv_bias": case.qkv_bias,
        "drop_path_rate": 0.0,
    }
    if case.peer == "transformers":
        return NormedBackbone(**{**options, **more})
    options["num_classes"] = CLASSES
    if case.version == 1:
        return swin_fast.SwinTransformer(**{**options, **more})
    return swin_fast.SwinTransformerV2(**{**options, "pretrained_window_sizes": case.pretrained, **more})


def randomise(model: nn.Module, seed: int = 7, sharp: float = SHARP[torch.float64]) -> nn.Module:
    """Every parameter at random, in sizes that keep activations near 1; every fourth logit scale is `sharp`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            norm = isinstance(module, nn.LayerNorm)
            for name, parameter in module.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                if norm:
                    noise = 0.3 * noise + (name == "weight")
                elif name == "logit_scale":
                    noise = math.log(10.0) + 0.5 * noise
                    noise[1::4] = sharp
                elif name == "weight":
                    noise *= parameter[0].numel() ** -0.5
                elif name != "relative_position_bias_table":
                    noise *= 0.5
                parameter.copy_(noise)
    return model


def make_pair(case: PeerCase) -> tuple[nn.Module, nn.Module]:
    """(ours, peer) with the same random weights, float32, in training mode without dropout."""
    peer = randomise(build_peer(case))
    ours = build_ours(case)
    copy_weights(ours, peer, case)
    return ours, peer


def copy_weights(ours: nn.Module, peer: nn.Module, case: PeerCase) -> None:
    ours.load_state_dict(microsoft_names(peer.state_dict(), case), strict=True)


# ---------------------------------------------------------------------------------------------------------- the names

_TORCHVISION = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
_TRANSFORMERS = (
    (r"^swin\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^swin\.embeddings\.norm\.", "patch_embed.norm."),
    (r"^swin\.encoder\.", ""),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.relative_position_bias\.", ".attn."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
)


def microsoft_names(tensors: Results, case: PeerCase) -> Results:
    """A peer's tensors by name (its state dict, or the gradients of its parameters) under Microsoft's names."""
    return {"timm": _from_timm, "torchvision": _from_torchvision, "transformers": _from_transformers}[case.peer](
        tensors
    )


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _from_timm(tensors: Results) -> Results:
    def rename(name: str) -> str:
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        return name.replace("head.fc.", "head.")

    return {rename(name): value for name, value in tensors.items()}


def _from_torchvision(tensors: Results) -> Results:
    def stage(match: re.Match[str]) -> str:
        place = int(match[1])
        return f"layers.{(place - 1) // 2}." + ("blocks." if place % 2 else "downsample.")

    renamed = {}
    cosine = any(name.endswith("logit_scale") for name in tensors)
    for name, value in tensors.items():
        name = re.sub(r"^features\.(\d+)\.", stage, _renamed(name, _TORCHVISION))
        if cosine and name.endswith("attn.qkv.bias"):  # the middle third is set to zero in every call
            q, _, v = value.chunk(3)
            prefix = name.removesuffix("qkv.bias")
            renamed[prefix + "q_bias"], renamed[prefix + "v_bias"] = q, v
        else:
            renamed[name] = value
    return renamed


def _from_transformers(tensors: Results) -> Results:
    renamed = {}
    for name, value in tensors.items():
        if name.startswith("swin.layernorm."):  # the backbone never calls it
            continue
        name = re.sub(r"^hidden_states_norms\.stage(\d+)", lambda m: f"norm{int(m[1]) - 1}", name)
        name = _renamed(name, _TRANSFORMERS)
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            whole = [tensors[original] for original in _qkv_names(name)]
            renamed[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(whole)
        else:
            renamed[name] = value
    return renamed


def _qkv_names(name: str) -> list[str]:
    return [f"swin.encoder.{name.replace('.q_proj.', f'.{letter}_proj.')}" for letter in "qkv"]


# ------------------------------------------------------------------------------------------------------------ running


def outputs_of(model: nn.Module, image: Tensor) -> Results:
    """Every stage's map (B, C, H, W), and the logits where the model has them, of ours or of a peer."""
    if hasattr(model, "features"):  # torchvision
        x, maps = image, []
        for i, part in enumerate(model.features):
            x = part(x)
            maps += [x.permute(0, 3, 1, 2)] if i % 2 else []
        logits = [model.head(model.flatten(model.avgpool(model.permute(model.norm(x)))))]
    elif isinstance(model, NormedBackbone):
        maps, logits = model(image), []
    elif hasattr(model, "hidden_states_norms"):  # transformers
        maps, logits = list(model(image).feature_maps), []
    else:
        features, maps = model.forward_intermediates(image)
        logits = [model.forward_head(features)]
    return {**{f"stage {i}": x for i, x in enumerate(maps)}, **dict(zip(["logits"], logits, strict=False))}


def run(model: nn.Module, image: Tensor, case: PeerCase | None = None) -> Results:
    """Outputs, and gradients of the image and of every parameter; those of a peer's `case` under Microsoft's names."""
    image = image.detach().clone().requires_grad_()
    outputs = outputs_of(model, image)
    generator = torch.Generator().manual_seed(3)
    grads = []
    for out in outputs.values():  # the same numbers in every dtype: those of bfloat16
        grads.append(torch.randn(out.shape, generator=generator).bfloat16().to(out))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(list(outputs.values()), (image, *parameters), grads, allow_unused=case is not None)
    found = {name: value for name, value in zip(names, gradients[1:], strict=True) if value is not None}
    by_name = found if case is None else microsoft_names(found, case)
    results = {**outputs, "image": gradients[0], **by_name}
    return {name: value.detach().cpu() for name, value in results.items()}


def run_all(model: nn.Module, images: list[Tensor], case: PeerCase | None = None) -> Results:
    """`run` of every image, stacked."""
    results = [run(model, image, case) for image in images]
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def exactly(peer: nn.Module) -> nn.Module:
    """A copy of the peer in float64, from its weights as they are rounded."""
    exact = copy.deepcopy(peer).double()
    if hasattr(exact, "set_attn_implementation"):
        exact.set_attn_implementation("sdpa")  # transformers' eager softmax is float32 whatever the dtype
    return exact


@functools.lru_cache(maxsize=2)
def peer_results(case: PeerCase, dtype: torch.dtype) -> tuple[list[Results], Results]:
    """What the peer gives in `dtype`, for every order, and in float64 from the same weights and images."""
    peer = randomise(build_peer(case), sharp=SHARP[dtype]).to(dtype)
    images = case.images(dtype)
    exact = run_all(exactly(peer), [image.double() for image in images], case)
    if dtype == torch.float64:
        return [], exact
    orders = itertools.islice(itertools.permutations(range(3)), ORDERS[case.version][dtype])
    return [_run_reordered(peer, images, case, list(order)) for order in orders], exact


def _run_reordered(peer: nn.Module, images: list[Tensor], case: PeerCase, order: list[int]) -> Results:
    """`run_all` with the image's channels in another order: other roundings from the first sum on, the same truth."""
    peer = copy.deepcopy(peer)
    first = next(module for module in peer.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        first.weight.copy_(first.weight[:, order].clone())
    results = run_all(peer, [image[:, order] for image in images], case)
    back = [order.index(i) for i in range(3)]
    for name in ("image", "patch_embed.proj.weight"):  # (draws, B or C, channels, ...)
        results[name] = results[name][:, :, back]
    return results


def compare_all(got: Results, eager: list[Results], exact: Results, dtype: torch.dtype) -> list[Comparison]:
    """The rule for every tensor; in float64, where both are rounded alike, a part of each tensor's largest number."""
    assert all(got.keys() == other.keys() for other in (exact, *eager))
    if dtype != torch.float64:
        got, exact, eager = _pooled(got), _pooled(exact), [_pooled(result) for result in eager]

    def eps(name: str) -> float:
        if dtype != torch.float64:
            return epsilon(dtype)
        return FORWARD_FLOAT64 if name == "logits" or name.startswith("stage") else GRADIENT_FLOAT64

    return [
        compare(name, value, exact[name], [result[name] for result in eager], dtype=dtype, eps=eps(name))
        for name, value in got.items()
    ]


def _pooled(results: Results) -> Results:
    """The gradients of all logit scales as one tensor: the largest of a block's few numbers alone is luck."""
    scales = [value.flatten() for name, value in results.items() if name.endswith("logit_scale")]
    rest = {name: value for name, value in results.items() if not name.endswith("logit_scale")}
    return {**rest, "all logit scales": torch.cat(scales)} if scales else rest


def check_pair(case: PeerCase, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """Ours against the peer: outputs and all gradients, training mode without dropout."""
    eager, exact = peer_results(case, dtype)
    ours = build_ours(case)
    copy_weights(ours, randomise(build_peer(case), sharp=SHARP[dtype]), case)
    ours = ours.to(device, dtype)
    with swin_fast.use_backend(backend):
        got = run_all(ours, [image.to(device) for image in case.images(dtype)])
    check(f"{case}, {DTYPE_IDS[dtype]}, {backend}", compare_all(got, eager, exact, dtype))


def check_outputs(where: str, ours: nn.Module, peer: nn.Module, images: list[Tensor]) -> None:
    """Ours and a peer in float64, in the mode they are in, without gradients."""
    ours, peer = ours.double(), exactly(peer)
    with torch.no_grad():
        for image in images:
            got, exact = outputs_of(ours, image.double()), outputs_of(peer, image.double())
            check(f"{where}, {tuple(image.shape[2:])}", compare_all(got, [], exact, torch.float64))
