"""Figures of the search lesson: what samplers found, and how fast, against chance (lesson 09)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import matplotlib
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from cookbook.errors import UsageError
from cookbook.plots.labels import Point
from cookbook.plots.picture import MARKERS, OKABE_ITO, Picture, Theme, new_picture, style
from cookbook.plots.scoreboard import pareto_front


def search_figure(clouds: Mapping[str, Sequence[Point]], *, theme: Theme = "light") -> Picture:
    """Draw every network that each sampler proposed, and the front of each as stairs.

    Args:
        clouds: by sampler, (latency as a share of the reference's, accuracy from 0 to 1) of the networks that it found.
        theme: ``light`` or ``dark``.

    Raises:
        UsageError: there are fewer than two samplers, more than there are colours, or one without a network.
    """
    _require_several(clouds)
    everything = sorted({(latency, accuracy) for cloud in clouds.values() for latency, accuracy in cloud})
    best = {everything[place] for place in pareto_front(everything)}
    shares = ", ".join(f"{name} {len(best & set(map(tuple, cloud)))}" for name, cloud in clouds.items())
    finding = f"Of the {len(best)} networks that no other beats in speed and accuracy, the samplers found: {shares}."
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(finding, theme=theme)
        end = max(latency for latency, _ in everything)
        for (name, cloud), color, marker in zip(clouds.items(), OKABE_ITO, MARKERS, strict=False):
            axes.plot(*zip(*cloud, strict=True), ls="", marker=marker, ms=5, color=color, alpha=0.6, label=name)
            front = [cloud[place] for place in pareto_front(cloud)]
            stairs = [*front, (end, front[-1][1])]
            axes.plot(*zip(*stairs, strict=True), drawstyle="steps-post", marker="", lw=1.2, color=color)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("measured latency as a share of the largest network's (log scale)")
        axes.set_ylabel("accuracy on validation")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(title="sampler;\nline: its front", alignment="left", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return picture


def hypervolume_figure(histories: Mapping[str, Sequence[Sequence[float]]], *, theme: Theme = "light") -> Picture:
    """Draw the hypervolume against the number of evaluated networks: the mean over seeds, and their range as a band.

    Args:
        histories: by sampler, one history a seed, all of one length.
        theme: ``light`` or ``dark``.

    Raises:
        UsageError: as in `search_figure`, or histories of different lengths.
    """
    _require_several(histories)
    lengths = {len(history) for runs in histories.values() for history in runs}
    if len(lengths) != 1 or lengths == {0}:
        raise UsageError(f"The histories have {sorted(lengths)} networks: give histories of one length.")
    (length,) = lengths
    ends = {name: [history[-1] for history in runs] for name, runs in histories.items()}
    means = ", ".join(f"{name} {fmean(values):.3f}" for name, values in ends.items())
    widest = max(max(values) - min(values) for values in ends.values())
    finding = f"Mean hypervolume after {length} networks: {means}; the seeds of one sampler differ by up to {widest:.3f}."
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(finding, theme=theme)
        counts = range(1, length + 1)
        for (name, runs), color, marker in zip(histories.items(), OKABE_ITO, MARKERS, strict=False):
            by_count = list(zip(*runs, strict=True))
            axes.fill_between(counts, list(map(min, by_count)), list(map(max, by_count)), color=color, alpha=0.15, lw=0)
            axes.plot(
                counts, list(map(fmean, by_count)), color=color, marker=marker, ms=5, markevery=max(1, length // 8),
                label=f"{name}, mean of {len(runs)} seeds",
            )  # fmt: skip
        axes.set_xlabel("networks evaluated")
        axes.set_ylabel("hypervolume; more is better")
        axes.legend(title="bands: range over seeds", alignment="left", loc="lower right")
    return picture


def _require_several(samplers: Mapping[str, Sequence[object]]) -> None:
    if not 2 <= len(samplers) <= len(OKABE_ITO) or not all(samplers.values()):
        raise UsageError(
            f"{len(samplers)} samplers make no comparison: give 2 to {len(OKABE_ITO)}, each with something that it found."
        )
