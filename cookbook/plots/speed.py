"""Figures of training speed: the speed stack, and gradients against the range of float16 (lesson 02)."""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

from cookbook.errors import UsageError
from cookbook.plots.picture import INK, OKABE_ITO, Picture, Theme, new_picture, style
from cookbook.speed import SpeedStack

SMALLEST_FP16 = float(torch.finfo(torch.float16).smallest_normal) * 2.0**-10  # half of it and less rounds to zero
LARGEST_FP16 = float(torch.finfo(torch.float16).max)


def stack_figure(stack: SpeedStack, *, theme: Theme = "light") -> Picture:
    """Draw each change's speed alone and stacked, as ratios to the unchanged training with their intervals.

    Args:
        stack: from `cookbook.speed.measure_stack`.
        theme: ``light`` or ``dark``.

    Raises:
        UsageError: no change was measured.
    """
    measured = [name for name in stack.changes if name not in stack.missing]
    if not measured:
        raise UsageError("No change was measured: pass a stack with at least one that this device can do.")
    found = {row.subject: row.values for row in stack.measurements}
    series = {
        "alone": {name: found[f"{name} alone"] for name in measured},
        "with all above it": {name: found[f"+ {name}"] for name in measured if f"+ {name}" in found},
    }
    best = max((row for row in stack.measurements[1:]), key=lambda row: row.values["speedup"])
    device = stack.measurements[0].provenance.device
    finding = f"On {device} the fastest, '{best.subject}', trains {best.values['speedup']:.2f} times as many images a second"
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(finding, theme=theme, size=(9.0, 1.6 + 0.55 * len(measured)))
        for shift, (label, values) in zip((-0.12, 0.12), series.items(), strict=True):
            rows = [measured.index(name) + shift for name in values]
            middle = np.array([value["speedup"] for value in values.values()])
            low = np.array([value["speedup_low"] for value in values.values()])
            high = np.array([value["speedup_high"] for value in values.values()])
            errors = np.clip([middle - low, high - middle], 0, None)
            axes.errorbar(middle, rows, xerr=errors, fmt="o" if shift < 0 else "s", capsize=3, label=label)
        axes.axvline(1.0, linewidth=1.0, linestyle="--", color=INK[theme])
        axes.set_yticks(range(len(measured)), measured)
        axes.set_ylim(len(measured) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("images per second, as a multiple of the unchanged training (log scale; right is faster)")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return picture


def gradient_figure(gradients: Tensor, *, scale: float = 1.0, theme: Theme = "light") -> Picture:
    """Draw how many gradients have which size, and the range in which float16 holds anything but zero.

    The picture follows figure 3 of Micikevicius et al., Mixed Precision Training, arXiv 1710.03740.

    Args:
        gradients: float32, of any shape, as they are without a loss scale; zeros are left out.
        scale: a loss scale, whose effect is drawn beside them.
        theme: ``light`` or ``dark``.

    Raises:
        UsageError: no gradient is finite and different from zero.
    """
    sizes = gradients.detach().float().flatten().abs()
    sizes = sizes[sizes.isfinite() & (sizes > 0)].cpu()
    if not len(sizes):
        raise UsageError("There is no gradient to draw: all are zero or not finite.")
    lost = (sizes <= SMALLEST_FP16 / 2).double().mean().item()
    kept = (scale * sizes <= SMALLEST_FP16 / 2).double().mean().item()
    finding = f"{lost:.1%} of the gradients round to zero in float16"
    finding += f"; {kept:.1%} of them when the loss is multiplied by {scale:,.0f}" if scale != 1 else ""
    with matplotlib.rc_context(style(theme)):
        picture, axes = new_picture(finding, theme=theme, size=(9.0, 4.4))
        powers = torch.log2(sizes).floor().int().numpy()
        first = min(int(powers.min()), -26)
        last = max(int(powers.max() + np.log2(scale)), 17)
        bins = [float(edge) for edge in range(first, last + 2)]
        axes.hist(powers, bins, color=OKABE_ITO[0], alpha=0.85, label="gradients")
        if scale != 1:
            shifted = torch.log2(scale * sizes).floor().int().numpy()
            axes.hist(shifted, bins, histtype="step", color=OKABE_ITO[3], linewidth=1.8, label=f"multiplied by {scale:,.0f}")
        for edge, text in ((SMALLEST_FP16, "smallest\nfloat16"), (LARGEST_FP16, "largest\nfloat16")):
            axes.axvline(np.log2(edge), color=INK[theme], linestyle="--", linewidth=1.0)
            axes.annotate(text, (np.log2(edge), 1), (3, -3), ("data", "axes fraction"), "offset points", va="top", fontsize=9)
        axes.set_xlabel("size of a gradient, as a power of two")
        axes.set_ylabel("number of gradients")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return picture
