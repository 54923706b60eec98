"""Activations inside a network, read by hooks that are named by module path (lesson 06)."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cookbook.distillation.losses import attention_transfer, hint, relational
from cookbook.errors import UsageError
from cookbook.models import eval_mode

FeatureLoss = Literal["attention", "hint", "relational"]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A place in the student that shall resemble a place in the teacher.

    Attributes:
        student: path of a module, as in `named_modules`, such as ``blocks.0``; its output is compared.
        teacher: path of a module of the teacher.
        loss: ``attention``, ``hint`` or ``relational``; see the functions of `cookbook.distillation.losses`.
        weight: factor before it is added to the other losses; the losses differ in size by orders of
            magnitude, so there is no default.

    Raises:
        UsageError: the loss is unknown or the weight not positive.
    """

    student: str
    teacher: str
    loss: FeatureLoss
    weight: float

    def __post_init__(self) -> None:
        if self.loss not in get_args(FeatureLoss):
            raise UsageError(f"The feature loss is {self.loss!r}: use {', '.join(get_args(FeatureLoss))}.")
        if not 0 < self.weight < float("inf"):
            raise UsageError(f"The weight of the feature {self.student} is {self.weight}: use a positive number.")


class WithRegressors(nn.Module):
    """A student with the regressors that hints need, so that one optimizer trains both.

    Attributes:
        student: as it was given.
        regressors: one a feature; no parameters where the feature is no hint.
    """

    def __init__(self, student: nn.Module, regressors: Sequence[nn.Module]) -> None:
        super().__init__()
        self.student = student
        self.regressors = nn.ModuleList(regressors)

    def forward(self, images: Tensor) -> Tensor:
        """Return the student's logits."""
        return self.student(images)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the student's own module inside DistributedDataParallel, DataParallel and `WithRegressors`."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    return model.student if isinstance(model, WithRegressors) else model


def find_module(model: nn.Module, path: str, owner: str) -> nn.Module:
    """Return the module at a path.

    Args:
        owner: what the model is, for the message: ``student`` or ``teacher``.

    Raises:
        UsageError: there is none; the message lists the nearest paths.
    """
    modules = dict(model.named_modules())
    if path in modules and path:
        return modules[path]
    paths = [name for name in modules if name]
    near = difflib.get_close_matches(path, paths, n=4, cutoff=0.3) or paths[:4]
    raise UsageError(f"The {owner} has no module {path!r}: use a path of named_modules(), such as {', '.join(near)}.")


@contextlib.contextmanager
def captured(model: nn.Module, paths: Iterable[str], owner: str) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the modules at `paths` while the model runs inside the block; the hooks go afterwards.

    Raises:
        UsageError: there is no such module, it did not run, or its output is no tensor.
    """
    outputs: dict[str, Any] = {}
    wanted = {path: find_module(model, path, owner) for path in paths}
    handles = []
    for path, module in wanted.items():

        def keep(module: nn.Module, inputs: Any, output: Any, path: str = path) -> None:
            outputs[path] = output

        handles.append(module.register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
    for path in wanted:
        if not isinstance(outputs.get(path), Tensor):
            found = f"gives a {type(outputs[path]).__name__}" if path in outputs else "did not run"
            raise UsageError(f"The {owner}'s module {path} {found}: choose one whose output is a tensor.")


def make_regressors(
    student: nn.Module, teacher: nn.Module, features: Sequence[Feature], images: Tensor, seed: int
) -> list[nn.Module]:
    """Return one module a feature: for a hint the layer that brings the student's channels to the teacher's.

    Args:
        images: a batch, on the device of both models, which stay as they are.
        seed: of the regressors' first weights; the generators of the caller are not advanced.

    Raises:
        UsageError: a path is wrong, or activations have neither 2 nor 4 dimensions.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad(), eval_mode(student), eval_mode(teacher):
        torch.manual_seed(seed)
        with captured(student, {feature.student for feature in features}, "student") as own:
            student(images)
        with captured(teacher, {feature.teacher for feature in features}, "teacher") as theirs:
            teacher(images)
        return [_regressor(feature, own[feature.student], theirs[feature.teacher]) for feature in features]


def _regressor(feature: Feature, own: Tensor, theirs: Tensor) -> nn.Module:
    if feature.loss != "hint":
        return nn.Identity()
    if own.ndim != theirs.ndim or own.ndim not in (2, 4):
        raise UsageError(
            f"A hint from {feature.teacher} to {feature.student} has {theirs.ndim} and {own.ndim} dimensions: "
            "choose modules that both give (B, C, H, W) or both give (B, C)."
        )
    layer: nn.Module = (
        nn.Conv2d(own.shape[1], theirs.shape[1], 1) if own.ndim == 4 else nn.Linear(own.shape[1], theirs.shape[1])
    )
    return layer.to(own.device)


def feature_loss(
    features: Sequence[Feature], own: dict[str, Tensor], theirs: dict[str, Tensor], regressors: Sequence[nn.Module]
) -> Tensor:
    """Return the weighted sum of the features' losses.

    Args:
        own: the student's activations by path.
        theirs: the teacher's.
        regressors: as `make_regressors` returns them; may be empty when no feature is a hint.

    Raises:
        UsageError: a hint without its regressor, or activations of unlike shapes.
    """
    total: Tensor | None = None
    for number, feature in enumerate(features):
        mine, target = own[feature.student], theirs[feature.teacher]
        if feature.loss == "hint":
            if not regressors:
                raise UsageError(f"The hint for {feature.student} has no regressor: train it through distill().")
            part = hint(regressors[number](mine), target)
        else:
            part = (attention_transfer if feature.loss == "attention" else relational)(mine, target)
        total = feature.weight * part if total is None else total + feature.weight * part
    if total is None:
        raise UsageError("There are no features: name at least one.")
    return total
