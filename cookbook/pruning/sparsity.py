"""Objectives that push channels towards zero while a network trains, so that little is lost when they leave (lesson 04)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cookbook.distillation.features import unwrapped
from cookbook.errors import UsageError
from cookbook.pruning.groups import duplicate
from cookbook.pruning.importance import makers
from cookbook.pruning.torch_pruning_site import Surgery
from cookbook.training import CrossEntropy, Objective


class Slimming:
    """Loss + strength · Σ |gamma| over the scales of every BatchNorm (Liu et al., network slimming, arXiv 1708.06519).

    Train with it, then prune with ``importance="gamma"``. `fit` gives scales no weight decay, so that this alone
    draws them to zero. The gradient of |gamma| at 0 is taken as 0.

    Args:
        strength: of the penalty; the source uses 1e-5 to 1e-4.
        objective: the loss; cross-entropy by default.

    Raises:
        UsageError: the strength is negative or no number; or, when it is called, the model has no BatchNorm.
    """

    def __init__(self, strength: float = 1e-4, *, objective: Objective | None = None) -> None:
        _require_strength(strength)
        self.strength, self.objective = strength, objective or CrossEntropy()

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar mean loss of images (B, C, H, W) and labels (B,), with the penalty."""
        return self.objective(model, images, labels) + self.strength * self.penalty(model)

    def penalty(self, model: nn.Module) -> Tensor:
        """Return Σ |gamma|, a scalar.

        Raises:
            UsageError: the model has no BatchNorm with scales.
        """
        scales: list[Tensor] = [module.weight for module in model.modules() if isinstance(module, _BatchNorm) and module.affine]
        if not scales:
            raise UsageError(f"{type(model).__name__} has no BatchNorm whose scales could shrink: use GroupLasso.")
        return torch.cat(scales).abs().sum()


class GroupLasso:
    """Loss + strength · Σ over channels of the norm of the filters that make them (Wen et al., arXiv 1608.03665).

    Filters whose outputs are added count as one channel, as in `prune_channels`: the sum runs over what
    ``importance="l2"`` scores. The gradient of the norm at 0 is taken as 0.

    Args:
        model: the network that will be trained; it is only looked at.
        example: images (B, C, H, W) on its device.
        strength: of the penalty.
        objective: the loss; cross-entropy by default.

    Raises:
        UsageError: the strength is negative or no number, or the model cannot be traced.
    """

    def __init__(
        self, model: nn.Module, example: Tensor, *, strength: float = 1e-4, objective: Objective | None = None
    ) -> None:
        _require_strength(strength)
        surgery = Surgery(duplicate(model, example), example[:2])
        surgery.close()
        self.groups = [group for group in surgery.groups if not group.frozen]
        self.strength, self.objective = strength, objective or CrossEntropy()

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar mean loss of images (B, C, H, W) and labels (B,), with the penalty."""
        return self.objective(model, images, labels) + self.strength * self.penalty(model)

    def penalty(self, model: nn.Module) -> Tensor:
        """Return Σ over channels of the Euclidean norm of their filters, a scalar."""
        norms, network = [], unwrapped(getattr(model, "_orig_mod", model))
        for group in self.groups:
            squares = torch.zeros(group.width)
            for member, layer in makers(network, group):
                rows = layer.weight.flatten(1).square().sum(1)
                squares = squares.to(rows).index_add(0, member.units.to(rows.device), rows[member.channels])
            norms.append(torch.where(squares > 0, squares, 1).sqrt() * (squares > 0))
        return torch.cat(norms).sum()


def _require_strength(strength: float) -> None:
    if not 0 <= strength < float("inf"):
        raise UsageError(f"strength is {strength}: use 0 or more.")
