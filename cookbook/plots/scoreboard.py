"""The scoreboard figure: accuracy against latency, with the Pareto front (lesson 00)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cookbook.errors import EvidenceError, UsageError
from cookbook.evidence.rows import Rows, latest
from cookbook.evidence.tables import quantity, skipped_note
from cookbook.measure.measurement import Measurement
from cookbook.plots.labels import Point, place_labels
from cookbook.plots.picture import INK, MARKERS, OKABE_ITO, Picture, Theme, new_picture, style

FRONT_LINE: dict[str, Any] = {"lw": 1, "ls": "--", "marker": "", "alpha": 0.6}
LARGEST_AREA, SMALLEST_AREA = 420.0, 20.0  # of a marker, in square points


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other point beats, by ascending latency.

    A point is beaten by one that is at least as fast and at least as accurate, and better in one
    of the two. Equal points do not beat each other.

    Args:
        points: (latency, accuracy) pairs: less latency is better, more accuracy is better.

    Raises:
        UsageError: a number is not finite.
    """
    if not all(math.isfinite(number) for point in points for number in point):
        raise UsageError("A point of the Pareto front is not finite: leave out candidates that were not measured.")
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def scoreboard_figure(measurements: Iterable[Measurement], *, theme: Theme = "light", batch: int = 1) -> Picture:
    """Draw accuracy against latency, with the Pareto front; the area of a marker shows the bytes.

    Bars are Wilson's 95 % interval of the accuracy and the 10th to 90th percentile of the latency.
    Colour and marker stand for the runtime. Candidates without accuracy or latency are counted
    below the axis; of repeated measurements the newest is drawn.

    Args:
        measurements: for example from `Ledger.measurements`.
        theme: ``light`` or ``dark``.
        batch: the batch size whose latency is drawn.

    Raises:
        EvidenceError: no measurement has both an accuracy and a latency at this batch size.
    """
    everything = latest(measurements)
    rows = [row for row in everything if row.accuracy is not None and batch in row.latency]
    if not rows:
        raise EvidenceError(f"No measurement has an accuracy and a latency at batch {batch}: measure a candidate first.")
    points = [(1e3 * row.latency[batch].median, 100 * (row.accuracy or 0.0)) for row in rows]
    front = pareto_front(points)
    several = len({row.provenance.device for row in rows}) > 1
    series = [row.runtime + (f", {row.provenance.device}" if several else "") for row in rows]
    looks = dict(zip(dict.fromkeys(series), zip(itertools.cycle(OKABE_ITO), itertools.cycle(MARKERS)), strict=False))
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(_finding(rows, points, front, batch), theme=theme)
        lines = [_stairs([points[index] for index in front], max(x for x, _ in points))]
        axes.plot(*zip(*lines[0], strict=True), color=INK[theme], zorder=1, **FRONT_LINE)
        for row, point, name in zip(rows, points, series, strict=True):
            lines += _draw_point(axes, row, point, looks[name], _area(row.bytes, rows), batch)
        axes.set_xscale("log")
        _label_axes(axes, batch, _notes(rows, everything))
        _add_legends(axes, looks, rows, INK[theme])
        names = [row.subject + (" (quick)" if row.provenance.profile == "quick" else "") for row in rows]
        radii = [math.sqrt(_area(row.bytes, rows)) / 2 for row in rows]
        place_labels(picture, axes, points, names, radii, lines)
    return picture


def _stairs(front: Sequence[Point], end: float) -> list[Point]:
    """Return the corners of the line from each point of the front to below the next, and on to `end`."""
    corners = list(front[:1])
    for (_, y), (x, higher) in itertools.pairwise(front):
        corners += [(x, y), (x, higher)]
    return [*corners, (end, front[-1][1])]


def _draw_point(
    axes: Axes, row: Measurement, point: Point, look: tuple[str, str], area: float, batch: int
) -> list[list[Point]]:
    """Draw one candidate with its two intervals, and return these as lines."""
    (x, y), (color, marker), timing = point, look, row.latency[batch]
    low, high = row.accuracy_interval or (y / 100, y / 100)
    bars = [[(1e3 * timing.p10, y), (1e3 * timing.p90, y)], [(x, 100 * low), (x, 100 * high)]]
    for bar in bars:
        axes.plot(*zip(*bar, strict=True), color=color, lw=1, marker="", alpha=0.5, zorder=2)
    face, edge = ("none", color) if row.bytes is None else (color, axes.get_facecolor())
    axes.scatter([x], [y], s=area, marker=marker, facecolor=face, edgecolor=edge, linewidth=0.8, zorder=3)
    return bars


def _area(size: float | None, rows: Sequence[Measurement]) -> float:
    """Return a marker's area: proportional to the bytes, but never too small to see."""
    largest = max((row.bytes or 0 for row in rows), default=0)
    return max(SMALLEST_AREA, LARGEST_AREA * size / largest) if size and largest else SMALLEST_AREA


def _notes(rows: Sequence[Measurement], everything: Rows[Measurement]) -> list[str]:
    """Return what a reader must know besides the points, one sentence a line."""
    notes = [skipped_note(everything.skipped)] if everything.skipped else []
    if len(everything) > len(rows):
        notes.append(f"{len(everything) - len(rows)} more without accuracy or latency")
    if any(row.provenance.profile == "quick" for row in rows):
        notes.append("(quick): quick profile, not evidence")
    return notes


def _label_axes(axes: Axes, batch: int, notes: Sequence[str]) -> None:
    images = "1 image" if batch == 1 else f"{batch} images"
    axes.set_xlabel("\n".join([f"latency for {images}, median, ms (log scale; left is faster)", *notes]))
    axes.set_ylabel("accuracy, %")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.25, high * 1.25)
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _add_legends(axes: Axes, looks: dict[str, tuple[str, str]], rows: Sequence[Measurement], ink: str) -> None:
    """Explain runtimes, the front and sizes beside the axes."""
    handles = [
        Line2D([], [], ls="", marker=marker, color=color, ms=8, label=name.replace("$", r"\$"))  # no formula
        for name, (color, marker) in looks.items()
    ]
    if len(rows) > 1:
        handles.append(Line2D([], [], color=ink, label="Pareto front", **FRONT_LINE))
    sizes = sorted(row.bytes for row in rows if row.bytes)
    shown = sizes[-1:] if not sizes or sizes[-1] < 1.5 * sizes[0] else [sizes[0], sizes[-1]]
    circles = {f"{quantity(size, 'B')} on disk": _area(size, rows) for size in shown}
    if any(row.bytes is None for row in rows):
        circles["hollow: size not measured"] = SMALLEST_AREA
    for text, area in circles.items():
        handles.append(Line2D([], [], ls="", marker="o", mfc="none", color=ink, ms=math.sqrt(area), label=text))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), labelspacing=1.4, handletextpad=1.0)


def _finding(rows: Sequence[Measurement], points: Sequence[Point], front: Sequence[int], batch: int) -> str:
    """Say in one sentence which candidates nothing beats."""
    fastest, best = front[0], front[-1]

    def described(index: int) -> str:
        return f"{rows[index].subject} in {rows[index].runtime} ({points[index][1]:.2f}%, {points[index][0]:.3g} ms)"

    if len(rows) == 1:
        return f"{described(0)} at batch {batch} is the only candidate."
    if len(front) == 1:
        return f"{described(best)} is the fastest of {len(rows)} candidates at batch {batch}, and none is more accurate."
    return (
        f"Of {len(rows)} candidates at batch {batch}, {len(front)} are beaten by none, "
        f"from {described(fastest)} to {described(best)}."
    )
