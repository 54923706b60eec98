"""Small models with lively BatchNorm statistics, and small splits, for the tests of narrow weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cookbook.data import ResidentLoader, Role, Split
from cookbook.models import ResNetConfig, build


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm statistics and an affine part of its own, and put the model into eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for value, low, high in (
                (module.weight, 0.3, 1.7), (module.bias, -0.4, 0.4), (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.4, 2.0),
            ):  # fmt: skip
                assert isinstance(value, Tensor)
                value.data.uniform_(low, high, generator=generator)
    return model.eval()


def plain_net(seed: int = 0) -> nn.Sequential:
    """Return convolutions of every kind in a chain: plain, depthwise, grouped; a flatten; two linear layers."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(12 * 9, 10), nn.ReLU(), nn.Linear(10, 3),
    )  # fmt: skip
    return lively(net, seed)  # type: ignore[return-value]


def resnet(seed: int = 0, **sizes: int) -> nn.Module:
    """Return the smallest ResNet of the house."""
    torch.manual_seed(seed)
    return lively(build(ResNetConfig(**{"depth": 8, "width": 4, "classes": 3} | sizes)), seed)


def blobs(number: int, pixels: int = 6, role: Role = "train", seed: int = 1) -> Split:
    """Return images whose class shows in where they are bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 3
    images = torch.randint(0, 90, (number, 1, pixels, pixels), generator=generator)
    third = pixels // 3
    for label in range(3):
        images[labels == label, :, label * third : (label + 1) * third] += 110
    return Split(images.to(torch.uint8), labels, role, ("a", "b", "c"), (0.3,), (0.25,))


def blob_loader(
    number: int = 48, batch_size: int = 12, *, pixels: int = 6, role: Role = "train", seed: int = 1
) -> ResidentLoader:
    """Return a loader over `blobs`."""
    return ResidentLoader(blobs(number, pixels, role, seed), batch_size)
