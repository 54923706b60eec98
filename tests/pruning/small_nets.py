"""Small networks, one for each way in which layers share channels, with the layers that listen to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cookbook.data import ResidentLoader, Split
from cookbook.models import (
    PerceptronConfig,
    ResNetConfig,
    SeparableConfig,
    VisionTransformerConfig,
    build,
)


class Dense(nn.Module):
    """Concatenation: the second layer hears the stem, the third both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 4, 3, padding=1)
        self.third = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = torch.cat([x, self.second(x).sigmoid()], 1)
        return self.head(self.third(x).relu().mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two pointwise ones."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(2, 12, 1)
        self.middle, self.norm = nn.Conv2d(12, 12, 3, padding=1, groups=4), nn.BatchNorm2d(12)
        self.project = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.norm(self.middle(self.expand(x).tanh())).relu())
        return self.head(x.relu().mean((2, 3)))


class Squeeze(nn.Module):
    """Squeeze and excite: every channel is scaled by a gate that hears all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3)
        self.fc1, self.fc2 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        gate = self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head((x * gate).mean((2, 3)))


class Flat(nn.Module):
    """A linear layer that hears every pixel of a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3)
        self.head = nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).sigmoid().flatten(1))


# Network, images, layer to prune, its width; who listens: name -> (first input of channel 0, inputs of each channel)
CASES = {
    "chain": (ResNetConfig(depth=8, width=8), (1, 8, 8), "blocks.0.conv1", {"blocks.0.conv2": (0, 1)}),
    "residual": (
        ResNetConfig(depth=8, width=8), (1, 8, 8), "stem.0",
        {"blocks.0.conv1": (0, 1), "blocks.1.conv1": (0, 1), "blocks.1.shortcut.0": (0, 1)},
    ),
    "depthwise": (
        SeparableConfig(stem=8, channels=(8, 6), strides=(2, 1)), (1, 8, 8), "stem.0", {"blocks.0.pointwise": (0, 1)},
    ),
    "concatenated first": (Dense, (2, 8, 8), "stem", {"second": (0, 1), "third": (0, 1)}),
    "concatenated second": (Dense, (2, 8, 8), "second", {"third": (8, 1)}),
    "grouped": (Grouped, (2, 8, 8), "expand", {"project": (0, 1)}),
    "squeeze and excite": (Squeeze, (2, 8, 8), "conv", {"fc1": (0, 1), "head": (0, 1)}),
    "flattened": (Flat, (2, 8, 8), "conv", {"head": (0, 36)}),
    "transformer": (
        VisionTransformerConfig(image_size=8, embedding=8, layers=2, heads=2, head_dim=4, hidden=12), (1, 8, 8),
        "blocks.0.mlp.0", {"blocks.0.mlp.3": (0, 1)},
    ),
    "perceptron": (PerceptronConfig(height=8, width=8, hidden=(8, 6)), (1, 8, 8), "hidden.0", {"hidden.3": (0, 1)}),
}  # fmt: skip


def make(description: object, seed: int = 0) -> nn.Module:
    """Return a network in eval mode whose biases and statistics all differ, as after a training."""
    torch.manual_seed(seed)
    model = (description() if isinstance(description, type) else build(description)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_()
                module.bias.normal_()
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    module.bias.normal_()
    return model


def loader(size: int = 24, batch_size: int = 8, seed: int = 3) -> ResidentLoader:
    """Return shuffled grey 8×8 training images of two classes that differ in brightness."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(size) % 2
    images = (torch.randint(0, 128, (size, 1, 8, 8), generator=generator) + 100 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return ResidentLoader(Split(images, labels, "train", ("dark", "bright"), (0.4,), (0.25,)), batch_size, seed=seed)
