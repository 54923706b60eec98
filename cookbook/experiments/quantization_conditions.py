"""Images under which quantization is said to fail: corrupted ones, and training sets with a long tail (lesson 05)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cookbook.data import Split
from cookbook.errors import UsageError

SEED = 5


def _noise(images: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return images + 38 * torch.randn(images.shape, generator=generator)


def _blur(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _contrast(images: Tensor) -> Tensor:
    return images * 0.4 + 0.6 * images.mean((1, 2, 3), keepdim=True)


def _brightness(images: Tensor) -> Tensor:
    return images + 76


# after Hendrycks and Dietterich, arXiv 1903.12261: one of each family, at a severity in the middle
CORRUPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": _noise, "blur": _blur, "contrast": _contrast, "brightness": _brightness,
}  # fmt: skip


def corrupted(split: Split, kind: str) -> Split:
    """Return the split with every image corrupted in the same way, always the same one.

    Args:
        split: its mean and standard deviation, by which images are normalized, stay.
        kind: ``noise`` (Gaussian, 0.15 of the range), ``blur`` (mean of 3×3 pixels), ``contrast`` (0.4 of it is left) or
            ``brightness`` (0.3 of the range is added); values stay within a byte.

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in CORRUPTIONS:
        raise UsageError(f"The corruption is {kind!r}: use one of {', '.join(CORRUPTIONS)}.")
    images = CORRUPTIONS[kind](split.images.float()).round().clamp(0, 255).to(torch.uint8)
    return replace(split, images=images)


def long_tailed(split: Split, imbalance: float = 100.0) -> Split:
    """Return the split with exponentially fewer images of each further class (Cui et al., arXiv 1901.05555, section 5.1).

    Args:
        split: balanced, as Fashion-MNIST is. Of every class the first images stay.
        imbalance: images of the first class for one of the last; 1 or more.

    Raises:
        UsageError: the imbalance is below 1, or leaves a class without images.
    """
    if imbalance < 1:
        raise UsageError(f"imbalance is {imbalance}: use 1 or more.")
    classes = len(split.classes)
    counts = torch.bincount(split.labels, minlength=classes)
    kept = [int(counts[label] * imbalance ** (-label / max(classes - 1, 1))) for label in range(classes)]
    if min(kept) == 0:
        raise UsageError(f"An imbalance of {imbalance:g} leaves a class without images: use a smaller one, or more images.")
    mask = torch.cat([(split.labels == label).nonzero()[:number, 0] for label, number in enumerate(kept)]).sort().values
    return replace(split, images=split.images[mask], labels=split.labels[mask])
