"""Figures of training speed: what is drawn is what was measured, and the title says the same."""

from __future__ import annotations

import pytest

from cookbook.errors import EvidenceError
from cookbook.plots import Theme, batch_sweep_figure, breakdown_figure
from cookbook.throughput import PHASES, Breakdown


def broken_down(*milliseconds: float) -> Breakdown:
    parts = {phase: (value * 1e-3, value * 1e-3) for phase, value in zip(PHASES, milliseconds, strict=True)}
    return Breakdown((sum(milliseconds) * 1e-3,) * 2, parts, "cpu")


BREAKDOWNS = {"DataLoader": broken_down(60, 15, 20, 5), "resident": broken_down(0.5, 15, 20, 5)}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_bars_are_the_phases_end_to_end(theme: Theme) -> None:
    picture = breakdown_figure(BREAKDOWNS, theme=theme)
    assert picture.finding == "Where a step's time goes: DataLoader, data 60%; resident, backward 49%"
    bars = picture.axes[0].patches
    assert len(bars) == 2 * len(PHASES)
    for row, breakdown in enumerate(BREAKDOWNS.values()):
        left = 0.0
        for bar, phase in zip(bars[4 * row : 4 * row + 4], PHASES, strict=True):
            assert (bar.get_x(), bar.get_width()) == pytest.approx((left, 1e3 * breakdown.mean(phase)))
            left += bar.get_width()
    assert [label.get_text() for label in picture.axes[0].get_yticklabels()] == list(BREAKDOWNS)
    assert len({bar.get_hatch() for bar in bars}) == len({bar.get_facecolor() for bar in bars}) == len(PHASES)
    assert [text.get_text() for text in picture.axes[0].get_legend().get_texts()] == list(PHASES)
    shown = [text.get_text() for text in picture.axes[0].texts]
    assert shown == ["60%", "15%", "20%", "37%", "49%", "12%"]  # a narrow part has no room for its share
    assert picture.png()[:4] == b"\x89PNG"


def test_the_curve_is_the_throughput() -> None:
    picture = batch_sweep_figure({"cpu": {32: 900.0, 8: 500.0, 64: 1000.0, 100: 950.0}})
    (line,) = picture.axes[0].lines
    assert list(line.get_xdata()) == [8, 32, 64, 100] and list(line.get_ydata()) == [500, 900, 1000, 950]
    assert picture.finding == "cpu, batches of 64 train 2.0 times as fast as of 8"
    assert picture.axes[0].get_ylim()[0] == 0
    both = batch_sweep_figure({"cpu": {1: 1.0, 2: 2.0}, "cuda": {1: 5.0, 2: 4.0}})
    assert both.finding.endswith("cuda, no larger batch trains faster than 1")
    assert [text.get_text() for text in both.axes[0].get_legend().get_texts()] == ["cpu", "cuda"]


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(EvidenceError, match="no breakdown"):
        breakdown_figure({})
    for throughputs in ({}, {"cpu": {8: 1.0}}):
        with pytest.raises(EvidenceError, match="two batch sizes"):
            batch_sweep_figure(throughputs)
