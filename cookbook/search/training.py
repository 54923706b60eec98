"""Training all networks of a space at once: the sandwich rule, with the largest as the teacher (lesson 09)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.data import Loader, LoaderWrapper
from cookbook.distillation.losses import soft_targets
from cookbook.errors import UsageError
from cookbook.search.supernet import SuperNet
from cookbook.training import EpochRecord, Recipe, fit


class Sandwich:
    """The loss of a supernet as an objective for `fit`: the largest network, the smallest and some between them.

    The sandwich rule and the in-place distillation of Yu and Huang (arXiv 1903.05134): in every
    step the largest network learns from the labels, and the smallest and a few drawn at random learn from what the
    largest says about the same images, at temperature 1. What lies between the largest and the smallest comes out
    between them. The draws come from torch's global generator, which `fit` seeds, stores and restores.

    Args:
        drawn: networks between the largest and the smallest in each step; the paper has 2.
        label_smoothing: of the labels that the largest learns from.

    Raises:
        UsageError: fewer than none are drawn.
    """

    def __init__(self, drawn: int = 2, label_smoothing: float = 0.0) -> None:
        if drawn < 0:
            raise UsageError(f"drawn is {drawn}: use 0 or more networks.")
        self.drawn, self.label_smoothing = drawn, label_smoothing

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean of the networks' losses, a scalar; the paper takes their sum, as a higher rate would do.

        Args:
            model: the `SuperNet`.
            images: float32 (B, C, H, W).
            labels: int64 (B,).

        Raises:
            UsageError: the model is no `SuperNet`, or is wrapped for data parallelism.
        """
        if not isinstance(model, SuperNet):
            raise UsageError(f"{type(model).__name__} holds no smaller networks: train a SuperNet, in one process, uncompiled.")
        logits = model(images)
        losses = [F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)]
        answers = logits.detach()
        for candidate in (model.space.smallest, *(model.space.draw() for _ in range(self.drawn))):
            losses.append(soft_targets(model.narrow(candidate, images), answers, 1.0))
        return sum(losses[1:], losses[0]) / len(losses)

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that identify the objective, for checkpoints."""
        return {"objective": "sandwich", "drawn": self.drawn, "label_smoothing": self.label_smoothing}


def train_supernet(
    supernet: SuperNet,
    train: Loader,
    recipe: Recipe,
    *,
    drawn: int = 2,
    validation: Loader | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    progress: bool | None = None,
) -> list[EpochRecord]:
    """Train all networks of a supernet together, in place, by the rule of `Sandwich`; return one record an epoch.

    A step costs about as much as a step of each of the ``drawn`` + 2 networks. The validation accuracy is the largest
    network's. Errors and interruptions are as for `cookbook.training.fit`, whose arguments these are.

    Args:
        supernet: trained in place.
        train: batches to learn from.
        recipe: as in `fit`; its label smoothing is for the largest network. It cannot compile.
        drawn: networks drawn in each step.
        validation: evaluated after each epoch.
        checkpoint: file for the training state; the same call resumes it.
        on_epoch: called with each finished epoch's record.
        progress: show a bar; None decides by terminal, JupyterLab and CI.

    Raises:
        UsageError: fewer than no networks are drawn, or the recipe compiles.
    """
    objective = Sandwich(drawn, recipe.label_smoothing)
    return fit(
        supernet, _Described(train, supernet, objective), recipe, validation=validation, objective=objective,
        checkpoint=checkpoint, on_epoch=on_epoch, progress=progress,
    )  # fmt: skip


class _Described(LoaderWrapper):
    """A loader whose description names space and objective too, so that no checkpoint is resumed with others."""

    def __init__(self, loader: Loader, supernet: SuperNet, objective: Sandwich) -> None:
        super().__init__(loader)
        self._identity: dict[str, Any] = {"supernet": supernet.space.to_dict(), **objective.describe()}

    def describe(self) -> dict[str, object]:
        return {**super().describe(), **self._identity}
