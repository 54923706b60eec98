"""What decides the outcome of a compression besides model and data (lesson 08)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from cookbook.data import Augmentation, Splits
from cookbook.distillation import fingerprint
from cookbook.errors import UsageError
from cookbook.pipeline.budget import Budget
from cookbook.pipeline.pruning_stage import Prune
from cookbook.pipeline.stage import Stage
from cookbook.pipeline.training_stages import Distill, Quantize, Student
from cookbook.training import Recipe

NAMED: dict[str, Callable[[Sequence[str]], Stage]] = {
    "prune": lambda names: Prune(),
    "student": lambda names: Student(),
    "distill": lambda names: Distill(),
    "quantize": lambda names: Quantize(teacher="distill" in names or "student" in names),
}


def default_recipe() -> Recipe:
    """Return the recipe of a training that has none: ten epochs of SGD with a one-cycle schedule from 0.05."""
    return Recipe(epochs=10, learning_rate=0.05)


def build_stages(stages: Sequence[str | Stage]) -> tuple[Stage, ...]:
    """Return the stages as objects.

    Raises:
        UsageError: there is no stage, or no such stage.
    """
    if isinstance(stages, str) or not stages:
        raise UsageError(f"The stages are {stages!r}: give one or more of {', '.join(NAMED)}, such as ('prune', 'quantize').")
    names = [stage if isinstance(stage, str) else stage.name for stage in stages]
    built: list[Stage] = []
    for stage in stages:
        if not isinstance(stage, str):
            built.append(stage)
        elif stage in NAMED:
            built.append(NAMED[stage](names))
        else:
            raise UsageError(f"There is no stage {stage!r}: use {', '.join(NAMED)}, or an object of your own.")
    return tuple(built)


@dataclass(frozen=True)
class Settings:
    """What decides the outcome besides model and data."""

    budget: Budget
    stages: tuple[Stage, ...]
    recipe: Recipe
    batch_size: int
    augmentation: Augmentation | None
    entropy_coded: bool

    def identity(self, model: nn.Module, data: Splits) -> dict[str, Any]:
        """Return plain JSON types that must be equal for a folder to be gone on with."""
        return {
            "model": fingerprint(model),
            "data": [split.fingerprint() for split in (data.train, data.validation, data.test)],
            "budget": asdict(self.budget),
            "stages": [stage.describe() for stage in self.stages],
            "recipe": asdict(self.recipe),
            "batch size": self.batch_size,
            "augmentation": repr(self.augmentation),
            "storage": self.entropy_coded,
        }
