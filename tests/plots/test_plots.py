"""Figures: the Pareto front, labels that cover nothing, one display in Jupyter, the finding's truth."""

from __future__ import annotations

import base64
import io
import random
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib._pylab_helpers import Gcf
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Annotation

from cookbook.environment import Provenance
from cookbook.errors import EvidenceError, UsageError
from cookbook.evidence import Measurement, Rows
from cookbook.measure.latency import Timing
from cookbook.plots import MARKERS, OKABE_ITO, Picture, new_picture, pareto_front, place_labels, scoreboard_figure, style
from cookbook.plots.picture import GROUND, INK


def measured(subject: str, milliseconds: float, correct: int, size: int | None = 1_000_000, **changes: Any) -> Measurement:
    origin = Provenance(changes.pop("profile", "full"), changes.pop("device", "cpu"), "a processor", (), 1, "3.11.0", {}, None)
    samples = tuple(milliseconds * 1e-3 * (1 + 0.002 * step) for step in range(5))
    fields: dict[str, Any] = {"runtime": "ONNX Runtime", "correct": correct, "images": 10_000, "bytes": size}
    fields["latency"] = {batch: Timing(samples, 1, batch) for batch in (1, 64)}
    return Measurement(subject=subject, lesson="00", split="test", provenance=origin, **{**fields, **changes})


ROWS = [
    measured("ResNet", 3.2, 9481, 4_350_000, runtime="torch eager"),
    measured("ResNet", 1.3, 9481, 4_360_000),
    measured("pruned", 0.61, 9455, 2_100_000),
    measured("pruned, tuned", 0.61, 9471, 2_100_000),
    measured("int8", 0.42, 9470, 1_150_000),
    measured("QAT", 0.43, 9478, 1_150_000),
    measured("small", 0.1, 9340, 310_000, profile="quick"),
    measured("unsized $x", 1.6, 9480, None, runtime="torch compile"),
]


