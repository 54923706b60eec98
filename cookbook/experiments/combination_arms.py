"""What the long experiment on combined techniques trains: its plan, its arms, one compression at a time (lesson 08)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from cookbook.data import Augmentation, ResidentLoader, load_fashion_mnist
from cookbook.environment import seed_everything
from cookbook.errors import EvidenceError
from cookbook.experiments.command import FixedPlan, Task, part_of
from cookbook.files import atomic_path
from cookbook.models import ResNetConfig, build, load, save
from cookbook.pipeline import Budget, Distill, Prune, Quantize, Stage, Student, compress
from cookbook.precision import PrecisionName
from cookbook.pruning import MACs
from cookbook.training import Recipe, fit

AUGMENTATION = Augmentation(crop=2, flip=True)
TECHNIQUES = ("prune", "distill", "quantize")
ORDERS = tuple(itertools.permutations(TECHNIQUES))
ANYTHING = Budget(latency=None, accuracy_drop=100.0)  # the last stage's file is always taken
NETWORK = ResNetConfig(depth=8, width=32, stem_stride=2)  # as fast as the course's student, with more channels to choose from
ORIGINAL, CONTROL = "original", "more epochs"
QUANTIZED, DISTILLED = "quantized", "distilled"


@dataclass(frozen=True, kw_only=True)
class Plan(FixedPlan):
    """Everything that decides the outcome, fixed before the first result is seen.

    Attributes:
        images: training images.
        epochs: of the unpruned network.
        extra: that every arm trains on top; an order gives each of its three stages a third of them.
        share: of the operations that remain in an order.
        shares_alone: of the operations that remain where nothing but pruning is done, which may go further by itself.
        widths_alone: of networks that learn from the original's answers from the first step, the way in which distillation
            makes a network smaller; they get all epochs, the original's included.
        orders: of the three techniques.
        tolerance_points: of accuracy on validation that an arm may lose against the control to be compared for speed.
        seeds: of the originals and of all that comes after them.
        network: the original.
        multiple: pruned widths are multiples of it.
        learning_rate: peak of the original's training.
        extra_rate: peak of every training on top.
        batch_size: images per step.
        tested: images of validation and of test each; None: all.
        precision: of every training without rounding.
    """

    images: int = 55_000
    epochs: int = 8
    extra: int = 6
    share: float = 0.4
    shares_alone: tuple[float, ...] = (0.4, 0.25, 0.15)
    widths_alone: tuple[int, ...] = (16,)
    orders: tuple[tuple[str, ...], ...] = ORDERS
    tolerance_points: float = 0.5
    seeds: tuple[int, ...] = (0, 1, 2)
    network: ResNetConfig = NETWORK
    multiple: int = 8
    learning_rate: float = 0.2
    extra_rate: float = 0.05
    batch_size: int = 128
    tested: int | None = None
    precision: PrecisionName = "fp32"

    def recipe(self, seed: int, epochs: int | None = None) -> Recipe:
        """Return the recipe of the original, or of so many epochs on top of it."""
        rate = self.learning_rate if epochs is None else self.extra_rate
        wide = self.network.width >= 16  # narrower networks compute faster in torch's usual layout
        return Recipe(epochs=epochs or self.epochs, learning_rate=rate, channels_last=wide, precision=self.precision, seed=seed)

    def singles(self) -> tuple[str, ...]:
        """Return the arms with one technique, and the control, which has none."""
        pruned = tuple(f"pruned to {share:g}" for share in self.shares_alone)
        return (CONTROL, DISTILLED, QUANTIZED, *pruned, *(f"student of width {width}" for width in self.widths_alone))

    def combinations(self) -> tuple[str, ...]:
        """Return the arms with all three techniques, by their order."""
        return tuple(" → ".join(order) for order in self.orders)

    def stages(self, arm: str, seed: int) -> tuple[Stage, ...]:
        """Return what `compress` is asked to do."""
        whole, third = self.recipe(seed, self.extra), self.recipe(seed, self.extra // len(TECHNIQUES))
        if arm in self.combinations():
            parts: dict[str, Stage] = {
                "prune": self._prune(self.share, third), "distill": Distill(third), "quantize": Quantize(recipe=third),
            }  # fmt: skip
            return tuple(parts[name] for name in arm.split(" → "))
        simple: dict[str, Stage] = {
            CONTROL: Distill(whole, alpha=0.0), DISTILLED: Distill(whole), QUANTIZED: Quantize(recipe=whole),
        }  # fmt: skip
        kind, _, value = arm.rpartition(" ")
        if kind == "pruned to":
            return (self._prune(float(value), whole),)
        if kind == "student of width":
            longer = replace(self.recipe(seed), epochs=self.epochs + self.extra)
            return (Student(replace(self.network, width=int(value)), longer, views=None),)
        return (simple[arm],)

    def _prune(self, share: float, recipe: Recipe) -> Prune:
        return Prune(MACs(share, tolerance=0.1), multiples=(self.multiple,), recipe=recipe)


REHEARSAL = Plan(
    images=400, epochs=2, extra=3, share=0.5, shares_alone=(0.5,), widths_alone=(8,), orders=(ORDERS[0], ORDERS[-1]),
    tolerance_points=10.0, network=ResNetConfig(depth=8, width=16, stem_stride=2), learning_rate=0.1, batch_size=20, tested=500,
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """Accuracies of a finished compression's file in ONNX Runtime, in percent."""

    validation: float
    test: float


