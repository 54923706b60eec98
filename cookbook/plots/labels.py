"""Names beside the points of a figure, placed so that nothing is covered (lesson 00)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

Point = tuple[float, float]

# typographic points from the marker's edge, tried in this order
DISTANCES = (3.0, 8.0, 16.0, 28.0, 44.0, 64.0, 90.0, 120.0, 150.0)
DIRECTIONS = ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
ALIGN_X = {1: "left", 0: "center", -1: "right"}
ALIGN_Y = {1: "bottom", 0: "center", -1: "top"}


def place_labels(
    picture: Figure,
    axes: Axes,
    points: Sequence[Point],
    names: Sequence[str],
    radii: Sequence[float],
    lines: Sequence[Sequence[Point]] = (),
) -> list[Annotation]:
    """Write a name beside each point so that it covers no other name, marker or line, and stays in the axes.

    Positions around the point are tried from near to far; all but the nearest get a line to their
    point, which crosses no name. When no position is free, a drawn line is covered rather than a
    name, then a marker or a name's line; when that does not help either, the nearest is taken. The
    figure's layout is fixed by this.

    Args:
        picture: with an Agg canvas.
        axes: with its final scales and limits.
        points: in data coordinates.
        names: one for each point.
        radii: of the points' markers, in typographic points.
        lines: corners, in data coordinates, of drawn lines that run parallel to the axes.
    """
    picture.draw_without_rendering()  # the layout settles
    picture.set_layout_engine("none")
    scale = picture.dpi / 72  # pixels
    centres = axes.transData.transform(points)
    markers = [Bbox([centre - scale * radius, centre + scale * radius]) for centre, radius in zip(centres, radii, strict=True)]
    drawn = [Bbox(ends) for line in lines for ends in itertools.pairwise(axes.transData.transform(line))]
    frame = axes.get_window_extent()
    labels: list[Annotation] = []
    written: list[Bbox] = []
    leaders: list[Path] = []

    def free(box: Bbox, leader: Path, clear: Sequence[Bbox], crossing: bool) -> bool:
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if not inside or any(box.overlaps(other) for other in (*clear, *written)):
            return False
        crossed = any(leader.intersects_bbox(other) for other in written) or any(one.intersects_bbox(box) for one in leaders)
        return crossing or not crossed

    concessions: list[tuple[list[Bbox], bool]] = [([*markers, *drawn], False), (markers, False), ([], True)]
    for point, centre, name, radius in zip(points, centres, names, radii, strict=True):
        label = axes.annotate(name, point, (0, 0), textcoords="offset points", fontsize=9, zorder=4, parse_math=False)
        label.set_in_layout(False)
        for concession, distance, (right, up) in itertools.product(concessions, DISTANCES, DIRECTIONS):
            offset = (right * (radius + distance), up * (radius + distance))
            label.set(position=offset, ha=ALIGN_X[right], va=ALIGN_Y[up])
            leader = Path([centre, (centre[0] + scale * offset[0], centre[1] + scale * offset[1])])
            if free(label.get_window_extent().padded(1), leader, *concession):
                if distance > DISTANCES[0]:
                    leaders.append(leader)
                    look = {"arrowstyle": "-", "lw": 0.6, "color": label.get_color(), "shrinkA": 0, "shrinkB": radius}
                    axes.annotate("", point, offset, textcoords="offset points", arrowprops=look).set_in_layout(False)
                break
        else:
            label.set(position=(radius + DISTANCES[0], 0), ha="left", va="center")
        written.append(label.get_window_extent())
        labels.append(label)
    return labels
