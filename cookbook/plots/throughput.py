"""Figures of training speed: where a step's time goes, and throughput against the batch size (lesson 01)."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.patches import Patch

from cookbook.errors import EvidenceError
from cookbook.plots.picture import INK, MARKERS, OKABE_ITO, Picture, Theme, new_picture, style
from cookbook.throughput import PHASES, Breakdown

HATCHES = ("", "///", "...", "xxx")  # beside the colour, so that no phase rests on colour alone
NARROWEST_LABEL = 0.07  # share of a bar below which its percentage would not fit in


def breakdown_figure(breakdowns: Mapping[str, Breakdown], *, theme: Theme = "light") -> Picture:
    """Draw one bar for each training: the mean step, stacked by phase.

    Args:
        breakdowns: by name, from `cookbook.throughput.step_breakdown`.
        theme: ``light`` or ``dark``.

    Raises:
        EvidenceError: there is nothing to draw.
    """
    if not breakdowns:
        raise EvidenceError("There is no breakdown to draw: measure one with step_breakdown.")
    largest = {name: max(PHASES, key=each.share) for name, each in breakdowns.items()}
    finding = "Where a step's time goes: " + "; ".join(
        f"{name}, {phase} {breakdowns[name].share(phase):.0%}" for name, phase in largest.items()
    )
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(finding, theme=theme, size=(9.0, 1.6 + 0.7 * len(breakdowns)))
        for row, breakdown in enumerate(breakdowns.values()):
            left = 0.0
            for phase, color, hatch in zip(PHASES, OKABE_ITO, HATCHES, strict=False):
                width = 1e3 * breakdown.mean(phase)
                axes.barh(row, width, left=left, color=color, hatch=hatch, edgecolor=axes.get_facecolor(), height=0.6)
                if breakdown.share(phase) >= NARROWEST_LABEL:
                    label = axes.text(left + width / 2, row, f"{breakdown.share(phase):.0%}", ha="center", va="center")
                    label.set_bbox({"facecolor": axes.get_facecolor(), "edgecolor": "none", "pad": 1.5})
                left += width
        axes.set_yticks(range(len(breakdowns)), list(breakdowns))
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel("mean time of a step, ms")
        handles = [
            Patch(facecolor=color, hatch=hatch, edgecolor=axes.get_facecolor(), label=phase)
            for phase, color, hatch in zip(PHASES, OKABE_ITO, HATCHES, strict=False)
        ]
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=INK[theme])
    return picture


def batch_sweep_figure(throughputs: Mapping[str, Mapping[int, float]], *, theme: Theme = "light") -> Picture:
    """Draw images per second against the batch size, one line for each training or device.

    Args:
        throughputs: by name, images per second by batch size, such as `BatchSizeResult.throughputs`.
        theme: ``light`` or ``dark``.

    Raises:
        EvidenceError: a line has fewer than two sizes.
    """
    if not throughputs or any(len(line) < 2 for line in throughputs.values()):
        raise EvidenceError("A curve takes two batch sizes or more: let the finder try more of them.")
    parts = []
    for name, line in throughputs.items():
        smallest, best = min(line), max(line, key=lambda batch: line[batch])
        gain = f"batches of {best} train {line[best] / line[smallest]:.1f} times as fast as of {smallest}"
        parts.append(f"{name}, {gain if best > smallest else f'no larger batch trains faster than {smallest}'}")
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture("; ".join(parts), theme=theme)
        for (name, line), color, marker in zip(throughputs.items(), OKABE_ITO, MARKERS, strict=False):
            sizes = sorted(line)
            axes.plot(sizes, [line[size] for size in sizes], color=color, marker=marker, label=name)
        axes.set_xscale("log", base=2)
        ticks = sorted({2 ** (size.bit_length() - 1) for line in throughputs.values() for size in line})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("images a step (log scale)")
        axes.set_ylabel("images per second")
        if len(throughputs) > 1:
            axes.legend()
    return picture
