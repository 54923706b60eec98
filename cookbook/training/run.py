"""One training under way: its moving parts, one step, and everything that a resumed run needs (lesson 00)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cookbook.data import Loader
from cookbook.data.loaders import Batch
from cookbook.environment import seed_everything
from cookbook.errors import DataError, NonFiniteLossError
from cookbook.precision import LossScaling, Precision, clip_gradients
from cookbook.training.checkpoint import InterruptRequest, load_state, random_state, restore_random_state, save_state
from cookbook.training.evaluation import Evaluation
from cookbook.training.memory_format import require_safe_channels_last
from cookbook.training.recipe import CrossEntropy, Recipe, build_optimizer

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]

STEPS_BETWEEN_LOSS_CHECKS = 50  # on an accelerator, where reading a loss waits for the device


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a training.

    Attributes:
        epoch: counted from 0.
        train_loss: mean over the steps.
        learning_rate: of the last step.
        seconds: wall time of the training steps.
        validation_accuracy: 0 to 1; None: there was no validation.
        validation_loss: mean cross-entropy.
        skipped_steps: that fp16 left out because a gradient overflowed.
        loss_scales: under fp16, pairs of a number of steps in this epoch and the loss scale from then on;
            the first pair is the scale with which the epoch began.
    """

    epoch: int
    train_loss: float
    learning_rate: float
    seconds: float
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    skipped_steps: int = 0
    loss_scales: tuple[tuple[int, float], ...] = ()


