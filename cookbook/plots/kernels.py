"""Figures of a deployed model: time by operator, operators by number, and the graph itself (lesson 07)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from matplotlib.path import Path

from cookbook.deploy.folding import Box, FoldedGraph, folded_graph
from cookbook.deploy.graph import GraphSummary
from cookbook.deploy.operators import CONVERSIONS, MATRIX, Precision, family
from cookbook.deploy.profiling import Profile
from cookbook.plots.labels import Point
from cookbook.plots.picture import GRID, INK, OKABE_ITO, SIZE, Picture, Theme, new_picture, style

ROWS = 14  # bars; what is left over becomes one more
# colour and hatch, so that no figure rests on colour alone
LOOKS: dict[Precision, tuple[str, str]] = {
    "int8": (OKABE_ITO[2], ""),
    "float": (OKABE_ITO[0], "//"),
    "other": (OKABE_ITO[1], ".."),
}
MEANINGS: dict[Precision, str] = {"int8": "on int8", "float": "on floats", "other": "conversions and shapes"}

COLUMNS = 7  # of boxes before the drawing goes on in a new row
BOX_WIDTH, GAP = 1.0, 0.24
TRACKS = 3  # heights above a row at which lines may run
LINE, PADDING, LANE_GAP, ROW_GAP = 1.0, 0.6, 0.7, 1.6  # heights, in lines of text
INCHES_A_LINE = 0.155


def kernel_figure(profile: Profile, *, theme: Theme = "light") -> Picture:
    """Draw the time in each type of operator as bars, the longest on top; colour and hatch tell the precision.

    Args:
        profile: from `cookbook.deploy.profile`.
        theme: ``light`` or ``dark``.
    """
    rows = profile.operators[:ROWS]
    rest = profile.operators[ROWS:]
    names = [f"{row.operator} ×{row.count}" for row in rows]
    values = [1e3 * row.seconds for row in rows]
    looks = [LOOKS[row.precision] for row in rows]
    labels = [f"{row.share:.1%}" for row in rows]
    if rest:
        names.append(f"{len(rest)} more types")
        values.append(1e3 * sum(row.seconds for row in rest))
        looks.append((GRID[theme], ""))
        labels.append(f"{sum(row.share for row in rest):.1%}")
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(_time_finding(profile), theme=theme, size=_size(len(names)))
        _bars(axes, names, values, looks, labels)
        axes.set_xlabel(f"ms in operators, mean of {profile.runs} runs; batch size {profile.batch}, threads: {profile.threads}")
        present = [kind for kind in LOOKS if any(row.precision == kind for row in rows)]
        handles = [Patch(facecolor=LOOKS[kind][0], hatch=LOOKS[kind][1], label=MEANINGS[kind]) for kind in present]
        axes.legend(handles=handles, loc="lower right")
    return picture


def operator_figure(summary: GraphSummary, *, theme: Theme = "light") -> Picture:
    """Draw how many nodes of each operator a file has, the most frequent on top.

    Args:
        summary: from `cookbook.deploy.graph_summary`.
        theme: ``light`` or ``dark``.
    """
    counts = dict(list(summary.operators.items())[:ROWS])
    rest = len(summary.operators) - len(counts)
    if rest:
        counts[f"{rest} more"] = summary.nodes - sum(counts.values())
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(_count_finding(summary), theme=theme, size=_size(len(counts)))
        looks = [(OKABE_ITO[0], "")] * len(counts)
        _bars(axes, list(counts), list(counts.values()), looks, [str(count) for count in counts.values()])
        axes.set_xlabel("nodes")
    return picture


def graph_figure(path: str | os.PathLike[str], *, theme: Theme = "light", limit: int = 150) -> Picture:
    """Draw an ONNX graph compactly: from left to right, row below row, chains of nodes in one box.

    The graph's inputs and constants are not drawn.

    Args:
        path: the file.
        theme: ``light`` or ``dark``.
        limit: with more boxes than this, a box stands for a stretch of the graph and counts its operators.

    Raises:
        DeploymentError: the file is missing or not readable as ONNX.
        UsageError: a limit below 1, or a graph without nodes.
    """
    graph = folded_graph(path, limit=limit)
    tops, height = _rows(graph)
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(_graph_finding(graph), theme=theme, size=(SIZE[0], 1.0 + INCHES_A_LINE * height))
        axes.set(xlim=(-GAP, COLUMNS * (BOX_WIDTH + GAP)), ylim=(-height, ROW_GAP))
        axes.set_axis_off()
        places = [_place(box, tops, graph.boxes) for box in graph.boxes]
        _draw_edges(axes, graph, places, tops, INK[theme])
        for index, box in enumerate(graph.boxes):
            _draw_box(axes, box, places[index], theme)
        axes.legend(handles=_box_legend(graph.boxes, theme), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3)
    return picture


def _size(rows: int) -> tuple[float, float]:
    """Return the size of a picture with this many bars, in inches."""
    return SIZE[0], 1.3 + 0.27 * rows


def _bars(
    axes: Axes, names: list[str], values: list[float] | list[int], looks: list[tuple[str, str]], labels: list[str]
) -> None:
    """Draw horizontal bars, the first on top, each with its label at its end."""
    bars = axes.barh(range(len(names)), values, color=[color for color, _ in looks])
    for bar, (_, hatch) in zip(bars, looks, strict=True):
        bar.set_hatch(hatch)
        bar.set_edgecolor(axes.get_facecolor())
    axes.bar_label(bars, labels, padding=3, fontsize=9)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)


def _time_finding(profile: Profile) -> str:
    """Say in one sentence where the time goes."""
    first = profile.operators[0]
    shares = {kind: sum(row.share for row in profile.operators if row.precision == kind) for kind in LOOKS}
    sentence = f"{first.operator} takes {first.share:.0%} of the {1e3 * profile.seconds:.3g} ms in operators"
    if shares["int8"]:
        sentence += f"; kernels on int8 take {shares['int8']:.0%}, on floats {shares['float']:.0%}"
    return f"{profile.path.name}: {sentence}."


def _count_finding(summary: GraphSummary) -> str:
    """Say in one sentence what the file consists of."""
    if not summary.operators:
        return f"{summary.path.name} has no nodes."
    name, count = next(iter(summary.operators.items()))
    return f"{summary.path.name} has {summary.nodes} nodes of {len(summary.operators)} operators; {count} are {name}."


def _graph_finding(graph: FoldedGraph) -> str:
    """Say in one sentence what is drawn."""
    what = "stretches" if graph.strips else "chains"
    deepest = 1 + max(box.column for box in graph.boxes)
    hidden = f"; {graph.hidden} that work on constants only are left out" if graph.hidden else ""
    return f"{graph.path.name}: {graph.nodes} nodes in {len(graph.boxes)} {what}, {deepest} one after another{hidden}."


def _height(box: Box) -> float:
    return LINE * len(box.lines) + PADDING


def _rows(graph: FoldedGraph) -> tuple[list[float], float]:
    """Return the upper edge of every row of columns, and the height of all, in lines of text."""
    columns: dict[int, float] = {}
    for box in graph.boxes:
        columns[box.column] = columns.get(box.column, -LANE_GAP) + _height(box) + LANE_GAP
    tops, height = [], 0.0
    for row in range(max(columns) // COLUMNS + 1):
        tops.append(height)
        height += max(size for column, size in columns.items() if column // COLUMNS == row) + ROW_GAP
    return tops, height


def _place(box: Box, tops: Sequence[float], boxes: Iterable[Box]) -> Point:
    """Return the left and the upper edge of a box."""
    above = [other for other in boxes if other.column == box.column and other.lane < box.lane]
    row, column = divmod(box.column, COLUMNS)
    return column * (BOX_WIDTH + GAP), -tops[row] - sum(_height(other) + LANE_GAP for other in above)


def _draw_edges(axes: Axes, graph: FoldedGraph, places: Sequence[Point], tops: Sequence[float], ink: str) -> None:
    """Draw every edge: straight to the next column, and elsewhere in the gaps between columns and above a row."""
    for number, (start, end) in enumerate(graph.edges):
        tail = (places[start][0] + BOX_WIDTH, places[start][1] - _height(graph.boxes[start]) / 2)
        head = (places[end][0], places[end][1] - _height(graph.boxes[end]) / 2)
        corners = [tail, head]
        row = graph.boxes[end].column // COLUMNS
        neighbours = graph.boxes[end].column - graph.boxes[start].column == 1
        if not neighbours or graph.boxes[start].column // COLUMNS != row:
            track = number % TRACKS
            above = -tops[row] + ROW_GAP * (0.25 + 0.2 * track)
            out, back = tail[0] + GAP * (0.3 + 0.1 * track), head[0] - GAP * (0.6 - 0.1 * track)
            corners = [tail, (out, tail[1]), (out, above), (back, above), (back, head[1]), head]
        axes.add_patch(
            FancyArrowPatch(path=Path(corners), arrowstyle="-|>", mutation_scale=7, color=ink, lw=0.7, fill=False, zorder=1)
        )


def _look(box: Box) -> str:
    """Return what the box's colour stands for."""
    if any(family(name) in MATRIX for name in box.operators):
        return "with convolutions or matrix products"
    return "conversions only" if all(name in CONVERSIONS for name in box.operators) else "other operators"


