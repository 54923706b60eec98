"""How much each channel matters: six criteria, and chance as their control (lesson 04)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from cookbook.data import Batch, Loader, require_role
from cookbook.environment import derive_seed
from cookbook.errors import DataError, UsageError
from cookbook.models import eval_mode
from cookbook.pruning.torch_pruning_site import ChannelGroup, Member

Importance = Literal["l1", "l2", "gamma", "taylor", "fpgm", "random"]
Batches = Loader | Iterable[Batch]


def channel_scores(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    importance: Importance,
    *,
    batches: Batches | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return a float64 score (width,) for each group by its name; the channels with the smallest scores leave first.

    A channel's filters are the weights with which all convolutions and linear layers of its group make it.

    - ``l1``: sum of the filters' absolute weights (Li et al., arXiv 1608.08710).
    - ``l2``: root of the sum of their squares.
    - ``gamma``: mean absolute scale of the BatchNorm layers that it passes (Liu et al., network slimming,
      arXiv 1708.06519). Groups without BatchNorm have no score and stay whole.
    - ``taylor``: square of the first-order change of the loss when the channel leaves, averaged over the batches
      (Molchanov et al., arXiv 1906.10771): the sum of gradient times weight over the BatchNorm layers that it
      passes, or, without any, over its filters and biases.
    - ``fpgm``: sum of the Euclidean distances from its filter to the others of the layer, so that the most
      replaceable ones leave (He et al., geometric median, arXiv 1811.00250).
    - ``random``: uniform noise from `seed` and the position of the group.

    Args:
        model: that the groups were found in. It is not changed.
        groups: that are to be judged.
        importance: the criterion.
        batches: for ``taylor``: images (B, C, H, W) and int64 labels (B,), on the model's device. A loader's first
            epoch is used; its role must be ``train`` or ``validation``.
        seed: of ``random``.

    Raises:
        UsageError: the criterion is unknown, lacks what it needs, or a score is not a number.
        DataError: there is no batch.
    """
    if importance not in get_args(Importance):
        raise UsageError(f"importance is {importance!r}: use {', '.join(get_args(Importance))}.")
    if importance == "random":
        scores = {group.name: _noise(group.width, seed, number) for number, group in enumerate(groups)}
    elif importance == "taylor":
        scores = _taylor(model, groups, batches)
    else:
        judge = _CRITERIA[importance]
        judged = {group.name: judge(model, group) for group in groups}
        scores = {name: score for name, score in judged.items() if score is not None}
    if groups and not scores:
        raise UsageError(
            f"{type(model).__name__} has no BatchNorm where channels can leave, so that 'gamma' cannot judge them: use 'l1'."
        )
    for group in groups:
        if group.name not in scores:
            continue
        score = scores[group.name]
        if not score.isfinite().all():
            raise UsageError(
                f"{group.name} has channels whose {importance} score is NaN or infinite: repair the weights first."
            )
        scores[group.name] = score.view(-1, group.block).mean(1).repeat_interleave(group.block)
    return scores


def makers(model: nn.Module, group: ChannelGroup) -> Iterator[tuple[Member, _ConvNd | nn.Linear]]:
    """Yield the convolutions and linear layers that make the channels of a group, with their share of it."""
    for member in group.members:
        layer = model.get_submodule(member.layer)
        if member.side == "out" and isinstance(layer, _ConvNd | nn.Linear):
            yield member, layer


def _l1(model: nn.Module, group: ChannelGroup) -> Tensor:
    return _summed(group, ((member, rows.abs().sum(1)) for member, rows in _filters(model, group)))


def _l2(model: nn.Module, group: ChannelGroup) -> Tensor:
    return _summed(group, ((member, rows.square().sum(1)) for member, rows in _filters(model, group))).sqrt()


def _fpgm(model: nn.Module, group: ChannelGroup) -> Tensor:
    return _summed(group, ((member, torch.cdist(rows, rows).sum(1)) for member, rows in _filters(model, group)))


def _gamma(model: nn.Module, group: ChannelGroup) -> Tensor | None:
    scales = [(member, norm.weight.detach().cpu().double().abs()) for member, norm in _norms(model, group)]
    return _summed(group, scales) / len(scales) if scales else None


_CRITERIA: Mapping[Importance, Callable[[nn.Module, ChannelGroup], Tensor | None]] = {
    "l1": _l1, "l2": _l2, "fpgm": _fpgm, "gamma": _gamma,
}  # fmt: skip


def _noise(width: int, seed: int, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, number))
    return torch.rand(width, generator=generator, dtype=torch.float64)


def _taylor(model: nn.Module, groups: Sequence[ChannelGroup], batches: Batches | None) -> dict[str, Tensor]:
    if batches is None:
        raise UsageError("importance 'taylor' needs gradients: pass batches of images and labels.")
    if isinstance(batches, Loader):
        require_role(batches.role, ("train", "validation"), "judge channels")
        batches = batches.batches(0)
    gates = {group.name: _gates(model, group) for group in groups}
    wanted = list({id(p): p for gate in gates.values() for _, layer in gate for p in layer.parameters()}.values())
    totals = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in groups}
    flags = [parameter.requires_grad for parameter in wanted]
    count = 0
    try:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for images, labels in batches:
            with eval_mode(model), torch.enable_grad():
                loss = F.cross_entropy(model(images), labels)
                found = torch.autograd.grad(loss, wanted, allow_unused=True)
            gradients = {id(p): gradient for p, gradient in zip(wanted, found, strict=True) if gradient is not None}
            for group in groups:
                changes = ((member, _change(layer, gradients)) for member, layer in gates[group.name])
                totals[group.name] += _summed(group, changes).square()
            count += 1
    finally:
        for parameter, flag in zip(wanted, flags, strict=True):
            parameter.requires_grad_(flag)
    if not count:
        raise DataError("There is no batch to take gradients from: pass one or more.")
    return {name: total / count for name, total in totals.items()}


def _gates(model: nn.Module, group: ChannelGroup) -> list[tuple[Member, nn.Module]]:
    norms: list[tuple[Member, nn.Module]] = [*_norms(model, group)]
    return norms or [(member, layer) for member, layer in makers(model, group)]


def _change(layer: nn.Module, gradients: Mapping[int, Tensor]) -> Tensor:
    """Return (channels,), the first-order change of the loss when all of a channel's parameters become 0, without its sign."""
    pairs = [(gradients[id(p)].cpu().double(), p.detach().cpu().double()) for p in layer.parameters() if id(p) in gradients]
    products = [(gradient * value).reshape(len(value), -1).sum(1) for gradient, value in pairs]
    return torch.stack(products).sum(0) if products else torch.zeros(())


def _norms(model: nn.Module, group: ChannelGroup) -> Iterator[tuple[Member, _BatchNorm]]:
    for member in group.members:
        layer = model.get_submodule(member.layer)
        if isinstance(layer, _BatchNorm) and layer.affine:
            yield member, layer


def _filters(model: nn.Module, group: ChannelGroup) -> Iterator[tuple[Member, Tensor]]:
    for member, layer in makers(model, group):
        yield member, layer.weight.detach().cpu().double().flatten(1)


def _summed(group: ChannelGroup, values: Iterable[tuple[Member, Tensor]]) -> Tensor:
    """Add what each layer says about its channels to the group's channels to which these belong."""
    total = torch.zeros(group.width, dtype=torch.float64)
    for member, value in values:
        if value.ndim:
            total.index_add_(0, member.units, value[member.channels])
    return total