@dataclass
class Progress:
    """Where a run is, and what it has seen of the epoch under way.

    Attributes:
        epoch: epochs that are over.
        step: steps of this epoch that are over, skipped ones included.
        updates: steps of the whole run that changed the weights, by which the schedule goes.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    loss_scales: list[tuple[int, float]] = field(default_factory=list)
    history: list[EpochRecord] = field(default_factory=list)


class Run:
    """The moving parts of one call of `fit`; `step` may also be called by who times steps.

    The parameters and errors are those of `fit`.
    """

    first = True  # of the processes that train together

    def __init__(self, model: nn.Module, train: Loader, recipe: Recipe, objective: Objective | None = None) -> None:
        seed_everything(recipe.seed)
        self.model, self.train, self.recipe = model, train, recipe
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.objective = objective or CrossEntropy(recipe.label_smoothing)
        self.precision = Precision(recipe.precision, self.device.type)
        self.autocast = self.precision.autocast()
        self.batches_per_epoch = len(train)
        self.steps_per_epoch = -(-self.batches_per_epoch // recipe.accumulate)
        if recipe.channels_last:
            require_safe_channels_last(model, self.device)
            model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(model, recipe)
        self.at = Progress()
        self.scaler = self.precision.scaler()
        self.scaling = None
        if self.scaler.is_enabled():
            self.scaling = LossScaling(self.scaler, self.optimizer, self.device)
            self.at.loss_scales = [(0, self.scaler.get_scale())]
        self.forward: Any = self.wrapped()
        self.average = None
        if recipe.ema_decay is not None:
            average_fn = get_ema_multi_avg_fn(recipe.ema_decay)
            self.average = AveragedModel(model, multi_avg_fn=average_fn, use_buffers=True)
        if recipe.compile:
            inner = self.forward
            self.forward = torch.compile(inner) if recipe.compile is True else torch.compile(inner, mode=recipe.compile)
        self.unread_losses: list[Tensor] = []

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be resumed; hashing the data is left to runs that have one."""
        return {
            "model": {name: list(value.shape) for name, value in self.model.state_dict().items()},
            "recipe": asdict(self.recipe),
            "data": self.train.describe(),
        }

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that validation looks at: the average, where the recipe has one."""
        return self.model if self.average is None else self.average.module

    def wrapped(self) -> nn.Module:
        """Return what the forward pass calls: the model itself, where one process trains alone."""
        return self.model

    def batches(self) -> Iterator[Batch]:
        """Yield what this process sees of the epoch under way, from the next step on."""
        return self.train.batches(self.at.epoch, self.at.step * self.recipe.accumulate)

    def obey(self, request: InterruptRequest) -> InterruptRequest:
        """Return what says whether to stop: the request itself, where one process trains alone."""
        return request

    def step(self, batches: Iterator[Batch]) -> None:
        """Take one optimizer step: forward, backward, clip, update, average.

        The average counts every step, also one that fp16 skipped: the weights are then the ones that it
        saw before.

        Raises:
            DataError: `batches` ended too early.
            NonFiniteLossError: a loss that was read is NaN or infinite.
        """
        recipe = self.recipe
        loss = self._accumulate_gradients(batches)
        self.settle()  # whether the last step counts decides the rate of this one
        rate = recipe.learning_rate_at(self.at.updates, recipe.epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if recipe.clip_norm is not None:
            clip_gradients(self.model.parameters(), recipe.clip_norm, self.scaler, self.optimizer)
        if self.scaling is not None:
            self.scaling.step()
        else:
            self.optimizer.step()
            self.at.updates += 1
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if self.device.type == "cpu":
            self._count_loss(loss.item(), self.at.step)
            return
        self.unread_losses.append(loss.clone())  # a replayed CUDA graph may write over the original
        if len(self.unread_losses) >= STEPS_BETWEEN_LOSS_CHECKS:
            self.check_losses(ahead=1)

    def _accumulate_gradients(self, batches: Iterator[Batch]) -> Tensor:
        """Run forward and backward over the batches of one step; return their mean loss, without its graph."""
        size = self.recipe.accumulate
        if size > 1:
            size = min(size, self.batches_per_epoch - self.at.step * size)
        total: Tensor | None = None
        for _ in range(size):
            try:
                images, labels = next(batches)
            except StopIteration:
                raise DataError(
                    f"The loader ended in epoch {self.at.epoch + 1} before its {self.batches_per_epoch} batches were "
                    "through: let its length be the number of batches that it yields."
                ) from None
            if self.recipe.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with self.autocast:
                loss = self.objective(self.forward, images, labels)
            if size > 1:
                loss = loss / size
            (loss if self.scaling is None else self.scaler.scale(loss)).backward()
            loss = loss.detach()
            total = loss if total is None else total + loss
        assert total is not None
        return total

    def settle(self) -> None:
        """Book what became of the last scaled step; without loss scaling there is nothing to book."""
        outcome = None if self.scaling is None else self.scaling.settle()
        if outcome is None:
            return
        if outcome.taken:
            self.at.updates += 1
        else:
            self.at.skipped += 1
        if outcome.scale != self.at.loss_scales[-1][1]:
            self.at.loss_scales.append((self.at.step, outcome.scale))

    def check_losses(self, ahead: int = 0) -> None:
        """Read the losses that are waiting on the device, and stop at the first that is not finite.

        Args:
            ahead: 1 inside a step that is not yet counted in ``at.step``.
        """
        if not self.unread_losses:
            return
        values = torch.stack(self.unread_losses).double().tolist()
        first = self.at.step + ahead - len(values)
        self.unread_losses.clear()
        for step, value in enumerate(values, first):
            self._count_loss(value, step)

    def _count_loss(self, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"The loss is {value} in epoch {self.at.epoch + 1} at step {step + 1}: "
                "lower the learning rate, clip the gradients, or look for NaN in the images."
            )
        self.at.loss_sum += value

    def finish_epoch(self, validation: Evaluation | None) -> EpochRecord:
        """Close the books of an epoch and move on to the next."""
        self.check_losses()
        self.settle()
        at = self.at
        record = EpochRecord(
            epoch=at.epoch,
            train_loss=at.loss_sum / self.steps_per_epoch,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=at.seconds,
            validation_accuracy=None if validation is None else validation.accuracy,
            validation_loss=None if validation is None else validation.loss,
            skipped_steps=at.skipped,
            loss_scales=tuple(at.loss_scales),
        )
        at.history.append(record)
        at.epoch, at.step, at.loss_sum, at.seconds, at.skipped = at.epoch + 1, 0, 0.0, 0.0, 0
        at.loss_scales = [(0, scale) for _, scale in at.loss_scales[-1:]]
        return record

    def settle_statistics(self) -> None:
        """Make the model ready to be evaluated; where one process trains alone it is."""

    def save(self, path: Path | None) -> None:
        """Write the state to `path`, unless a loss was not finite: such a state would be resumed for ever."""
        self.check_losses()
        if path is not None:
            save_state(path, self.state())

    def resume(self, path: Path) -> None:
        """Go back to the state in the file, if there is one; raises as `load_state` does."""
        self.restore(load_state(path, self.identity, self.device))

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        self.settle()
        return {
            "identity": self.identity,
            "at": asdict(self.at),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_state(),
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to a saved state; None leaves the fresh start."""
        if state is None:
            return
        history = [EpochRecord(**record) for record in state["at"].pop("history")]
        self.at = Progress(**state["at"], history=history)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        restore_random_state(state["random"])

    def leave_result_in_model(self) -> None:
        """Put the averaged weights into the model, and its memory format back."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        if self.recipe.channels_last:
            self.model.to(memory_format=torch.contiguous_format)
