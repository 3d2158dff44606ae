# SPDX-License-Identifier: Apache-2.0
"""One set of random weights for all implementations: in our names, in those of the other libraries, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def random_weights(module: nn.Module, generator: torch.Generator) -> Weights:
    """Every parameter drawn anew, in float64: nothing is 0 or 1, and what is summed over has variance 1.

    Matrices and kernels: deviation 1/sqrt(inputs). Bias tables: 1, as large as the scores. Norms: 1 ± 0.2. V2's
    logit_scale: ln 10 ± 0.2. Biases: 0.2.
    """
    weights = {}
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith("relative_position_bias_table"):
            weights[name] = noise
        elif name.endswith("logit_scale"):
            weights[name] = math.log(10) + 0.2 * noise
        elif name.endswith("weight"):
            weights[name] = 1 + 0.2 * noise if parameter.dim() == 1 else noise / math.sqrt(parameter[0].numel())
        else:
            weights[name] = 0.2 * noise
    return weights


class Naming:
    """Our names and tensors: nothing to translate."""

    def rename(self, name: str) -> str:
        return name

    def outward(self, ours: Mapping[str, Tensor]) -> Weights:
        return {self.rename(name): value for name, value in ours.items()}

    def inward(self, theirs: Mapping[str, Tensor], name: str) -> Tensor:
        """Of their parameters, or gradients, the one that we call `name`."""
        return theirs[self.rename(name)]


class Eager(Naming):
    """Our modules in plain PyTorch, see `swin_fast.eager`: an attention in an attention."""

    def rename(self, name: str) -> str:
        return re.sub(r"(^|\.)attn\.", r"\1attn.attn.", name)


class Timm(Naming):
    """timm downsamples at the beginning of a stage, and its head is a module of several."""

    def rename(self, name: str) -> str:
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", name)
        return re.sub(r"^head\.", "head.fc.", name)


class Torchvision(Naming):
    """torchvision numbers its modules, and its V2 has a bias for q, k and v in one, of which it clears that of k."""

    def rename(self, name: str) -> str:
        name = name.replace("patch_embed.proj", "features.0.0").replace("patch_embed.norm", "features.0.2")
        name = re.sub(r"layers\.(\d+)\.blocks", lambda match: f"features.{2 * int(match[1]) + 1}", name)
        name = re.sub(r"layers\.(\d+)\.downsample", lambda match: f"features.{2 * int(match[1]) + 2}", name)
        return name.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")

    def outward(self, ours: Mapping[str, Tensor]) -> Weights:
        theirs = super().outward({name: value for name, value in ours.items() if not is_part_of_qkv_bias(name)})
        for name, q in ours.items():
            if name.endswith("q_bias"):
                v = ours[name.removesuffix("q_bias") + "v_bias"]
                theirs[self.joined(name)] = torch.cat((q, torch.zeros_like(q), v))
        return theirs

    def inward(self, theirs: Mapping[str, Tensor], name: str) -> Tensor:
        if not is_part_of_qkv_bias(name):
            return super().inward(theirs, name)
        q, _, v = theirs[self.joined(name)].chunk(3)
        return q if name.endswith("q_bias") else v

    def joined(self, name: str) -> str:
        return self.rename(re.sub("[qv]_bias$", "qkv.bias", name))


def is_part_of_qkv_bias(name: str) -> bool:
    return name.endswith(("q_bias", "v_bias"))


class Transformers(Naming):
    """transformers, wrapped by huggingface.py: q, k and v are apart; other names in V2, the one with a logit_scale."""

    MODEL = (
        (r"^patch_embed\.proj", "swin.embeddings.patch_embeddings.projection"),
        (r"^patch_embed\.norm", "swin.embeddings.norm"),
        (r"^layers", "swin.encoder.layers"),
        (r"^norm\.", "swin.layernorm."),
        (r"^norm(\d)", lambda match: f"hidden_states_norms.stage{int(match[1]) + 1}"),
        (r"^head", "classifier"),
    )
    BLOCK = ((r"norm1", "layernorm_before"), (r"norm2", "layernorm_after"))
    V1 = (
        (r"attn\.relative", "attention.relative_position_bias.relative"),
        (r"attn\.proj", "attention.o_proj"),
        (r"attn\.(.)\w+", r"attention.\1_proj"),
    )
    V2 = (
        (r"^swin", "swinv2"),
        (r"attn\.proj", "attention.output.dense"),
        (r"attn\.", "attention.self."),
        (r"cpb_mlp", "continuous_position_bias_mlp"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    )

    def outward(self, ours: Mapping[str, Tensor]) -> Weights:
        theirs = {}
        for name, value in ours.items():
            parts = self.parts(name, ours)
            theirs.update(zip(parts, value.chunk(len(parts)), strict=True))
        return theirs

    def inward(self, theirs: Mapping[str, Tensor], name: str) -> Tensor:
        return torch.cat([theirs[part] for part in self.parts(name, theirs)])

    def parts(self, name: str, others: Iterable[str]) -> list[str]:
        """Their names of what ours is made of. `others`, all names, ours or theirs, tell version and kind of module."""
        others = " ".join(others)
        rules = (self.MODEL if "patch_embed" in others else ()) + self.BLOCK
        rules += self.V2 if "logit_scale" in others else self.V1
        name = name.replace("q_bias", "query.bias").replace("v_bias", "value.bias")
        names = [name.replace("qkv", part) for part in ("query", "key", "value")] if "qkv" in name else [name]
        for pattern, replacement in rules:
            names = [re.sub(pattern, replacement, name) for name in names]
        return [f"module.{name}" for name in names]


NAMING = {
    "swin_fast": Naming(),
    "eager": Eager(),
    "timm": Timm(),
    "torchvision": Torchvision(),
    "transformers": Transformers(),
}


def load(module: nn.Module, weights: Weights) -> None:
    """Strict for parameters; what a module keeps in buffers follows from its shape, and stays.

    Raises:
        KeyError: a parameter has no weight, or a weight no parameter.
    """
    missing, unexpected = module.load_state_dict(weights, strict=False)
    missing = sorted(set(missing) & {name for name, _ in module.named_parameters()})
    if missing or unexpected:
        raise KeyError(f"{type(module).__name__}: no weights for {missing}, no parameters for {unexpected}")
