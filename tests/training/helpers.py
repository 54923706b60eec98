"""A model and data small enough for a test, with everything in them that a resume could get wrong."""

from __future__ import annotations

import torch
from torch import nn

from cookbook.data import Augmentation, ResidentLoader, Split
from cookbook.data.splits import Role
from cookbook.training import Recipe


def small_split(size: int = 48, role: Role = "train", seed: int = 7) -> Split:
    """Return grey 8×8 images of two classes that differ in brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 2
    noise = torch.randint(0, 128, (size, 1, 8, 8), generator=generator)
    images = (noise + 100 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return Split(images, labels, role, ("dark", "bright"), (0.4,), (0.25,))


def small_model(seed: int = 0) -> nn.Module:
    """Return a convolution with BatchNorm and dropout: buffers and random numbers both matter."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(256, 2)
    )


def small_loader(split: Split | None = None, batch_size: int = 8, seed: int = 3) -> ResidentLoader:
    """Return a loader with every augmentation switched on."""
    return ResidentLoader(
        split or small_split(), batch_size, augmentation=Augmentation(crop=1, flip=True, erase=0.5), seed=seed
    )


RICH_RECIPE = Recipe(
    epochs=3, learning_rate=0.05, optimizer="adamw", accumulate=2, clip_norm=1.0, ema_decay=0.9, label_smoothing=0.1, seed=11
)
