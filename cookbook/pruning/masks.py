"""Single weights set to zero: smaller files, and dense arithmetic as before (lesson 04)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from cookbook.data import Loader, require_role
from cookbook.errors import DataError, UsageError
from cookbook.models import eval_mode
from cookbook.pruning.groups import require_layer
from cookbook.pruning.importance import Batches

MaskScope = Literal["local", "global"]
Criterion = Literal["magnitude", "taylor", "movement"]


class Mask(nn.Module):
    """Multiplies a weight with zeros and ones; as a parametrization it holds through every step of an optimizer.

    What is removed is a float buffer that only grows, and any positive number counts. So the moving average of
    a training, which averages buffers too, removes what the model removed.

    With `movement` there are scores, a parameter with one value for each weight, that do not change what is computed.
    Their gradient is that of the loss for the masked weight times the weight, so that every step of the optimizer, which
    has them like any other parameter, lowers the score of a weight by as much as the step draws it towards zero (Sanh
    et al., movement pruning, arXiv 2005.07683: score −= learning rate · gradient · weight). They are flat, because `fit`
    decays what has two or more dimensions.

    Args:
        weight: that it will mask.
        movement: keep scores.
    """

    removed: Tensor
    steps: Tensor
    scores: nn.Parameter | None

    def __init__(self, weight: Tensor, *, movement: bool = False) -> None:
        super().__init__()
        self.register_buffer("removed", torch.zeros_like(weight, requires_grad=False))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.scores = nn.Parameter(weight.new_zeros(weight.numel())) if movement else None

    def forward(self, weight: Tensor) -> Tensor:
        """Return a weight of the same shape, zero where it is removed; no gradient flows to what is removed."""
        masked = weight * (self.removed == 0)
        if self.scores is None:
            return masked
        nothing = self.scores - self.scores.detach()
        return masked + weight.detach() * nothing.view_as(weight)


def attach_masks(model: nn.Module, *, exclude: Sequence[str] = (), movement: bool = False) -> nn.Module:
    """Return a copy whose convolutions and linear layers have masks that remove nothing yet.

    Build the optimizer, or call `fit`, after this. The copy's weights are named ``parametrizations.weight.original``;
    `make_permanent` gives them their own names back.

    Args:
        model: any network.
        exclude: names of layers, or of modules with everything in them, that get no mask.
        movement: let a training keep the scores that the criterion ``movement`` needs. They count when gradients are clipped.

    Raises:
        UsageError: there is no such layer, no layer is left, or one is parametrized already.
    """
    for name in exclude:
        require_layer(model, name)
    model = copy.deepcopy(model)
    layers = [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, _ConvNd | nn.Linear)
        and not any(name == other or name.startswith(f"{other}.") for other in exclude)
    ]
    if not layers:
        raise UsageError(f"{type(model).__name__} has no convolution and no linear layer to mask: exclude fewer.")
    if any(parametrize.is_parametrized(layer) for layer in layers):
        raise UsageError(f"{type(model).__name__} has masks or parametrizations already: make them permanent first.")
    for layer in layers:
        assert isinstance(layer.weight, Tensor)
        parametrize.register_parametrization(layer, "weight", Mask(layer.weight, movement=movement))
    return model


def mask_weights(
    model: nn.Module,
    *,
    sparsity: float,
    scope: MaskScope = "local",
    criterion: Criterion = "magnitude",
    batches: Batches | None = None,
    exclude: Sequence[str] = (),
) -> nn.Module:
    """Return a copy in which a share of the weights of convolutions and linear layers is zero, and stays so.

    Args:
        model: a network, or one that has masks: what they remove stays removed.
        sparsity: share of zeros, between 0 and 1, to the nearest whole number of weights.
        scope: ``local`` in each layer, ``global`` over all layers together.
        criterion: ``magnitude`` removes the smallest absolute weights (Han et al., arXiv 1506.02626); ``taylor`` the smallest
            absolute products of a weight and its gradient, summed over batches (Molchanov et al., arXiv 1611.06440);
            ``movement`` those that a training has drawn the most towards zero (Sanh et al., arXiv 2005.07683), for a
            model from ``attach_masks(model, movement=True)`` that was trained. Unlike there, none comes back.
        batches: for ``taylor``, as in `channel_scores`.
        exclude: as in `attach_masks`; for a model without masks.

    Raises:
        UsageError: as `attach_masks`; or a value is out of range, the model has more zeros already, or no training has
            moved its scores.
        DataError: there is no batch.
    """
    if criterion not in get_args(Criterion):
        raise UsageError(f"criterion is {criterion!r}: use {', '.join(get_args(Criterion))}.")
    masked = copy.deepcopy(model) if has_masks(model) else attach_masks(model, exclude=exclude)
    scores = (
        None if criterion == "magnitude" else movement_scores(masked) if criterion == "movement" else _taylor(masked, batches)
    )
    grow_masks(masked, sparsity, scope=scope, scores=scores)
    return masked


def mask_two_of_four(model: nn.Module, *, exclude: Sequence[str] = ()) -> nn.Module:
    """Return a copy in which two of every four neighbouring input channels have weight zero: the smaller two.

    It is the pattern that sparse tensor cores compute twice as fast (Mishra et al., arXiv 2104.08378); a CPU does
    not. Layers whose inputs are no multiple of four, such as depthwise convolutions, stay dense.

    Args:
        model: a network without masks.
        exclude: as in `attach_masks`.

    Raises:
        UsageError: as `attach_masks`; or no layer has a multiple of four inputs.
    """
    masked = attach_masks(model, exclude=exclude)
    found = False
    for mask, weight in mask_pairs(masked).values():
        if weight.shape[1] % 4:
            continue
        found = True
        fours = weight.detach().abs().unflatten(1, (-1, 4))  # (out, groups of four, 4, …)
        order = fours.argsort(dim=2, stable=True)
        mask.removed.copy_(torch.zeros_like(fours).scatter_(2, order[:, :, :2], 1.0).flatten(1, 2))
    if not found:
        raise UsageError(f"No layer of {type(model).__name__} has a multiple of four inputs: the 2:4 pattern needs one.")
    return masked


def make_permanent(model: nn.Module) -> nn.Module:
    """Return a copy with zeros in its weights and without masks, of the same architecture as before them.

    Raises:
        UsageError: the model has no masks.
    """
    _require_masks(model)
    model = copy.deepcopy(model)
    for _, layer, _ in list(_masked_layers(model)):
        # A copy shares the class that torch made for the original's layer, and the removal takes `weight` away from it.
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, {"weight": vars(shared)["weight"]})
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return model


def grow_masks(
    model: nn.Module, sparsity: float, *, scope: MaskScope = "local", scores: Mapping[str, Tensor] | None = None
) -> None:
    """Remove more weights, in place, until a share of them is removed; what is removed stays so.

    Args:
        model: with masks.
        sparsity: share of zeros from 0 up to, not including, 1.
        scope: as in `mask_weights`.
        scores: for each masked layer, what ranks its weights; None: their absolute values.

    Raises:
        UsageError: a value is out of range, there are no masks, or they remove more already.
    """
    if scope not in get_args(MaskScope):
        raise UsageError(f"scope is {scope!r}: use local or global.")
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity is {sparsity}: use a share of zeros from 0 up to, not including, 1.")
    _require_masks(model)
    pairs = mask_pairs(model)
    ranks = {
        name: (weight.detach().abs() if scores is None else scores[name]).masked_fill(mask.removed > 0, -math.inf)
        for name, (mask, weight) in pairs.items()
    }
    for names in [list(pairs)] if scope == "global" else [[name] for name in pairs]:
        flat = torch.cat([ranks[name].flatten() for name in names])
        count = round(sparsity * len(flat))
        before = int((flat == -math.inf).sum())
        if before > count:
            raise UsageError(
                f"{before} of {len(flat)} weights from {names[0]} on are removed already, more than a sparsity of {sparsity} "
                "asks for: ask for more, or start from the model without masks."
            )
        gone = torch.zeros_like(flat)
        gone[flat.argsort(stable=True)[:count]] = 1
        for name, part in zip(names, gone.split([ranks[name].numel() for name in names]), strict=True):
            mask = pairs[name][0]
            mask.removed.copy_(part.view_as(mask.removed))


def movement_scores(model: nn.Module) -> dict[str, Tensor]:
    """Return for each masked layer a tensor like its weight: how far a training has moved each away from zero.

    Raises:
        UsageError: a mask keeps no scores, or no training has moved any.
    """
    pairs = mask_pairs(model)
    kept = {name: mask.scores.detach().view_as(weight) for name, (mask, weight) in pairs.items() if mask.scores is not None}
    if not kept or len(kept) < len(pairs):
        raise UsageError("criterion 'movement' needs scores: train a model from attach_masks(model, movement=True) first.")
    if not any(bool(score.any()) for score in kept.values()):
        raise UsageError("criterion 'movement' needs weights that have moved: take training steps before masks grow.")
    return kept


def has_masks(model: nn.Module) -> bool:
    """Say whether any layer has a mask."""
    return any(_mask_of(layer) is not None for layer in model.modules())


def mask_pairs(model: nn.Module) -> dict[str, tuple[Mask, Tensor]]:
    """Return the mask of each masked layer with the weight under it, by the layer's name."""
    return {name: (mask, layer.parametrizations.weight.original) for name, layer, mask in _masked_layers(model)}


