"""Changes that shall make a training faster, each a function from one setup to another (lesson 02)."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from cookbook.data import Augmentation, Loader, ResidentLoader, Split, TorchvisionLoader
from cookbook.errors import UsageError
from cookbook.precision import PrecisionName
from cookbook.training import Recipe

COMPILERS = ("c++", "g++", "clang++", "cl")


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """How a training step is taken; a `SpeedChange` returns a changed copy.

    Attributes:
        recipe: optimizer, precision, memory format, compilation and accumulation.
        split: the images; its role must be ``train``.
        batch_size: images in one batch of the loader.
        device: where everything computes.
        augmentation: of the loader.
        resident: whether the images lie on the device as whole tensors, or come one by one through
            torchvision's transforms and a DataLoader.
        recomputed: names the parts of the model whose activations are computed again in the backward pass.
    """

    recipe: Recipe
    split: Split
    batch_size: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(crop=2, flip=True))
    resident: bool = False
    recomputed: Callable[[nn.Module], Iterable[nn.Module]] | None = None

    @property
    def images_per_step(self) -> int:
        """Images behind one update of the weights."""
        return self.batch_size * self.recipe.accumulate

    def loader(self) -> Loader:
        """Return the loader that the setup describes."""
        kind = ResidentLoader if self.resident else TorchvisionLoader
        return kind(self.split, self.batch_size, augmentation=self.augmentation, device=self.device)

    def with_recipe(self, **changes: Any) -> TrainingSetup:
        """Return a copy with another recipe."""
        return replace(self, recipe=replace(self.recipe, **changes))


def _anywhere(device: torch.device) -> str | None:
    return None


@dataclass(frozen=True)
class SpeedChange:
    """One change that shall make training faster, or smaller in memory.

    Attributes:
        name: in tables.
        apply: returns the changed setup.
        missing: says why a device cannot do it, or None.
        stacks: False for a change that pays with time: it is measured alone only.
    """

    name: str
    apply: Callable[[TrainingSetup], TrainingSetup]
    missing: Callable[[torch.device], str | None] = _anywhere
    stacks: bool = True


def _needs_compiler(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "torch.compile needs the package triton here"
    found = os.environ.get("CXX") or any(map(shutil.which, COMPILERS))
    return None if found else "torch.compile needs a C++ compiler"


def _needs_cuda(what: str) -> Callable[[torch.device], str | None]:
    return lambda device: None if device.type == "cuda" else f"{what} need an NVIDIA GPU"


def in_precision(name: PrecisionName) -> SpeedChange:
    """Compute matrix products in another format (`Precision`)."""
    missing = _needs_cuda("tf32 products") if name == "tf32" else _anywhere
    return SpeedChange(name, lambda setup: setup.with_recipe(precision=name), missing)


def with_larger_batch(factor: int) -> SpeedChange:
    """Multiply the batch, and with it the learning rate (Goyal et al., arXiv 1706.02677, section 2.1)."""

    def apply(setup: TrainingSetup) -> TrainingSetup:
        rate = factor * setup.recipe.learning_rate
        return replace(setup, batch_size=factor * setup.batch_size).with_recipe(learning_rate=rate)

    return SpeedChange(f"batch × {factor}, learning rate × {factor}", apply)


def with_accumulation(parts: int) -> SpeedChange:
    """Cut each batch into `parts`, one after the other through the model, for one step with their mean gradient."""

    def apply(setup: TrainingSetup) -> TrainingSetup:
        if setup.batch_size % parts:
            raise UsageError(f"A batch of {setup.batch_size} cannot be cut into {parts} equal parts: use a divisor of it.")
        accumulate = parts * setup.recipe.accumulate
        return replace(setup, batch_size=setup.batch_size // parts).with_recipe(accumulate=accumulate)

    return SpeedChange(f"accumulation, {parts} parts", apply, stacks=False)


def with_recomputation(modules: Callable[[nn.Module], Iterable[nn.Module]]) -> SpeedChange:
    """Compute activations inside `modules` again in the backward pass (`checkpoint_activations`)."""
    return SpeedChange("activation checkpointing", lambda setup: replace(setup, recomputed=modules), stacks=False)


RESIDENT = SpeedChange("resident data", lambda setup: replace(setup, resident=True))
CHANNELS_LAST = SpeedChange("channels-last", lambda setup: setup.with_recipe(channels_last=True))
FUSED = SpeedChange("fused optimizer", lambda setup: setup.with_recipe(fused=True))
COMPILED = SpeedChange("torch.compile", lambda setup: setup.with_recipe(compile=True), _needs_compiler)
CUDA_GRAPHS = SpeedChange(
    "CUDA graphs", lambda setup: setup.with_recipe(compile="reduce-overhead"),
    lambda device: _needs_cuda("CUDA graphs")(device) or _needs_compiler(device),
)  # fmt: skip
