"""The figures of lesson 04 draw the numbers that they are given, and their findings are computed from them."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from cookbook.errors import UsageError
from cookbook.measure import Timing
from cookbook.plots.picture import GROUND
from cookbook.plots.pruning import sensitivity_figure, speed_figure, staircase_figure
from cookbook.pruning import Sensitivity, Staircase, Step, preferred_multiple


def staircase() -> Staircase:
    times = {8: 1.0, 12: 4.0, 15: 4.5, 16: 3.0, 24: 6.0, 32: 9.0}
    return Staircase(
        tuple(Step(width, width**2, Timing((0.9e-3 * t, 1e-3 * t, 1.2e-3 * t), 1, 1)) for width, t in times.items())
    )


def labelled(axes: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in axes.lines}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_staircase_is_drawn_with_the_liked_multiples_apart(theme: Any) -> None:
    steps = staircase()
    picture = staircase_figure(steps, preferred_multiple(steps, multiples=(4, 8)), theme=theme)
    axes = picture.axes[0]
    drawn = {container.get_label(): container for container in axes.containers}
    liked, other = drawn["multiples of 8"][0], drawn["other widths"][0]
    assert list(liked.get_xdata()) == [8, 16, 24, 32]
    assert list(liked.get_ydata()) == pytest.approx([1, 3, 6, 9])
    assert list(other.get_xdata()) == [12, 15]
    assert liked.get_marker() != other.get_marker()
    (bars,) = drawn["multiples of 8"][2]
    assert bars.get_segments()[0][:, 1] == pytest.approx([0.92, 1.16])  # 10th and 90th percentile
    proportional = labelled(axes)["in proportion to MACs"]
    assert list(proportional.get_ydata()) == pytest.approx([9 * (width / 32) ** 2 for width in (8, 12, 15, 16, 24, 32)])
    assert picture.finding == (
        "15 channels take 1.50 times as long as 16, with 12% fewer multiply-accumulates; of the multiples of 8, "
        "0 in 3 save next to nothing."
    )
    assert picture.get_facecolor()[:3] == pytest.approx(to_rgb(GROUND[theme]))
    assert picture.png().startswith(b"\x89PNG")


def test_a_smooth_staircase_has_no_inversion() -> None:
    steps = Staircase(tuple(Step(width, width**2, Timing((1e-3 * width,) * 3, 1, 1)) for width in (8, 16, 24)))
    picture = staircase_figure(steps, preferred_multiple(steps, multiples=(8,)))
    assert picture.finding.startswith("16 channels take only 0.67 of the time of 24")
    assert [container.get_label() for container in picture.axes[0].containers] == ["multiples of 8"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_layers_stand_in_the_order_of_their_drop(theme: Any) -> None:
    scan = Sensitivity(0.9, {"a": {0.5: 0.7, 0.75: 0.6}, "b": {0.5: 0.9, 0.75: 0.88}, "c": {0.75: 0.8}})
    picture = sensitivity_figure(scan, theme=theme)
    axes = picture.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b", "c", "a"]
    lines = labelled(axes)
    half, most = lines["50% of its channels removed"], lines["75% of its channels removed"]
    assert (list(half.get_xdata()), list(half.get_ydata())) == ([0.9, 0.7], [0, 2])
    assert (list(most.get_xdata()), list(most.get_ydata())) == ([0.88, 0.8, 0.6], [0, 1, 2])
    assert half.get_marker() != most.get_marker()
    assert set(lines["unpruned"].get_xdata()) == {0.9}
    assert picture.finding == (
        "Pruned alone and not fine-tuned, a costs 25.0 points on the average over the ratios, b 1.0."
    )  # fmt: skip
    assert picture.png().startswith(b"\x89PNG")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_arms_are_drawn_at_their_speed_with_their_means(theme: Any) -> None:
    picture = speed_figure({"twice": (2.0, (93.0, 94.0)), "thrice": (3.0, (92.0,))}, 94.2, theme=theme)
    lines = labelled(picture.axes[0])
    assert (lines["twice"].get_xdata()[0], lines["twice"].get_ydata()[0]) == (2.0, 93.5)
    assert set(lines["unpruned"].get_ydata()) == {94.2}
    assert any(list(line.get_ydata()) == [93.0, 94.0] for line in picture.axes[0].lines)
    assert {text.get_text() for text in picture.axes[0].texts} >= {"twice", "thrice"}
    assert picture.finding == (
        "The best mean of 2 arms, twice, lies -0.70 points from the unpruned model at 2.00 times its speed."
    )  # fmt: skip
    assert picture.png().startswith(b"\x89PNG")


def test_arms_that_make_no_figure_are_refused() -> None:
    for arms in ({}, {"a": (2.0, ())}, {"a": (0.0, (90.0,))}):
        with pytest.raises(UsageError, match="one or more arms"):
            speed_figure(arms, 94.0)
