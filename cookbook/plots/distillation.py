"""Figures of the distillation lesson: a teacher's soft targets, and accuracy against temperature (lesson 06)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import matplotlib
import numpy as np
import torch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from torch import Tensor

from cookbook.errors import UsageError
from cookbook.plots.picture import INK, OKABE_ITO, Picture, Theme, new_picture, style


def soft_targets_figure(
    image: Tensor, logits: Tensor, label: int, classes: Sequence[str], temperatures: Sequence[float], *, theme: Theme = "light"
) -> Picture:
    """Draw an image, and beside it what a teacher says about it at several temperatures.

    Args:
        image: any dtype, (H, W).
        logits: the teacher's, float (K,).
        label: the image's own class.
        classes: K names.
        temperatures: positive.
        theme: ``light`` or ``dark``.

    Raises:
        UsageError: names and logits differ in number, the label is none of them, or no temperature is given.
    """
    if len(classes) < 2 or logits.shape != (len(classes),) or not 0 <= label < len(classes) or not temperatures:
        raise UsageError(
            f"{tuple(logits.shape)} logits, the label {label}, {len(classes)} classes and {len(temperatures)} temperatures "
            "make no figure: give one logit a class, a label among them, and a temperature."
        )
    shares = [torch.softmax(logits.double() / temperature, 0).tolist() for temperature in temperatures]
    best, second = logits.topk(2).indices.tolist()
    finding = (
        f"Labelled {classes[label]}: at temperature {temperatures[0]:g} the teacher gives {classes[best]} "
        f"{shares[0][best]:.0%} and {classes[second]} {shares[0][second]:.0%}, "
        f"at {temperatures[-1]:g} {shares[-1][best]:.0%} and {shares[-1][second]:.0%}."
    )
    places = np.arange(len(classes))
    width = 0.8 / len(temperatures)
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(finding, theme=theme)
        for number, (temperature, share) in enumerate(zip(temperatures, shares, strict=True)):
            offset = (number - (len(temperatures) - 1) / 2) * width
            axes.bar(
                places + offset, share, width, label=f"temperature {temperature:g}", hatch=("", "//", "..", "xx")[number % 4],
                color=OKABE_ITO[number % len(OKABE_ITO)], edgecolor=INK[theme], linewidth=0.5,
            )  # fmt: skip
        axes.set_xticks(places, classes, rotation=30, ha="right")
        axes.set_ylabel("probability")
        axes.grid(False, axis="x")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 0.5))
        shown = axes.inset_axes((1.03, 0.58, 0.22, 0.4))
        shown.imshow(image.numpy(), cmap="gray")
        shown.set(xticks=[], yticks=[])
        shown.grid(False)
    return picture


def temperature_figure(
    accuracies: Mapping[float, Sequence[float]], control: Sequence[float], *, theme: Theme = "light"
) -> Picture:
    """Draw accuracy against temperature, a point a seed and a line through the means, over the band of the control.

    Args:
        accuracies: by temperature, in percent, one a seed.
        control: the same seeds with hard labels, in percent.
        theme: ``light`` or ``dark``.

    Raises:
        UsageError: there are fewer than two temperatures, one is not positive, or a seed is missing somewhere.
    """
    temperatures = sorted(accuracies)
    if len(temperatures) < 2 or temperatures[0] <= 0 or not control:
        raise UsageError(f"The temperatures are {temperatures}: give two or more positive ones, and the control.")
    if any(len(values) != len(control) for values in accuracies.values()):
        raise UsageError(f"Give the {len(control)} seeds of the control at every temperature.")
    means = [fmean(accuracies[temperature]) for temperature in temperatures]
    best = max(zip(means, temperatures, strict=True))
    spread = max(max(values) - min(values) for values in (*accuracies.values(), control))
    move = max(means) - min(means)
    finding = (
        f"Temperature moves the mean accuracy by {move:.2f} points, seeds by up to {spread:.2f}; the best mean, "
        f"{best[0]:.2f}% at temperature {best[1]:g}, lies {best[0] - fmean(control):+.2f} points from hard labels."
    )
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(finding, theme=theme)
        color = OKABE_ITO[0]
        axes.axhspan(min(control), max(control), color=OKABE_ITO[1], alpha=0.25, lw=0, label="hard labels, range over seeds")
        axes.axhline(fmean(control), color=OKABE_ITO[1], marker="", label="hard labels, mean")
        for number in range(len(control)):
            values = [accuracies[temperature][number] for temperature in temperatures]
            axes.plot(
                temperatures, values, ls="", marker="o", color=color, alpha=0.45, label=None if number else "distilled, a seed"
            )
        axes.plot(temperatures, means, marker="D", color=color, label="distilled, mean")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(temperatures))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("temperature (log scale)")
        axes.set_ylabel("accuracy, %")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return picture
