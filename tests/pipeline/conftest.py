"""What the tests of the pipeline share."""

from __future__ import annotations

import pytest
import stand_ins

from cookbook.measure import instrument


@pytest.fixture(autouse=True)
def quick_energy(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Read the energy counter once instead of for 0.2 seconds a candidate."""
    monkeypatch.setattr(instrument, "ENERGY_SECONDS", 1e-6)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write files by hand, count instead of timing, and draw no figure."""
    stand_ins.install(monkeypatch.setattr)
