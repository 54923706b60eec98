"""Does the deployed file compute what the model computes? (lesson 00, completed in lesson 07)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.models import eval_mode

OUT_OF_RANGE = ("ten times", "shifted")  # the kinds of images that no training prepares a network for


@dataclass(frozen=True)
class Parity:
    """How far two implementations of one model are apart on the same images.

    Attributes:
        largest: maximum absolute difference of logits, in units of the reference's standard deviation.
        typical: the median over the images of each one's largest difference, in the same unit; one image on
            which a network amplifies rounding moves it little, a file that computes something else moves it.
        mean: mean absolute difference in the same unit.
        agreement: share of images with the same predicted class, 0 to 1.
        images: images compared.
    """

    largest: float
    typical: float
    mean: float
    agreement: float
    images: int

    def __str__(self) -> str:
        return (
            f"{self.images} images: largest difference {self.largest:.1e}, mean {self.mean:.1e} of the logits' scale; "
            f"same class on {self.agreement:.2%}"
        )


@dataclass(frozen=True)
class ParityReport:
    """Parity on images of several kinds.

    Attributes:
        cases: by the name of the kind, such as ``all zero``.
    """

    cases: Mapping[str, Parity]

    @property
    def worst(self) -> Parity:
        """The case with the largest difference; one that is not a number is worse than any."""
        return max(self.cases.values(), key=lambda case: math.inf if math.isnan(case.largest) else case.largest)

    @property
    def agreement(self) -> float:
        """Share of all compared images with the same predicted class, 0 to 1."""
        images = sum(case.images for case in self.cases.values())
        return sum(case.agreement * case.images for case in self.cases.values()) / images

    def __str__(self) -> str:
        width = max(map(len, self.cases))
        lines = [f"{'images':<{width}}  number  largest     mean  same class"]
        for name, case in self.cases.items():
            lines.append(f"{name:<{width}}  {case.images:>6}  {case.largest:.1e}  {case.mean:.1e}  {case.agreement:>10.2%}")
        return "\n".join(lines)


def parity(model: nn.Module, runtime: Callable[[Tensor], Tensor], images: Tensor) -> Parity:
    """Compare `runtime` with `model` in eval mode on float32 images (B, C, H, W) on the model's device.

    The differences are given in units of the standard deviation of the model's logits, because a
    tolerance in absolute numbers means nothing for a model of another scale.

    Raises:
        UsageError: there are no images, the model does not return one tensor, or the two outputs
            differ in shape.
    """
    if not len(images):
        raise UsageError("There are no images to compare the two models on: pass at least one.")
    with eval_mode(model), torch.inference_mode():
        reference = model(images)
    if not isinstance(reference, Tensor):
        raise UsageError(f"{type(model).__name__} returns a {type(reference).__name__}: wrap it so that it returns one tensor.")
    return compare(reference, runtime(images))


def parity_suite(model: nn.Module, runtime: Callable[[Tensor], Tensor], images: Tensor, *, seed: int = 0) -> ParityReport:
    """Compare the two on images of many kinds, because a file may be right on the usual ones only.

    The kinds: the images themselves; far out of range (ten times as large, and shifted by ten of
    their standard deviations), where a missing clamp shows; noise of their mean and deviation; all
    zero; a single image; and an odd batch, where a batch size that was baked in shows.

    Args:
        model: on the device of `images`.
        runtime: the deployed model.
        images: float32 (B, C, H, W), in the range that the model was trained for.
        seed: of the noise.

    Raises:
        UsageError: as for `parity`.
    """
    if not len(images):
        raise UsageError("There are no images to compare the two models on: pass at least one.")
    deviation, mean = torch.std_mean(images, correction=0)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
    odd = len(images) - 1 if len(images) > 3 and len(images) % 2 == 0 else len(images)
    kinds = {
        "in range": images,
        "ten times": 10 * images,
        "shifted": images + 10 * deviation,
        "noise": mean + deviation * noise,
        "all zero": torch.zeros_like(images[:2]),
        "batch of 1": images[:1],
        "odd batch": images[:odd] if odd % 2 and odd > 1 else images[:1].repeat_interleave(3, 0),
    }
    return ParityReport({name: parity(model, runtime, kind) for name, kind in kinds.items()})


def compare(reference: Tensor, deployed: Tensor) -> Parity:
    """Compare two outputs (B, classes, …) for the same images, in units of the reference's standard deviation.

    Raises:
        UsageError: they differ in shape, or have no dimension of classes.
    """
    reference, deployed = reference.double().cpu(), deployed.double().cpu()
    if deployed.shape != reference.shape:
        raise UsageError(f"The outputs differ in shape: {tuple(reference.shape)} and {tuple(deployed.shape)}.")
    if reference.ndim < 2:
        raise UsageError(f"The outputs have the shape {tuple(reference.shape)}: one row of classes an image was expected.")
    scale = reference.std(correction=0).clamp_min(torch.finfo(torch.float32).tiny)
    difference = (deployed - reference).abs() / scale
    agreement = (deployed.argmax(1) == reference.argmax(1)).double().mean()
    typical = difference.flatten(1).amax(1).quantile(0.5)
    return Parity(difference.max().item(), typical.item(), difference.mean().item(), agreement.item(), len(reference))
