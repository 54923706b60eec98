"""Quantization-aware training: the house's `fit` on a graph that rounds as the deployed one will (lesson 05)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cookbook.data import Batch, Loader, LoaderWrapper, require_role
from cookbook.distillation import distill
from cookbook.errors import UsageError
from cookbook.quantization.graphs import QuantizableGraph
from cookbook.quantization.lsq import is_weight_quantizer, learn_steps
from cookbook.quantization.prepare import convert, freeze_batch_norm, prepare, set_observers
from cookbook.quantization.pt2e import FakeQuantizeBase
from cookbook.quantization.report import Quantized, quantized
from cookbook.quantization.rounding import CHUNK, first_images
from cookbook.quantization.scheme import Scheme
from cookbook.training import EpochRecord, Recipe, fit
from cookbook.training.memory_format import require_safe_channels_last

LEARNED_BITS = 4  # and fewer: where the paper on learned steps shows its gains


def train_quantized(
    model: nn.Module,
    train: Loader,
    recipe: Recipe,
    *,
    scheme: Scheme | None = None,
    images: int = 512,
    learned_steps: bool | None = None,
    freeze_batchnorm_after: int | None = None,
    freeze_observers_after: int | None = None,
    teacher: nn.Module | None = None,
    alpha: float = 0.5,
    temperature: float = 4.0,
    validation: Loader | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 200,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    progress: bool | None = None,
) -> QuantizableGraph:
    """Return a trained graph that simulates the scheme in floats, in eval mode, with every range fixed.

    `convert` makes of it the graph that is deployed, which computes the same: the scales in the last forward pass of
    training are the scales that are written. The arguments and errors are those of `quantize_aware_training`.
    """
    scheme = scheme or Scheme()
    require_role(train.role, ("train",), "train")
    _require_trainable(recipe)
    batch = first_images(train, images)
    if recipe.channels_last:
        require_safe_channels_last(model, batch.device)
    prepared = prepare(model, batch[:2], scheme, qat=True)
    if learned_steps is None:
        learned_steps = scheme.weight_bits <= LEARNED_BITS
    if learned_steps:
        learn_steps(prepared, batch[:2])
    _observe(prepared, batch)
    freezing = _Freezing(
        prepared,
        batchnorm=_after("freeze_batchnorm_after", freeze_batchnorm_after, recipe.epochs),
        observers=_after("freeze_observers_after", freeze_observers_after, recipe.epochs),
    )
    loader = _ScheduledLoader(train, freezing, {"scheme": str(scheme), "learned_steps": learned_steps, "images": len(batch)})
    settings: dict[str, Any] = {
        "validation": None if validation is None else _QuietLoader(validation, prepared), "checkpoint": checkpoint,
        "checkpoint_every": checkpoint_every, "on_epoch": on_epoch, "progress": progress,
    }  # fmt: skip
    if teacher is None:
        fit(prepared, loader, recipe, **settings)
    else:
        distill(prepared, teacher, loader, recipe, alpha=alpha, temperature=temperature, **settings)
    prepared.eval()
    _observe_activations(prepared, False)
    with torch.no_grad():
        prepared(batch[:2])  # the ranges of the weights follow the last step
    set_observers(prepared, observe=False)
    return prepared


def quantize_aware_training(
    model: nn.Module,
    train: Loader,
    recipe: Recipe,
    *,
    scheme: Scheme | None = None,
    images: int = 512,
    learned_steps: bool | None = None,
    freeze_batchnorm_after: int | None = None,
    freeze_observers_after: int | None = None,
    teacher: nn.Module | None = None,
    alpha: float = 0.5,
    temperature: float = 4.0,
    validation: Loader | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 200,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    progress: bool | None = None,
) -> Quantized:
    """Train a copy of `model` that rounds as the quantized one will, and return it quantized.

    Rounding lets gradients through as if it were the identity, and weights learn to live with it (Jacob et al.,
    arXiv 1712.05877; Krishnamoorthi, arXiv 1806.08342). Ranges start from training images, follow the weights at every
    step and the activations as a moving average. BatchNorm's scale is rounded with the weights, as it will be in the
    file. The control is `fit` with the same loader and recipe on a copy of the model.

    Args:
        model: trained in float; it is not changed. Its device is where training happens.
        train: its role must be ``train``.
        recipe: in ``fp32`` or ``tf32``, without averaging of weights and without compilation. A tenth of the learning
            rate of the float training is a good start.
        scheme: what to quantize to; None: `Scheme()`.
        images: of the loader's first epoch that set the first ranges.
        learned_steps: train the distance between two grid points of each weight too (`LearnedStepQuantize`); None: for
            4 bits and fewer.
        freeze_batchnorm_after: epochs after which BatchNorm keeps its statistics; None: three quarters, rounded up, so
            that fewer than four epochs never freeze. Earlier, a rate that the network bears otherwise can be too high.
        freeze_observers_after: epochs after which activations keep their ranges; None: likewise.
        teacher: the float model, or a better one, whose logits are targets beside the labels; see `Distillation`.
        alpha: share of the teacher.
        temperature: of the teacher's and the student's softmax.
        validation: evaluated, rounded, after each epoch, as in `fit`. Its images move no range.
        checkpoint: as in `fit`, as for `checkpoint_every`, `on_epoch` and `progress`. It belongs to one scheme and one
            schedule.

    Returns:
        The quantized model. It computes what the training computed in its last evaluation: the scales trained on are
        the scales written.

    Raises:
        UsageError: a split has the wrong role, a setting is out of range, or the recipe cannot be trained with rounding.
        DeploymentError: the model cannot be captured.
        CheckpointError: as in `fit`, like `NonFiniteLossError`, `DataError` and the interrupts.
    """
    scheme = scheme or Scheme()
    graph = train_quantized(
        model, train, recipe, scheme=scheme, images=images, learned_steps=learned_steps,
        freeze_batchnorm_after=freeze_batchnorm_after, freeze_observers_after=freeze_observers_after, teacher=teacher,
        alpha=alpha, temperature=temperature, validation=validation, checkpoint=checkpoint, checkpoint_every=checkpoint_every,
        on_epoch=on_epoch, progress=progress,
    )  # fmt: skip
    return quantized(convert(graph), scheme, "training", first_images(train, 1))


def _require_trainable(recipe: Recipe) -> None:
    if recipe.precision not in ("fp32", "tf32"):
        raise UsageError(
            f"Rounding is simulated in float32, and autocast to {recipe.precision} would round once more: use precision='fp32'."
        )
    if recipe.ema_decay is not None:
        raise UsageError(
            "Averaged weights have other ranges than the ones that were trained with rounding: set ema_decay=None."
        )
    if recipe.compile:
        raise UsageError("A graph with observers cannot be compiled, because they change it while it runs: set compile=False.")


def _after(name: str, asked: int | None, epochs: int) -> int:
    if asked is not None and asked < 0:
        raise UsageError(f"{name} is {asked}: use 0 or more epochs, or None.")
    # late, when the rate is low: with kept statistics a network diverges at rates that it bears otherwise, in float too
    return -(-3 * epochs // 4) if asked is None else asked


def _observe(prepared: QuantizableGraph, images: Tensor) -> None:
    """Show every observer the images, unrounded, so that training begins with ranges that fit."""
    set_observers(prepared, observe=True, quantize=False)
    prepared.eval()
    with torch.no_grad():
        for part in images.split(CHUNK):
            prepared(part)
    set_observers(prepared, quantize=True)


def _activation_quantizers(prepared: nn.Module) -> list[FakeQuantizeBase]:
    return [module for module in prepared.modules() if isinstance(module, FakeQuantizeBase) and not is_weight_quantizer(module)]


def _observe_activations(prepared: nn.Module, observe: bool) -> None:
    for module in _activation_quantizers(prepared):
        module.enable_observer(observe)


class _Freezing:
    """After how many epochs BatchNorm keeps its statistics and activations keep their ranges."""

    def __init__(self, prepared: QuantizableGraph, *, batchnorm: int, observers: int) -> None:
        self.prepared, self.batchnorm, self.observers = prepared, batchnorm, observers

    def enter(self, epoch: int) -> None:
        """Put the graph into the state of an epoch, counted from 0."""
        freeze_batch_norm(self.prepared, epoch >= self.batchnorm)
        _observe_activations(self.prepared, epoch < self.observers)

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that identify the schedule."""
        return {"freeze_batchnorm_after": self.batchnorm, "freeze_observers_after": self.observers}


class _ScheduledLoader(LoaderWrapper):
    """The training loader; `fit` asks it for an epoch's batches, also when it resumes, and the graph follows."""

    def __init__(self, loader: Loader, freezing: _Freezing, settings: dict[str, object]) -> None:
        super().__init__(loader)
        self.freezing, self.settings = freezing, settings

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        self.freezing.enter(epoch)
        return super().batches(epoch, first)

    def describe(self) -> dict[str, object]:
        return {**super().describe(), "quantization": {**self.settings, **self.freezing.describe()}}


class _QuietLoader(LoaderWrapper):
    """The validation loader; while its images go through the graph, no range of an activation moves."""

    def __init__(self, loader: Loader, prepared: QuantizableGraph) -> None:
        super().__init__(loader)
        self.prepared = prepared

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        before = {module: bool(module.observer_enabled[0]) for module in _activation_quantizers(self.prepared)}
        _observe_activations(self.prepared, False)
        try:
            yield from super().batches(epoch, first)
        finally:
            for module, observes in before.items():
                module.enable_observer(observes)
