"""Trainings that leave no trace: on a copy, always with the same batch, random numbers put back (lesson 01)."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from cookbook.data import Batch, Role
from cookbook.errors import UsageError
from cookbook.training import Objective, Recipe, fit

HARMLESS_RATE = 1e-12  # a learning rate at which weights stay finite however often the same batch is repeated


@contextlib.contextmanager
def preserved_randomness() -> Iterator[None]:
    """Put back, after the block, the random numbers and cuDNN settings that `fit` sets from its recipe's seed."""
    python, numpy = random.getstate(), np.random.get_state()
    cudnn = torch.backends.cudnn
    settings = cudnn.benchmark, cudnn.deterministic
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            cudnn.benchmark, cudnn.deterministic = settings


class RepeatedBatch:
    """A training loader that gives one batch again and again.

    Args:
        images: float32 (B, C, H, W), on the device of the model.
        labels: int64 (B,), likewise.
        times: batches in an epoch.
    """

    role: Role = "train"

    def __init__(self, images: Tensor, labels: Tensor, times: int) -> None:
        self.images, self.labels, self.times = images, labels, times

    def __len__(self) -> int:
        return self.times

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batch, as often as is left of the epoch."""
        for _ in range(first, self.times):
            yield self.images, self.labels

    def describe(self) -> dict[str, object]:
        """Return plain JSON types; a rehearsal is never resumed."""
        return {"loader": type(self).__name__, "batch_size": len(self.labels), "times": self.times}


class TrainingStep:
    """Real optimizer steps of `fit` at any batch size, on a copy of the model.

    The model, its BatchNorm statistics and the random numbers stay as they are.

    Args:
        model: on the device where it shall train.
        images: float32 (N, C, H, W), on that device; repeated where a batch is larger than N.
        labels: int64 (N,), likewise.
        recipe: of the training; its learning rate is set next to zero.
        steps: optimizer steps in one call.
        objective: as in `fit`.

    Raises:
        UsageError: there are no images, another number of labels, or fewer than one step.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        recipe: Recipe,
        *,
        steps: int = 2,
        objective: Objective | None = None,
    ) -> None:
        if not len(images) or len(images) != len(labels):
            raise UsageError(f"{len(images)} images and {len(labels)} labels cannot be trained on: pass as many of both.")
        if steps < 1:
            raise UsageError(f"steps is {steps}: use 1 or more.")
        self.model, self.images, self.labels = model, images, labels
        self.recipe = replace(recipe, epochs=1, learning_rate=HARMLESS_RATE, schedule="constant")
        self.batches_per_call = steps * recipe.accumulate
        self.objective = objective
        self._copy: nn.Module | None = None

    def __call__(self, batch: int) -> None:
        """Take the steps, each on `batch` images."""
        if self._copy is None:
            self._copy = copy.deepcopy(self.model)
        index = torch.arange(batch, device=self.images.device) % len(self.images)
        loader = RepeatedBatch(self.images[index], self.labels[index], self.batches_per_call)
        with preserved_randomness():
            fit(self._copy, loader, self.recipe, objective=self.objective, progress=False)

    def release(self) -> None:
        """Drop the copy, with its gradients and what the optimizer kept."""
        self._copy = None
