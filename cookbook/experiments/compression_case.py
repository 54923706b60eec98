"""The small model and the small data that `cookbook.experiments.interrupted_compression` compresses (lesson 08)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cookbook.data import Splits, make_splits
from cookbook.models import ResNetConfig, build

PIXELS, CLASSES = 12, ("dark", "grey", "bright")


def network() -> nn.Module:
    """Return an untrained ResNet-8 for these images; the command line has set the seed."""
    return build(ResNetConfig(depth=8, width=16, classes=len(CLASSES)))


def images() -> Splits:
    """Return noise whose brightness says its class: 300 images to train on, 60 each to choose and to test."""
    generator = torch.Generator().manual_seed(0)

    def drawn(number: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(number) % len(CLASSES)
        noise = torch.randint(0, 90, (number, 1, PIXELS, PIXELS), generator=generator)
        return (noise + 70 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels

    return make_splits(*drawn(360), *drawn(60), CLASSES, validation_size=60)
