"""Activation checkpointing: less memory for more arithmetic, with the very same gradients (lesson 02)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from cookbook.errors import UsageError


def checkpoint_activations(model: nn.Module, modules: Iterable[nn.Module]) -> nn.Module:
    """Let `modules` forget what happens inside them, and compute it again in the backward pass.

    Of each module only the input is kept for the backward pass, in which its forward pass runs a second
    time. Gradients are the same bit for bit: dropout draws the same masks again, and BatchNorm takes no
    note of the second pass, which would count every batch twice in its running statistics.

    Names of parameters and keys of ``state_dict`` stay; copies of the model keep the behaviour. The
    method is from Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174, through
    `torch.utils.checkpoint`.

    Args:
        model: changed in place.
        modules: parts of it, such as its residual blocks, none inside another. About the square root
            of the number of layers is a good number of parts.

    Returns:
        `model`.

    Raises:
        UsageError: there are no modules, one is not a part of the model, or one lies inside another.
    """
    chosen = list(modules)
    if not chosen:
        raise UsageError("There is nothing to checkpoint: name the modules whose activations shall be computed again.")
    parts = set(model.modules())
    inner = {part for module in chosen for part in module.modules() if part is not module}
    for module in chosen:
        if module not in parts or module in inner:
            where = "inside another of the modules" if module in parts else "not a part of the model"
            raise UsageError(f"A {type(module).__name__} is {where}: pass separate parts of the model.")
    for module in chosen:
        if not isinstance(module, _Checkpointed):
            own = type(module)
            module.__class__ = type(own.__name__, (_Checkpointed, own), {"__module__": own.__module__})
    return model


class _Checkpointed(nn.Module):
    """Mixed into a module's class, in front of it, as `torch.nn.utils.parametrize` does."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the module computes; keep only its inputs while gradients are wanted."""
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        if torch.compiler.is_compiling():  # its graph holds the update of the statistics once, outside what is repeated
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(
            super().forward, *args, use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), _resting_statistics(self)), **kwargs,
        )  # fmt: skip


@contextlib.contextmanager
def _resting_statistics(module: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are, while it goes on to normalize by the batch.

    Without a counter and a momentum, torch's BatchNorm moves its statistics by a share of zero.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    before = [(norm.num_batches_tracked, norm.momentum) for norm in norms]
    for norm in norms:
        norm.num_batches_tracked = norm.momentum = None
    try:
        yield
    finally:
        for norm, (counter, momentum) in zip(norms, before, strict=True):
            norm.num_batches_tracked, norm.momentum = counter, momentum
