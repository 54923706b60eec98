"""Latency against channels: a staircase, and the multiple of channels that the runtime likes (lesson 04)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.measure import Ratio, Timing, count_macs, speedup
from cookbook.pruning.clock import Clock, OrtClock

MULTIPLES = (1, 2, 4, 8, 16, 32)
MORE_TIME = 0.05  # what a wider network may take longer and still count as no slower
PRICE = 0.5  # of further work: less than half of what it should cost


@dataclass(frozen=True)
class Step:
    """One width: its channels, the multiply-accumulates of the network with it, and how long it takes."""

    channels: int
    macs: int
    timing: Timing


@dataclass(frozen=True)
class Staircase:
    """The same network in several widths, timed in turns.

    Attributes:
        steps: in ascending order of the channels.
    """

    steps: tuple[Step, ...]

    def ratio(self, narrow: int, wide: int) -> Ratio:
        """Return how many times longer the network of `narrow` channels takes than that of `wide`.

        Raises:
            UsageError: a width was not measured.
        """
        return speedup(self._step(narrow).timing, self._step(wide).timing)

    @property
    def worst_inversion(self) -> tuple[int, int, Ratio]:
        """The narrower and the wider network for which fewer multiply-accumulates take longest in comparison, and the ratio."""
        pairs = [
            (narrow.timing.median / wide.timing.median, narrow.channels, wide.channels)
            for at, narrow in enumerate(self.steps)
            for wide in self.steps[at + 1 :]
        ]
        _, narrow, wide = max(pairs)
        return narrow, wide, self.ratio(narrow, wide)

    def wasteful(self, *, more_time: float = MORE_TIME) -> dict[int, int]:
        """Return the widths that save next to nothing, each with the widest network that is hardly slower.

        Hardly slower means: longer by at most `more_time`, and by at most half of what it does more, both as shares.

        Args:
            more_time: share of further time.
        """
        found = {}
        for at, step in enumerate(self.steps):
            no_slower = [
                wide.channels
                for wide in self.steps[at + 1 :]
                if wide.timing.median / step.timing.median - 1 <= min(more_time, PRICE * (wide.macs / step.macs - 1))
            ]
            if no_slower:
                found[step.channels] = max(no_slower)
        return found

    def __str__(self) -> str:
        widest, wasteful = self.steps[-1], self.wasteful()
        lines = [f"{'channels':>8}  {'MACs':>6}  {'time':>6}  relative to {widest.channels} channels"]
        for step in self.steps:
            better = f"  no faster than {wasteful[step.channels]}" if step.channels in wasteful else ""
            time = step.timing.median / widest.timing.median
            lines.append(f"{step.channels:>8}  {step.macs / widest.macs:>6.2f}  {time:>6.2f}{better}")
        return "\n".join(lines)

    def _step(self, channels: int) -> Step:
        for step in self.steps:
            if step.channels == channels:
                return step
        raise UsageError(f"{channels} channels were not measured: use one of {[step.channels for step in self.steps]}.")


def width_staircase(
    build: Callable[[int], nn.Module], widths: Sequence[int], example: Tensor, *, clock: Clock | None = None
) -> Staircase:
    """Time one network in several widths.

    Args:
        build: makes the network for a number of channels.
        widths: numbers of channels, three or more.
        example: images (B, C, H, W).
        clock: times all of them in turns; None: `OrtClock()`.

    Raises:
        UsageError: fewer than three widths, one twice, or one below 1.
        DeploymentError: a network cannot be exported.
    """
    ordered = sorted(set(widths))
    if len(ordered) < 3 or len(ordered) < len(widths) or ordered[0] < 1:
        raise UsageError(f"The widths are {tuple(widths)}: give three or more different numbers of at least 1.")
    models = {str(width): build(width).eval() for width in ordered}
    timings = (clock or OrtClock())(models, example)
    return Staircase(tuple(Step(width, count_macs(models[str(width)], example), timings[str(width)]) for width in ordered))


@dataclass(frozen=True)
class PreferredMultiple:
    """The multiple of channels to round to on this runtime, and why.

    Attributes:
        multiple: that was chosen.
        judged: by multiple, its measured widths but for the widest of all.
        wasteful: by multiple, those of them that save next to nothing, each with a wider width that is hardly slower.
    """

    multiple: int
    judged: Mapping[int, tuple[int, ...]]
    wasteful: Mapping[int, Mapping[int, int]]

    def __str__(self) -> str:
        lines = [f"round channels to multiples of {self.multiple}", f"{'multiple':>8}  widths  save nothing"]
        for multiple, widths in self.judged.items():
            wasted = self.wasteful[multiple]
            named = ", ".join(f"{width} ({wider} is as fast)" for width, wider in list(wasted.items())[:3])
            more = f", {len(wasted) - 3} more" if len(wasted) > 3 else ""
            lines.append(f"{multiple:>8}  {len(widths):>6}  {len(wasted)}{': ' if wasted else ''}{named}{more}")
        return "\n".join(lines)


def preferred_multiple(
    staircase: Staircase,
    *,
    multiples: Sequence[int] = MULTIPLES,
    more_time: float = MORE_TIME,
) -> PreferredMultiple:
    """Return the smallest multiple of channels of which no measured width is wasteful, with the evidence.

    When every multiple has such widths, the one with the smallest share of them is chosen. Networks in which each
    layer has the one width show it best.

    Args:
        staircase: with neighbouring widths, some of them multiples of 16 or 32.
        multiples: that are tried.
        more_time: as in `Staircase.wasteful`.

    Raises:
        UsageError: a multiple is below 1, or none has two widths that can be judged.
    """
    if not multiples or min(multiples) < 1:
        raise UsageError(f"The multiples are {tuple(multiples)}: give numbers of at least 1.")
    wasteful = staircase.wasteful(more_time=more_time)
    judged = {}
    for multiple in sorted(multiples):
        widths = tuple(step.channels for step in staircase.steps[:-1] if step.channels % multiple == 0)
        if len(widths) >= 2:
            judged[multiple] = widths
    if not judged:
        raise UsageError("No multiple has two widths with a wider one to compare: measure more widths, such as 8 to 48.")
    wasted = {
        multiple: {width: wasteful[width] for width in widths if width in wasteful} for multiple, widths in judged.items()
    }
    chosen = min(judged, key=lambda multiple: (len(wasted[multiple]) / len(judged[multiple]), multiple))
    return PreferredMultiple(chosen, judged, wasted)
