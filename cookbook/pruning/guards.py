"""What belongs to the network before the surgery must not be used on the one after it (lesson 04)."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from cookbook.errors import UsageError


def require_fresh_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer that was built for another network, such as the one before pruning.

    It would go on to update weights that are no longer part of the model, without an error. (`fit` builds its own.)

    Raises:
        UsageError: it holds parameters that the model does not have, or misses some that are trained.
    """
    own = {id(parameter) for parameter in model.parameters()}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    foreign = len(held - own)
    missing = sum(parameter.requires_grad and id(parameter) not in held for parameter in model.parameters())
    if foreign or missing:
        raise UsageError(
            f"The optimizer holds {foreign} parameters that {type(model).__name__} does not have and misses {missing} "
            "of its own: build the optimizer after the surgery."
        )


def require_fresh_average(model: nn.Module, average: AveragedModel) -> None:
    """Refuse a moving average of weights that have other shapes than the model's, such as those before pruning.

    Raises:
        UsageError: names or shapes differ.
    """
    own = {name: value.shape for name, value in model.state_dict().items()}
    averaged = {name: value.shape for name, value in average.module.state_dict().items()}
    differing = sorted(name for name in own.keys() | averaged.keys() if own.get(name) != averaged.get(name))
    if differing:
        raise UsageError(
            f"The average is of a network that differs from {type(model).__name__} in {len(differing)} tensors, first "
            f"{differing[0]}: average anew after the surgery."
        )
