"""What the long quantization experiment trains: its plan, its arms, one network at a time, resumable (lesson 05)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from cookbook.data import Augmentation, ResidentLoader, Split, load_fashion_mnist
from cookbook.distillation import student_config
from cookbook.environment import seed_everything
from cookbook.experiments import command
from cookbook.experiments.quantization_conditions import long_tailed
from cookbook.models import ResNetConfig, build
from cookbook.quantization import (
    Scheme,
    adaround,
    fold_batchnorm,
    load_packed,
    quantize_aware_training,
    save_packed,
)  # fmt: skip
from cookbook.training import Recipe, evaluate, fit

AUGMENTATION = Augmentation(crop=2, flip=True)
STUDENT = student_config()


@dataclass(frozen=True, kw_only=True)
class Plan(command.FixedPlan):
    """Everything that decides the outcome, fixed before the first result is seen.

    Attributes:
        images: training images.
        epochs: of the float training.
        extra: epochs that rounding in training and its float control get on top.
        widths: bits of a weight that are trained with rounding.
        learned_widths: bits at which AdaRound is compared with rounding to nearest.
        budgets: epochs with rounding that are compared, at `budget_bits`.
        budget_bits: bits of a weight there.
        calibration: images that set ranges.
        counts: numbers of calibration images that are compared.
        imbalance: of the long-tailed training set.
        steps: of AdaRound, for each layer.
        seeds: of the pairs.
        student: architecture.
        learning_rate: peak of the float training; a tenth of it for the extra epochs.
        batch_size: images per step.
        tested: test images; None: all.
    """

    images: int = 55_000
    epochs: int = 10
    extra: int = 3
    widths: tuple[int, ...] = (8, 6, 4, 3, 2)
    learned_widths: tuple[int, ...] = (4, 3, 2)
    budgets: tuple[int, ...] = (1, 3, 12)
    budget_bits: int = 4
    calibration: int = 512
    counts: tuple[int, ...] = (8, 32, 128, 512, 2048)
    imbalance: float = 100.0
    steps: int = 1000
    seeds: tuple[int, ...] = (0, 1, 2)
    student: ResNetConfig = STUDENT
    learning_rate: float = 0.2
    batch_size: int = 128
    tested: int | None = None


REHEARSAL = Plan(
    images=1000, epochs=2, extra=1, widths=(8, 4, 2), learned_widths=(2,), budgets=(1, 2), calibration=64, counts=(8, 64),
    imbalance=20.0, steps=20, student=ResNetConfig(depth=8, width=8, stem_stride=2), learning_rate=0.1, batch_size=25,
    tested=1000,
)  # fmt: skip


@dataclass(frozen=True)
class Task(command.Task):
    """One training.

    Attributes:
        arm: ``float``, ``tail`` (float, on the long-tailed set), ``longer`` (`float` with the extra epochs, in float) or
            ``rounded`` (`float` with extra epochs of training with rounding).
        seed: of the weights, the order of the images and their augmentation.
        bits: of a weight, where the arm rounds.
        epochs: of the extra training, where the arm rounds.
    """

    bits: int = 0
    epochs: int = 0

    @property
    def name(self) -> str:
        """File name without suffix."""
        return super().name + (f"-{self.bits}bit-{self.epochs}epochs" if self.bits else "")


class Experiment:
    """A plan with its data and its folder.

    Args:
        plan: what is done.
        folder: for training states; one sub-folder a plan.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder / plan.digest()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.splits = load_fashion_mnist()
        self.whole = self.splits.train.subset(plan.images)
        self.tail = long_tailed(self.whole, plan.imbalance)
        self.validation = ResidentLoader(self.splits.validation, 500)
        self.test = ResidentLoader(self.splits.test.subset(plan.tested or len(self.splits.test)), 500)
        self.example = self.splits.train.subset(10).normalized()[:2]

    def tasks(self, seeds: Sequence[int]) -> tuple[list[Task], list[Task]]:
        """Return the trainings of the seeds: those that begin with fresh weights, and then those that start from them."""
        plan = self.plan
        rounded = {(bits, plan.extra) for bits in plan.widths} | {(plan.budget_bits, epochs) for epochs in plan.budgets}
        later = [
            task
            for seed in seeds
            for task in (
                Task("longer", seed),
                *(Task("rounded", seed, bits, epochs) for bits, epochs in sorted(rounded, reverse=True)),
            )
        ]
        return [Task(arm, seed) for seed in seeds for arm in ("float", "tail")], later

    def network(self, task: Task) -> nn.Module:
        """Return a trained network; it is trained first, or from where it was interrupted, when it is not."""
        plan = self.plan
        start = Task("float", task.seed)
        loader = self._loader(self.tail if task.arm == "tail" else self.whole, task)
        settings: dict[str, Any] = {"checkpoint": self.folder / f"{task.name}.state"}
        recipe = Recipe(
            epochs=plan.epochs, learning_rate=plan.learning_rate, channels_last=plan.student.width >= 16, seed=task.seed
        )  # fmt: skip
        if task.arm == "rounded":
            recipe = replace(recipe, epochs=task.epochs, learning_rate=plan.learning_rate / 10)
            scheme = Scheme(weight_bits=task.bits)
            images = plan.calibration
            return quantize_aware_training(self.network(start), loader, recipe, scheme=scheme, images=images, **settings).module
        if task.arm == "longer":
            recipe = replace(recipe, epochs=plan.extra, learning_rate=plan.learning_rate / 10)
            network = copy.deepcopy(self.network(start))
        else:
            seed_everything(task.seed)
            network = build(plan.student)
        fit(network, loader, recipe, **settings)
        return network.eval()

    def learned_rounding(self, seed: int, bits: int) -> nn.Module:
        """Return the float network with its weights rounded by AdaRound; learned once and kept."""
        network = self.network(Task("float", seed))
        file = self.folder / f"adaround-seed{seed}-{bits}bit.packed"
        if file.exists():
            rounded = fold_batchnorm(network, self.example)
            rounded.load_state_dict(load_packed(file)[0])
            return rounded
        scheme = Scheme(weight_bits=bits)
        rounded, _ = adaround(network, self.calibration(), scheme=scheme, images=self.plan.calibration, steps=self.plan.steps)
        save_packed(rounded.state_dict(), file)
        return rounded

    def calibration(self, tail: bool = False) -> ResidentLoader:
        """Return training images without augmentation, in a fixed order drawn once."""
        return ResidentLoader(self.tail if tail else self.whole, min(128, self.plan.batch_size), seed=1)

    def train(self, task: Task) -> None:
        """Train one network, or go on where it was interrupted, and print its accuracy on validation."""
        print(f"{task.name}: validation {evaluate(self.network(task), self.validation).accuracy:.2%}", flush=True)

    def _loader(self, split: Split, task: Task) -> ResidentLoader:
        seed = task.seed if task.arm in ("float", "tail") else 1000 + task.seed  # the extra epochs see fresh augmentations
        return ResidentLoader(split, self.plan.batch_size, augmentation=AUGMENTATION, seed=seed)
