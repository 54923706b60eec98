"""Figures in one style, light and dark, each with the sentence that states its finding.

In a notebook a `Picture` is the last expression of a cell and shows itself once, whatever
matplotlib's backend is. Nothing here touches ``pyplot`` or its global state.
"""

from cookbook.plots.distillation import soft_targets_figure, temperature_figure
from cookbook.plots.distributed import scaling_figure
from cookbook.plots.kernels import graph_figure, kernel_figure, operator_figure
from cookbook.plots.labels import place_labels
from cookbook.plots.picture import MARKERS, OKABE_ITO, Picture, Theme, new_picture, style
from cookbook.plots.scoreboard import pareto_front, scoreboard_figure
from cookbook.plots.serving import serving_figure
from cookbook.plots.speed import gradient_figure, stack_figure
from cookbook.plots.throughput import batch_sweep_figure, breakdown_figure

__all__ = [
    "MARKERS",
    "OKABE_ITO",
    "Picture",
    "Theme",
    "batch_sweep_figure",
    "breakdown_figure",
    "gradient_figure",
    "graph_figure",
    "kernel_figure",
    "new_picture",
    "operator_figure",
    "pareto_front",
    "place_labels",
    "scaling_figure",
    "scoreboard_figure",
    "serving_figure",
    "soft_targets_figure",
    "stack_figure",
    "style",
    "temperature_figure",
]
