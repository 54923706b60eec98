"""Where torch's channels-last memory format is safe to train in (lesson 01)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from cookbook.errors import UsageError
from cookbook.training.recipe import Recipe

SMALLEST_SAFE_INPUT = 16  # oneDNN's block of input channels with AVX-512; 8 with AVX2


def require_safe_channels_last(model: nn.Module, device: torch.device) -> None:
    """Refuse layers whose backward pass overwrites foreign memory in the channels-last format on a CPU.

    These are strided 1×1 convolutions with fewer input channels than oneDNN's block. With torch 2.15 they
    end in a crash, a hang or wrong gradients (https://github.com/uxlfoundation/oneDNN/issues/6035).

    Args:
        model: the network that shall be trained in channels-last.
        device: where.

    Raises:
        UsageError: there is such a layer; the message names it.
    """
    if device.type != "cpu":
        return
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1) or max(layer.stride) == 1:
            continue
        channels = layer.in_channels // layer.groups
        if channels < SMALLEST_SAFE_INPUT:
            raise UsageError(
                f"{name} is a strided 1×1 convolution of {channels} channels, which corrupts memory on a CPU in the "
                f"channels-last format (oneDNN issue 6035): use {SMALLEST_SAFE_INPUT} channels or more, "
                "or switch channels_last off."
            )


def fitting_recipe(recipe: Recipe, model: nn.Module, device: torch.device) -> Recipe:
    """Return the recipe for a model on a device: without channels-last where pruned widths are too narrow for that."""
    try:
        require_safe_channels_last(model, device)
    except UsageError:
        return replace(recipe, channels_last=False)
    return recipe
