"""Figures of quantization: layers alone, bits against accuracy, and how fast quantizers' files really are (lesson 05)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from cookbook.errors import UsageError
from cookbook.measure import Ratio
from cookbook.plots.picture import INK, OKABE_ITO, Picture, Theme, new_picture, style

if TYPE_CHECKING:  # a figure of something else need not load torchao
    from cookbook.quantization.sensitivity import SensitivityReport

LOUDEST = 60.0  # decibels: where a layer without any noise is drawn


def sensitivity_figure(report: SensitivityReport, *, theme: Theme = "light") -> Picture:
    """Draw the noise that each layer makes when it alone is quantized, and beside it the accuracy that it costs.

    Args:
        report: from `cookbook.quantization.sensitivity`.
        theme: ``light`` or ``dark``.

    Raises:
        UsageError: the report holds no layer.
    """
    if not report.layers:
        raise UsageError("The report holds no layer: pass one from sensitivity().")
    names = [layer.name for layer in report.layers]
    worst = report.ranked()[0]
    found = next(layer for layer in report.layers if layer.name == worst)
    finding = f"Quantized alone, {worst} hurts most: the logits' signal is {found.logits_sqnr_db:.1f} dB above its noise"
    losses = [
        100 * (report.float_accuracy - layer.accuracy)
        for layer in report.layers
        if layer.accuracy is not None and report.float_accuracy is not None
    ]
    with matplotlib.rc_context(style(theme)):
        if found.accuracy is not None and report.float_accuracy is not None:
            finding += f", and {100 * (report.float_accuracy - found.accuracy):.2f} points are lost"
        picture, axes = new_picture(finding, theme=theme, size=(9.0, 1.6 + 0.26 * len(names)))
        places = range(len(names))
        axes.plot(
            [min(layer.sqnr_db, LOUDEST) for layer in report.layers], places, ls="", marker="o", label="the layer's own output"
        )
        axes.plot(
            [min(layer.logits_sqnr_db, LOUDEST) for layer in report.layers], places, ls="", marker="s", label="the logits"
        )
        axes.set_yticks(places, names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("signal over quantization noise, dB (right is better)")
        if len(losses) == len(names):
            beside = axes.inset_axes((1.04, 0.0, 0.3, 1.0))
            beside.barh(list(places), losses, color=OKABE_ITO[3], edgecolor=INK[theme], linewidth=0.5)
            beside.axvline(0.0, color=INK[theme], lw=0.8)
            beside.set(yticks=[], ylim=axes.get_ylim(), xlabel="points of accuracy lost")
        axes.legend(loc="upper left", bbox_to_anchor=(1.38 if len(losses) == len(names) else 1.01, 1))
    return picture


def bits_figure(
    accuracies: Mapping[str, Mapping[int, Sequence[float]]], reference: Sequence[float], *, theme: Theme = "light"
) -> Picture:
    """Draw accuracy against the bits of a weight, a line a way of quantizing, over the band of the float model.

    Args:
        accuracies: by way and bits, in percent, one a seed.
        reference: of the float model, in percent, one a seed.
        theme: ``light`` or ``dark``.

    Raises:
        UsageError: there is no way, no bits, or no reference.
    """
    widths = sorted({bits for found in accuracies.values() for bits in found})
    if not widths or not reference or any(not values for found in accuracies.values() for values in found.values()):
        raise UsageError("Give accuracies for at least one way and number of bits, and those of the float model.")
    narrowest = widths[0]
    there = {name: fmean(found[narrowest]) for name, found in accuracies.items() if narrowest in found}
    best, worst = max(there, key=there.__getitem__), min(there, key=there.__getitem__)
    finding = f"With {narrowest}-bit weights {best} reaches {there[best]:.2f}%"
    finding += f", {worst} {there[worst]:.2f}%" if best != worst else ""
    finding += f"; in float it is {fmean(reference):.2f}%"
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(finding, theme=theme)
        axes.axhspan(min(reference), max(reference), color=INK[theme], alpha=0.12, lw=0)
        axes.axhline(fmean(reference), color=INK[theme], lw=1.0, ls="--", marker="", label="float")
        for name, found in accuracies.items():
            (line,) = axes.plot(list(found), [fmean(values) for values in found.values()], label=name)
            for bits, values in found.items():
                axes.vlines(bits, min(values), max(values), color=line.get_color(), alpha=0.5)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(widths))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("bits of a weight")
        axes.set_ylabel("accuracy, %")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return picture


def _fastest(ratios: Mapping[str, Mapping[int, Ratio]], batches: Sequence[int]) -> str:
    """Say which quantizer is fastest: one sentence if it is the same for all batches."""
    best = {batch: max(ratios, key=lambda name: ratios[name][batch].value) for batch in batches}
    speeds = {batch: f"{ratios[name][batch].value:.2f} times" for batch, name in best.items()}
    if len(set(best.values())) == 1:
        return f"{best[batches[0]]} is the fastest, " + " and ".join(f"{speeds[batch]} at batch {batch}" for batch in batches)
    return "fastest: " + ", ".join(f"at batch {batch} {name} with {speeds[batch]}" for batch, name in best.items())


def quantizer_figure(ratios: Mapping[str, Mapping[int, Ratio]], *, theme: Theme = "light") -> Picture:
    """Draw how many times as fast as float each quantizer's file is, with the 95 % intervals.

    Args:
        ratios: by quantizer and batch size; above 1 is faster than float.
        theme: ``light`` or ``dark``.

    Raises:
        UsageError: there is no ratio, or the quantizers were timed at different batch sizes.
    """
    batches = sorted({batch for found in ratios.values() for batch in found})
    if not batches or any(sorted(found) != batches for found in ratios.values()):
        raise UsageError("Give each quantizer a ratio at the same batch sizes, at least one.")
    slower = [name for name, found in ratios.items() if all(ratio.high < 1 for ratio in found.values())]
    finding = f"{_fastest(ratios, batches)}; {len(slower)} of {len(ratios)} quantizers make the model slower than float"
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(finding, theme=theme, size=(9.0, 1.6 + 0.45 * len(ratios)))
        for number, batch in enumerate(batches):
            shift = 0.24 * (number / max(len(batches) - 1, 1) - 0.5)
            found = [ratios[name][batch] for name in ratios]
            ends = [
                [max(0.0, ratio.value - ratio.low) for ratio in found],
                [max(0.0, ratio.high - ratio.value) for ratio in found],
            ]
            places = [place + shift for place in range(len(found))]
            axes.errorbar(
                [ratio.value for ratio in found], places, xerr=ends, fmt="os^D"[number % 4], capsize=3, label=f"batch {batch}"
            )
        axes.axvline(1.0, lw=1.0, ls="--", color=INK[theme])
        axes.set_yticks(range(len(ratios)), list(ratios))
        axes.set_ylim(len(ratios) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("speed as a multiple of float in the same runtime (log scale; right is faster)")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return picture
