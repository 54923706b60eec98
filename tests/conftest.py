"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from cookbook.data import Splits, load_fashion_mnist
from cookbook.measure import pinned_threads

if TYPE_CHECKING:
    from cookbook.zoo import ZooRow

ZOO_ROWS = pytest.StashKey["list[ZooRow]"]()


@pytest.fixture(scope="session")
def fashion_mnist() -> Splits:
    """Return the whole of Fashion-MNIST, read once for all tests."""
    return load_fashion_mnist()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are taken in one order whatever the machine."""
    with pinned_threads(1):
        yield


@pytest.fixture(scope="session")
def zoo_rows(pytestconfig: pytest.Config) -> list[ZooRow]:
    """Return the list of rows that the table at the end of the tests' output shows."""
    return pytestconfig.stash.setdefault(ZOO_ROWS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which of torchvision's models pass, when they were tried."""
    rows = terminalreporter.config.stash.get(ZOO_ROWS, [])
    if rows:
        from cookbook.zoo import zoo_table

        terminalreporter.section("torchvision's models")
        terminalreporter.write_line(str(zoo_table(rows)))
