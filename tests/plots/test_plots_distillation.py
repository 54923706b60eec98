"""The figures of lesson 06 draw the numbers that they are given, and their findings are computed from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer

from cookbook.errors import UsageError
from cookbook.plots import soft_targets_figure, temperature_figure
from cookbook.plots.picture import GROUND

IMAGE = torch.arange(12.0).view(3, 4)
CLASSES = ("shirt", "coat", "boot")
LOGITS = torch.tensor([2.0, 1.0, -3.0])
ACCURACIES = {4.0: (81.0, 83.0), 1.0: (80.0, 80.5), 16.0: (79.0, 79.5)}
CONTROL = (78.0, 79.0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_bars_are_the_softmax_at_each_temperature(theme: Any) -> None:
    picture = soft_targets_figure(IMAGE, LOGITS, 1, CLASSES, (1, 4), theme=theme)
    axes = picture.axes[0]
    bars = [container for container in axes.containers if isinstance(container, BarContainer)]
    for container, temperature in zip(bars, (1, 4), strict=True):
        heights = torch.tensor([bar.get_height() for bar in container])
        torch.testing.assert_close(heights, (LOGITS / temperature).softmax(0), check_dtype=False)
    assert len({bar.patches[0].get_hatch() for bar in bars}) == 2, "colour alone must not tell the temperatures apart"
    assert [text.get_text() for text in axes.get_xticklabels()] == list(CLASSES)
    assert (axes.child_axes[0].images[0].get_array() == IMAGE.numpy()).all()
    assert picture.get_facecolor()[:3] == pytest.approx(to_rgb(GROUND[theme]))
    assert picture.finding == (
        "Labelled coat: at temperature 1 the teacher gives shirt 73% and coat 27%, at 4 48% and 38%."
    )  # fmt: skip
    assert picture.png().startswith(b"\x89PNG")


def test_points_means_and_band_are_those_of_the_seeds() -> None:
    picture = temperature_figure(ACCURACIES, CONTROL)
    lines = {str(line.get_label()): line for line in picture.axes[0].lines}
    assert list(lines["distilled, mean"].get_xdata()) == [1, 4, 16]
    assert list(lines["distilled, mean"].get_ydata()) == [80.25, 82, 79.25]
    assert list(lines["distilled, a seed"].get_ydata()) == [80, 81, 79]
    assert set(lines["hard labels, mean"].get_ydata()) == {78.5}
    band = picture.axes[0].patches[0].get_window_extent()
    low, high = (picture.axes[0].transData.transform((1, value))[1] for value in CONTROL)
    assert (band.y0, band.y1) == pytest.approx((low, high))
    assert picture.finding == (
        "Temperature moves the mean accuracy by 2.75 points, seeds by up to 2.00; the best mean, "
        "82.00% at temperature 4, lies +3.50 points from hard labels."
    )


def test_what_makes_no_figure_is_refused() -> None:
    for label, temperatures in ((3, (1,)), (0, ())):
        with pytest.raises(UsageError, match="make no figure"):
            soft_targets_figure(IMAGE, LOGITS, label, CLASSES, temperatures)
    with pytest.raises(UsageError, match="two or more positive"):
        temperature_figure({1.0: (80.0,)}, (79.0,))
    with pytest.raises(UsageError, match="two or more positive"):
        temperature_figure({0.0: (80.0,), 1.0: (80.0,)}, (79.0,))
    with pytest.raises(UsageError, match="Give the 2 seeds"):
        temperature_figure({1.0: (80.0,), 2.0: (80.0,)}, CONTROL)
