"""The serving figure: throughput against the 99th percentile of the latency (lesson 07)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import matplotlib
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cookbook.errors import EvidenceError
from cookbook.plots.labels import Point, place_labels
from cookbook.plots.picture import Picture, Theme, new_picture, style
from cookbook.serving import ServingResult

MARKER_SIZE = 7.0  # typographic points
PIECES = 60  # of a line, for the search for free places beside it


def serving_figure(results: Iterable[ServingResult], *, theme: Theme = "light") -> Picture:
    """Draw throughput against the 99th percentile of the latency: a line for each batch limit, a point for each load.

    Up is more, left is sooner. Each point is labelled with its load. The title compares the best throughput
    of the largest batch limit with that of the smallest, and what their latencies were.

    Args:
        results: from `serve_load` or `serve_arrivals`.
        theme: ``light`` or ``dark``.

    Raises:
        EvidenceError: there is no result.
    """
    lines: dict[int, list[ServingResult]] = {}
    for result in results:
        lines.setdefault(result.max_batch, []).append(result)
    if not lines:
        raise EvidenceError("There is no result to draw: put a load on a server first.")
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(_finding(lines), theme=theme)
        points: list[Point] = []
        names, drawn = [], []
        for limit, line in sorted(lines.items()):
            line = sorted(line, key=lambda result: result.concurrency or result.rate or 0)
            places = [(1e3 * result.p99, result.throughput) for result in line]
            label = "one image a call" if limit == 1 else f"batches of up to {limit}"
            axes.plot(*zip(*places, strict=True), ms=MARKER_SIZE, lw=1, label=label)
            points += places
            drawn += [_steps(*ends) for ends in itertools.pairwise(places)]
            names += [result.load + (f", {result.rejected} rejected" if result.rejected else "") for result in line]
        axes.set_xscale("log")
        axes.set_xlabel("latency, 99th percentile, ms (log scale; left is sooner)")
        axes.set_ylabel("answered requests per second")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.12, y=0.12)
        axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
        place_labels(picture, axes, points, names, [MARKER_SIZE / 2] * len(points), drawn)
    return picture


def _steps(start: Point, end: Point) -> list[Point]:
    """Cut a line of a figure with a logarithmic x-axis so finely that the boxes of its pieces cover little beside it."""
    shares = [step / PIECES for step in range(PIECES + 1)]
    return [(start[0] ** (1 - share) * end[0] ** share, start[1] * (1 - share) + end[1] * share) for share in shares]


def _finding(lines: dict[int, list[ServingResult]]) -> str:
    """Say what the largest batches bring, and at which price."""

    def best(limit: int) -> ServingResult:
        return max(lines[limit], key=lambda result: result.throughput)

    def described(result: ServingResult) -> str:
        return f"{result.throughput:,.0f} requests/s with {result.load} and {1e3 * result.p99:.3g} ms at the 99th percentile"

    small, large = best(min(lines)), best(max(lines))
    if small is large:
        return f"Batches of up to {large.max_batch} serve at most {described(large)}."
    factor = large.throughput / small.throughput
    return (
        f"Batches of up to {large.max_batch} serve {factor:.2f} times as many requests as batches of up to {small.max_batch}: "
        f"at most {described(large)}, instead of {described(small)}."
    )
