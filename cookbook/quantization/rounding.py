"""Weights on a grid of few values: the scale, the nearest grid point, and calibration images in one tensor (lesson 05)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cookbook.data import Loader
from cookbook.errors import UsageError
from cookbook.quantization.layers import fold_batchnorm, trace_layers, weighted
from cookbook.quantization.scheme import Scheme

Ranges = Literal["min-max", "mse"]

CHUNK = 128  # images in one forward pass
FRACTIONS = 60  # of the largest weight that are tried as the end of the range
SMALLEST_SCALE = torch.finfo(torch.float32).eps  # as torch's observers have it


def weight_scale(weight: Tensor, scheme: Scheme, *, ranges: Ranges = "min-max") -> Tensor:
    """Return the step between two grid points, in the weight's dtype, (channels, 1, …) or, for one scale, (1, 1, …).

    Args:
        weight: float (channels, …).
        scheme: its weight range, and whether every output channel has a scale of its own.
        ranges: ``min-max``: the largest absolute weight is the end of the grid; ``mse``: of 60 shares of it the one
            whose rounding has the smallest squared error, beyond which weights are clipped.

    Raises:
        UsageError: there are no such ranges.
    """
    if ranges not in get_args(Ranges):
        raise UsageError(f"ranges is {ranges!r}: use {' or '.join(get_args(Ranges))}.")
    rows = weight.detach().flatten(1) if scheme.per_channel else weight.detach().reshape(1, -1)
    top = scheme.weight_range[1]
    scale = widest_step(rows, top) if ranges == "min-max" else closest_step(rows, top)
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


def widest_step(rows: Tensor, top: int) -> Tensor:
    """Return for each row (rows, …) the step with which its largest absolute value lies on the end of the grid, (rows, 1)."""
    return (rows.abs().amax(1, keepdim=True) / top).clamp_min(SMALLEST_SCALE)


def closest_step(rows: Tensor, top: int) -> Tensor:
    """Return for each row (rows, …) the step of 60 up to the widest that rounds with the least squared error, (rows, 1)."""
    widest = scale = widest_step(rows, top)
    best = (on_grid(rows, scale, top) - rows).square().sum(1, keepdim=True)
    for part in range(1, FRACTIONS):
        tried = (widest * (part / FRACTIONS)).clamp_min(SMALLEST_SCALE)
        error = (on_grid(rows, tried, top) - rows).square().sum(1, keepdim=True)
        scale, best = torch.where(error < best, tried, scale), torch.minimum(error, best)
    return scale


def on_grid(weight: Tensor, scale: Tensor, top: int) -> Tensor:
    """Return the nearest points of the grid: integers from -top to top, times the scale."""
    return torch.round(weight / scale).clamp(-top, top) * scale


def round_to_nearest(model: nn.Module, example: Tensor, *, scheme: Scheme, ranges: Ranges = "mse") -> nn.Module:
    """Return a copy whose convolutions and linear layers have weights on the scheme's grid: the control of `adaround`.

    The largest weight of a channel lies on the end of the grid, so that an observer of minimum and maximum finds the
    same scale again, and quantizing the copy by the same scheme changes no weight.

    Args:
        model: not changed. The copy is in eval mode, with BatchNorm folded.
        example: images (B, C, H, W), on the model's device.
        scheme: of the weights; layers that it excludes stay in float.
        ranges: as in `weight_scale`.

    Raises:
        UsageError: there are no such ranges.
        DeploymentError: the model cannot be captured.
    """
    rounded = fold_batchnorm(model, example)
    with torch.no_grad():
        for layer in trace_layers(rounded, example):
            if not scheme.excludes(layer.name):
                weight = weighted(rounded, layer.name).weight
                weight.copy_(on_grid(weight, weight_scale(weight, scheme, ranges=ranges), scheme.weight_range[1]))
    return rounded


def first_images(loader: Loader, number: int) -> Tensor:
    """Return at most `number` images of the loader's first epoch, float32 (N, C, H, W).

    Raises:
        UsageError: the number is below 1 or the loader yields nothing.
    """
    if number < 1:
        raise UsageError(f"images is {number}: use 1 or more.")
    parts: list[Tensor] = []
    for images, _ in loader.batches(0):
        parts.append(images)
        if sum(map(len, parts)) >= number:
            break
    if not parts:
        raise UsageError("The calibration loader yields no images: pass one with at least one batch.")
    return torch.cat(parts)[:number]
