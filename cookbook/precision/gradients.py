"""What 16 bits do to the gradients of a real training step (lesson 02)."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.precision.policy import Precision

LARGEST_SCALE = 2.0**16  # with which torch's GradScaler starts


@dataclass(frozen=True)
class GradientReport:
    """How a model's gradients in 16 bits compare with those in float32, on one batch.

    Attributes:
        count: gradients that are not zero in float32; the shares below refer to them.
        underflow: share that became zero.
        overflow: share that became infinite or NaN.
        stuck: share, of the weights that an SGD step moves in float32, that it does not move.
        error: norm of the difference to the float32 gradients over their norm, where both are finite.
        scale: by which the loss was multiplied.
    """

    count: int
    underflow: float
    overflow: float
    stuck: float
    error: float
    scale: float = 1.0

    @property
    def lost(self) -> float:
        """Share of gradients that became zero, infinite or NaN."""
        return self.underflow + self.overflow


def gradient_survival(
    model: nn.Module, images: Tensor, labels: Tensor, *, learning_rate: float = 0.01
) -> dict[str, GradientReport]:
    """Compute one batch's gradients in five ways, and compare each with float32.

    The ways: the whole model cast by ``.half()`` or ``.bfloat16()``, as by hand, with the loss in the same
    format; fp16 and bf16 autocast; and fp16 autocast with the loss scaled by 65,536, halved until nothing
    overflows, as GradScaler does. There is no ``.half()`` with scaling: GradScaler refuses float16
    gradients, since undoing the scale in float16 would lose them again.

    The model is copied and stays as it is. Each way draws the same dropout masks. The method follows
    Micikevicius et al., Mixed Precision Training, arXiv 1710.03740, sections 3.1 and 3.2.

    Args:
        model: float32, maps images to logits (B, classes); it is measured in training mode.
        images: float32 (B, C, H, W), on the model's device.
        labels: int64 (B,).
        learning_rate: of the SGD step by which `GradientReport.stuck` is found.

    Raises:
        UsageError: a parameter is not float32, no gradient arises, or the float32
            gradients are not finite.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise UsageError(f"{name} is {parameter.dtype}: pass the model in float32, which is the reference.")
    device = images.device.type
    whole = contextlib.nullcontext()
    half, brain = Precision("fp16", device).autocast(), Precision("bf16", device).autocast()
    exact = _gradients(model, images, labels, torch.float32, whole, learning_rate)
    if not exact.values.isfinite().all() or not exact.values.any():
        raise UsageError("The float32 gradients are zero or not finite: there is nothing to compare with on this batch.")
    scale = LARGEST_SCALE
    scaled = _gradients(model, images, labels, torch.float32, half, learning_rate, scale)
    while not scaled.values.isfinite().all() and scale > 1:
        scale /= 2
        scaled = _gradients(model, images, labels, torch.float32, half, learning_rate, scale)
    ways = {
        ".half()": _gradients(model, images, labels, torch.float16, whole, learning_rate),
        "fp16 autocast": _gradients(model, images, labels, torch.float32, half, learning_rate),
        "fp16 autocast, loss scaled": scaled,
        ".bfloat16()": _gradients(model, images, labels, torch.bfloat16, whole, learning_rate),
        "bf16 autocast": _gradients(model, images, labels, torch.float32, brain, learning_rate),
    }
    return {name: _report(exact, found) for name, found in ways.items()}


@dataclass(frozen=True)
class _Gradients:
    """Flat vectors over all trainable parameters: gradients in float32, weights, and the same weights after SGD."""

    values: Tensor
    weights: Tensor
    moved: Tensor
    scale: float


def _gradients(
    model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype,
    autocast: contextlib.AbstractContextManager[object], learning_rate: float, scale: float = 1.0,
) -> _Gradients:  # fmt: skip
    """Return the gradients of the mean cross-entropy of a copy of the model."""
    twin = copy.deepcopy(model).train()
    if dtype != torch.float32:
        twin.to(dtype)
    accelerators = [images.device] if images.device.type != "cpu" else []
    with torch.random.fork_rng(devices=accelerators, device_type=images.device.type if accelerators else "cuda"):
        torch.manual_seed(0)
        with autocast:
            loss = F.cross_entropy(twin(images.to(dtype)), labels)
        (loss * scale).backward()
    with_gradient = [(p.detach(), p.grad / scale) for p in twin.parameters() if p.grad is not None]
    if not with_gradient:
        raise UsageError("No parameter of the model received a gradient: unfreeze some before measuring.")
    weights = torch.cat([weight.flatten() for weight, _ in with_gradient])
    own = torch.cat([gradient.flatten() for _, gradient in with_gradient])
    return _Gradients(own.float(), weights, weights - learning_rate * own, scale)


def _report(exact: _Gradients, found: _Gradients) -> GradientReport:
    present = exact.values != 0
    count = int(present.sum())
    finite = found.values.isfinite()
    moving = exact.moved != exact.weights
    stuck = moving & (found.moved == found.weights)
    difference = torch.linalg.vector_norm((found.values - exact.values)[finite].double())
    return GradientReport(
        count=count,
        underflow=int((present & (found.values == 0)).sum()) / count,
        overflow=int((present & ~finite).sum()) / count,
        stuck=int(stuck.sum()) / max(1, int(moving.sum())),
        error=float(difference / torch.linalg.vector_norm(exact.values[finite].double()).clamp_min(1e-30)),
        scale=found.scale,
    )
