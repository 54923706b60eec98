"""A student, distillation and quantization as stages (lesson 08)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from cookbook.data import Splits
from cookbook.distillation import ViewLoader, distill, student_config, teacher_logits
from cookbook.environment import seed_everything
from cookbook.errors import UsageError
from cookbook.measure import count_parameters
from cookbook.models import build
from cookbook.models.registry import config_to_json
from cookbook.pipeline.stage import Outcome, Work
from cookbook.pruning import fine_tuning_recipe
from cookbook.quantization.prepare import convert
from cookbook.quantization.qat import train_quantized
from cookbook.quantization.report import quantized, saturates
from cookbook.quantization.scheme import Scheme
from cookbook.training import Recipe

Way = Literal["qat", "ptq"]


@dataclass(frozen=True)
class Distill:
    """Trains the model on the answers of the one that the pipeline was given; with rounding where integers were chosen before.

    Attributes:
        recipe: of the training; None: the pipeline's.
        alpha: share of the teacher; 0 is the control, the same training on hard labels alone.
        temperature: of the softmax.
    """

    recipe: Recipe | None = None
    alpha: float = 0.9
    temperature: float = 4.0
    name: str = "distill"

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that identify the stage."""
        return {"stage": self.name, "alpha": self.alpha, "temperature": self.temperature, "recipe": _recipe(self.recipe)}

    def epochs(self, recipe: Recipe, later: tuple[str, ...]) -> int:
        """Return the epochs of the stage's recipe, or of the pipeline's."""
        return (self.recipe or recipe).epochs

    def apply(self, model: nn.Module, work: Work) -> Outcome:
        """Return the trained model.

        Raises:
            UsageError: as `cookbook.distillation.distill`.
        """
        recipe = self.recipe or work.recipe
        if work.scheme is not None:
            return trained_with_rounding(model, work, work.scheme, recipe, work.teacher(), self.alpha, self.temperature)
        started, recipe = time.perf_counter(), work.fitting(recipe, model)
        distill(
            model.to(work.device), work.teacher(), work.training(), recipe, alpha=self.alpha, temperature=self.temperature,
            checkpoint=work.state, progress=work.progress,
        )  # fmt: skip
        return Outcome(model.cpu(), None, None, "", work.spent(), time.perf_counter() - started)