def beaten(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Say whether `other` is at least as fast and as accurate as `one`, and better in one of the two."""
    return other[0] <= one[0] and other[1] >= one[1] and other != one


@pytest.mark.parametrize("levels", [2, 4, 50])
def test_the_front_is_what_brute_force_finds(levels: int) -> None:
    draw = random.Random(levels)
    for count in range(1, 25):
        points = [(float(draw.randrange(levels)), float(draw.randrange(levels))) for _ in range(count)]
        expected = [index for index, point in enumerate(points) if not any(beaten(point, other) for other in points)]
        front = pareto_front(points)
        assert sorted(front) == expected
        assert [points[index][0] for index in front] == sorted(points[index][0] for index in front)


def test_the_front_of_nothing_is_empty_and_a_gap_is_refused() -> None:
    assert pareto_front([]) == []
    for gap in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="not finite"):
            pareto_front([(1.0, 90.0), (gap, 91.0)])


def labels_of(picture: Picture) -> list[Annotation]:
    return [text for text in picture.axes[0].texts if isinstance(text, Annotation) and text.get_text()]


@pytest.mark.parametrize("seed", range(3))
def test_labels_cover_neither_labels_nor_markers_nor_leave_the_axes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    picture, axes = new_picture("Many points.")
    points = [(float(x), float(y)) for x, y in generator.random((14, 2))]
    radii = [float(radius) for radius in generator.uniform(2, 9, len(points))]
    axes.set(xlim=(-0.1, 1.1), ylim=(-0.1, 1.1))
    wall = [(0.5, -0.1), (0.5, 1.1)]
    labels = place_labels(picture, axes, points, [f"candidate {number}" for number in range(len(points))], radii, [wall])
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])
    scale = picture.dpi / 72
    for (x, y), radius in zip(axes.transData.transform(points), radii, strict=True):
        nearest = [(np.clip(x, box.x0, box.x1) - x, np.clip(y, box.y0, box.y1) - y) for box in boxes]
        assert min(np.hypot(*distance) for distance in nearest) >= scale * radius
    wall_x = axes.transData.transform(wall[0])[0]
    assert not any(box.x0 <= wall_x <= box.x1 for box in boxes)
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


def test_where_lines_are_everywhere_they_are_covered_and_names_are_not() -> None:
    picture, axes = new_picture("Bars from top to bottom.")
    points = [(0.3 + 0.06 * number, 0.5) for number in range(6)]
    bars = [[(x / 50, 0.0), (x / 50, 1.0)] for x in range(51)]
    labels = place_labels(picture, axes, points, [f"candidate {number}" for number in range(6)], [4.0] * 6, bars)
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])


def test_points_on_one_spot_still_get_a_label_each() -> None:
    picture, axes = new_picture("One spot.")
    labels = place_labels(picture, axes, [(0.5, 0.5)] * 20, ["one of the very same candidates " * 2] * 20, [5.0] * 20)
    assert len(labels) == 20


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_scoreboard_figure_shows_every_candidate_in_its_theme(theme: Any) -> None:
    picture = scoreboard_figure(ROWS, theme=theme)
    axes = picture.axes[0]
    assert sorted(label.get_text() for label in labels_of(picture)) == sorted(
        row.subject + (" (quick)" if row.provenance.profile == "quick" else "") for row in ROWS
    )
    assert axes.get_xscale() == "log"
    assert "not evidence" in axes.get_xlabel()
    image = imread(io.BytesIO(picture.png()))
    assert image[0, 0, :3] == pytest.approx(to_rgb(GROUND[theme]), abs=0.01)
    assert axes.title.get_color() == INK[theme]
    assert all(label.get_color() == INK[theme] for label in labels_of(picture))


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2."""

    def luminance(color: str) -> float:
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
        return float(np.dot((0.2126, 0.7152, 0.0722), parts))

    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_markers_stand_out_from_the_ground(theme: str) -> None:
    assert contrast(INK[theme], GROUND[theme]) >= 7
    assert min(contrast(color, GROUND[theme]) for color in OKABE_ITO) >= 2


def test_area_is_proportional_to_bytes_and_a_marker_without_bytes_is_hollow() -> None:
    rows = [measured("a", 1, 9000, 4_000_000), measured("b", 2, 9100, 1_000_000), measured("c", 3, 9200, None)]
    one, quarter, hollow = scoreboard_figure(rows).axes[0].collections
    assert one.get_sizes()[0] / quarter.get_sizes()[0] == pytest.approx(4)
    assert (len(one.get_facecolor()), len(hollow.get_facecolor())) == (1, 0)
    legend = scoreboard_figure(rows).axes[0].get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["ONNX Runtime", "Pareto front", "1.00 MB on disk", "4.00 MB on disk", "hollow: size not measured"]


def test_every_runtime_has_its_own_colour_and_marker() -> None:
    rows = [measured(f"net {number}", 1 + number, 9000 + number, runtime=f"runtime {number}") for number in range(8)]
    legend = scoreboard_figure(rows).axes[0].get_legend()
    assert legend is not None
    handles = legend.legend_handles[:8]
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == 8  # type: ignore[union-attr]
    assert len(set(OKABE_ITO)) == 6
    assert len(set(MARKERS)) == 7


def test_the_drawn_front_runs_through_the_points_that_are_beaten_by_none() -> None:
    picture = scoreboard_figure(ROWS)
    line = picture.axes[0].lines[0].get_xydata()
    assert line is not None
    corners = {(round(float(x), 6), round(float(y), 6)) for x, y in line[:-1]}  # the last ends beside the slowest
    for row in ROWS:
        point = (round(1e3 * row.latency[1].median, 6), round(100 * (row.accuracy or 0), 6))
        assert (point in corners) == (row.subject in ("small", "int8", "QAT") or row is ROWS[1])


def test_the_finding_is_computed_from_the_rows() -> None:
    assert scoreboard_figure(ROWS).finding == (
        "Of 8 candidates at batch 1, 4 are beaten by none, from small in ONNX Runtime (93.40%, 0.1 ms) "
        "to ResNet in ONNX Runtime (94.81%, 1.31 ms)."
    )
    assert scoreboard_figure(ROWS[:2], batch=64).finding == (
        "ResNet in ONNX Runtime (94.81%, 1.31 ms) is the fastest of 2 candidates at batch 64, and none is more accurate."
    )
    assert "is the only candidate" in scoreboard_figure(ROWS[:1]).finding


def test_what_is_not_drawn_is_said() -> None:
    rows = [*ROWS[:2], replace(ROWS[0], subject="no time", latency={}), replace(ROWS[0], subject="no score", correct=None)]
    assert "2 more without accuracy or latency" in scoreboard_figure(rows).axes[0].get_xlabel()
    assert "3 damaged lines skipped." in scoreboard_figure(Rows(ROWS, skipped=3)).axes[0].get_xlabel()
    with pytest.raises(EvidenceError, match="at batch 1: measure"):
        scoreboard_figure(rows[2:])
    with pytest.raises(EvidenceError, match="at batch 7: measure"):
        scoreboard_figure(rows, batch=7)


def test_devices_are_told_apart() -> None:
    legend = scoreboard_figure([ROWS[1], measured("ResNet", 0.2, 9481, device="cuda (a GPU)")]).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][:2] == ["ONNX Runtime, cpu", "ONNX Runtime, cuda (a GPU)"]


def test_a_picture_is_displayed_once_with_its_finding_as_text() -> None:
    picture, axes = new_picture("Nothing to see.")
    axes.plot([1, 2], [2, 1])
    display = DisplayFormatter()
    data, metadata = display.format(picture)
    assert set(data) == {"image/png", "text/plain"}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == "Nothing to see."
    assert metadata["image/png"]["alt"] == "Nothing to see."
    # matplotlib's inline backend registers a printer for every Figure: it takes the place of ours, beside the same text
    display.formatters["image/png"].for_type(Figure, lambda figure: b"drawn by the backend")
    again, metadata = display.format(picture)
    assert again == {"image/png": b"drawn by the backend", "text/plain": "Nothing to see."}
    assert metadata["image/png"]["alt"] == "Nothing to see."


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    new_picture("Nothing to see.", theme="dark")
    assert dict(matplotlib.rcParams) == before
    scoreboard_figure(ROWS[:2], theme="dark").png()
    assert dict(matplotlib.rcParams) == before
    assert Gcf.figs == {}, "pyplot would show its figures once more at the end of a cell"


def test_an_unknown_theme_is_refused() -> None:
    with pytest.raises(UsageError, match="'sepia'"):
        style("sepia")  # type: ignore[arg-type]
