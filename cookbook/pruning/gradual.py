"""Masks that grow while a network trains (lesson 04)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.pruning.masks import MaskScope, grow_masks, mask_pairs, movement_scores
from cookbook.training import CrossEntropy, Objective

GradualCriterion = Literal["magnitude", "movement"]


@dataclass(frozen=True, kw_only=True)
class CubicSchedule:
    """Share of zeros over the steps of a training: fast at first, then ever slower (Zhu and Gupta, arXiv 1710.01878).

    Attributes:
        final: share from step `end` on, between 0 and 1.
        begin: the first step at which the masks grow, counted from 0.
        end: the last one.
        initial: share at step `begin`.
        every: steps between two growths.

    Raises:
        UsageError: a value is out of range.
    """

    final: float
    begin: int = 0
    end: int
    initial: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.initial < self.final < 1:
            raise UsageError(
                f"The sparsity rises from {self.initial} to {self.final}: use shares from 0 up to, not including, 1, "
                "the second larger."
            )
        if not 0 <= self.begin < self.end or self.every < 1:
            raise UsageError(
                f"The masks grow from step {self.begin} to {self.end}, every {self.every}: "
                "use 0 or more, a later step and 1 or more."
            )

    def sparsity_at(self, step: int) -> float:
        """Return the share of zeros that is asked for at a step."""
        if step < self.begin:
            return 0.0
        done = min((step - self.begin) / (self.end - self.begin), 1.0)
        return self.final + (self.initial - self.final) * (1 - done) ** 3

    def is_due(self, step: int) -> bool:
        """Say whether the masks grow before this step is taken."""
        return step == self.end or (self.begin <= step < self.end and (step - self.begin) % self.every == 0)


class GradualMasking:
    """An objective for `fit` that lets the masks grow as the training goes on.

    The step is counted by each call with the model in training mode, and kept in the masks, so that a training that
    is resumed from its checkpoint goes on with the masks and the schedule that it had. With gradient accumulation
    every batch is a step.

    Args:
        schedule: the share of zeros at each step.
        scope: ``local`` in each layer, ``global`` over all layers together.
        criterion: ``magnitude``: the smallest weights leave; ``movement``: those that the training has drawn the most
            towards zero so far, for a model from ``attach_masks(model, movement=True)``; see `mask_weights`.
        objective: the loss; cross-entropy by default.

    Raises:
        UsageError: the criterion is unknown; or, when it is called, the model has no masks, or, for ``movement``, no
            scores that have moved.
    """

    def __init__(
        self,
        schedule: CubicSchedule,
        *,
        scope: MaskScope = "local",
        criterion: GradualCriterion = "magnitude",
        objective: Objective | None = None,
    ) -> None:
        if criterion not in get_args(GradualCriterion):
            raise UsageError(f"criterion is {criterion!r}: use {' or '.join(get_args(GradualCriterion))}.")
        self.schedule, self.scope, self.criterion = schedule, scope, criterion
        self.objective = objective or CrossEntropy()

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar mean loss of images (B, C, H, W) and labels (B,), with the masks that are due."""
        masks = [mask for mask, _ in mask_pairs(model).values()]
        if not masks:
            raise UsageError(f"{type(model).__name__} has no masks that could grow: pass attach_masks(model) to fit.")
        if model.training:
            step = int(masks[0].steps)
            sparsity = self.schedule.sparsity_at(step)
            if self.schedule.is_due(step):
                with torch.no_grad():
                    scores = movement_scores(model) if self.criterion == "movement" and sparsity > 0 else None
                    grow_masks(model, sparsity, scope=self.scope, scores=scores)
            for mask in masks:
                mask.steps += 1
        return self.objective(model, images, labels)
