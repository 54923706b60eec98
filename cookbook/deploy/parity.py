"""Does the deployed file compute what the model computes? (lesson 00, completed in lesson 07)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.models import eval_mode


@dataclass(frozen=True)
class Parity:
    """How far two implementations of one model are apart on the same images.

    Attributes:
        largest: maximum absolute difference of logits, in units of the reference's standard deviation.
        mean: mean absolute difference in the same unit.
        agreement: share of images with the same predicted class, 0 to 1.
        images: images compared.
    """

    largest: float
    mean: float
    agreement: float
    images: int

    def __str__(self) -> str:
        return (
            f"{self.images} images: largest difference {self.largest:.1e}, mean {self.mean:.1e} of the logits' scale; "
            f"same class on {self.agreement:.2%}"
        )


def parity(model: nn.Module, runtime: Callable[[Tensor], Tensor], images: Tensor) -> Parity:
    """Compare `runtime` with `model` in eval mode on float32 images (B, C, H, W) on the model's device.

    The differences are given in units of the standard deviation of the model's logits, because a
    tolerance in absolute numbers means nothing for a model of another scale.

    Raises:
        UsageError: there are no images, or the two outputs differ in shape.
    """
    if not len(images):
        raise UsageError("There are no images to compare the two models on: pass at least one.")
    with eval_mode(model), torch.inference_mode():
        reference = model(images).double().cpu()
    deployed = runtime(images).double().cpu()
    if deployed.shape != reference.shape:
        raise UsageError(f"The outputs differ in shape: {tuple(reference.shape)} and {tuple(deployed.shape)}.")
    scale = reference.std(correction=0).clamp_min(torch.finfo(torch.float32).tiny)
    difference = (deployed - reference).abs() / scale
    agreement = (deployed.argmax(1) == reference.argmax(1)).double().mean()
    return Parity(difference.max().item(), difference.mean().item(), agreement.item(), len(images))
