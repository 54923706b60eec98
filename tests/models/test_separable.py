"""The separable network against closed forms and dense convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.models import SeparableConfig, SeparableNet, build
from cookbook.models.separable import SeparableBlock


def scramble_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return model.double().eval()


def norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    mean, var, weight, bias = (v.view(1, -1, 1, 1) for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return (x - mean) / torch.sqrt(var + bn.eps) * weight + bias


@pytest.mark.parametrize(
    "config",
    [
        SeparableConfig(),
        SeparableConfig(in_channels=3, classes=4, stem=5, stem_stride=2, channels=(7,), strides=(1,)),
        SeparableConfig(channels=(3, 17, 9), strides=(1, 2, 3)),
    ],
)
def test_parameters_follow_the_closed_form(config: SeparableConfig) -> None:
    model = build(config)
    expected, channels = 9 * config.in_channels * config.stem + 2 * config.stem, config.stem
    for out in config.channels:
        expected += 9 * channels + 2 * channels + channels * out + 2 * out
        channels = out
    expected += channels * config.classes + config.classes
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize(("height", "width"), [(28, 28), (32, 20), (7, 5), (1, 1)])
def test_resolution_is_divided_and_rounded_up(height: int, width: int) -> None:
    model = SeparableNet(SeparableConfig(stem=2, channels=(3, 4, 5), strides=(2, 1, 2)))
    model.eval()
    seen: list[tuple[int, ...]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    assert model(torch.rand(2, 1, height, width)).shape == (2, 10)
    halves = [(-(-height // divisor), -(-width // divisor)) for divisor in (2, 2, 4)]
    assert seen == [(channels, *half) for channels, half in zip((3, 4, 5), halves, strict=True)]


def test_block_equals_dense_convolutions() -> None:
    torch.manual_seed(1)
    block = SeparableBlock(3, 4, stride=2)
    scramble_statistics(block)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    dense = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    for channel in range(3):
        dense[channel, channel] = block.depthwise.weight[channel, 0]
    inner = norm(F.conv2d(x, dense, stride=2, padding=1), block.bn1).clamp(min=0)
    mixed = torch.einsum("oi,bihw->bohw", block.pointwise.weight[:, :, 0, 0], inner)
    torch.testing.assert_close(block(x), norm(mixed, block.bn2).clamp(min=0), rtol=1e-10, atol=1e-12)


def test_channels_describe_a_pruned_network() -> None:
    torch.manual_seed(2)
    full = SeparableNet(SeparableConfig(stem=4, channels=(6, 5), strides=(1, 2)))
    scramble_statistics(full)
    pruned = SeparableNet(SeparableConfig(stem=4, channels=(3, 5), strides=(1, 2))).double().eval()
    kept = torch.tensor([1, 2, 5])
    gone = torch.tensor([0, 3, 4])
    by_output = ("blocks.0.pointwise", "blocks.0.bn2", "blocks.1.depthwise", "blocks.1.bn1")
    state = full.state_dict()
    smaller = {name: value[kept] if name.startswith(by_output) and value.ndim else value for name, value in state.items()}
    smaller["blocks.1.pointwise.weight"] = state["blocks.1.pointwise.weight"][:, kept]
    pruned.load_state_dict(smaller)
    state["blocks.1.pointwise.weight"][:, gone] = 0  # nothing reads the removed channels
    images = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(pruned(images), full(images), rtol=1e-12, atol=1e-14)


def test_every_parameter_gets_a_gradient() -> None:
    model = build(SeparableConfig(stem=4, channels=(8, 8), strides=(1, 2)))
    model(torch.rand(8, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"channels": (8, 8)}, "channels names 2 blocks and strides 5"),
        ({"channels": (), "strides": ()}, "channels names 0 blocks"),
        ({"channels": 8}, "channels is 8"),
        ({"channels": (8, 0), "strides": (1, 1)}, "channels is (8, 0)"),
        ({"channels": (8, 8), "strides": (1, 0.5)}, "strides is (1, 0.5)"),
        ({"stem": 0}, "stem is 0"),
        ({"stem_stride": True}, "stem_stride is True"),
        ({"in_channels": None}, "in_channels is None"),
    ],
)
def test_wrong_sizes_are_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        SeparableConfig(**fields)  # type: ignore[arg-type]
    assert words in str(caught.value)
