"""What a compression will do and about how long it takes, before it begins (lesson 08)."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from cookbook.data import Augmentation, ResidentLoader, Splits
from cookbook.environment import pick_device
from cookbook.evidence import Table
from cookbook.measure import interleave
from cookbook.pipeline.settings import build_stages, default_recipe
from cookbook.pipeline.stage import Stage
from cookbook.pipeline.training_stages import Quantize, Student
from cookbook.training import Recipe
from cookbook.training.run import Run

ROUNDING = 2.0  # a training step with fake quantizers over one without
ROUNDS = 3


@dataclass(frozen=True)
class Step:
    """One stage to come.

    Attributes:
        name: of the stage.
        epochs: that it trains.
        seconds: of this training, and of the answers that it asks for first, as if the model were not pruned before, so
            at most.
    """

    name: str
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The stages to come. What is not training, such as exports and measurements, takes some minutes more."""

    steps: tuple[Step, ...]

    @property
    def seconds(self) -> float:
        """Of all trainings, at most."""
        return sum(step.seconds for step in self.steps)

    def __str__(self) -> str:
        rows = [(str(number), step.name, str(step.epochs), duration(step.seconds)) for number, step in enumerate(self.steps, 1)]
        rows.append((str(len(rows) + 1), "export", "0", duration(0)))
        note = f"In all at most {duration(self.seconds)} of training, and some minutes of exports and measurements."
        return str(Table(("step", "stage", "epochs", "training at most"), rows, note=note, title="Plan"))


def make_plan(
    model: nn.Module,
    data: Splits,
    *,
    stages: Sequence[str | Stage] = ("prune", "distill", "quantize"),
    recipe: Recipe | None = None,
    batch_size: int = 128,
    augmentation: Augmentation | None = None,
    device: torch.device | str | None = None,
) -> Plan:
    """Time a few training steps on copies of the model, and say what `compress` with these arguments will do.

    Args:
        model: as in `compress`, as for the other arguments.

    Raises:
        UsageError: as in `compress`, like `DataError`.
    """
    recipe = replace(recipe or default_recipe(), compile=False)
    built = build_stages(stages)
    names = tuple(stage.name for stage in built)
    target = pick_device(None if device is None else str(device))
    loader = ResidentLoader(data.train, batch_size, augmentation=augmentation, device=target, seed=recipe.seed)
    networks = {"model": model}
    networks |= {f"{number}": stage.network(data) for number, stage in enumerate(built) if isinstance(stage, Student)}
    runs = {name: Run(copy.deepcopy(network).to(target).train(), loader, recipe) for name, network in networks.items()}
    batches = (batch for epoch in itertools.count() for batch in loader.batches(epoch))
    images, _ = next(loader.batches(0))
    teacher = copy.deepcopy(model).to(target).eval()

    def answer() -> None:
        with torch.inference_mode():
            teacher(images)

    calls = {"answer": answer} | {name: functools.partial(run.step, batches) for name, run in runs.items()}
    medians = {
        name: timing.median for name, timing in interleave(calls, rounds=ROUNDS, warmup=1, repeats=1, device=target).items()
    }
    steps, rounding, trained = [], False, "model"
    for number, stage in enumerate(built):
        rounding = rounding or isinstance(stage, Quantize)
        trained = f"{number}" if isinstance(stage, Student) else trained
        epochs = stage.epochs(recipe, names[number + 1 :])
        taught = stage.name == "distill" or getattr(stage, "teacher", False)
        asked = epochs if taught else 0  # times about every image
        if isinstance(stage, Student):
            asked = epochs if stage.views is None else min(stage.views, epochs)
        spent = epochs * medians[trained] * (ROUNDING if rounding else 1) + asked * recipe.accumulate * medians["answer"]
        steps.append(Step(stage.name, epochs, runs[trained].steps_per_epoch * spent))
    return Plan(tuple(steps))


def duration(seconds: float) -> str:
    """Return a time as ``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
