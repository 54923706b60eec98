"""What the tests on a GPU share: the device, or the reason for skipping. Each file marks its tests `gpu`."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def cuda() -> torch.device:
    """Return the CUDA device; every test of this folder skips where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none here")
    return torch.device("cuda")
