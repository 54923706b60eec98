"""The scaling figure: what a model predicts for more GPUs than anyone measured (lesson 03)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.ticker import PercentFormatter

from cookbook.distributed.scaling import BACKWARD_SHARE, LINKS, Link, ScalingModel
from cookbook.errors import EvidenceError
from cookbook.evidence.tables import quantity
from cookbook.plots.picture import INK, MARKERS, OKABE_ITO, Picture, Theme, new_picture, style

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)


def scaling_figure(
    model: ScalingModel,
    links: Sequence[Link] = LINKS,
    *,
    ranks: Sequence[int] = GPUS,
    measured: Mapping[int, float] | None = None,
    theme: Theme = "light",
) -> Picture:
    """Draw the modelled scaling efficiency against the number of GPUs, one band for each link.

    The lower edge of a band, with the markers, sends the gradients after the computation; the upper edge hides as
    much of the sending as fits beside the backward pass. Measured steps are large crosses. The title says that
    this is a model.

    Args:
        model: from a measured step and its gradient bytes.
        links: between the GPUs.
        ranks: numbers of GPUs to extrapolate to.
        measured: seconds of a measured step by the number of ranks, drawn beside the model.
        theme: ``light`` or ``dark``.

    Raises:
        EvidenceError: there is no link, or fewer than two numbers of GPUs.
    """
    numbers = sorted(ranks)
    if not links or len(numbers) < 2:
        raise EvidenceError("A scaling figure takes a link and two numbers of GPUs or more: name them.")
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(_finding(model, links, numbers[-1]), theme=theme)
        for link, color, marker in zip(links, OKABE_ITO, MARKERS, strict=False):
            worst = [model.efficiency(number, link) for number in numbers]
            best = [model.efficiency(number, link, hidden=BACKWARD_SHARE) for number in numbers]
            axes.fill_between(numbers, worst, best, color=color, alpha=0.2, lw=0)
            axes.plot(numbers, worst, color=color, marker=marker, label=f"model: {link.name}")
        if measured:
            places = sorted(measured)
            shares = [model.compute / measured[number] for number in places]
            axes.plot(places, shares, "X", color=INK[theme], ms=10, label="measured")
        axes.set_xscale("log", base=2)
        ticks = sorted({*numbers, *(measured or ())})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("GPUs, or measured processes, each with the same batch (log scale)")
        axes.set_ylabel("share of linear scaling")
        title = "lower edge: gradients sent after\nthe computation; upper edge:\nbeside the backward pass"
        axes.legend(title=title, alignment="left", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return picture


def _finding(model: ScalingModel, links: Sequence[Link], most: int) -> str:
    predicted = ", ".join(
        f"{model.efficiency(most, link):.0%} to {model.efficiency(most, link, hidden=BACKWARD_SHARE):.0%} over {link.name}"
        for link in links
    )
    start = (
        f"A model, not a measurement: with {quantity(model.size, 'B')} of gradients and {1e3 * model.compute:.3g} ms a step, "
    )
    return f"{start}{most:,} GPUs reach this share of linear scaling: {predicted}."
