"""Batched augmentation on the device where the images are: crop, flip, erase, resolution (lesson 01)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cookbook.errors import UsageError


@dataclass(frozen=True)
class Augmentation:
    """What happens at random to a training image. The default changes nothing.

    Attributes:
        crop: the image is shifted by up to this many pixels in each direction; zeros come in.
        flip: mirror left and right with probability 1/2.
        erase: probability of covering a rectangle of 2 to 33 % of the area, aspect ratio 0.3 to
            3.3, with the training mean (Zhong et al., Random Erasing, arXiv 1708.04896).
        resolutions: pairs (first epoch, pixels): progressive resizing. Early epochs see smaller,
            hence cheaper, images. Empty: always the full size. Must begin at epoch 0 and ascend.
    """

    crop: int = 0
    flip: bool = False
    erase: float = 0.0
    resolutions: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise UsageError(f"crop is {self.crop}: use 0 or more pixels.")
        if not 0 <= self.erase <= 1:
            raise UsageError(f"erase is {self.erase}: use a probability from 0 to 1.")
        epochs = [epoch for epoch, _ in self.resolutions]
        if self.resolutions and (epochs[0] != 0 or epochs != sorted(set(epochs))):
            raise UsageError(f"resolutions {self.resolutions} must begin at epoch 0 and ascend.")
        if any(pixels < 1 for _, pixels in self.resolutions):
            raise UsageError(f"resolutions {self.resolutions} must name positive sizes in pixels.")

    def resolution_at(self, epoch: int) -> int | None:
        """Return the size in pixels for this epoch, or None for the images' own size."""
        sizes = [pixels for first, pixels in self.resolutions if first <= epoch]
        return sizes[-1] if sizes else None


def crop_and_flip(images: Tensor, crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift and mirror each image on its own, all in one gather.

    Args:
        images: any dtype, shape (N, C, H, W).
        generator: on the device of `images`.

    Returns:
        A new tensor of the same shape and dtype.
    """
    count, channels, height, width = images.shape
    device = images.device

    def shifts() -> Tensor:
        return torch.randint(0, 2 * crop + 1, (count, 1), generator=generator, device=device)

    rows = torch.arange(height, device=device) + shifts()
    columns = torch.arange(width, device=device) + shifts()
    if flip:
        mirrored = torch.rand((count, 1), generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (crop,) * 4)
    index = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(count, 1, -1)
    return padded.flatten(2).gather(2, index.expand(-1, channels, -1)).view(images.shape)


def erase_rectangles(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Cover a random rectangle with zeros (the mean, when the images are normalized) in some images.

    Args:
        images: float, shape (N, C, H, W).
        probability: of an image being touched at all.
        generator: on the device of `images`.
    """
    count, _, height, width = images.shape
    device = images.device
    draws = torch.rand((5, count), generator=generator, device=device)
    area = (0.02 + 0.31 * draws[0]) * height * width
    aspect = torch.exp((2 * draws[1] - 1) * torch.log(torch.tensor(10 / 3, device=device)))
    tall = (area * aspect).sqrt().clamp(1, height)
    wide = (area / aspect).sqrt().clamp(1, width)
    top = draws[2] * (height - tall)
    left = draws[3] * (width - wide)
    row = torch.arange(height, device=device)[None, :] + 0.5
    column = torch.arange(width, device=device)[None, :] + 0.5
    inside_rows = (row >= top[:, None]) & (row < (top + tall)[:, None])
    inside_columns = (column >= left[:, None]) & (column < (left + wide)[:, None])
    touched = draws[4] < probability
    covered = touched[:, None, None] & inside_rows[:, :, None] & inside_columns[:, None, :]
    return images.masked_fill(covered[:, None], 0.0)


def resize(images: Tensor, pixels: int) -> Tensor:
    """Resize float images of shape (N, C, H, W) to `pixels` squared, smoothed against aliasing."""
    if images.shape[-2:] == (pixels, pixels):
        return images
    return F.interpolate(images, size=(pixels, pixels), mode="bilinear", antialias=True)
