"""Figures of the pruning lesson: the width staircase, the sensitivity scan, accuracy against speed (lesson 04)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import matplotlib
from matplotlib.ticker import PercentFormatter

from cookbook.errors import UsageError
from cookbook.plots.labels import place_labels
from cookbook.plots.picture import INK, MARKERS, OKABE_ITO, SIZE, Picture, Theme, new_picture, style
from cookbook.pruning import PreferredMultiple, Sensitivity, Staircase

RADIUS = 4.0  # of a marker, in typographic points


def staircase_figure(staircase: Staircase, preferred: PreferredMultiple, *, theme: Theme = "light") -> Picture:
    """Draw latency against channels: median and 10th to 90th percentile, with the multiples that the runtime likes apart.

    The dashed line is what the widest network's time would become in proportion to the multiply-accumulates.

    Args:
        staircase: from `cookbook.pruning.width_staircase`.
        preferred: from `cookbook.pruning.preferred_multiple`.
        theme: ``light`` or ``dark``.
    """
    steps, multiple = staircase.steps, preferred.multiple
    narrow, wide, ratio = staircase.worst_inversion
    macs = {step.channels: step.macs for step in steps}
    fewer = 1 - macs[narrow] / macs[wide]
    comparison = f"{ratio.value:.2f} times as long as" if ratio.value > 1 else f"only {ratio.value:.2f} of the time of"
    finding = (
        f"{narrow} channels take {comparison} {wide}, with {fewer:.0%} fewer multiply-accumulates; of the multiples of "
        f"{multiple}, {len(preferred.wasteful[multiple])} in {len(preferred.judged[multiple])} save next to nothing."
    )
    widest = steps[-1]
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(finding, theme=theme)
        line = [1e3 * widest.timing.median * step.macs / widest.macs for step in steps]
        axes.plot(
            [step.channels for step in steps], line, ls="--", marker="", color=INK[theme], lw=1, label="in proportion to MACs"
        )
        looks = (
            (True, OKABE_ITO[0], MARKERS[0], f"multiples of {multiple}"),
            (False, OKABE_ITO[3], MARKERS[6], "other widths"),
        )
        for liked, color, marker, label in looks:
            shown = [step for step in steps if (step.channels % multiple == 0) is liked]
            if not shown:
                continue
            middle = [1e3 * step.timing.median for step in shown]
            below = [1e3 * max(0.0, step.timing.median - step.timing.p10) for step in shown]
            above = [1e3 * max(0.0, step.timing.p90 - step.timing.median) for step in shown]
            axes.errorbar(
                [step.channels for step in shown], middle, yerr=[below, above], ls="-" if liked else "", marker=marker,
                color=color, elinewidth=0.8, label=label,
            )  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.set_xlabel("channels")
        axes.set_ylabel(f"ms for a batch of {widest.timing.batch}; threads: {widest.timing.threads}")
        axes.legend(loc="upper left")
    return picture


def sensitivity_figure(sensitivity: Sensitivity, *, theme: Theme = "light") -> Picture:
    """Draw, for each layer, the accuracy on validation after it alone was pruned; the most sensitive layer on top.

    Args:
        sensitivity: from `cookbook.pruning.scan_sensitivity`.
        theme: ``light`` or ``dark``.
    """
    layers = sensitivity.ranked()
    least, most = layers[0], layers[-1]
    finding = (
        f"Pruned alone and not fine-tuned, {most} costs {sensitivity.drop(most):.1f} points on the average over the ratios, "
        f"{least} {sensitivity.drop(least):.1f}."
    )
    ratios = sorted({ratio for found in sensitivity.accuracies.values() for ratio in found})
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(finding, theme=theme, size=(SIZE[0], 1.6 + 0.27 * len(layers)))
        axes.axvline(sensitivity.baseline, color=INK[theme], ls="--", lw=1, label="unpruned")
        for number, ratio in enumerate(ratios):
            color, marker = OKABE_ITO[number % len(OKABE_ITO)], MARKERS[number % len(MARKERS)]
            rows = [(sensitivity.accuracies[layer][ratio], row) for row, layer in enumerate(layers)
                    if ratio in sensitivity.accuracies[layer]]  # fmt: skip
            axes.plot(
                *zip(*rows, strict=True), ls="", marker=marker, color=color, label=f"{ratio:.0%} of its channels removed"
            )  # fmt: skip
        axes.set_yticks(range(len(layers)), layers, parse_math=False)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("accuracy on validation, without fine-tuning")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return picture


def speed_figure(arms: Mapping[str, tuple[float, Sequence[float]]], baseline: float, *, theme: Theme = "light") -> Picture:
    """Draw accuracy against measured speed-up: a point a training, and the mean of each arm with its name.

    Args:
        arms: by name, how many times faster than the baseline, and the accuracies of its trainings in percent.
        baseline: accuracy of the unpruned model, in percent.
        theme: ``light`` or ``dark``.

    Raises:
        UsageError: there is no arm, one without a training, or one with a speed-up that is not positive.
    """
    if not arms or any(speed <= 0 or not accuracies for speed, accuracies in arms.values()):
        raise UsageError("Give one or more arms, each with a positive speed-up and an accuracy for each training.")
    means = {name: fmean(accuracies) for name, (_, accuracies) in arms.items()}
    best = max(means, key=lambda name: means[name])
    finding = (
        f"The best mean of {len(arms)} arms, {best}, lies {means[best] - baseline:+.2f} points from the unpruned model at "
        f"{arms[best][0]:.2f} times its speed."
    )
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(finding, theme=theme)
        axes.axhline(baseline, color=INK[theme], ls="--", lw=1, marker="", label="unpruned")
        for number, (name, (speed, accuracies)) in enumerate(arms.items()):
            color, marker = OKABE_ITO[number % len(OKABE_ITO)], MARKERS[number % len(MARKERS)]
            axes.plot([speed] * len(accuracies), accuracies, ls="", marker=marker, ms=4, color=color, alpha=0.5)
            axes.plot([speed], [means[name]], ls="", marker=marker, ms=8, color=color, label=name)
        axes.set_xlabel("times faster than the unpruned model, measured")
        axes.set_ylabel("accuracy, %")
        axes.margins(0.12)
        axes.legend(loc="lower left")
        places = [(speed, means[name]) for name, (speed, _) in arms.items()]
        place_labels(picture, axes, places, list(arms), [RADIUS] * len(places))
    return picture
