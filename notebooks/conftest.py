"""Lessons are compared without progress bars; after a failing cell the rest is skipped, since it fails for the same reason."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["COOKBOOK_PROGRESS"] = "off"  # the kernels inherit it: a bar is output, which nbval would compare

BROKEN = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a cell when an earlier one of the same file failed."""
    if item.parent is not None and BROKEN in item.parent.stash:
        pytest.skip(f"{item.parent.stash[BROKEN]} of this notebook failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember the first cell of a file that failed."""
    report = yield
    if report.failed and item.parent is not None:
        item.parent.stash.setdefault(BROKEN, item.name)
    return report
