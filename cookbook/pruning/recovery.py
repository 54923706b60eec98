"""After the surgery: BatchNorm re-estimation, fine-tuning, and the controls with an equal budget (lesson 04)."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from cookbook.data import Loader, require_role
from cookbook.distillation import distill
from cookbook.environment import seed_everything
from cookbook.errors import DataError, UsageError
from cookbook.models import build, eval_mode
from cookbook.training import EpochRecord, Recipe, fit

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass
class _Pool:
    """Sums over all values of each channel, in float64."""

    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0].detach().double().transpose(0, 1).flatten(1)
        if values.shape[1] < 2:
            raise UsageError("A batch with one value a channel has no variance: use a loader with larger batches.")
        self.count += values.shape[1]
        self.total = self.total + values.sum(1)
        self.squares = self.squares + values.square().sum(1)


def reestimate_batchnorm(model: nn.Module, loader: Loader, *, batches: int | None = None) -> int:
    """Set every BatchNorm's mean and variance, in place, to those over many training images; return the number of batches.

    Channels that are gone shift what the layers behind them see, and the statistics that training averaged no longer
    fit. Each batch is normalized by its own statistics, as in training; what is kept is the mean and the unbiased
    variance over all batches together (Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv 2105.07576, section 3:
    PreciseBN), and not a moving average. Everything else runs in eval mode. No weight changes; if anything fails, no
    statistic does either.

    Args:
        model: on the device of the batches.
        loader: training images, as they will be seen: by custom without augmentation.
        batches: how many of its batches are used; None: all of them.

    Raises:
        UsageError: there is no BatchNorm with statistics, fewer than one batch is asked for, the split is not train, or
            a batch has a single value a channel.
        DataError: the loader yields nothing.
    """
    require_role(loader.role, ("train",), "estimate statistics")
    if batches is not None and batches < 1:
        raise UsageError(f"batches is {batches}: use 1 or more, or None for all.")
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and module.track_running_stats]
    if not norms:
        raise UsageError(f"{type(model).__name__} has no BatchNorm with running statistics: there is nothing to estimate.")
    pools = [_Pool() for _ in norms]
    seen = 0
    with eval_mode(model), _by_batch(norms, pools), torch.no_grad():
        for images, _ in islice(loader.batches(0), batches):
            model(images)
            seen += 1
    if not seen:
        raise DataError("The loader yields no images: there is nothing to estimate from.")
    for norm, pool in zip(norms, pools, strict=True):
        if not pool.count:  # a module that the forward pass does not call
            continue
        mean = torch.as_tensor(pool.total) / pool.count
        variance = (torch.as_tensor(pool.squares) / pool.count - mean.square()).clamp_min(0)
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance * (pool.count / (pool.count - 1)))
    return seen


@contextlib.contextmanager
def _by_batch(norms: list[Any], pools: list[_Pool]) -> Iterator[None]:
    """Normalize by each batch's own statistics and pool them, without touching the running ones."""
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    handles = [norm.register_forward_pre_hook(pool.add) for norm, pool in zip(norms, pools, strict=True)]
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 0.0
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked.copy_(count)


def fine_tuning_recipe(original: Recipe, *, share: float = 0.2, rate: float = 0.1) -> Recipe:
    """Return the original recipe for a share of its epochs, at a share of its learning rate, without its averaging.

    Args:
        original: with which the unpruned model was trained.
        share: of the epochs, above 0 and up to 1; rounded up to whole epochs.
        rate: factor on the largest learning rate, positive.

    Raises:
        UsageError: a value is out of range.
    """
    if not 0 < share <= 1 or not 0 < rate < math.inf:
        raise UsageError(f"share is {share} and rate is {rate}: use a share above 0 and up to 1, and a positive rate.")
    epochs = math.ceil(round(share * original.epochs, 9))
    return replace(original, epochs=epochs, learning_rate=rate * original.learning_rate, ema_decay=None)


def fine_tune(
    pruned: nn.Module,
    train: Loader,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    alpha: float = 0.9,
    temperature: float = 4.0,
    validation: Loader | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    progress: bool | None = None,
) -> list[EpochRecord]:
    """Train a pruned model in place; with a teacher, which is by custom the unpruned model, on its answers too.

    Without a teacher it is `cookbook.training.fit`, with one `cookbook.distillation.distill`, whose arguments
    and errors are these. The optimizer is built here, after the surgery.

    Args:
        pruned: trained in place.
        train: batches to learn from.
        recipe: from `fine_tuning_recipe`.
        teacher: answers in eval mode and is not trained; None: hard labels alone.
        alpha: share of the teacher.
        temperature: of the softmax.
        validation: evaluated after each epoch.
        checkpoint: file for the training state; the same call resumes it.
        on_epoch: called with each finished epoch's record.
        progress: show a bar; None decides by terminal, JupyterLab and CI.
    """
    shared: dict[str, Any] = {
        "validation": validation, "checkpoint": checkpoint, "on_epoch": on_epoch, "progress": progress,
    }  # fmt: skip
    if teacher is None:
        return fit(pruned, train, recipe, **shared)
    return distill(pruned, teacher, train, recipe, alpha=alpha, temperature=temperature, **shared)


def scratch_control(pruned: nn.Module, original: Recipe, fine_tuning: Recipe, *, seed: int = 0) -> tuple[nn.Module, Recipe]:
    """Return the pruned architecture with fresh weights, and the recipe with the epochs of training and fine-tuning together.

    The control of Liu et al., Rethinking the value of network pruning (arXiv 1810.05270): what the same shape reaches
    when it never had the large model's weights. A model whose configuration describes its widths is built
    anew from it; of any other each layer gets torch's default initialization.

    Args:
        pruned: it is left as it is.
        original: with which the unpruned model was trained.
        fine_tuning: with which the pruned model was trained afterwards.
        seed: of the fresh weights and of the training.

    Raises:
        UsageError: a layer of a model without a fitting configuration cannot be initialized again.
    """
    recipe = replace(original, epochs=original.epochs + fine_tuning.epochs, seed=seed)
    seed_everything(seed)
    config = getattr(pruned, "config", None)
    if config is not None:
        fresh = build(config)
        if _shapes(fresh) == _shapes(pruned):
            return fresh, recipe
        seed_everything(seed)
    fresh = copy.deepcopy(pruned)
    for name, module in fresh.named_modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif next(module.parameters(recurse=False), None) is not None:
            raise UsageError(
                f"{name or type(module).__name__} has parameters but no reset_parameters: build the architecture with fresh "
                "weights by hand."
            )
    return fresh, recipe


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}