@dataclass(frozen=True)
class Student:
    """Puts a small network in the model's place, which learns from the model's answers from its first step.

    Pruning keeps depth and resolution, and these are what a runtime pays for most; a network of another shape is the way
    beyond what narrower layers give (Hinton, Vinyals and Dean, arXiv 1503.02531; lesson 06).

    Attributes:
        config: architecture, of the cookbook's families or torchvision's; None: `cookbook.distillation.student_config`
            for the channels and classes of the data.
        recipe: of the training; None: the pipeline's.
        alpha: share of the teacher.
        temperature: of the softmax.
        views: fixed augmented copies of every image, about each of which the model is asked once; at most one an epoch.
            None: the model is asked in every step, which takes its forward pass each time.
    """

    config: Any = None
    recipe: Recipe | None = None
    alpha: float = 0.9
    temperature: float = 4.0
    views: int | None = 8
    name: str = "student"

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that identify the stage."""
        return {
            "stage": self.name, "config": None if self.config is None else config_to_json(self.config),
            "alpha": self.alpha, "temperature": self.temperature, "views": self.views, "recipe": _recipe(self.recipe),
        }  # fmt: skip

    def epochs(self, recipe: Recipe, later: tuple[str, ...]) -> int:
        """Return the epochs of the stage's recipe, or of the pipeline's."""
        return (self.recipe or recipe).epochs

    def network(self, data: Splits) -> nn.Module:
        """Return the network with fresh weights.

        Raises:
            UsageError: the configuration belongs to no family.
        """
        channels, classes = data.train.images.shape[1], len(data.train.classes)
        return build(self.config or student_config(in_channels=channels, classes=classes))

    def apply(self, model: nn.Module, work: Work) -> Outcome:
        """Return the trained student; the weights of `model` are not used.

        Raises:
            UsageError: as `cookbook.distillation.distill`, or the configuration belongs to no family.
        """
        recipe = self.recipe or work.recipe
        seed_everything(recipe.seed)
        network = self.network(work.data).to(work.device)
        recipe = work.fitting(recipe, network)
        teacher, loader = work.teacher(), work.training()
        if self.views is not None:
            copies = work.views(min(self.views, recipe.epochs))
            answers = torch.stack([teacher_logits(teacher, copy, precision=recipe.precision) for copy in copies])
            loader = ViewLoader(copies, work.batch_size, logits=answers, device=work.device, seed=loader.seed)
        started = time.perf_counter()
        distill(
            network, teacher if self.views is None else None, loader, recipe, alpha=self.alpha, temperature=self.temperature,
            checkpoint=work.state, progress=work.progress,
        )  # fmt: skip
        note = f"{count_parameters(network):,} parameters in another shape."
        return Outcome(network.cpu(), work.scheme, None, note, work.spent(), time.perf_counter() - started)


@dataclass(frozen=True)
class Quantize:
    """Brings weights and activations to integers, by training with rounding or after training.

    Where another stage follows, it works on the trained weights in floats again, and the file is quantized from what
    that stage leaves.

    Attributes:
        way: ``qat`` trains with simulated rounding; ``ptq`` chooses the ranges from training images and trains nothing.
        scheme: the integers; None: eight bits, with weights of a reduced range where this processor's sums would
            saturate.
        recipe: of the training; None: a fifth of the pipeline's epochs at a tenth of its rate.
        teacher: train on the answers of the model that the pipeline was given, too.

    Raises:
        UsageError: there is no such way, or no file can hold the scheme.
    """

    way: Way = "qat"
    scheme: Scheme | None = None
    recipe: Recipe | None = None
    teacher: bool = False
    name: str = "quantize"

    def __post_init__(self) -> None:
        if self.way not in get_args(Way):
            raise UsageError(f"way is {self.way!r}: use {' or '.join(get_args(Way))}.")
        if self.integers.activation_bits not in (None, 8):
            raise UsageError(f"No file holds activations of {self.integers.activation_bits} bits: use activation_bits=8.")

    @property
    def integers(self) -> Scheme:
        """The scheme, or what stands for none."""
        return self.scheme or Scheme(reduce_range=saturates())

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that identify the stage."""
        return {"stage": self.name, "way": self.way, "teacher": self.teacher,
                "scheme": asdict(self.integers), "recipe": _recipe(self.recipe)}  # fmt: skip

    def epochs(self, recipe: Recipe, later: tuple[str, ...]) -> int:
        """Return the epochs of the training, none after training."""
        return 0 if self.way == "ptq" else self._recipe(recipe).epochs

    def apply(self, model: nn.Module, work: Work) -> Outcome:
        """Return the model with the integers that its file shall hold.

        Raises:
            UsageError: as `cookbook.quantization.quantize_aware_training`.
            DeploymentError: the model cannot be captured.
        """
        scheme = self.integers
        if self.way == "ptq":
            return Outcome(model, scheme, note=f"After training: {scheme}.")
        teacher = work.teacher() if self.teacher else None
        return trained_with_rounding(model, work, scheme, self._recipe(work.recipe), teacher)

    def _recipe(self, recipe: Recipe) -> Recipe:
        return self.recipe or fine_tuning_recipe(recipe)


def trained_with_rounding(
    model: nn.Module,
    work: Work,
    scheme: Scheme,
    recipe: Recipe,
    teacher: nn.Module | None,
    alpha: float = 0.5,
    temperature: float = 4.0,
) -> Outcome:
    """Train with simulated rounding; return the float weights behind it, and the integers' file where no stage follows."""
    # rounding is simulated in plain float32
    recipe = replace(work.fitting(recipe, model), precision="fp32", ema_decay=None, compile=False)
    started = time.perf_counter()
    prepared = train_quantized(
        model.to(work.device), work.training(), recipe, scheme=scheme, teacher=teacher, alpha=alpha, temperature=temperature,
        checkpoint=work.state, progress=work.progress,
    )  # fmt: skip
    here = time.perf_counter() - started
    weights = prepared.state_dict()
    missing = [name for name in model.state_dict() if name not in weights]
    if missing and work.later:
        raise UsageError(f"{missing[0]} cannot be taken back from training with rounding: let quantize be the last stage.")
    if not missing:
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
    file = None
    if not work.later:
        result = quantized(convert(prepared), scheme, "training", work.example.to(work.device))
        file = result.export(work.folder / "quantized.onnx")
    return Outcome(model.cpu(), scheme, file, f"Trained with rounding: {scheme}.", work.spent(), here)


def _recipe(recipe: Recipe | None) -> dict[str, object] | None:
    return None if recipe is None else asdict(recipe)
