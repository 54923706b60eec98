"""The training loop, short enough to read, that can be stopped at any moment (lesson 00)."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cookbook.data import Loader, require_role
from cookbook.environment import seed_everything
from cookbook.errors import NonFiniteLossError, UsageError
from cookbook.precision import Precision, clip_gradients
from cookbook.progress import progress_bar
from cookbook.training.checkpoint import (
    checkpoint_path,
    deferred_interrupts,
    load_state,
    random_state,
    restore_random_state,
    save_state,
)
from cookbook.training.evaluation import evaluate
from cookbook.training.memory_format import require_safe_channels_last
from cookbook.training.recipe import CrossEntropy, Recipe, build_optimizer

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]

STEPS_BETWEEN_LOSS_CHECKS = 50  # on an accelerator, where reading a loss waits for the device


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean training loss, last learning rate, wall time, and validation when it was asked for."""

    epoch: int
    train_loss: float
    learning_rate: float
    seconds: float
    validation_accuracy: float | None = None
    validation_loss: float | None = None


@dataclass
class _Progress:
    """Where the run is, and what it has seen of the epoch under way."""

    epoch: int = 0
    step: int = 0
    updates: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)


def fit(
    model: nn.Module,
    train: Loader,
    recipe: Recipe,
    *,
    validation: Loader | None = None,
    objective: Objective | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 200,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    progress: bool | None = None,
) -> list[EpochRecord]:
    """Train `model` in place and return one record an epoch.

    With `checkpoint`, the run can be interrupted at any moment, by SIGKILL too: the same call
    resumes it and ends, on the same machine with the same number of threads, with the same weights
    bit for bit as an undisturbed run. SIGTERM and Ctrl-C save first and then leave. A finished run
    is not repeated: its weights are put into the model.

    Args:
        model: on the device where it shall train. Ends with the averaged weights when the recipe
            has an `ema_decay`.
        train: batches to learn from; its role must be ``train``.
        recipe: everything else that decides the outcome.
        validation: evaluated after each epoch; its role must not be ``test``.
        objective: maps (model, images, labels) to a scalar mean loss; cross-entropy by default.
        checkpoint: file for the training state.
        checkpoint_every: optimizer steps between two writes; the end of an epoch always writes.
        on_epoch: called with each finished epoch's record.
        progress: show a bar; None decides by terminal, JupyterLab and CI.

    Raises:
        UsageError: a split has the wrong role, nothing in the model can be trained, or a layer is
            unsafe in the channels-last format.
        NonFiniteLossError: a loss is NaN or infinite; the message names epoch and step.
        CheckpointError: `checkpoint` is damaged or belongs to another training.
        KeyboardInterrupt: Ctrl-C, after the state was saved. (SIGTERM: SystemExit with 143.)
    """
    require_role(train.role, ("train",), "train")
    if validation is not None:
        require_role(validation.role, ("train", "validation"), "choose between epochs")
    if checkpoint_every < 1:
        raise UsageError(f"checkpoint_every is {checkpoint_every}: use 1 or more steps.")
    run = _Run(model, train, recipe, objective)
    path = checkpoint_path(checkpoint)
    if path is not None:
        run.restore(load_state(path, run.identity, run.device))
    at = run.at

    def save() -> None:
        run.check_losses()  # a checkpoint with NaN in it would be resumed for ever
        if path is not None:
            save_state(path, run.state())

    total = recipe.epochs * run.steps_per_epoch
    done = at.epoch * run.steps_per_epoch + at.step
    with deferred_interrupts(path is not None) as interrupt, run.precision.matmul_mode(), \
            progress_bar("training", total, done=done, show=progress) as advance:  # fmt: skip
        while at.epoch < recipe.epochs:
            model.train()
            batches = train.batches(at.epoch, at.step * recipe.accumulate)
            started = time.perf_counter() - at.seconds
            while at.step < run.steps_per_epoch:
                run.step(batches)
                at.step += 1
                at.seconds = time.perf_counter() - started
                advance(f"epoch {at.epoch + 1}/{recipe.epochs}")
                if interrupt.signal is not None:
                    save()
                    interrupt.stop(f"Stopped in epoch {at.epoch + 1} after step {at.step}; the same call resumes there.")
                if at.step % checkpoint_every == 0 and at.step < run.steps_per_epoch:
                    save()
            record = run.finish_epoch(validation)
            save()
            if on_epoch is not None:
                on_epoch(record)
            if interrupt.signal is not None:
                interrupt.stop(f"Stopped after epoch {at.epoch} of {recipe.epochs}; the same call resumes there.")
    run.leave_result_in_model()
    return list(at.history)


