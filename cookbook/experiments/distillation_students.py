"""What the long distillation experiment trains: its plan, its arms, one student at a time, resumable (lesson 06)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from cookbook.data import Augmentation, ResidentLoader, Split, load_fashion_mnist
from cookbook.distillation import ViewLoader, augmented_views, distill, fingerprint, student_config, teacher_logits
from cookbook.environment import seed_everything
from cookbook.errors import EvidenceError
from cookbook.experiments import command
from cookbook.files import atomic_path
from cookbook.models import ResNetConfig, build, load, save
from cookbook.precision import PrecisionName
from cookbook.training import Recipe, evaluate, fit

AUGMENTATION = Augmentation(crop=2, flip=True)
STUDENT = student_config()


@dataclass(frozen=True, kw_only=True)
class Plan(command.FixedPlan):
    """Everything that decides the outcome, fixed before the first result is seen.

    Attributes:
        images: training images with labels; a tenth of them is the small budget.
        epochs: over all images.
        tenth_epochs: over the tenth; a tenth of it are the epochs of the arm that also sees the other images, unlabelled.
        views: fixed augmented copies of every image.
        seeds: of the pairs.
        fresh_seeds: those of them for which the second control is trained.
        temperatures: tried on the tenth; one alone where it was chosen before, and then kd-02 is not judged.
        alpha: share of the teacher.
        student: architecture.
        learning_rate: peak of the one-cycle schedule.
        batch_size: images per step.
        precision: of the trainings and of the teacher's answers.
    """

    images: int = 55_000
    epochs: int = 20
    tenth_epochs: int = 40
    views: int = 8
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    fresh_seeds: tuple[int, ...] = (0, 1, 2)
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    alpha: float = 0.9
    student: ResNetConfig = STUDENT
    learning_rate: float = 0.2
    batch_size: int = 128
    precision: PrecisionName = "fp32"


REHEARSAL = Plan(
    images=400, epochs=1, tenth_epochs=10, views=2, seeds=(0, 1, 2), temperatures=(1.0, 4.0),
    student=ResNetConfig(depth=8, width=8, stem_stride=2), learning_rate=0.05, batch_size=20,
)  # fmt: skip


@dataclass(frozen=True)
class Task(command.Task):
    """One training: an arm, a seed, and the temperature where the arm has one."""

    temperature: float | None = None

    @property
    def name(self) -> str:
        """File name without suffix."""
        return super().name + ("" if self.temperature is None else f"-T{self.temperature:g}")


class Experiment:
    """A plan with its teacher, its data and its folder.

    Args:
        plan: what is done.
        teacher: file that `cookbook.models.save` wrote.
        folder: for checkpoints and trained students; one sub-folder a plan and teacher.
    """

    def __init__(self, plan: Plan, teacher: Path, folder: Path) -> None:
        self.plan, self.teacher_file = plan, teacher
        self.teacher = load(teacher)
        self.folder = folder / f"{plan.digest()}-{fingerprint(self.teacher)[:8]}"
        self.splits = load_fashion_mnist()
        self.whole = self.splits.train.subset(plan.images)
        self._views: dict[str, list[Split]] = {}

    def views(self, part: str) -> list[Split]:
        """Return the fixed views of ``whole`` or ``tenth``; the tenth's are the whole's own."""
        if part not in self._views:
            if part == "whole":
                self._views[part] = augmented_views(self.whole, AUGMENTATION, self.plan.views)
            else:
                self._views[part] = [view.subset(self.plan.images // 10) for view in self.views("whole")]
        return self._views[part]

    def answers(self, part: str) -> Tensor:
        """Return the teacher's logits (views, N, classes), asked for once and kept in the cache."""
        precision = self.plan.precision
        return torch.stack([teacher_logits(self.teacher, view, precision=precision) for view in self.views(part)])

    def tenth_tasks(self) -> list[Task]:
        """Return the trainings with a tenth of the labels."""
        plan = self.plan
        tasks = [Task("tenth-hard", seed) for seed in plan.seeds]
        return tasks + [Task("tenth-soft", seed, temperature) for temperature in plan.temperatures for seed in plan.seeds]

    def whole_tasks(self) -> list[Task]:
        """Return the trainings that use the temperature chosen on validation.

        Raises:
            EvidenceError: the trainings with a tenth of the labels are not complete.
        """
        plan, best = self.plan, self.ranked_temperatures()[0]
        tasks = [Task("hard", seed) for seed in plan.seeds] + [Task("soft", seed, best) for seed in plan.seeds]
        tasks += [Task("unlabelled", seed, best) for seed in plan.seeds]
        return tasks + [Task("fresh", seed) for seed in plan.fresh_seeds]

    def ranked_temperatures(self) -> list[float]:
        """Return the temperatures from best to worst, by the mean validation accuracy on a tenth of the labels.

        Raises:
            EvidenceError: a training is missing.
        """
        plan = self.plan
        means = {
            temperature: fmean(self.validation_accuracy(Task("tenth-soft", seed, temperature)) for seed in plan.seeds)
            for temperature in plan.temperatures
        }
        return sorted(means, key=lambda temperature: -means[temperature])

    def train(self, task: Task) -> None:
        """Train one student, or go on where it was interrupted, and write it with its validation accuracy."""
        if self._result_file(task).exists():
            return
        plan = self.plan
        small = task.arm.startswith("tenth")
        epochs = plan.tenth_epochs if small else plan.epochs
        if task.arm == "unlabelled":
            epochs = max(1, plan.tenth_epochs // 10)
        recipe = Recipe(
            epochs=epochs, learning_rate=plan.learning_rate, channels_last=plan.student.width >= 16,
            precision=plan.precision, seed=task.seed,
        )  # fmt: skip
        seed_everything(task.seed)
        student = build(plan.student)
        state = self.folder / f"{task.name}.state"
        part = "tenth" if small else "whole"
        if task.arm == "fresh":
            loader = ResidentLoader(self.whole, plan.batch_size, augmentation=AUGMENTATION, seed=task.seed)
            fit(student, loader, recipe, checkpoint=state)
        elif task.temperature is None:
            fit(student, ViewLoader(self.views(part), plan.batch_size, seed=task.seed), recipe, checkpoint=state)
        else:
            views = ViewLoader(self.views(part), plan.batch_size, logits=self.answers(part), seed=task.seed)
            alpha = 1.0 if task.arm == "unlabelled" else plan.alpha  # there the labels of nine tenths are not used
            distill(student, None, views, recipe, alpha=alpha, temperature=task.temperature, checkpoint=state)
        save(student, self.student_file(task))
        accuracy = 100 * evaluate(student, ResidentLoader(self.splits.validation, 500)).accuracy
        with atomic_path(self._result_file(task)) as temporary:
            temporary.write_text(json.dumps({"validation": accuracy}))
        state.unlink()
        print(f"{task.name}: validation {accuracy:.2f} %", flush=True)

    def student_file(self, task: Task) -> Path:
        """Return where the trained student lies."""
        return self.folder / f"{task.name}.safetensors"

    def student(self, task: Task) -> nn.Module:
        """Return a trained student.

        Raises:
            CheckpointError: it was not trained yet.
        """
        return load(self.student_file(task))

    def _result_file(self, task: Task) -> Path:
        return self.folder / f"{task.name}.json"

    def validation_accuracy(self, task: Task) -> float:
        """Return the accuracy of a trained student on validation, in percent.

        Raises:
            EvidenceError: it was not trained yet.
        """
        try:
            return float(json.loads(self._result_file(task).read_text())["validation"])
        except FileNotFoundError as error:
            raise EvidenceError(f"{task.name} was not trained yet: run the experiment again, it goes on there.") from error
