"""The distilling fit: hard labels and a teacher's answers in one objective (lesson 06)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.data import Loader, LoaderWrapper
from cookbook.distillation.features import Feature, WithRegressors, captured, feature_loss, make_regressors, unwrapped
from cookbook.distillation.losses import decoupled, logit_mse, require_temperature, soft_targets
from cookbook.distillation.teacher_cache import ViewLoader, fingerprint
from cookbook.errors import UsageError
from cookbook.models import ResNetConfig, eval_mode
from cookbook.training import EpochRecord, Recipe, fit

Method = Literal["soft-targets", "logit-mse", "decoupled"]


def student_config(*, in_channels: int = 1, classes: int = 10) -> ResNetConfig:
    """Return the course's student: a ResNet-8 of width 16, with 77,754 parameters for the defaults.

    Its widths 16, 32 and 64 are multiples of 16, because channels that fill whole vector registers cost a
    dense runtime less than fewer that do not (lesson 04 measures it); one block a stage, because depth costs
    more time there than width.
    """
    return ResNetConfig(depth=8, width=16, in_channels=in_channels, classes=classes)


class Distillation:
    """The loss of a student with a teacher, as an objective for `fit`: (1 − alpha) · hard + alpha · soft + features.

    It takes any callable student: a pruned model, one prepared for quantization-aware training, or one inside
    DistributedDataParallel. The student's crop is the teacher's, because both see the images of the batch.
    The teacher runs in eval mode, without gradients, in the precision of the training; its modes are put
    back after every step.

    Args:
        teacher: maps images (B, C, H, W) to logits (B, classes), on the student's device. None: the batches
            come from a `ViewLoader` with the teacher's logits.
        method: ``soft-targets``, ``logit-mse`` or ``decoupled``; see `cookbook.distillation.losses`.
        alpha: share of the teacher, 0 to 1. With 0 and without features the teacher is not asked.
        temperature: of the softmax; ``logit-mse`` has none.
        beta: weight of the classes other than the labelled one in ``decoupled``.
        features: places whose activations are compared. A hint needs `distill`, which trains its regressor.
        mixup: parameter a of the Beta(a, a) distribution from which each batch draws the share of a second
            image that is laid over the first (Zhang et al., arXiv 1710.09412); student and teacher see the
            mixture. 0: none.
        label_smoothing: of the hard labels.

    Raises:
        UsageError: a value is out of range, the teacher is wrapped for data parallelism, or the settings
            do not go together.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        *,
        method: Method = "soft-targets",
        alpha: float = 0.9,
        temperature: float = 4.0,
        beta: float = 8.0,
        features: Sequence[Feature] = (),
        mixup: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        require_temperature(temperature)
        rules = {
            "method": (method, method in get_args(Method), ", ".join(get_args(Method))),
            "alpha": (alpha, 0 <= alpha <= 1, "a share from 0 to 1"),
            "beta": (beta, 0 <= beta < float("inf"), "0 or more"),
            "mixup": (mixup, 0 <= mixup < float("inf"), "0 or more"),
        }
        for name, (value, holds, expected) in rules.items():
            if not holds:
                raise UsageError(f"{name} is {value!r}: use {expected}.")
        if isinstance(teacher, nn.parallel.DistributedDataParallel | nn.DataParallel):
            raise UsageError(f"The teacher is wrapped in {type(teacher).__name__}: pass the module inside it, teacher.module.")
        if teacher is None and (features or mixup):
            raise UsageError("Cached logits know neither activations nor mixed images: pass the teacher itself.")
        if mixup and method == "decoupled":
            raise UsageError("A mixed image has no single labelled class to decouple: use soft-targets, or mixup=0.")
        self.teacher = teacher
        self.method, self.alpha, self.temperature, self.beta = method, alpha, temperature, beta
        self.features, self.mixup, self.label_smoothing = tuple(features), mixup, label_smoothing

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar mean loss.

        Args:
            model: the student, or what wraps it.
            images: float32 (B, C, H, W).
            labels: int64 (B,), or float32 (B, 1 + classes) from a `ViewLoader` with logits.

        Raises:
            UsageError: student and teacher differ in their classes, a module is missing, activations cannot
                be compared, or the teacher's logits are neither given nor to be asked for.
        """
        known, labels = _split_targets(labels, self.teacher is None)
        share, second = self._mix(images)
        if second is not None:
            images = torch.lerp(images[second], images, share)
        if not self.features:
            logits = model(images)
            answers = known if known is not None or not self.alpha else self._ask(images)
            extra: Tensor | float = 0.0
        else:
            with captured(unwrapped(model), {feature.student for feature in self.features}, "student") as own:
                logits = model(images)
            with captured(self._teacher(), {feature.teacher for feature in self.features}, "teacher") as theirs:
                answers = self._ask(images)
            extra = feature_loss(self.features, own, theirs, _regressors(model))
        hard = self._hard(logits, labels)
        if second is not None:
            hard = share * hard + (1 - share) * self._hard(logits, labels[second])
        if not self.alpha or answers is None:
            return hard + extra
        return (1 - self.alpha) * hard + self.alpha * self._soft(logits, answers, labels) + extra

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that identify the objective, for checkpoints."""
        return {
            "method": self.method, "alpha": self.alpha, "temperature": self.temperature, "beta": self.beta,
            "mixup": self.mixup, "features": [asdict(feature) for feature in self.features],
            "teacher": None if self.teacher is None else fingerprint(self.teacher),
        }  # fmt: skip

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def _soft(self, logits: Tensor, answers: Tensor, labels: Tensor) -> Tensor:
        if self.method == "decoupled":
            return decoupled(logits, answers, labels, self.temperature, beta=self.beta)
        return soft_targets(logits, answers, self.temperature) if self.method == "soft-targets" else logit_mse(logits, answers)

    def _teacher(self) -> nn.Module:
        assert self.teacher is not None  # features and an unknown answer are refused without a teacher
        return self.teacher

    def _ask(self, images: Tensor) -> Tensor:
        teacher = self._teacher()
        with eval_mode(teacher), torch.no_grad():
            return teacher(images)

    def _mix(self, images: Tensor) -> tuple[float, Tensor | None]:
        """Return the share of the first image and the order of the second ones, from torch's global generator."""
        if not self.mixup:
            return 1.0, None
        share = torch.distributions.Beta(self.mixup, self.mixup).sample().item()
        return share, torch.randperm(len(images)).to(images.device)


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    train: Loader,
    recipe: Recipe,
    *,
    method: Method = "soft-targets",
    alpha: float = 0.9,
    temperature: float = 4.0,
    beta: float = 8.0,
    features: Sequence[Feature] = (),
    mixup: float = 0.0,
    validation: Loader | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 200,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    progress: bool | None = None,
) -> list[EpochRecord]:
    """Train `student` in place on hard labels and on what `teacher` answers; return one record an epoch.

    The control is `fit` with the same loader and recipe: the same images in the same order, hard labels alone.

    Args:
        student: as in `fit`.
        teacher: any module on the student's device; an `Ensemble` for several, a deep copy of the student
            for self-distillation (Furlanello et al., Born-Again Neural Networks, arXiv 1805.04770). It is
            neither trained nor changed. None: `train` is a `ViewLoader` with logits.
        train: as in `fit`.
        recipe: as in `fit`; its label smoothing applies to the hard labels.
        method: see `Distillation`, as for `alpha`, `temperature`, `beta`, `features` and `mixup`.
        validation: as in `fit`, as for `checkpoint`, `checkpoint_every`, `on_epoch` and `progress`. A checkpoint
            belongs to one teacher and one set of these arguments.

    Raises:
        UsageError: as in `Distillation` and `fit`; or the teacher shares weights with the student, is on
            another device, or is given beside cached logits.
        NonFiniteLossError: as in `fit`, like `CheckpointError`, `DataError` and the interrupts.
    """
    objective = Distillation(
        teacher, method=method, alpha=alpha, temperature=temperature, beta=beta, features=features, mixup=mixup,
        label_smoothing=recipe.label_smoothing,
    )  # fmt: skip
    _require_teacher(student, teacher, train)
    if recipe.compile and features:
        raise UsageError("A compiled model runs no hooks: switch compile off, or leave out the features.")
    model = student
    if teacher is not None and any(feature.loss == "hint" for feature in features):
        images, _ = next(train.batches(0))
        model = WithRegressors(student, make_regressors(student, teacher, features, images[:2], recipe.seed))
    return fit(
        model, _Described(train, objective), recipe, validation=validation, objective=objective, checkpoint=checkpoint,
        checkpoint_every=checkpoint_every, on_epoch=on_epoch, progress=progress,
    )  # fmt: skip


