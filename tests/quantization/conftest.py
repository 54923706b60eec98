"""What the tests of quantization share: a small model, and images for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cookbook.models import ResNetConfig, build


@pytest.fixture(scope="session")
def small_images() -> Tensor:
    return torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def small_resnet() -> nn.Module:
    """Return a ResNet-8 of width 4 whose BatchNorm statistics are not the initial ones."""
    torch.manual_seed(0)
    model = build(ResNetConfig(depth=8, width=4))
    with torch.no_grad():
        model(torch.randn(32, 1, 28, 28))
    return model.eval()
