"""Pruning to a budget: the widths are searched until the target is met (lesson 04)."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import get_args

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from cookbook.errors import UsageError
from cookbook.models.widths import resize
from cookbook.pruning.allocation import least_important, possible_widths, ranked, require_ratio, rounded, shares
from cookbook.pruning.channels import Scope, operate
from cookbook.pruning.groups import duplicate, freeze, reasons, sizes_after
from cookbook.pruning.importance import Batches, Importance, channel_scores
from cookbook.pruning.targets import Target, Value
from cookbook.pruning.torch_pruning_site import ChannelGroup, Surgery

HALVINGS = 16  # of the share of all channels, finer than one channel in ten thousand
MARGIN = 0.5  # of the tolerance, within which a measured share ends the search at once
AIMS = 4  # by the prediction, where measuring disagrees with it
ATTEMPTS = 12  # to measure, these included
RETOLD = 2  # further timings, in sessions of their own, of what seems to meet the target


@dataclass(frozen=True)
class Pruned:
    """A model that was pruned to a target.

    Attributes:
        model: the pruned copy.
        target: what was asked for.
        reached: share of the unpruned model's value that remains, measured where the target measures.
        widths: output channels of every convolution and linear layer before and after, by its name.
    """

    model: nn.Module = field(repr=False)
    target: Target
    reached: float
    widths: Mapping[str, tuple[int, int]]

    def __str__(self) -> str:
        length = max(map(len, self.widths))
        rows = [f"{name:<{length}}  {before:>6}  {after:>6}" for name, (before, after) in self.widths.items()]
        return "\n".join([f"{self.target}: {self.reached:.3f} reached", f"{'layer':<{length}}  before   after", *rows])


def prune(
    model: nn.Module,
    example: Tensor,
    *,
    target: Target,
    importance: Importance = "l1",
    multiple: int = 16,
    scope: Scope = "uniform",
    proportions: Mapping[str, float] | None = None,
    exclude: Sequence[str] = (),
    steps: int = 1,
    batches: Batches | None = None,
    seed: int = 0,
    after_step: Callable[[nn.Module], object] | None = None,
) -> Pruned:
    """Return a copy of `model` that is pruned to `target`; what was given is not touched.

    One number, the pruned share of the channels, is searched by bisection; rounded widths make its effect a
    staircase, so that between its two nearest steps the groups change over one by one, the last layer first, and
    where that is too coarse, single groups move by a step. A candidate is a copy that is cut to size; only the
    last one is pruned by importance. Where the target measures, the search goes on until the share lies within half
    of the tolerance, and else the nearest one is taken: what was measured at the edge is as likely to lie beyond it.
    What seems to meet the target is timed twice more, and the median counts.

    Args:
        model: as in `prune_channels`, as for `example`, `importance`, `multiple`, `scope`, `exclude`, `steps`,
            `batches`, `seed` and `after_step`.
        target: such as ``MACs(0.5)``, ``Parameters(0.4)`` or ``Latency(0.5)``.
        proportions: relative ratios by the names of layers, such as a sensitivity scan suggests: a layer with
            0.4 loses half of the share that one with 0.8 loses, and layers that are not named keep all.

    Raises:
        UsageError: as `prune_channels`; or the target is out of reach, and the message says what can be reached.
        DataError: as `channel_scores`.
    """
    if scope not in get_args(Scope):
        raise UsageError(f"scope is {scope!r}: use uniform or global.")
    search = _Search(model, example, target, importance, multiple, scope, proportions, exclude, batches, seed)
    widths, reached = search.run()
    before = {group.name: group.width for group in search.groups}

    def allocate(step: int, groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor]) -> dict[str, int]:
        part = {name: before[name] + (width - before[name]) * step / steps for name, width in widths.items()}
        return {group.name: rounded(part[group.name], group, multiple) for group in groups if group.name in part}

    pruned = operate(
        model, example, allocate, importance=importance, multiple=multiple, exclude=exclude, steps=steps, batches=batches,
        seed=seed, after_step=after_step,
    )  # fmt: skip
    return Pruned(pruned, target, reached, width_table(model, pruned))


def width_table(before: nn.Module, after: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the output channels of every convolution and linear layer of two models of one architecture."""
    found = [dict(_out_channels(model)) for model in (before, after)]
    return {name: (width, found[1][name]) for name, width in found[0].items()}


