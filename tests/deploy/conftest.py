"""A small model and its file, which the tests of every format share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cookbook.deploy import export
from cookbook.models import ResNetConfig, build


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Return a small ResNet whose BatchNorm statistics are not the initial ones."""
    torch.manual_seed(0)
    resnet = build(ResNetConfig(depth=8, width=4))
    with torch.no_grad():
        resnet(torch.randn(32, 1, 28, 28))
    return resnet.eval()


@pytest.fixture(scope="module")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model, torch.randn(1, 1, 28, 28), tmp_path_factory.mktemp("export") / "resnet.onnx")
