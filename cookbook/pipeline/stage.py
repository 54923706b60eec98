"""What a stage of the pipeline is: an object that takes a model and returns a model (lesson 08)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from cookbook.data import Augmentation, ResidentLoader, Split, Splits
from cookbook.distillation import augmented_views
from cookbook.environment import derive_seed
from cookbook.pipeline.budget import Budget
from cookbook.pipeline.folder import load_weights, read_note, save_weights
from cookbook.quantization.scheme import Scheme
from cookbook.training import Recipe
from cookbook.training.checkpoint import load_state
from cookbook.training.memory_format import fitting_recipe


@dataclass(frozen=True)
class Gain:
    """What integers bring to the unpruned model by themselves.

    Attributes:
        latency: how many times faster a call with one image is.
        bytes: how many times smaller the file is.
    """

    latency: float = 1.0
    bytes: float = 1.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a stage leaves.

    Attributes:
        model: float32, on the CPU; layers may be smaller than the original's, but must be the same ones.
        scheme: of the integers to which its file shall be quantized; None: floats.
        file: the ONNX file that the stage wrote already; None: it is exported afterwards.
        note: what a reader should know, one sentence.
        training_seconds: of the stage's epochs, those before an interruption included.
        session_seconds: of the part of these that this process spent.
    """

    model: nn.Module
    scheme: Scheme | None = None
    file: Path | None = None
    note: str = ""
    training_seconds: float = 0.0
    session_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Work:
    """What a stage works with.

    Attributes:
        original: the model that the pipeline was given, on the CPU in eval mode; it is not to be changed.
        data: a stage trains and calibrates on train alone.
        budget: what the file may take in the end.
        recipe: of a training; a stage may have its own.
        batch_size: images a training step.
        augmentation: of the training images.
        device: where trainings run.
        folder: of this stage: for its state, which a resumed run finds again.
        earlier: names of the stages before this one.
        later: names of the stages after it.
        scheme: of the integers that an earlier stage chose; None: the model is in floats.
        gain: returns what integers bring to the original, where a stage chooses some; it is measured once.
        progress: show bars; None decides by terminal, JupyterLab and CI.
    """

    original: nn.Module
    data: Splits
    budget: Budget
    recipe: Recipe
    batch_size: int
    augmentation: Augmentation | None
    device: torch.device
    folder: Path
    earlier: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    scheme: Scheme | None = None
    gain: Callable[[], Gain] = field(default=Gain)
    progress: bool | None = None

    @property
    def example(self) -> Tensor:
        """Two training images, float32 (2, C, H, W) on the CPU."""
        images, _ = next(self.calibration(2).batches(0))
        return images

    @property
    def state(self) -> Path:
        """Where a training keeps its state, from which the same call goes on."""
        return self.folder / "training.state"

    def spent(self) -> float:
        """Return the seconds of all epochs of the training in `state`, those before an interruption included."""
        state = load_state(self.state, {}, torch.device("cpu"))
        return 0.0 if state is None else float(sum(record["seconds"] for record in state["at"]["history"]))

    def training(self) -> ResidentLoader:
        """Return the training images as `fit` takes them, for each stage in an order and with an augmentation of its own."""
        seed = derive_seed(self.recipe.seed, len(self.earlier))
        return ResidentLoader(self.data.train, self.batch_size, augmentation=self.augmentation, device=self.device, seed=seed)

    def views(self, count: int) -> list[Split]:
        """Return `count` fixed augmented copies of the training images, or the images alone where they are not augmented."""
        if self.augmentation is None:
            return [self.data.train]
        return augmented_views(self.data.train, self.augmentation, count)

    def fitting(self, recipe: Recipe, model: nn.Module) -> Recipe:
        """Return the recipe for a model on its device, without channels-last where pruned widths are too narrow for that."""
        return fitting_recipe(recipe, model, self.device)

    def calibration(self, batch_size: int = 64) -> ResidentLoader:
        """Return the training images in a fixed order without augmentation, on the CPU."""
        return ResidentLoader(self.data.train, min(batch_size, len(self.data.train)), shuffle=False)

    def teacher(self) -> nn.Module:
        """Return a copy of the original on the device of the training."""
        return copy.deepcopy(self.original).to(self.device)

    def kept(self, name: str, make: Callable[[], tuple[nn.Module, str]]) -> tuple[nn.Module, str]:
        """Return the model and the note that an interrupted run kept under this name, else make and keep them.

        What a measurement decided, such as widths, is thereby decided once.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            model, note = make()
            save_weights(model, self.original, path, note)
        return load_weights(self.original, path), read_note(path)


class Stage(Protocol):
    """A step of the pipeline. One of your own needs these four members and no base class."""

    @property
    def name(self) -> str:
        """A short word for tables and folders."""

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that change whenever the result could."""

    def epochs(self, recipe: Recipe, later: tuple[str, ...]) -> int:
        """Return how many epochs it trains, for the estimate, with the pipeline's recipe and these stages after it."""

    def apply(self, model: nn.Module, work: Work) -> Outcome:
        """Return what becomes of `model`, which is on the CPU in eval mode and may be changed.

        What takes long must be resumable: keep it in ``work.folder``. The result must depend on nothing but the
        arguments and what is kept there.
        """
