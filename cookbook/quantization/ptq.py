"""Quantization after training: ranges from a few hundred training images, nothing trained (lesson 05)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cookbook.data import Loader, require_role
from cookbook.errors import UsageError
from cookbook.progress import progress_bar
from cookbook.quantization.graphs import QuantizableGraph
from cookbook.quantization.observers import Method
from cookbook.quantization.prepare import convert, prepare
from cookbook.quantization.report import Quantized, quantized
from cookbook.quantization.rounding import first_images
from cookbook.quantization.scheme import Scheme

CHUNK = 64  # images in one forward pass


def quantize(
    model: nn.Module,
    calibration: Loader,
    *,
    method: Method = "min-max",
    scheme: Scheme | None = None,
    images: int = 512,
    max_drop: float | None = None,
    validation: Loader | None = None,
) -> Quantized:
    """Quantize a trained model with the ranges that its activations have on training images.

    Args:
        model: maps float32 images (B, C, H, W) to logits (B, classes). It is left as it is; a copy is quantized.
        calibration: training images, as the model takes them; of their labels nothing is used.
        method: how the range of an activation is chosen. ``min-max``: all values that occurred; ``histogram``: torchao's
            search over a histogram; ``percentile``: without the outermost 0.01 %; ``mse``: with the smallest squared error;
            ``entropy``: with the smallest loss of information.
        scheme: what to quantize to; None: `Scheme()`.
        images: at most so many of the first epoch.
        max_drop: the accuracy, in percentage points, that may be lost on `validation`: the layers whose quantization
            costs most stay in floats until it is kept. None: every layer is quantized, whatever it costs.
        validation: images to choose those layers on.

    Raises:
        UsageError: the calibration images are not from the training split, the validation images are not from the
            validation split, only one of `max_drop` and `validation` is given, a setting is impossible, or the scheme
            excludes a layer that does not exist.
        DeploymentError: the model cannot be captured.
    """
    scheme = scheme or Scheme()
    require_role(calibration.role, ("train",), "calibrate")
    if (max_drop is None) != (validation is None):
        raise UsageError("max_drop is measured on validation images: pass both max_drop and validation, or neither.")
    batch = first_images(calibration, images)
    if max_drop is not None and validation is not None:
        from cookbook.quantization.sensitivity import most_layers_within

        return most_layers_within(model, batch, validation, max_drop=max_drop, scheme=scheme, method=method)
    return quantize_on(model, batch, method=method, scheme=scheme)


def quantize_on(
    model: nn.Module, images: Tensor, *, method: Method = "min-max", scheme: Scheme | None = None, notes: tuple[str, ...] = ()
) -> Quantized:
    """Quantize with the ranges on images that are at hand as one tensor; `quantize` says the rest.

    Args:
        model: as in `quantize`, or a graph that `capture` returned.
        images: float32 (N, C, H, W), from the training split, which nothing here can check.
        method: as in `quantize`, as for `scheme`.
        notes: further sentences for the report.

    Raises:
        UsageError: as in `quantize`, like `DeploymentError`.
    """
    scheme = scheme or Scheme()
    prepared = prepare(model, images[:2], scheme, method=method)
    calibrate(prepared, images)
    return quantized(convert(prepared), scheme, method, images, images=len(images), notes=notes)


def calibrate(prepared: QuantizableGraph, images: Tensor) -> None:
    """Show a prepared graph float32 images (N, C, H, W) on its device, in eval mode, without gradients.

    Raises:
        UsageError: there are no images.
    """
    if not len(images):
        raise UsageError("There are no images to calibrate on: pass at least one.")
    prepared.eval()
    parts = images.split(CHUNK)
    with torch.inference_mode(), progress_bar("calibrating", len(parts)) as advance:
        for part in parts:
            prepared(part)
            advance("")