class Experiment:
    """A plan with its data and its folder.

    Args:
        plan: what is done.
        folder: for everything that is trained; one sub-folder a plan.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder / plan.digest()
        self.splits = part_of(load_fashion_mnist(), plan.images, plan.tested)

    def originals(self) -> list[Task]:
        """Return the trainings that everything starts from."""
        return [Task(ORIGINAL, seed) for seed in self.plan.seeds]

    def arms(self) -> list[Task]:
        """Return the compressions, seed by seed."""
        plan = self.plan
        return [Task(arm, seed) for seed in plan.seeds for arm in (*plan.singles(), *plan.combinations())]

    def train(self, task: Task) -> None:
        """Train an original or run a compression, or go on where it was interrupted; what is finished stays."""
        if task.arm == ORIGINAL:
            self._train_original(task)
            return
        if self._result_file(task).exists():
            return
        plan = self.plan
        found = compress(
            self.original(task.seed), self.splits, budget=ANYTHING, folder=self.folder / task.name,
            stages=plan.stages(task.arm, task.seed), recipe=plan.recipe(task.seed, plan.extra), batch_size=plan.batch_size,
            augmentation=AUGMENTATION, device="cpu", rounds=3,
        )  # fmt: skip
        own = found.test[1].accuracy
        assert own is not None and found.measurement.accuracy is not None
        result = Result(100 * found.measurement.accuracy, 100 * own)
        with atomic_path(self._result_file(task)) as temporary:
            temporary.write_text(json.dumps(asdict(result)))
        print(f"{task.name}: validation {result.validation:.2f} %", flush=True)

    def _train_original(self, task: Task) -> None:
        if self._original_file(task.seed).exists():
            return
        plan = self.plan
        seed_everything(task.seed)
        network = build(plan.network)
        loader = ResidentLoader(self.splits.train, plan.batch_size, augmentation=AUGMENTATION, seed=task.seed)
        state = self.folder / f"{task.name}.state"
        fit(network, loader, plan.recipe(task.seed), checkpoint=state)
        save(network, self._original_file(task.seed))
        state.unlink()
        print(f"{task.name}: trained", flush=True)

    def original(self, seed: int) -> nn.Module:
        """Return the trained network that the arms of a seed start from.

        Raises:
            CheckpointError: it was not trained yet.
        """
        return load(self._original_file(seed))

    def file(self, task: Task) -> Path:
        """Return the ONNX file of a finished compression."""
        return self.folder / task.name / "model.onnx"

    def result(self, task: Task) -> Result:
        """Return what a finished compression reached.

        Raises:
            EvidenceError: it is not finished.
        """
        try:
            return Result(**json.loads(self._result_file(task).read_text()))
        except FileNotFoundError as error:
            raise EvidenceError(f"{task.name} is not finished: run the experiment again, it goes on there.") from error

    def scores(self, arm: str, split: str) -> Sequence[float]:
        """Return an arm's accuracies on a split, in percent, in the order of the seeds.

        Raises:
            EvidenceError: a compression is not finished.
        """
        return [float(getattr(self.result(Task(arm, seed)), split)) for seed in self.plan.seeds]

    def _original_file(self, seed: int) -> Path:
        return self.folder / f"{Task(ORIGINAL, seed).name}.safetensors"

    def _result_file(self, task: Task) -> Path:
        return self.folder / f"{task.name}.json"