class _Described(LoaderWrapper):
    """A loader whose description names the objective too, so that no checkpoint is resumed with another one."""

    def __init__(self, loader: Loader, objective: Distillation) -> None:
        super().__init__(loader)
        self.objective = objective

    def describe(self) -> dict[str, object]:
        return {**super().describe(), "distillation": self.objective.describe()}


def _require_teacher(student: nn.Module, teacher: nn.Module | None, train: Loader) -> None:
    cached = isinstance(train, ViewLoader) and train.logits is not None
    if teacher is None:
        if not cached:
            raise UsageError("There is no teacher: pass one, or a ViewLoader with the logits of one.")
        return
    if cached:
        raise UsageError("The loader brings a teacher's logits already: pass None as the teacher, or a loader without logits.")
    own, theirs = list(student.parameters()), list(teacher.parameters())
    if {id(weight) for weight in own} & {id(weight) for weight in theirs}:
        raise UsageError(
            "The teacher shares weights with the student, so it would need gradients and change while it teaches: "
            "pass copy.deepcopy of it."
        )
    if own and theirs and own[0].device != theirs[0].device:
        raise UsageError(f"The student is on {own[0].device} and the teacher on {theirs[0].device}: bring both to one device.")


def _split_targets(labels: Tensor, expected: bool) -> tuple[Tensor | None, Tensor]:
    """Return the cached logits, None where there are none, and the labels, int64 (B,)."""
    if labels.ndim == 2 and labels.is_floating_point():
        return labels[:, 1:], labels[:, 0].long()
    if expected:
        raise UsageError("The batches bring no logits of a teacher: use a ViewLoader with logits, or pass the teacher.")
    return None, labels


def _regressors(model: nn.Module) -> Sequence[nn.Module]:
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    return list(model.regressors) if isinstance(model, WithRegressors) else ()