def _fills(theme: Theme) -> Mapping[str, str]:
    return {
        "with convolutions or matrix products": OKABE_ITO[5],
        "conversions only": OKABE_ITO[1],
        "other operators": GRID[theme],
    }


def _draw_box(axes: Axes, box: Box, place: Point, theme: Theme) -> None:
    left, top = place
    look = _look(box)
    height = _height(box)
    face = _fills(theme)[look]
    axes.add_patch(Rectangle((left, top - height), BOX_WIDTH, height, facecolor=face, edgecolor=INK[theme], lw=0.6, zorder=2))
    ink = INK[theme] if look == "other operators" else INK["light"]  # the two colours are light in both themes
    text = "\n".join(_short(line) for line in box.lines)
    middle = (left + BOX_WIDTH / 2, top - height / 2)
    axes.text(*middle, text, color=ink, ha="center", va="center", fontsize=6.2, zorder=3, parse_math=False)


def _short(line: str, width: int = 19) -> str:
    """Return a line that fits into a box; what is cut is the name, not its number."""
    name, times, count = line.partition(" ×")
    room = width - len(times + count)
    return line if len(name) <= room else f"{name[: room - 1]}…{times}{count}"


def _box_legend(boxes: Iterable[Box], theme: Theme) -> list[Patch]:
    present = {_look(box) for box in boxes}
    return [Patch(facecolor=fill, edgecolor=INK[theme], label=name) for name, fill in _fills(theme).items() if name in present]
