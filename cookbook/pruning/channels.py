"""Networks without some of their channels: whole, runnable and smaller (lesson 04)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.models.widths import config_of_widths, layer_sizes
from cookbook.pruning.allocation import Ratio, least_important, ranked, require_ratio, rounded, shares
from cookbook.pruning.groups import duplicate, freeze, reasons, require_equal, require_group, silence, sizes_after
from cookbook.pruning.importance import Batches, Importance, channel_scores
from cookbook.pruning.torch_pruning_site import ChannelGroup, Surgery

Scope = Literal["uniform", "global"]
Allocation = Callable[[int, Sequence[ChannelGroup], Mapping[str, Tensor]], Mapping[str, int]]


def prune_channels(
    model: nn.Module,
    example: Tensor,
    *,
    ratio: Ratio,
    importance: Importance = "l1",
    multiple: int = 16,
    scope: Scope = "uniform",
    exclude: Sequence[str] = (),
    steps: int = 1,
    batches: Batches | None = None,
    seed: int = 0,
    after_step: Callable[[nn.Module], object] | None = None,
) -> nn.Module:
    """Return a copy of `model` without the channels that matter least; what was given is not touched.

    Channels that layers add or scale together leave together (Fang et al., DepGraph, arXiv 2301.12900), so that
    residual, dense, depthwise and squeeze-and-excite networks stay whole. Grouped convolutions lose whole
    groups. The classes are never pruned, nor are channels over which a LayerNorm or an attention computes.
    After every step the copy must answer the example as the network does whose removed channels are silenced;
    build its optimizer after the surgery.

    The copy's `config` describes its widths, so that `save`, `load` and `build` know it, where the model is of
    the cookbook's families or of torchvision.

    Args:
        model: maps images to one tensor of logits. Modes and `requires_grad` of its layers carry over.
        example: images (B, C, H, W) on the model's device; at most two are used.
        ratio: share of the channels that leave each group, between 0 and 1; or shares by the names of layers,
            and then the layers that are not named keep theirs.
        importance: see `channel_scores`; as for `batches` and `seed`.
        multiple: what is left of a group is a multiple of this, or all of it. 16 suits a dense runtime with AVX.
        scope: ``uniform`` prunes every group by the ratio; ``global`` ranks the channels of all groups by their
            scores, each divided by its group's mean, and prunes the ratio of them all.
        exclude: names of layers, or of modules with everything in them, whose outputs keep their channels.
        steps: number of rounds, with new scores in each (iterative pruning); the ratio is reached in equal parts.
        after_step: is called with the copy after each round, to fine-tune it in place.

    Raises:
        UsageError: a value is out of range, a layer does not exist or cannot lose channels, the model cannot
            be traced or be pruned safely, or nothing would leave.
        DataError: as `channel_scores`.
    """
    if scope not in get_args(Scope):
        raise UsageError(f"scope is {scope!r}: use uniform or global.")
    if scope == "global" and isinstance(ratio, Mapping):
        raise UsageError("A ratio for each layer leaves nothing to rank across layers: use scope='uniform' with it.")
    require_ratio(ratio)
    before = {group.name: group.width for group in Surgery(duplicate(model, example), example[:2]).groups}

    def allocate(step: int, groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor]) -> dict[str, int]:
        judged = [group for group in groups if group.name in scores]
        leaving = shares(ratio, groups, model)
        wanted = {group.name: before[group.name] * (1 - leaving.get(group.name, 0) * step / steps) for group in judged}
        if scope == "global":
            wanted = ranked(judged, scores, sum(wanted.values()))
        return {group.name: rounded(wanted[group.name], group, multiple) for group in judged}

    return operate(
        model, example, allocate, importance=importance, multiple=multiple, exclude=exclude, steps=steps, batches=batches,
        seed=seed, after_step=after_step,
    )  # fmt: skip


@torch.inference_mode(False)  # the copy shall be trainable, wherever it was made
def operate(
    model: nn.Module,
    example: Tensor,
    allocate: Allocation,
    *,
    importance: Importance,
    multiple: int,
    exclude: Sequence[str],
    steps: int,
    batches: Batches | None,
    seed: int,
    after_step: Callable[[nn.Module], object] | None,
) -> nn.Module:
    """Return a pruned copy; `allocate` says after each scoring, for steps counted from 1, how wide each group shall be.

    The other arguments and the errors are those of `prune_channels`.
    """
    for name, value in (("multiple", multiple), ("steps", steps)):
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} is {value!r}: use a whole number of at least 1.")
    pruned = duplicate(model, example)
    example = example[:2].detach()
    for step in range(1, steps + 1):
        flags = {name: parameter.requires_grad for name, parameter in pruned.named_parameters()}
        surgery = Surgery(pruned, example)
        groups = freeze(surgery.groups, exclude, pruned)
        free = [group for group in groups if not group.frozen]
        if not free:
            raise UsageError(f"Nothing in {type(model).__name__} can be pruned: {reasons(groups)}.")
        scores = channel_scores(pruned, free, importance, batches=batches, seed=seed)
        removed = least_important(free, scores, allocate(step, groups, scores))
        silenced = silence(copy.deepcopy(pruned), groups, removed)
        expected = layer_sizes(pruned) | sizes_after(pruned, groups, removed)
        surgery.remove(removed)
        surgery.close()
        require_equal(pruned, silenced, expected, example)
        for name, parameter in pruned.named_parameters():
            parameter.requires_grad_(flags[name])
        if after_step is not None:
            after_step(pruned)
    if layer_sizes(pruned) == layer_sizes(model):
        raise UsageError(
            f"No channel leaves {type(model).__name__} in multiples of {multiple}: raise the ratio or lower the multiple."
        )
    config = config_of_widths(pruned, model)
    if config is not None:
        pruned.config = config
    return pruned


def mask_channels(model: nn.Module, example: Tensor, removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """Return a copy of the same shape in which no layer listens to the given channels.

    It is what a pruned network must equal in eval mode, and what it is compared with after every surgery. To set
    a filter to zero is not enough: its bias, and the shift of the BatchNorm behind it, would still speak.

    Args:
        model: as in `prune_channels`, as for `example`.
        removed: channels by the name of a layer that makes them.

    Raises:
        UsageError: a layer does not exist, cannot lose channels or has no such channel.
    """
    masked = duplicate(model, example)
    surgery = Surgery(masked, example[:2])
    surgery.close()
    by_group: dict[str, list[int]] = {}
    for name, channels in removed.items():
        group = require_group(surgery.groups, name, masked)
        if not all(0 <= channel < group.width for channel in channels):
            raise UsageError(f"{name} has the channels 0 to {group.width - 1}: name some of these.")
        by_group.setdefault(group.name, []).extend(channels)
    return silence(masked, surgery.groups, by_group)


def prunable_layers(model: nn.Module, example: Tensor, *, exclude: Sequence[str] = ()) -> dict[str, int]:
    """Return the channels of each group that can be pruned, by the name of the first layer that makes them.

    The arguments and errors are those of `prune_channels`; every name may stand in its `ratio`.
    """
    copied = duplicate(model, example)
    return {
        group.name: group.width for group in freeze(Surgery(copied, example[:2]).groups, exclude, copied) if not group.frozen
    }
