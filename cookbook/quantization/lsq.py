"""Learned step size quantization: the distance between two grid points is trained with the weights (lesson 05)."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from cookbook.errors import UsageError
from cookbook.quantization.batchnorm import scaled_weights
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


def learned_step(values: Tensor, step: Tensor, lowest: int, highest: int, unit: Tensor | None = None) -> Tensor:
    """Return the values rounded to the grid of `step`, with the gradients of LSQ (Esser et al., arXiv 1902.08153, section 2.1).

    With x = value/step the result is step · round(clip(x, lowest, highest)). A value's gradient passes inside of the range
    and is zero outside. The step's is round(x) − x inside, `lowest` or `highest` outside, summed over the values and times
    1/√(N · highest) for N values a step, which keeps its updates in proportion to the weights'.

    Args:
        values: floats of any shape.
        step: positive, in the dtype of `values`, of a shape that broadcasts to theirs.
        lowest: integer, 0 or less.
        highest: integer, 1 or more.
        unit: in which `step` is told, positive or negative, of a shape that broadcasts to `step`'s; None: 1.
    """
    factor = 1 / math.sqrt(values.numel() / step.numel() * highest)
    scaled = cast(Tensor, _ScaledGradient.apply(step, factor))
    if unit is not None:
        scaled = in_units(scaled, unit)
    # multiplied by the reciprocal, as torch's own quantizers do: divided, a value halfway can fall to the other side
    return cast(Tensor, _Round.apply((values * scaled.reciprocal()).clamp(lowest, highest))) * scaled


def in_units(step: Tensor, unit: Tensor) -> Tensor:
    """Return a step that was told in units of something, in the units of the values themselves."""
    return (step * unit.abs()).clamp_min(SMALLEST_STEP)


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

    A weight that BatchNorm scales by gamma/sigma before it is rounded has its steps, one a channel, in units of that scale.
    Whatever BatchNorm's statistics do then leaves the integers as they are. With a fixed distance they would depend on the
    statistics, which depend on them: with two bits a channel whose sigma grows rounds to zero, sigma falls, and so on.

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
        """The step as it is used and written, times the unit if it has one: float (channels,) or (1,)."""
        return self.step.abs().clamp_min(SMALLEST_STEP)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, as torchao's conversion asks for them."""
        return self.scale.detach(), self.zero_point

    def forward(self, values: Tensor, unit: Tensor | None = None) -> Tensor:
        """Return the values on the grid; unchanged while fake quantization is switched off.

        Args:
            values: a weight.
            unit: of the steps, of a shape that broadcasts to the weight's; None: 1.
        """
        if self.fake_quant_enabled[0] != 1:
            return values
        shape = [-1 if self.is_per_channel and place == self.ch_axis else 1 for place in range(values.ndim)]
        return learned_step(values, self.scale.reshape(shape), self.quant_min, self.quant_max, unit)

    def absorb(self, unit: Tensor) -> None:
        """Tell the steps in the values' own units from now on.

        Args:
            unit: of the steps so far, (channels,).
        """
        with torch.no_grad():
            self.step.copy_(in_units(self.scale, unit))

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
    weights: dict[str, Tensor] = {}

    def note(name: str, values: Tensor) -> None:
        weights[name] = values

    hooks = [
        module.register_forward_pre_hook(lambda _, arguments, name=name: note(name, arguments[0]))
        for name, module in found.items()
    ]
    try:
        with torch.no_grad():
            prepared(images)
    finally:
        for hook in hooks:
            hook.remove()
    for node, scaled in scaled_weights(prepared):
        name = str(node.target)
        if name in found and found[name].is_per_channel:
            weight, unit = scaled.args
            assert isinstance(weight, Node) and isinstance(unit, Node)
            weights[name] = prepared.get_parameter(str(weight.target))
            node.args = (scaled, unit)
    prepared.recompile()
    for name, module in found.items():
        axis = int(module.ch_axis) if module.is_per_channel else None
        step = first_step(weights[name], int(module.quant_max), axis)
        prepared.set_submodule(name, LearnedStepQuantize(step, module))
    return len(found)


def is_weight_quantizer(module: nn.Module) -> bool:
    """Say whether a module is a fake quantizer of weights: those are signed, activations are not."""
    return isinstance(module, FakeQuantizeBase) and getattr(module, "dtype", None) is torch.int8
