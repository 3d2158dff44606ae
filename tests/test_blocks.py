# SPDX-License-Identifier: Apache-2.0
"""The blocks against a plain block of Microsoft's shape: outputs, gradients, checkpoints, geometry, torch features."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import swin_fast
from cases import DTYPE_IDS
from comparison import check, compare
from oracles import softmax_without_cancellation
from plain_block import PlainBlock
from swin_fast import SwinBlock, SwinTransformerBlock, WindowAttention

# ------------------------------------------------------------------------------------------------------------ the cases


Problem = tuple[Tensor, Tensor]  # input, gradient of the output
Results = dict[str, Tensor]

#: Problems that are compared together. The largest of a few dozen ill-conditioned sums is a matter of luck, for eager
#: as for the kernels: over 12 seeds, one problem alone breaks the bound in 1 tensor of 1000, three together stay below
#: 0.85 of it.
DRAWS = 3


@dataclass(frozen=True)
class BlockCase:
    H: int
    W: int
    dim: int
    num_heads: int
    window: int | tuple[int, int]
    shift: int | tuple[int, int]
    B: int = 2
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        def short(value: int | tuple[int, int]) -> str:
            return str(value) if isinstance(value, int) else "x".join(map(str, value))

        options = "".join(f"-{name}={getattr(value, '__name__', value)}" for name, value in self.options.items())
        return f"w{short(self.window)}-s{short(self.shift)}-h{self.num_heads}-c{self.dim}-{self.H}x{self.W}{options}"

    def block(self, **more: Any) -> SwinBlock:
        """A block with every parameter away from its initial value: zeros and ones would hide mistakes."""
        block = SwinBlock(self.dim, None, self.num_heads, self.window, self.shift, **{**self.options, **more})
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in block.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if name.startswith("norm"):
                    parameter.copy_(0.3 * noise + name.endswith("weight"))
                else:
                    parameter.copy_(noise * parameter.shape[1] ** -0.5 if name.endswith(".weight") else noise)
        return block

    def tokens(self, dtype: torch.dtype = torch.float32, device: str = "cpu", draw: int = 0) -> Problem:
        """The input and the gradient of the output."""
        generator = torch.Generator().manual_seed(11 + draw)
        shape = (self.B, self.H, self.W, self.dim)
        x, grad_out = (torch.randn(shape, generator=generator) for _ in range(2))
        return x.to(device, dtype), grad_out.to(device, dtype)

    def problems(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Problem]:
        return [self.tokens(dtype, device, draw) for draw in range(DRAWS)]


CASES = (
    BlockCase(14, 14, 96, 3, 7, 0),
    BlockCase(14, 21, 96, 3, 7, 3),
    BlockCase(15, 17, 64, 2, 7, 3),  # pads on both axes
    BlockCase(9, 14, 64, 2, 7, 0),  # pads below, unshifted
    BlockCase(14, 16, 64, 2, 7, (0, 3)),
    BlockCase(5, 4, 64, 2, 7, 3),  # smaller than the window
    BlockCase(12, 10, 48, 3, (4, 5), (2, 1)),
    BlockCase(13, 11, 60, 2, (6, 4), (0, 2)),  # hd 30
    BlockCase(24, 24, 64, 2, 12, 6, B=1),
    BlockCase(10, 11, 64, 2, 4, 2, options={"qkv_bias": False}),
    BlockCase(10, 11, 64, 2, 4, 2, options={"qk_scale": 0.3}),
    BlockCase(8, 8, 64, 2, 4, 2, options={"mlp_ratio": 1.5, "act_layer": nn.SiLU, "norm_layer": nn.RMSNorm}),
)
DTYPES = (torch.float32, torch.bfloat16)
PADDED = CASES[2]


def by_id(value: object) -> str | None:
    return DTYPE_IDS[value] if isinstance(value, torch.dtype) else str(value) if isinstance(value, BlockCase) else None


def run(module: nn.Module, x: Tensor, grad_out: Tensor) -> Results:
    """Output, gradient of the input, gradient of every parameter."""
    x = x.detach().clone().requires_grad_()
    out = module(x)
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(out, (x, *parameters), grad_out.to(out.dtype))
    return {"out": out.detach(), "x": gradients[0], **dict(zip(names, gradients[1:], strict=True))}


def run_all(module: nn.Module, problems: list[Problem]) -> Results:
    """`run` of every problem, stacked."""
    results = [run(module, *problem) for problem in problems]
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def check_against(
    where: str, got: Results, eager: Results, plain: PlainBlock, problems: list[Problem], dtype: torch.dtype
) -> None:
    """The tolerance rule for every tensor; the truth is the plain block in float64."""
    plain = copy.deepcopy(plain).double()
    doubles = [(x.double(), grad_out.double()) for x, grad_out in problems]
    exact = run_all(plain, doubles)
    plain.attn.softmax = softmax_without_cancellation
    scale = run_all(plain, doubles)
    assert got.keys() == exact.keys() == eager.keys()
    lines = []
    for name, value in got.items():
        size = torch.maximum(exact[name].abs(), scale[name].abs())
        eps = torch.finfo(dtype).eps
        lines.append(compare(name, value, exact[name], [eager[name]], dtype=eager[name].dtype, eps=eps, scale=size))
    check(where, lines)


# --------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("dtype", DTYPES, ids=by_id)
@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_block_matches_the_plain_block(case: BlockCase, dtype: torch.dtype, backend: str, device: str) -> None:
    ours = case.block().to(device, dtype)
    plain = PlainBlock(ours, case.H, case.W).to(device, dtype)
    problems = case.problems(dtype, device)
    with swin_fast.use_backend(backend):
        got = run_all(ours, problems)
    check_against(f"{case}, {backend}", got, run_all(plain, problems), plain, problems, dtype)


@pytest.mark.parametrize("parameter", ["attn.relative_position_bias_table", "attn.qkv.bias", "norm1.weight"])
def test_the_comparison_notices_a_slightly_wrong_block(parameter: str) -> None:
    ours, problems = PADDED.block(), PADDED.problems()
    plain = PlainBlock(ours, PADDED.H, PADDED.W)
    with torch.no_grad():
        ours.get_parameter(parameter).mul_(1.001)
    with pytest.raises(AssertionError, match="FAIL out"):
        check_against("wrong", run_all(ours, problems), run_all(plain, problems), plain, problems, torch.float32)


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_block_in_float64_is_exact(case: BlockCase) -> None:
    ours = case.block().double()
    x, grad_out = case.tokens(torch.float64)
    exact = run(PlainBlock(ours, case.H, case.W).double(), x, grad_out)
    for name, got in run(ours, x, grad_out).items():
        torch.testing.assert_close(got, exact[name], rtol=1e-11, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


def test_autocast_keeps_parameters_and_matches(backend: str, device: str) -> None:
    ours = PADDED.block().to(device)
    plain = PlainBlock(ours, PADDED.H, PADDED.W).to(device)
    problems = PADDED.problems(device=device)
    with torch.autocast(device, torch.bfloat16), swin_fast.use_backend(backend):
        got = run_all(ours, problems)
        eager = run_all(plain, problems)
    assert {name: value.dtype for name, value in got.items()} == {name: value.dtype for name, value in eager.items()}
    check_against(f"{PADDED}, autocast, {backend}", got, eager, plain, problems, torch.bfloat16)


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_drop_path_drops_the_samples_that_upstream_drops(probability: float) -> None:
    case = BlockCase(9, 8, 64, 2, 4, 2, B=16)
    ours = case.block(drop_path=probability)
    plain = PlainBlock(ours, case.H, case.W)
    problems = case.problems()
    torch.manual_seed(5)
    got = run_all(ours, problems)
    torch.manual_seed(5)
    eager = run_all(plain, problems)
    # The draws follow the dtype: the truth is given the masks that float32 draws.
    torch.manual_seed(5)
    masks = itertools.cycle(draw_masks(case.B, probability))
    truth = copy.deepcopy(plain)
    truth.drop_path = lambda branch: branch * next(masks)  # type: ignore[method-assign]
    check_against(f"drop_path={probability}", got, eager, truth, problems, torch.float32)
    x = problems[0][0]
    if probability == 1.0:
        assert torch.equal(got["out"][0], x)
    ours.eval()
    assert torch.equal(ours(x), case.block()(x))


def draw_masks(batch: int, probability: float) -> list[Tensor]:
    keep = 1.0 - probability
    masks = [torch.empty(batch, 1, 1, 1).bernoulli_(keep) for _ in range(2 * DRAWS)]
    return [(mask / keep if keep else mask).double() for mask in masks]


def test_drop_path_acts_on_each_branch_of_each_sample() -> None:
    case = BlockCase(8, 8, 64, 2, 4, 2, B=64)
    block = case.block(drop_path=0.5)
    x = torch.randn(1, 8, 8, 64).expand(64, 8, 8, 64)
    out = block(x)
    distinct = torch.unique(out.detach().flatten(1), dim=0)
    assert distinct.shape[0] == 4  # attention kept or not, MLP kept or not


def test_attention_dropout_matches_with_equal_random_numbers() -> None:
    case = PADDED
    ours = case.block(attn_drop=0.4)
    plain = PlainBlock(ours, case.H, case.W)
    x, grad_out = case.tokens()
    torch.manual_seed(3)
    got = run(ours, x, grad_out)
    torch.manual_seed(3)
    expected = run(plain, x, grad_out)
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert not torch.allclose(got["out"], case.block()(x), atol=1e-2), "nothing was dropped"
    ours.eval()
    assert torch.equal(ours(x), case.block()(x))


def test_attention_dropout_runs_under_autocast() -> None:
    block = PADDED.block(attn_drop=0.4)
    x, _ = PADDED.tokens()
    with torch.autocast("cpu", torch.bfloat16):
        out = block.attn(x)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_dropout_of_projection_and_mlp_is_active_in_training_only() -> None:
    block = PADDED.block(drop=1.0)
    x, _ = PADDED.tokens()
    assert torch.equal(block(x), x)
    assert not block.attn(x).any()
    block.eval()
    assert torch.equal(block(x), PADDED.block()(x))


def test_mlp_is_the_erf_gelu_between_two_linears_with_dropout_after_each() -> None:
    mlp = PADDED.block(drop=0.5).mlp
    x, _ = PADDED.tokens()
    torch.manual_seed(4)
    got = mlp(x)
    torch.manual_seed(4)
    hidden = F.linear(x, mlp.fc1.weight, mlp.fc1.bias)
    hidden = F.dropout(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)), 0.5)
    torch.testing.assert_close(got, F.dropout(F.linear(hidden, mlp.fc2.weight, mlp.fc2.bias), 0.5))


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_state_dict_has_the_keys_of_the_released_blocks() -> None:
    block = SwinBlock(96, (14, 14), 3, 7, 3)
    shapes = {name: tuple(value.shape) for name, value in block.state_dict().items()}
    assert shapes == {
        "norm1.weight": (96,),
        "norm1.bias": (96,),
        "attn.relative_position_bias_table": (169, 3),
        "attn.qkv.weight": (288, 96),
        "attn.qkv.bias": (288,),
        "attn.proj.weight": (96, 96),
        "attn.proj.bias": (96,),
        "norm2.weight": (96,),
        "norm2.bias": (96,),
        "mlp.fc1.weight": (384, 96),
        "mlp.fc1.bias": (384,),
        "mlp.fc2.weight": (96, 384),
        "mlp.fc2.bias": (96,),
    }


def test_without_qkv_bias_the_key_is_gone() -> None:
    with_bias, without = SwinBlock(96, None, 3).state_dict(), SwinBlock(96, None, 3, qkv_bias=False).state_dict()
    assert with_bias.keys() - without.keys() == {"attn.qkv.bias"}


@pytest.mark.parametrize("prefix", ["", "layers.0.blocks.1."])
def test_a_checkpoint_with_the_two_buffers_loads_strictly(prefix: str) -> None:
    source = CASES[1].block()
    checkpoint_ = PlainBlock(source, 14, 21).state_dict(prefix=prefix)
    assert {prefix + "attn_mask", prefix + "attn.relative_position_index"} < checkpoint_.keys()
    before = dict(checkpoint_)
    target = SwinBlock(96, None, 3, 7, 3)
    owner: nn.Module = target
    for part in reversed(prefix.split(".")[:-1]):
        owner = nn.ModuleDict({part: owner})
    owner.load_state_dict(checkpoint_, strict=True)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name
    assert checkpoint_.keys() == before.keys(), "loading changed the caller's dictionary"


@pytest.mark.parametrize("key", ["attn.relative_coords_table", "relative_position_index", "attn.attn_mask", "mask"])
def test_any_other_key_still_fails(key: str) -> None:
    block = SwinBlock(96, None, 3)
    with pytest.raises(RuntimeError, match=f'Unexpected key.*"{key}"'):
        block.load_state_dict({**block.state_dict(), key: torch.zeros(1)})


def test_a_missing_key_still_fails() -> None:
    block = SwinBlock(96, None, 3)
    state = block.state_dict()
    del state["attn.relative_position_bias_table"]
    with pytest.raises(RuntimeError, match=r"Missing key.*relative_position_bias_table"):
        block.load_state_dict(state)


def test_initial_bias_table_is_a_truncated_normal() -> None:
    table = WindowAttention(768, 12, 24).relative_position_bias_table
    assert table.std().item() == pytest.approx(0.02, rel=0.05)
    assert table.abs().max() > 0.04


# ------------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(
    ("resolution", "window", "shift", "expected_window", "expected_shift"),
    [
        (None, 7, 3, (7, 7), (3, 3)),
        (None, (4, 7), (2, 0), (4, 7), (2, 0)),
        ((56, 56), 7, 3, (7, 7), (3, 3)),
        (56, 7, 3, (7, 7), (3, 3)),
        ((7, 7), 7, 3, (7, 7), (0, 0)),
        ((7, 14), 7, 3, (7, 7), (0, 0)),  # one axis fits: both lose the shift
        ((4, 12), 7, 3, (4, 4), (0, 0)),
        ((12, 4), 7, 3, (4, 4), (0, 0)),
        ((6, 6), 12, 6, (6, 6), (0, 0)),
        ((4, 28), (4, 7), (2, 3), (4, 7), (0, 3)),  # not square: each axis by itself
        ((3, 5), (4, 7), (2, 3), (3, 5), (0, 0)),
    ],
)
def test_window_and_shift_follow_the_resolution(
    resolution: Any, window: Any, shift: Any, expected_window: tuple[int, int], expected_shift: tuple[int, int]
) -> None:
    block = SwinBlock(32, resolution, 1, window, shift)
    assert (block.window_size, block.shift_size) == (expected_window, expected_shift)
    assert block.attn.window_size == expected_window
    rows = (2 * expected_window[0] - 1) * (2 * expected_window[1] - 1)
    assert block.attn.relative_position_bias_table.shape == (rows, 1)


def test_a_small_map_gives_one_window_as_upstream() -> None:
    ours = SwinBlock(64, (5, 5), 2, window_size=7, shift_size=3)
    x = torch.randn(2, 5, 5, 64)
    torch.testing.assert_close(ours(x), PlainBlock(ours, 5, 5)(x), rtol=1e-5, atol=1e-5)


def test_a_block_with_a_resolution_takes_that_size_only() -> None:
    block = SwinBlock(64, (14, 14), 2)
    with pytest.raises(ValueError, match=r"x: got \(H, W\) = \(14, 21\), want .*\(14, 14\).*input_resolution=None"):
        block(torch.randn(1, 14, 21, 64))


@pytest.mark.parametrize("shape", [(196, 64), (1, 1, 14, 14, 64)])
def test_wrong_rank_is_refused(shape: tuple[int, ...]) -> None:
    for module in (SwinBlock(64, None, 2), WindowAttention(64, 7, 2)):
        with pytest.raises(ValueError, match=rf"x: got {len(shape)} dimensions, want 4: \(B, H, W, C\)"):
            module(torch.randn(shape))


def test_wrong_channels_are_refused() -> None:
    for module in (SwinBlock(64, None, 2), WindowAttention(64, 7, 2)):
        with pytest.raises(ValueError, match=r"x: got 14 channels .* want dim = 64"):
            module(torch.randn(1, 64, 14, 14))


BAD_ARGUMENTS: tuple[tuple[type[Exception], str, dict[str, Any]], ...] = (
    (ValueError, "dim: got 100", {"dim": 100, "num_heads": 3}),
    (ValueError, "dim: got 0", {"dim": 0}),
    (ValueError, "num_heads: got 0", {"num_heads": 0}),
    (ValueError, "num_heads: got 32 with dim = 96", {"num_heads": 32}),
    (ValueError, "num_heads: got 1 with dim = 192", {"dim": 192, "num_heads": 1}),
    (ValueError, "window_size: got 0", {"window_size": 0}),
    (ValueError, "window_size: got .33, 33.", {"window_size": 33}),
    (TypeError, "window_size: got 7.0", {"window_size": 7.0}),
    (TypeError, "window_size: got True", {"window_size": True}),
    (TypeError, "window_size: got .7, 7, 7.", {"window_size": (7, 7, 7)}),
    (TypeError, "window_size: got '77'", {"window_size": "77"}),
    (ValueError, "shift_size: got .7, 7.", {"shift_size": 7}),
    (ValueError, "shift_size: got .0, 8.", {"shift_size": (0, 8)}),
    (ValueError, "shift_size: got -1", {"shift_size": -1}),
    (TypeError, "shift_size: got None", {"shift_size": None}),
    (ValueError, "input_resolution: got .0, 7.", {"input_resolution": (0, 7)}),
    (TypeError, "input_resolution: got .7,.", {"input_resolution": (7,)}),
    (ValueError, "drop_path: got 1.5", {"drop_path": 1.5}),
    (ValueError, "drop_path: got -0.1", {"drop_path": -0.1}),
    (ValueError, "attn_drop: got 2.0", {"attn_drop": 2.0}),
    (ValueError, "drop: got nan", {"drop": float("nan")}),
)


@pytest.mark.parametrize(
    ("error", "message", "arguments"), BAD_ARGUMENTS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_bad_arguments_are_named(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        SwinBlock(**{"dim": 96, "input_resolution": None, "num_heads": 3, **arguments})


def test_qk_scale_of_zero_means_the_default() -> None:
    assert SwinBlock(64, None, 2, qk_scale=0).attn.scale == SwinBlock(64, None, 2).attn.scale == 32**-0.5


def test_the_two_names_are_one_class() -> None:
    assert SwinBlock is SwinTransformerBlock


def test_shift_out_of_range_is_refused_in_the_attention() -> None:
    with pytest.raises(ValueError, match="shift_size"):
        WindowAttention(64, 7, 2)(torch.randn(1, 7, 7, 64), shift_size=(7, 0))


# ------------------------------------------------------------------------------------------------------- torch features


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


def every_second(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2)[:, :, ::2]


@pytest.mark.parametrize("lay_out", [channels_last, channels_first, every_second])
def test_strides_of_the_input_change_nothing(lay_out: Callable[[Tensor], Tensor]) -> None:
    block = PADDED.block()
    x, grad_out = PADDED.tokens()
    expected = run(block, x, grad_out)
    leaf = lay_out(x).requires_grad_()
    out = block(leaf)
    torch.testing.assert_close(out, expected["out"])
    (gradient,) = torch.autograd.grad(out, leaf, lay_out(grad_out))
    torch.testing.assert_close(gradient, expected["x"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=by_id)
def test_converted_blocks_stay_in_their_dtype(dtype: torch.dtype) -> None:
    block = PADDED.block().to(dtype)
    x, grad_out = PADDED.tokens(dtype)
    assert {value.dtype for value in run(block, x, grad_out).values()} == {dtype}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_independent_and_equal(copied: Callable[[nn.Module], nn.Module]) -> None:
    block = PADDED.block()
    x, _ = PADDED.tokens()
    expected = block(x)
    twin = copied(block)
    assert torch.equal(twin(x), expected)
    twin.load_state_dict(PlainBlock(block, PADDED.H, PADDED.W).state_dict())  # the hooks came along
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(block(x), expected)


def test_an_empty_batch_gives_an_empty_batch() -> None:
    out = PADDED.block()(torch.randn(0, 9, 9, 64))
    assert out.shape == (0, 9, 9, 64)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_bit(use_reentrant: bool, backend: str, device: str) -> None:
    block = PADDED.block(drop_path=0.5).to(device)
    x, grad_out = PADDED.tokens(device=device)
    with swin_fast.use_backend(backend):
        torch.manual_seed(1)
        expected = run(block, x, grad_out)
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        out = checkpoint(block, leaf, use_reentrant=use_reentrant)
        out.backward(grad_out)
    assert torch.equal(out, expected["out"])
    assert torch.equal(leaf.grad, expected["x"])
    for name, parameter in block.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name


def test_compile_makes_one_graph_for_every_size() -> None:
    torch._dynamo.reset()
    block = PADDED.block(drop_path=0.2)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in ((2, 15, 17), (3, 14, 21), (4, 9, 30)):
            x, grad_out = torch.randn(*size, 64), torch.randn(*size, 64)
            torch.manual_seed(2)
            expected = run(block, x, grad_out)
            torch.manual_seed(2)
            leaf = x.clone().requires_grad_()
            out = compiled(leaf)
            gradients = torch.autograd.grad(out, (leaf, *block.parameters()), grad_out)
            torch.testing.assert_close(out, expected.pop("out"))
            for gradient, wanted in zip(gradients, expected.values(), strict=True):
                torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_export_takes_every_batch_and_size() -> None:
    block = PADDED.block().eval()
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    program = torch.export.export(block, (torch.randn(2, 15, 17, 64),), dynamic_shapes=(sizes,))
    for size in ((2, 15, 17), (5, 14, 21), (3, 8, 50)):
        x = torch.randn(*size, 64)
        torch.testing.assert_close(program.module()(x), block(x))


def test_backend_forced_around_the_block_is_the_one_that_runs(backend: str, device: str) -> None:
    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    called: list[str] = []
    block, x = PADDED.block().to(device), PADDED.tokens(device=device)[0]
    with swin_fast.use_backend(backend), Record():
        block(x)
    assert [name for name in called if name.startswith("swin_fast")] == [f"swin_fast.window_attention_fwd.{backend}"]
