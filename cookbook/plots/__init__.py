"""Figures in one style, light and dark, each with the sentence that states its finding.

In a notebook a `Picture` is the last expression of a cell and shows itself once, whatever
matplotlib's backend is. Nothing here touches ``pyplot`` or its global state.
"""

from cookbook.plots.labels import place_labels
from cookbook.plots.picture import MARKERS, OKABE_ITO, Picture, Theme, new_picture, style
from cookbook.plots.scoreboard import pareto_front, scoreboard_figure

__all__ = [
    "MARKERS",
    "OKABE_ITO",
    "Picture",
    "Theme",
    "new_picture",
    "pareto_front",
    "place_labels",
    "scoreboard_figure",
    "style",
]