def _out_channels(model: nn.Module) -> list[tuple[str, int]]:
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _ConvNd | nn.Linear)]
    return [(name, layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels) for name, layer in layers]


class _Search:
    """Looks for the widths that meet a target, among those to which one falling share of all channels leads."""

    def __init__(
        self, model: nn.Module, example: Tensor, target: Target, importance: Importance, multiple: int, scope: Scope,
        proportions: Mapping[str, float] | None, exclude: Sequence[str], batches: Batches | None, seed: int,
    ) -> None:  # fmt: skip
        original = duplicate(model, example)
        surgery = Surgery(original, example[:2])
        surgery.close()
        groups = freeze(surgery.groups, exclude, original)
        free = [group for group in groups if not group.frozen]
        if not free:
            raise UsageError(f"Nothing in {type(model).__name__} can be pruned: {reasons(groups)}.")
        self._scores = channel_scores(original, free, importance, batches=batches, seed=seed)
        self._proportions = dict.fromkeys(self._scores, 1.0)
        if proportions is not None:
            require_ratio(proportions)
            self._proportions = shares(proportions, groups, original)
            largest = max(self._proportions.values())
            self._proportions = {name: share / largest for name, share in self._proportions.items()}
        self.groups = [group for group in free if group.name in self._scores and group.name in self._proportions]
        if not target.needs_weights:
            original, example = original.to("meta"), example.to("meta")
        self._original, self._target, self._multiple, self._scope = original, target, multiple, scope
        self._predict = target.predictor(original, example)
        self._confirm = target.confirmer(original, example)
        # A share that was measured at the edge of the tolerance lies beyond it as often as not when it is measured again.
        self._slack = target.tolerance * (1 if self._confirm is None else MARGIN)
        self._known: dict[tuple[int, ...], float] = {}

    def run(self) -> tuple[dict[str, int], float]:
        """Return the width of each group and the share that remains with them.

        Raises:
            UsageError: no widths meet the target.
        """
        share = self._target.share
        if self._confirm is None:
            widths = self._towards(share)
            nearest = self._value(widths, self._predict)
        else:
            widths, nearest = self._confirmed(self._confirm)
        if abs(nearest - share) <= self._target.tolerance * share:
            return widths, nearest
        least = (self._confirm or self._predict)(self._candidate(self._widths(1.0)))
        raise UsageError(
            f"{self._target} cannot be reached within {self._target.tolerance:.0%} in multiples of {self._multiple}: "
            f"the nearest is {nearest:.3f} and the least {least:.3f} of the unpruned model, so that another share, a lower "
            "multiple or fewer excluded layers are needed."
        )

    def _confirmed(self, confirm: Value) -> tuple[dict[str, int], float]:
        """Return the widths whose measured share is nearest to the target, and this share.

        Where measuring disagrees with the table, the aim moves in proportion. A single wrong entry can throw it to and
        fro, so that after a few aims the table is left alone, and the measured widths on both sides of the target are halved.
        """
        share = self._target.share
        above, below = (1.0, self._widths(0.0)), (0.0, self._widths(1.0))  # nothing lies beyond these
        measured: list[tuple[float, dict[str, int]]] = []
        proposal: dict[str, int] | None = self._towards(share)
        while proposal is not None and len(measured) < ATTEMPTS:
            reached = confirm(self._candidate(proposal))
            if abs(reached - share) <= self._target.tolerance * share:  # one lucky timing among many must not end the search
                reached = median([reached, *(confirm(self._candidate(proposal)) for _ in range(RETOLD))])
            measured.append((reached, proposal))
            if abs(reached - share) <= self._slack * share:
                break
            if reached > share:
                above = min(above, measured[-1], key=operator.itemgetter(0))
            else:
                below = max(below, measured[-1], key=operator.itemgetter(0))
            known = [widths for _, widths in measured]
            if len(known) < AIMS:
                proposal = self._towards(share * self._value(proposal, self._predict) / reached)
            if proposal in known:
                proposal = self._between(above[1], below[1])
        nearest, widths = min(measured, key=lambda found: abs(found[0] - share))
        return widths, nearest

    def _between(self, above: dict[str, int], below: dict[str, int]) -> dict[str, int] | None:
        """Return widths in the middle of two, by groups where no width is left between; None: they are neighbours."""
        middle = dict[str, int]()
        for group in self.groups:
            possible = possible_widths(group, self._multiple)
            middle[group.name] = possible[(possible.index(above[group.name]) + possible.index(below[group.name])) // 2]
        if middle not in (above, below):
            return middle
        changing = [group.name for group in reversed(self.groups) if above[group.name] != below[group.name]]
        return self._mixed(above, below, changing[: len(changing) // 2]) if len(changing) > 1 else None

    def _towards(self, aim: float) -> dict[str, int]:
        """Return the widths whose predicted share is nearest to `aim`."""
        above, below = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (above + below) / 2
            if self._value(self._widths(middle), self._predict) > aim:
                above = middle
            else:
                below = middle
        wide, narrow = self._widths(above), self._widths(below)
        changing = [group.name for group in reversed(self.groups) if wide[group.name] != narrow[group.name]]
        first, last = 0, len(changing)  # so many of these groups have their narrow width
        while last - first > 1:
            middle_count = (first + last) // 2
            changed = self._mixed(wide, narrow, changing[:middle_count])
            first, last = (middle_count, last) if self._value(changed, self._predict) > aim else (first, middle_count)
        ends = [self._mixed(wide, narrow, changing[:count]) for count in (first, last)]
        return self._refined(min(ends, key=lambda widths: self._miss(widths, aim)), aim)

    def _refined(self, widths: dict[str, int], aim: float) -> dict[str, int]:
        """Change single groups by one step, each time the one that helps most, until the aim is met or none helps."""
        while self._miss(widths, aim) > self._slack * aim:
            best = min(self._neighbors(widths), key=lambda near: self._miss(near, aim), default=widths)
            if self._miss(best, aim) >= self._miss(widths, aim):
                break
            widths = best
        return widths

    def _neighbors(self, widths: dict[str, int]) -> Iterator[dict[str, int]]:
        for group in self.groups:
            possible = possible_widths(group, self._multiple)
            place = possible.index(widths[group.name])
            for other in (*possible[max(place - 1, 0) : place], *possible[place + 1 : place + 2]):
                yield {**widths, group.name: other}

    def _miss(self, widths: Mapping[str, int], aim: float) -> float:
        return abs(self._value(widths, self._predict) - aim)

    def _mixed(self, wide: dict[str, int], narrow: dict[str, int], names: Sequence[str]) -> dict[str, int]:
        return {**wide, **{name: narrow[name] for name in names}}

    def _widths(self, share: float) -> dict[str, int]:
        """Return the rounded widths when a share of the channels leaves."""
        wanted = {group.name: group.width * (1 - share * self._proportions[group.name]) for group in self.groups}
        if self._scope == "global":
            wanted = ranked(self.groups, self._scores, sum(wanted.values()))
        return {group.name: rounded(wanted[group.name], group, self._multiple) for group in self.groups}

    def _value(self, widths: Mapping[str, int], value: Value) -> float:
        key = tuple(widths.values())
        if key not in self._known:
            self._known[key] = value(self._candidate(widths))
        return self._known[key]

    def _candidate(self, widths: Mapping[str, int]) -> nn.Module:
        """Return a copy of the given widths; which channels it keeps is left open."""
        removed = least_important(self.groups, self._scores, widths)
        return resize(copy.deepcopy(self._original), sizes_after(self._original, self.groups, removed))
