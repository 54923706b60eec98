"""Learned step size quantization: the distance between two grid points is trained with the weights (lesson 05)."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from cookbook.errors import UsageError
from cookbook.quantization.pt2e import FakeQuantizeBase
from cookbook.quantization.rounding import closest_step

SMALLEST_STEP = torch.finfo(torch.float32).eps


class _Round(torch.autograd.Function):
    """Rounding whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return torch.round(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def learned_step(values: Tensor, step: Tensor, lowest: int, highest: int) -> Tensor:
    """Return the values rounded to the grid of `step`, with the gradients of LSQ (Esser et al., arXiv 1902.08153, section 2.1).

    With x = value/step the result is step · round(clip(x, lowest, highest)). A value's gradient passes inside of the range
    and is zero outside. The step's is round(x) − x inside, `lowest` or `highest` outside, summed over the values and times
    1/√(N · highest) for N values a step, which keeps its updates in proportion to the weights'.

    Args:
        values: floats of any shape.
        step: positive, in the dtype of `values`, of a shape that broadcasts to theirs.
        lowest: integer, 0 or less.
        highest: integer, 1 or more.
    """
    factor = 1 / math.sqrt(values.numel() / step.numel() * highest)
    scaled = cast(Tensor, _ScaledGradient.apply(step, factor))
    # multiplied by the reciprocal, as torch's own quantizers do: divided, a value halfway can fall to the other side
    return cast(Tensor, _Round.apply((values * scaled.reciprocal()).clamp(lowest, highest))) * scaled


def first_step(values: Tensor, highest: int, axis: int | None) -> Tensor:
    """Return the step to begin with, the one that rounds with the least squared error, (channels,) or (1,).

    The paper begins with 2 · mean|value| / √highest, with which two bits round a channel of one weight to zero.

    Args:
        values: floats.
        highest: the largest integer.
        axis: of the channels; None: one step for all.
    """
    rows = values.detach().reshape(1, -1) if axis is None else values.detach().transpose(0, axis).flatten(1)
    return closest_step(rows, highest).flatten()


class LearnedStepQuantize(FakeQuantizeBase):  # type: ignore[misc]
    """A fake quantizer for weights whose step is a parameter; torchao's `convert_pt2e` writes the step that was trained.

    It takes the place of a plain fake quantizer in a graph prepared for training, and has its attributes. Unlike torchao's
    own learnable one its step exists from the start, so that checkpoints hold it.

    Args:
        step: positive floats (channels,) or (1,).
        like: the fake quantizer that it replaces, symmetric, with one scale a channel or for all.

    Attributes:
        step: the parameter; its absolute value counts.
    """

    def __init__(self, step: Tensor, like: FakeQuantizeBase) -> None:
        super().__init__()
        self.step = nn.Parameter(step.clone())
        self.register_buffer("zero_point", torch.zeros(step.shape, dtype=torch.int32, device=step.device))
        self.quant_min, self.quant_max = int(like.quant_min), int(like.quant_max)
        self.dtype, self.qscheme, self.ch_axis = like.dtype, like.qscheme, like.ch_axis
        self.is_per_channel, self.is_dynamic = bool(like.is_per_channel), False

    @property
    def scale(self) -> Tensor:
        """The step as it is used and written: float (channels,) or (1,)."""
        return self.step.abs().clamp_min(SMALLEST_STEP)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, as torchao's conversion asks for them."""
        return self.scale.detach(), self.zero_point

    def forward(self, values: Tensor) -> Tensor:
        """Return the values on the grid; unchanged while fake quantization is switched off."""
        if self.fake_quant_enabled[0] != 1:
            return values
        shape = [-1 if self.is_per_channel and place == self.ch_axis else 1 for place in range(values.ndim)]
        return learned_step(values, self.scale.reshape(shape), self.quant_min, self.quant_max)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows of it."""
        return f"integers {self.quant_min} to {self.quant_max}, {self.step.numel()} learned steps"


def learn_steps(prepared: GraphModule, images: Tensor) -> int:
    """Give the weights of a graph prepared for training learned steps, in place; return how many weights have them.

    Args:
        prepared: from `prepare(…, qat=True)`.
        images: float32 (B, C, H, W); one forward pass over them shows each weight, scaled by its BatchNorm.

    Raises:
        UsageError: the graph has no fake quantizer of a weight.
    """
    found = {name: module for name, module in prepared.named_modules() if is_weight_quantizer(module)}
    if not found:
        raise UsageError("This graph has no fake quantizers of weights: pass one from prepare(…, qat=True).")
    steps: dict[str, Tensor] = {}

    def note(name: str, module: FakeQuantizeBase, values: Tensor) -> None:
        axis = int(module.ch_axis) if module.is_per_channel else None
        steps[name] = first_step(values, int(module.quant_max), axis)

    hooks = [
        module.register_forward_pre_hook(lambda module, arguments, name=name: note(name, module, arguments[0]))
        for name, module in found.items()
    ]
    try:
        with torch.no_grad():
            prepared(images)
    finally:
        for hook in hooks:
            hook.remove()
    for name, module in found.items():
        prepared.set_submodule(name, LearnedStepQuantize(steps[name], module))
    return len(found)


def is_weight_quantizer(module: nn.Module) -> bool:
    """Say whether a module is a fake quantizer of weights: those are signed, activations are not."""
    return isinstance(module, FakeQuantizeBase) and getattr(module, "dtype", None) is torch.int8
