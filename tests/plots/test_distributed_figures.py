"""The scaling figure draws what the model computes, and its title says that it is a model."""

from __future__ import annotations

import numpy as np
import pytest

from cookbook.distributed.scaling import BACKWARD_SHARE, Link, ScalingModel
from cookbook.errors import EvidenceError
from cookbook.plots.distributed import GPUS, scaling_figure

MODEL = ScalingModel(compute=0.1, size=10**8, images=64)
LINKS = (Link("slow", 1e9), Link("fast", 1e10))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_are_the_models_efficiencies_and_crosses_the_measurements(theme: str) -> None:
    picture = scaling_figure(MODEL, LINKS, measured={1: 0.1, 2: 0.2}, theme=theme)  # type: ignore[arg-type]
    (axes,) = picture.axes
    drawn = {str(line.get_label()): line.get_xydata() for line in axes.lines}
    assert list(drawn) == ["model: slow", "model: fast", "measured"]
    for link in LINKS:
        expected = [[number, MODEL.efficiency(number, link)] for number in GPUS]
        assert drawn[f"model: {link.name}"] == pytest.approx(np.array(expected))
    assert drawn["measured"] == pytest.approx(np.array([[1, 1.0], [2, 0.5]]))
    for link, band in zip(LINKS, axes.collections, strict=True):
        corners = band.get_paths()[0].vertices
        best = MODEL.efficiency(1024, link, hidden=BACKWARD_SHARE)
        assert max(y for x, y in corners if x == 1024) == pytest.approx(best)
    assert picture.png().startswith(b"\x89PNG")


def test_the_title_names_the_model_and_its_prediction() -> None:
    low, high = MODEL.efficiency(1024, LINKS[0]), MODEL.efficiency(1024, LINKS[0], hidden=BACKWARD_SHARE)
    finding = scaling_figure(MODEL, LINKS[:1]).finding
    assert finding == (
        "A model, not a measurement: with 100 MB of gradients and 100 ms a step, "
        f"1,024 GPUs reach this share of linear scaling: {low:.0%} to {high:.0%} over slow."
    )
    assert (f"{low:.0%}", f"{high:.0%}") == ("33%", "43%")


def test_there_must_be_something_to_draw() -> None:
    with pytest.raises(EvidenceError, match="takes a link"):
        scaling_figure(MODEL, ())
    with pytest.raises(EvidenceError, match="two numbers of GPUs"):
        scaling_figure(MODEL, LINKS, ranks=(8,))
