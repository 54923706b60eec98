"""What tests of several folders share."""

from __future__ import annotations

import pytest

from cookbook.data import Splits, load_fashion_mnist


@pytest.fixture(scope="session")
def fashion_mnist() -> Splits:
    """Return the whole of Fashion-MNIST, read once for all tests."""
    return load_fashion_mnist()
