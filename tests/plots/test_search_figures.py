"""The figures of lesson 09 draw the numbers that they are given, and their findings are computed from them."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.colors import to_rgb

from cookbook.errors import UsageError
from cookbook.plots.picture import GROUND
from cookbook.plots.search import hypervolume_figure, search_figure


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_clouds_are_drawn_with_the_front_of_each_sampler(theme: Any) -> None:
    clouds = {"tpe": [(0.5, 0.8), (0.2, 0.6), (0.4, 0.5)], "random": [(0.2, 0.6), (0.3, 0.7), (0.9, 0.75)]}
    picture = search_figure(clouds, theme=theme)
    axes = picture.axes[0]
    drawn = {str(line.get_label()): line for line in axes.lines}
    assert list(zip(*drawn["tpe"].get_data(), strict=True)) == clouds["tpe"]
    assert drawn["tpe"].get_marker() != drawn["random"].get_marker()
    stairs = [list(zip(*line.get_data(), strict=True)) for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert stairs == [[(0.2, 0.6), (0.5, 0.8), (0.9, 0.8)], [(0.2, 0.6), (0.3, 0.7), (0.9, 0.75), (0.9, 0.75)]]
    assert picture.finding == (
        "Of the 3 networks that no other beats in speed and accuracy, the samplers found: tpe 2, random 2."
    )
    assert picture.get_facecolor()[:3] == pytest.approx(to_rgb(GROUND[theme]))
    assert picture.png().startswith(b"\x89PNG")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_histories_are_drawn_as_means_over_the_range_of_the_seeds(theme: Any) -> None:
    picture = hypervolume_figure({"tpe": [[0.1, 0.5], [0.3, 0.6]], "random": [[0.2, 0.4], [0.2, 0.2]]}, theme=theme)
    axes = picture.axes[0]
    means = {str(line.get_label()): list(line.get_ydata()) for line in axes.lines}
    assert means["tpe, mean of 2 seeds"] == pytest.approx([0.2, 0.55])
    assert means["random, mean of 2 seeds"] == pytest.approx([0.2, 0.3])
    heights = {tuple(vertex) for vertex in axes.collections[0].get_paths()[0].vertices.round(6).tolist()}
    assert {(1, 0.1), (1, 0.3), (2, 0.5), (2, 0.6)} <= heights
    assert picture.finding == (
        "Mean hypervolume after 2 networks: tpe 0.550, random 0.300; the seeds of one sampler differ by up to 0.200."
    )
    assert picture.png().startswith(b"\x89PNG")


def test_what_makes_no_comparison_is_refused() -> None:
    for clouds in ({}, {"tpe": [(0.5, 0.5)]}, {"tpe": [(0.5, 0.5)], "random": []}):
        with pytest.raises(UsageError, match="make no comparison"):
            search_figure(clouds)
    with pytest.raises(UsageError, match="one length"):
        hypervolume_figure({"tpe": [[0.1, 0.5]], "random": [[0.2]]})