def _masked_layers(model: nn.Module) -> Iterator[tuple[str, Any, Mask]]:
    for name, layer in model.named_modules():
        mask = _mask_of(layer)
        if mask is not None:
            yield name, layer, mask


def _mask_of(layer: nn.Module) -> Mask | None:
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    masks: Iterable[nn.Module] = layer.parametrizations.weight  # type: ignore[union-attr, assignment]
    return next((mask for mask in masks if isinstance(mask, Mask)), None)


def _require_masks(model: nn.Module) -> None:
    if not has_masks(model):
        raise UsageError(f"{type(model).__name__} has no masks: attach some with mask_weights or attach_masks first.")


def _taylor(model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
    if batches is None:
        raise UsageError("criterion 'taylor' needs gradients: pass batches of images and labels.")
    if isinstance(batches, Loader):
        require_role(batches.role, ("train", "validation"), "judge weights")
        batches = batches.batches(0)
    names, pairs = zip(*mask_pairs(model).items(), strict=True)
    weights = [weight for _, weight in pairs]
    totals = [torch.zeros_like(weight) for weight in weights]
    count = 0
    for images, labels in batches:
        with eval_mode(model), torch.enable_grad():
            loss = F.cross_entropy(model(images), labels)
            gradients = torch.autograd.grad(loss, weights)
        for total, weight, gradient in zip(totals, weights, gradients, strict=True):
            total += (weight.detach() * gradient).abs()
        count += 1
    if not count:
        raise DataError("There is no batch to take gradients from: pass one or more.")
    return dict(zip(names, totals, strict=True))