class _Run:
    """The moving parts of one call of `fit`."""

    def __init__(self, model: nn.Module, train: Loader, recipe: Recipe, objective: Objective | None) -> None:
        seed_everything(recipe.seed)
        self.model, self.train, self.recipe = model, train, recipe
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.objective = objective or CrossEntropy(recipe.label_smoothing)
        self.precision = Precision(recipe.precision, self.device.type)
        self.scaler = self.precision.scaler()
        self.steps_per_epoch = -(-len(train) // recipe.accumulate)
        if recipe.channels_last:
            require_safe_channels_last(model, self.device)
            model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(model, recipe)
        self.average = None
        if recipe.ema_decay is not None:
            average_fn = get_ema_multi_avg_fn(recipe.ema_decay)
            self.average = AveragedModel(model, multi_avg_fn=average_fn, use_buffers=True)
        self.forward: Any = torch.compile(model) if recipe.compile else model
        self.at = _Progress()
        self.unread_losses: list[Tensor] = []

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be resumed; hashing the data is left to runs that have one."""
        return {
            "model": {name: list(value.shape) for name, value in self.model.state_dict().items()},
            "recipe": asdict(self.recipe),
            "data": self.train.describe(),
        }

    def step(self, batches: Any) -> None:
        """Take one optimizer step: forward, backward, clip, update, average."""
        recipe, at = self.recipe, self.at
        rate = recipe.learning_rate_at(at.updates, recipe.epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        size = min(recipe.accumulate, len(self.train) - at.step * recipe.accumulate)
        loss = torch.zeros((), device=self.device)
        for images, labels in itertools.islice(batches, size):
            if recipe.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with self.precision.autocast():
                part = self.objective(self.forward, images, labels)
            part = part / size if size > 1 else part
            self.scaler.scale(part).backward()
            loss += part.detach()
        if recipe.clip_norm is not None:
            clip_gradients(self.model.parameters(), recipe.clip_norm, self.scaler, self.optimizer)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.get_scale() >= scale:  # a smaller scale says that fp16 overflowed and the step was skipped
            at.updates += 1
            if self.average is not None:
                self.average.update_parameters(self.model)
        self.unread_losses.append(loss)
        if self.device.type == "cpu" or len(self.unread_losses) >= STEPS_BETWEEN_LOSS_CHECKS:
            self.check_losses(ahead=1)

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
            if not abs(value) < float("inf"):
                raise NonFiniteLossError(
                    f"The loss is {value} in epoch {self.at.epoch + 1} at step {step + 1}: "
                    "lower the learning rate, clip the gradients, or look for NaN in the images."
                )
            self.at.loss_sum += value

    def finish_epoch(self, validation: Loader | None) -> EpochRecord:
        """Close the books of an epoch and move on to the next."""
        self.check_losses()
        at = self.at
        result = None
        if validation is not None:
            result = evaluate(self.model if self.average is None else self.average.module, validation)
        record = EpochRecord(
            epoch=at.epoch,
            train_loss=at.loss_sum / self.steps_per_epoch,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=at.seconds,
            validation_accuracy=None if result is None else result.accuracy,
            validation_loss=None if result is None else result.loss,
        )
        at.history.append(record)
        at.epoch, at.step, at.loss_sum, at.seconds = at.epoch + 1, 0, 0.0, 0.0
        return record

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
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
        self.at = _Progress(**state["at"], history=history)
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
