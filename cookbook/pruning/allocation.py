"""How many channels each group keeps, and which (lesson 04)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.pruning.groups import require_group
from cookbook.pruning.torch_pruning_site import ChannelGroup

Ratio = float | Mapping[str, float]


def require_ratio(ratio: Ratio) -> None:
    """Refuse a share of channels that is not between 0 and 1; a single layer's may be 0.

    Raises:
        UsageError: naming the layer, if it is one of several.
    """
    if isinstance(ratio, Mapping):
        for name, share in ratio.items():
            if not 0 <= share < 1:
                raise UsageError(f"The ratio of {name} is {share}: use 0 up to, not including, 1.")
        if not any(ratio.values()):
            raise UsageError("The ratios name no layer that shall lose channels: give at least one above 0.")
    elif not 0 < ratio < 1:
        raise UsageError(f"ratio is {ratio}: use a share of the channels between 0 and 1, such as 0.5.")


def shares(ratio: Ratio, groups: Sequence[ChannelGroup], model: nn.Module) -> dict[str, float]:
    """Return the share of the channels that leaves each group, by its name; groups that keep all are left out.

    Raises:
        UsageError: a layer does not exist or cannot lose channels, or two of one group have different ratios.
    """
    if not isinstance(ratio, Mapping):
        return {group.name: ratio for group in groups}
    named: dict[str, float] = {}
    for layer, share in ratio.items():
        name = require_group(groups, layer, model).name
        if named.setdefault(name, share) != share:
            raise UsageError(
                f"{layer} has the ratio {share} and shares its channels with {name}, which has {named[name]}: give one."
            )
    return named


def possible_widths(group: ChannelGroup, multiple: int) -> list[int]:
    """Return the widths that a group may have, ascending: multiples of `multiple` in whole blocks, and its own."""
    step = math.lcm(group.block, multiple)
    return [*range(step, group.width, step), group.width]


def rounded(wanted: float, group: ChannelGroup, multiple: int) -> int:
    """Return the possible width that is nearest to the wanted one; of two, the wider."""
    return min(reversed(possible_widths(group, multiple)), key=lambda width: abs(width - wanted))


def ranked(groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], keep: float) -> dict[str, float]:
    """Return how many channels of each group are among the `keep` best of all, by score over the group's mean."""
    relative = {group.name: scores[group.name] / scores[group.name].mean().clamp_min(1e-300) for group in groups}
    best = torch.cat(list(relative.values())).argsort(descending=True, stable=True)[: round(keep)]
    kept, start = {}, 0
    for name, score in relative.items():
        kept[name] = float(((best >= start) & (best < start + len(score))).sum())
        start += len(score)
    return kept


def least_important(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], widths: Mapping[str, int]
) -> dict[str, list[int]]:
    """Return the channels that leave each group so that it keeps the given width; of equal ones, the last leave."""
    return {
        group.name: sorted(scores[group.name].argsort(descending=True, stable=True)[widths[group.name] :].tolist())
        for group in groups
        if widths.get(group.name, group.width) < group.width
    }
