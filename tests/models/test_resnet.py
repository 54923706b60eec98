"""The residual network against closed forms and a forward pass written out in functions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.models import ResNet, ResNetConfig, build


def randomized(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value that a mistake would show, in float64 and eval mode."""
    generator = torch.Generator().manual_seed(5)
    model.double().eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            drawn = torch.rand(value.shape, generator=generator, dtype=value.dtype)
            value.copy_(drawn + 0.5 if "running_var" in name or value.ndim == 1 else drawn - 0.5)
    return model


def parameters_by_formula(stem: int, inner: list[int], outer: list[int], in_channels: int, classes: int) -> int:
    count, channels = 9 * in_channels * stem + 2 * stem, stem
    for number, (middle, out) in enumerate(zip(inner, outer, strict=True)):
        count += 9 * channels * middle + 2 * middle + 9 * middle * out + 2 * out
        strided = number in (len(inner) // 3, 2 * len(inner) // 3)
        if strided or channels != out:
            count += channels * out + 2 * out
        channels = out
    return count + channels * classes + classes


@pytest.mark.parametrize(("depth", "width", "in_channels", "classes"), [(8, 4, 1, 10), (20, 32, 1, 10), (14, 6, 3, 7)])
def test_parameters_follow_the_closed_form(depth: int, width: int, in_channels: int, classes: int) -> None:
    model = build(ResNetConfig(depth=depth, width=width, in_channels=in_channels, classes=classes))
    per_stage = (depth - 2) // 6
    channels = [width] * per_stage + [2 * width] * per_stage + [4 * width] * per_stage
    expected = parameters_by_formula(width, channels, channels, in_channels, classes)
    assert sum(p.numel() for p in model.parameters()) == expected
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == depth  # the source counts them with the head


def test_free_channels_follow_the_closed_form() -> None:
    stem, inner, outer = 5, [3, 4, 6], [7, 7, 9]
    model = build(ResNetConfig(depth=8, stem=stem, inner=tuple(inner), outer=tuple(outer), in_channels=2, classes=3))
    assert sum(p.numel() for p in model.parameters()) == parameters_by_formula(stem, inner, outer, 2, 3)
    assert model(torch.rand(2, 2, 9, 11)).shape == (2, 3)


@pytest.mark.parametrize(("stem_stride", "sizes"), [(1, [28, 14, 7]), (2, [14, 7, 4])])
def test_resolution_halves_at_each_stage(stem_stride: int, sizes: list[int]) -> None:
    model = ResNet(ResNetConfig(depth=14, width=2, stem_stride=stem_stride))
    seen: list[tuple[int, ...]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    model(torch.rand(1, 1, 28, 28))
    assert seen == [(channels, size, size) for channels, size in zip((2, 4, 8), sizes, strict=True) for _ in range(2)]


def test_shortcut_is_identity_only_between_equal_shapes() -> None:
    model = ResNet(ResNetConfig(depth=14, stem=4, outer=(4, 6, 6, 6, 6, 5)))
    projected = [not isinstance(block.shortcut, nn.Identity) for block in model.blocks]
    assert projected == [False, True, True, False, True, True]


def forward_by_hand(state: dict[str, Tensor], images: Tensor, blocks: int) -> Tensor:
    def conv_bn(x: Tensor, conv: str, bn: str, stride: int, padding: int) -> Tensor:
        y = F.conv2d(x, state[f"{conv}.weight"], None, stride, padding)
        mean, var = (state[f"{bn}.running_{name}"].view(1, -1, 1, 1) for name in ("mean", "var"))
        weight, bias = (state[f"{bn}.{name}"].view(1, -1, 1, 1) for name in ("weight", "bias"))
        return (y - mean) / torch.sqrt(var + 1e-5) * weight + bias

    x = conv_bn(images, "stem.0", "stem.1", 1, 1).clamp(min=0)
    for number in range(blocks):
        name, stride = f"blocks.{number}", 2 if number and number % (blocks // 3) == 0 else 1
        inner = conv_bn(x, f"{name}.conv1", f"{name}.bn1", stride, 1).clamp(min=0)
        if f"{name}.shortcut.0.weight" in state:
            x = conv_bn(x, f"{name}.shortcut.0", f"{name}.shortcut.1", stride, 0)
        x = (conv_bn(inner, f"{name}.conv2", f"{name}.bn2", 1, 1) + x).clamp(min=0)
    return x.mean((2, 3)) @ state["head.weight"].T + state["head.bias"]


def test_forward_equals_the_formula_in_float64() -> None:
    model = randomized(build(ResNetConfig(depth=14, width=3, in_channels=2, classes=4)))
    images = torch.rand(2, 2, 12, 10, dtype=torch.float64)
    expected = forward_by_hand(model.state_dict(), images, 6)
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=0)


def test_inner_channels_describe_a_pruned_network() -> None:
    full = randomized(build(ResNetConfig(depth=8, width=4)))
    kept = torch.tensor([0, 3])
    state = full.state_dict()
    pruned = build(ResNetConfig(depth=8, width=4, inner=(2, 8, 16))).double().eval()
    smaller = {}
    for name, value in state.items():
        if name.startswith(("blocks.0.conv1", "blocks.0.bn1")) and value.ndim:
            smaller[name] = value[kept]
        else:
            smaller[name] = value[:, kept] if name == "blocks.0.conv2.weight" else value
    pruned.load_state_dict(smaller)
    for name in ("weight", "bias"):  # masking: a channel that is always zero
        state[f"blocks.0.bn1.{name}"][[1, 2]] = 0
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(pruned(images), full(images), rtol=1e-12, atol=0)


def test_convolutions_start_with_the_variance_of_he() -> None:
    torch.manual_seed(0)
    model = build(ResNetConfig(depth=8, width=32))
    weight = model.get_parameter("blocks.2.conv1.weight")  # 64 in, 128 out
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.01)


def test_every_parameter_gets_a_gradient() -> None:
    model = build(ResNetConfig(depth=8, width=2))
    model(torch.rand(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_lists_become_tuples() -> None:
    config = ResNetConfig(depth=8, inner=[1, 2, 3], outer=[4, 5, 6])  # type: ignore[arg-type]
    assert config == ResNetConfig(depth=8, inner=(1, 2, 3), outer=(4, 5, 6))
    assert hash(config) == hash(ResNetConfig(depth=8, inner=(1, 2, 3), outer=(4, 5, 6)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"depth": 21}, "depth is 21"),
        ({"depth": 2}, "depth is 2"),
        ({"depth": "20"}, "depth is '20'"),
        ({"width": 0}, "width is 0"),
        ({"width": 16.5}, "width is 16.5"),
        ({"stem": 0}, "stem is 0"),
        ({"classes": -1}, "classes is -1"),
        ({"depth": 8, "inner": (4, 4)}, "inner names 2 blocks, but depth 8 has 3"),
        ({"depth": 8, "outer": ()}, "outer names 0 blocks"),
        ({"depth": 8, "outer": (4, 0, 4)}, "outer is (4, 0, 4)"),
        ({"depth": 8, "inner": 4}, "inner is 4"),
    ],
)
def test_wrong_sizes_are_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        ResNetConfig(**fields)  # type: ignore[arg-type]
    assert words in str(caught.value)
