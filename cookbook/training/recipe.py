"""How a model is trained, as data: optimizer, schedule, regularization, precision (lesson 01)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.precision import PrecisionName

Schedule = Literal["constant", "step", "cosine", "one-cycle"]
OptimizerName = Literal["sgd", "adamw"]
CompileMode = Literal["reduce-overhead", "max-autotune"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the outcome of a training besides the model and the data.

    Attributes:
        epochs: passes over the training loader.
        learning_rate: the largest that the schedule reaches.
        optimizer: ``sgd`` (with Nesterov momentum) or ``adamw``.
        momentum: of SGD; AdamW uses its own defaults.
        weight_decay: on weights of two or more dimensions; biases and normalization get none.
        schedule: ``constant``; ``step`` (a tenth after 50 % and again after 75 %); ``cosine``
            (Loshchilov and Hutter, arXiv 1608.03983); ``one-cycle`` (linear rise over `warmup`,
            then cosine to zero; Smith and Topin, arXiv 1708.07120).
        warmup: share of all steps with a rising rate; only ``one-cycle`` uses it.
        label_smoothing: probability mass spread over all classes (Szegedy et al., arXiv 1512.00567).
        clip_norm: bound on the global gradient norm; None: no clipping.
        accumulate: loader batches whose gradients are averaged into one step.
        ema_decay: per step, of the exponential moving average of weights and BatchNorm statistics
            that `fit` evaluates and leaves in the model; None: no averaging.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
        fused: update all weights in one kernel (torch's ``fused=True``). None: where it spares a wait,
            which is fp16 on a CUDA device, and torch's own choice elsewhere.
        channels_last: run the model in torch's channels-last memory format.
        compile: run the model through `torch.compile`; True for its default mode, or the name of a
            mode: ``reduce-overhead`` replays CUDA graphs, ``max-autotune`` also tries kernels out.
        seed: of the random numbers that the model itself draws, such as dropout.

    Raises:
        UsageError: a value is out of range.
    """

    epochs: int
    learning_rate: float
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "one-cycle"
    warmup: float = 0.15
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    precision: PrecisionName = "fp32"
    fused: bool | None = None
    channels_last: bool = False
    compile: bool | CompileMode = False
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "learning_rate": (self.learning_rate > 0, "a positive number"),
            "optimizer": (self.optimizer in get_args(OptimizerName), "sgd or adamw"),
            "momentum": (0 <= self.momentum < 1, "0 up to, not including, 1"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "schedule": (self.schedule in get_args(Schedule), ", ".join(get_args(Schedule))),
            "warmup": (0 <= self.warmup < 1, "0 up to, not including, 1"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "0 up to, not including, 1"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "a positive number or None"),
            "accumulate": (self.accumulate >= 1, "1 or more"),
            "ema_decay": (self.ema_decay is None or 0 < self.ema_decay < 1, "between 0 and 1, or None"),
            "precision": (self.precision in get_args(PrecisionName), ", ".join(get_args(PrecisionName))),
            "compile": (self.compile in (False, True, *get_args(CompileMode)), "True, False, reduce-overhead or max-autotune"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise UsageError(f"{name} is {getattr(self, name)!r}: use {expected}.")

    def learning_rate_at(self, step: int, total: int) -> float:
        """Return the rate for optimizer step `step` of `total`, counted from 0."""
        done = step / total
        if self.schedule == "constant":
            factor = 1.0
        elif self.schedule == "step":
            factor = 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
        elif self.schedule == "one-cycle" and done < self.warmup:
            factor = (step + 1) / (self.warmup * total + 1)
        else:
            start = self.warmup if self.schedule == "one-cycle" else 0.0
            factor = 0.5 * (1 + math.cos(math.pi * (done - start) / (1 - start)))
        return self.learning_rate * factor


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over the trainable parameters, in two groups: with and without decay.

    Raises:
        UsageError: nothing in the model can be trained, or its device has no fused optimizer.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise UsageError("The model has no parameter that requires a gradient: unfreeze some before training.")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    device = trainable[0].device.type
    wanted = recipe.precision == "fp16" and device == "cuda" if recipe.fused is None else recipe.fused
    fused = True if wanted else None  # torch takes False as a wish for its slowest loop
    try:
        if recipe.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused)
        nesterov = recipe.momentum > 0
        sgd = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=nesterov, fused=fused)
    except RuntimeError as error:
        if not fused:
            raise
        raise UsageError(f"torch has no fused {recipe.optimizer} for {device}: leave fused at None.") from error
    if fused and nesterov:
        for parameter in trainable:  # torch's own buffers stay uninitialized when fp16 skips the first step
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


class CrossEntropy:
    """The default objective: cross-entropy of the model's logits against hard labels, smoothed or not."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar mean loss of images (B, C, H, W) and int64 labels (B,)."""
        return F.cross_entropy(model(images), labels, label_smoothing=self.label_smoothing)
